"""What the pages show and how they are kept up to date, without a browser."""

from __future__ import annotations

import asyncio
import io
import re
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import httpx
import pytest
import requests
from fastapi import FastAPI
from PIL import Image

from aws_extension import errors
from aws_extension.access import CloudAccess
from aws_extension.answers import parse_endpoint
from aws_extension.collected import CollectedJobs
from aws_extension.fake_transport import FakeAnswer, FakeTransport
from aws_extension.pages import connection, endpoints, html, jobs, links, merge
from aws_extension.pages.host import FolderHost
from aws_extension.pages.html import Value
from aws_extension.pages.live import add_routes
from aws_extension.settings import SettingsStore
from aws_extension.signed_urls import LINK_SECONDS, LinkRefused, UrlSeal
from middleware_api.contract import CheckpointType, MergeMethod, TaskType
from tests.extension.pretend_cloud import CHECKPOINT, TOKEN, PretendCloud
from tests.extension.pretend_datasets import PretendDataset

ALICE, BOB = "user-alice", "user-bob"
ALL = {"state": "", "task": "", "cursor": ""}
FORM = {"prompt": "a circle", "width": 64, "height": 64, "seed": 5}


class Studio:
    """A host with its routes, before a pretended cloud."""

    def __init__(self, folder, cloud=None) -> None:
        self.cloud = cloud or PretendCloud(polls=0)
        self.answer = self.cloud
        environ = {"SDAWS_API_URL": "http://cloud.test", "SDAWS_API_TOKEN": TOKEN}
        store = SettingsStore(environ, folder / ".config" / "connection.json")
        self.transport = FakeTransport(lambda sent: self.answer(sent))
        self.access = CloudAccess(store, self.transport)
        app = FastAPI()
        for _ in range(10):  # as often as the WebUI's UI is reloaded
            add_routes(app, self.access)
        self.routes = [route.path for route in app.routes if route.path.startswith("/sdaws")]
        self._app = app

    def get(self, link: str) -> httpx.Response:
        """What a browser gets behind a link of a page."""
        return self.ask("GET", link)

    def ask(self, method: str, link: str, **more) -> httpx.Response:
        """What it gets for any request."""

        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://host") as client:
                return await client.request(method, link, **more)

        return asyncio.run(ask())

    def job(self, user: str, **fields) -> str:
        """The id of a finished job."""
        client = self.access.client(user)
        models = {CheckpointType.STABLE_DIFFUSION: [CHECKPOINT]}
        sent = client.submit(TaskType.TXT2IMG, models, {**FORM, **fields})
        client.wait_for(sent.job_id)
        return sent.job_id


@pytest.fixture
def studio(tmp_path):
    return Studio(tmp_path)


def keys(listing: html.Listing) -> list[str]:
    return [card.key for card in listing.cards]


def signed_links(text: str) -> list[str]:
    return re.findall(r"sdaws/\w+/[^']+", text.replace("&amp;", "&"))


# Users


def test_each_user_sees_their_own_jobs_and_pictures(studio):
    mine, other = studio.job(ALICE), studio.job(BOB)
    assert keys(jobs.read_page(studio.access, ALICE, ALL)) == [mine]
    assert keys(jobs.read_page(studio.access, BOB, ALL)) == [other]
    with pytest.raises(errors.NotFound):
        jobs.read_one(studio.access, BOB, {"id": mine})
    # A picture that Alice has looked at is in the cache; Bob's link does not reach it.
    job = studio.access.client(ALICE).get_job(mine)
    assert studio.get(links.thumbnail(studio.access, job, ALICE)).status_code == 200
    assert studio.get(links.thumbnail(studio.access, job, BOB)).status_code == 404


def test_the_token_is_in_no_page_and_no_answer(studio):
    one = studio.job(ALICE)
    page = jobs.read_page(studio.access, ALICE, ALL)
    watch = links.watch(studio.access, "jobs", ALICE, ALL)
    shown = (
        html.listing(page, jobs.READ, watch)
        + jobs.read_one(studio.access, ALICE, {"id": one}).cards[0].content
    )
    assert signed_links(shown)
    for link in signed_links(shown):
        answer = studio.get(link)
        assert answer.status_code == 200
        assert TOKEN.encode() not in answer.content
    assert TOKEN not in shown


# Signed links


def test_a_link_cannot_be_altered_or_used_for_another(studio):
    job = studio.access.client(ALICE).get_job(studio.job(ALICE))
    link = links.picture(studio.access, job, 0, ALICE)
    assert studio.get(link).content.startswith(b"\x89PNG")
    for altered in (
        link.replace(ALICE, BOB),
        link.replace("/picture/", "/thumbnail/"),
        link.replace("index=0", "index=1"),
        re.sub(r"expires=\d+", "expires=99999999999", link),
        link.split("?")[0],
        link + "&more=1",
    ):
        assert studio.get(altered).status_code == 403, altered


def test_a_link_ends_and_stays_the_same_until_then():
    now = 1_000_000.0
    seal = UrlSeal(b"secret", lambda: now)
    link = seal.sign("sdaws/x", {"user": ALICE})
    params = dict(parse_qsl(urlsplit(link).query))
    assert seal.check("sdaws/x", params) == {"user": ALICE}
    now += LINK_SECONDS / 10
    assert seal.sign("sdaws/x", {"user": ALICE}) == link
    now += 2 * LINK_SECONDS
    with pytest.raises(LinkRefused, match="ended"):
        seal.check("sdaws/x", params)
    with pytest.raises(LinkRefused, match="not one of"):
        UrlSeal(b"another start", lambda: now).check("sdaws/x", params)


def test_a_caption_is_written_where_its_link_has_it_and_nowhere_else(studio, tmp_path):
    mine, other = tmp_path / "a.txt", tmp_path / "b.txt"
    link = links.caption(studio.access, mine)
    answer = studio.ask("POST", link, json={"text": " a dog "})
    assert (answer.status_code, mine.read_text()) == (200, "a dog")
    stolen = link.replace("a.txt", "b.txt")
    assert studio.ask("POST", stolen, json={"text": "x"}).status_code == 403
    assert not other.exists()
    assert studio.ask("POST", link, json={}).status_code == 422
    lost = links.caption(studio.access, mine / "below.txt")
    answer = studio.ask("POST", lost, json={"text": "x"})
    assert (answer.status_code, "cannot be written" in answer.json()["error"]) == (502, True)


def test_a_caption_of_a_data_set_is_written_there_and_it_stays_enabled(studio):
    files = {"a.png": b"a", "b.png": b"b", "b.txt": b"old"}
    made = PretendDataset("dogs", "Enabled", files)
    studio.cloud.datasets.all.append(made)
    for file in ("a.txt", "b.txt"):
        link = links.dataset_caption(studio.access, "dogs", file)
        assert studio.ask("POST", link, json={"text": "new"}).status_code == 200
    assert (made.files["a.txt"], made.files["b.txt"], made.state) == (b"new", b"new", "Enabled")
    assert studio.ask("POST", link, json={"text": ""}).status_code == 200
    assert "b.txt" not in made.files
    gone = links.dataset_caption(studio.access, "none", "a.txt")
    assert studio.ask("POST", gone, json={"text": "x"}).status_code == 404


BYTES = {"Content-Type": "application/octet-stream"}


def test_what_is_dropped_is_kept_by_its_name_alone(studio):
    path, _, query = links.drop(studio.access).partition("?")
    answer = studio.ask(
        "POST", f"{path}/17/my%20dog.png?{query}", content=b"picture", headers=BYTES
    )
    folder = Path(answer.json()["folder"])
    assert (folder / "my dog.png").read_bytes() == b"picture"
    assert folder.parent == studio.access.store.folder / "dropped"
    for name in ("..", ".hidden", "a%3Bb.png"):
        answer = studio.ask("POST", f"{path}/17/{name}?{query}", content=b"x", headers=BYTES)
        assert answer.status_code in (404, 405, 502), name
    assert (
        studio.ask("POST", f"{path}/up/a.png?{query}", content=b"x", headers=BYTES).status_code
        == 422
    )
    assert studio.ask("POST", f"{path}/17/a.png", content=b"x", headers=BYTES).status_code == 403
    assert [one.name for one in folder.iterdir()] == ["my dog.png"]


def test_a_picture_of_a_data_set_is_fetched_once(studio):
    content = io.BytesIO()
    Image.new("RGB", (600, 300), "teal").save(content, "PNG")
    made = PretendDataset("dogs", "Enabled", {"a.png": content.getvalue()})
    studio.cloud.datasets.all.append(made)
    (file,) = studio.access.dataset_views.files("dogs")
    link = links.dataset_picture(studio.access, "dogs", file)
    first = studio.get(link)
    assert first.content.startswith(b"\xff\xd8")
    made.files.clear()
    assert studio.get(link).content == first.content
    assert studio.get(link.replace("a.png", "b.png")).status_code == 403


# Live


def test_routes_are_added_once(studio):
    assert len(studio.routes) == len(set(studio.routes)) == 11


def test_a_look_answers_only_when_something_has_changed(studio):
    studio.cloud.polls = 5
    client = studio.access.client(ALICE)
    models = {CheckpointType.STABLE_DIFFUSION: [CHECKPOINT]}
    job_id = client.submit(TaskType.TXT2IMG, models, FORM).job_id
    watch = links.watch(studio.access, "jobs", ALICE, ALL)
    first = studio.get(watch).json()
    assert (first["busy"], [card["key"] for card in first["cards"]]) == (True, [job_id])
    assert studio.get(f"{watch}&seen={first['version']}").status_code == 204
    client.wait_for(job_id)
    then = studio.get(f"{watch}&seen={first['version']}").json()
    assert then["busy"] is False
    assert then["cards"][0]["version"] != first["cards"][0]["version"]


def test_a_silent_cloud_is_a_note_on_the_page_that_the_next_look_replaces(studio):
    studio.job(ALICE)
    watch = links.watch(studio.access, "jobs", ALICE, ALL)
    studio.answer = lambda sent: FakeAnswer(503, {"error": "It is being updated.", "code": "x"})
    away = studio.get(watch).json()
    assert "being updated" in away["note"]
    studio.answer = studio.cloud
    assert studio.get(f"{watch}&seen={away['version']}").json()["note"] == ""


# Jobs


def test_filters_and_pages(studio):
    for seed in range(jobs.JOBS_PER_PAGE + 1):
        studio.job(ALICE, seed=seed)
    studio.cloud.jobs[3].state = "failed"
    first = jobs.read_page(studio.access, ALICE, ALL)
    assert len(first.cards) == jobs.JOBS_PER_PAGE
    older = {**ALL, "cursor": str(jobs.JOBS_PER_PAGE)}
    assert keys(jobs.read_page(studio.access, ALICE, older)) == ["job-1"]
    failed = {**ALL, "state": "failed"}
    assert keys(jobs.read_page(studio.access, ALICE, failed)) == ["job-4"]
    nothing = jobs.read_page(studio.access, ALICE, {**ALL, "task": "img2img"})
    assert "No job fits" in nothing.note


def test_older_and_newer_lead_back_to_where_one_was():
    pages = jobs.Pages()
    assert pages.older("a").older("b").newer().here == "a"
    assert pages.older("a").newer().newer().here == ""
    assert pages.older("") == pages


def test_collecting_saves_the_files_as_they_came_and_is_remembered(studio, tmp_path):
    job_id = studio.job(ALICE, batch_size=2)
    assert "To collect" in jobs.read_page(studio.access, ALICE, ALL).cards[0].content
    host = FolderHost(tmp_path / "pictures")
    saved = jobs.collect(studio.access, host, job_id, ALICE)
    assert [path.read_bytes() for path in sorted(host.folder.iterdir())] == [
        studio.cloud.jobs[0].picture(index) for index in range(2)
    ]
    assert "Collected" in jobs.read_page(studio.access, ALICE, ALL).cards[0].content
    again = CollectedJobs(studio.access.collected.folder)  # another start of the host
    assert again.files(job_id) == tuple(saved)
    studio.access.forget_job(job_id, ALICE)
    assert not again.has(job_id)


def test_a_disk_that_takes_nothing_is_told_and_the_job_stays_to_be_collected(studio, tmp_path):
    job_id = studio.job(ALICE)
    (tmp_path / "pictures").write_text("a file where the folder would be")
    with pytest.raises(errors.CloudError, match="could not be saved here"):
        jobs.collect(studio.access, FolderHost(tmp_path / "pictures"), job_id, ALICE)
    assert not studio.access.collected.has(job_id)


def test_a_note_that_cannot_be_written_costs_nothing(tmp_path):
    (tmp_path / "collected").write_text("a file where the folder would be")
    collected = CollectedJobs(tmp_path / "collected")
    collected.add("job-1")
    assert not collected.has("job-1")


# Endpoints

NOW = datetime(2026, 1, 2, 5, 4, 5, tzinfo=timezone.utc)


def endpoint(**changed):
    return parse_endpoint(
        {
            "EndpointDeploymentJobId": "d-1",
            "startTime": "2026-01-02 03:04:05.000006",
            "endpoint_name": "portraits",
            "endpoint_status": "InService",
            "status": "success",
            "instance_type": "ml.g5.xlarge",
            "current_instance_count": 1,
            "error": "",
            "autoscaling_enabled": True,
            "min_instance_count": 0,
            "max_instance_count": 3,
            "price_per_hour": 1.408,
            "cost_since_start": 2.8,
            **changed,
        }
    )


def card(**changed) -> str:
    return endpoints.show([endpoint(**changed)], NOW).cards[0].content


def test_an_endpoints_card_tells_what_it_is_and_costs():
    text = card()
    for told in ("portraits", "Ready", "ml.g5.xlarge", "1 (0–3)", "$1.41", "$2.80", "1 h 59 min"):
        assert told in text
    assert "Asleep" in card(current_instance_count=0)
    assert "not known" in card(price_per_hour=None)
    assert "The quota is 0." in card(endpoint_status="Failed", error="The quota is 0.")
    assert endpoints.show([endpoint(endpoint_status="Creating")], NOW).is_busy
    assert "No endpoint yet" in endpoints.show([endpoint(endpoint_status="Deleted")], NOW).note


def test_an_age_alone_changes_no_card_within_its_minute():
    at = [NOW.replace(second=10), NOW.replace(second=40), NOW + timedelta(minutes=2)]
    first, second, third = (endpoints.show([endpoint()], now).version for now in at)
    assert first == second != third


@pytest.mark.parametrize(
    ("order", "told"),
    [
        (endpoints.Order("local", 2, True, 0, 1), "It costs nothing"),
        (endpoints.Order("ml.g5.xlarge", 1, True, 0, 2), "Idle, it costs nothing"),
        (endpoints.Order("ml.g5.xlarge", 1, True, 2, 2), "$2.82 / h"),
        (endpoints.Order("ml.g5.xlarge", 3, False, 0, 1), "$4.22 / h"),
        (endpoints.Order("ml.own.type", 1, False, 0, 1), "does not know it"),
    ],
)
def test_the_form_says_what_the_endpoint_costs_idle(order, told):
    assert told in endpoints.idle_cost(order)


def test_what_the_form_offers_begins_with_the_servers_own_kind_of_machine():
    local, rented = endpoints.offered_machines(True), endpoints.offered_machines(False)
    assert endpoints.instance_type(local[0]) == "local"
    assert endpoints.instance_type(rented[0]) == "ml.g4dn.xlarge"
    assert set(local) == set(rented)
    assert "$0.74 an hour" in rented[0]


def test_a_fixed_number_sends_no_bounds_and_a_scaling_one_its_own():
    assert endpoints.Order("local", 2, True, 0, 1).autoscaling is None
    scaling = endpoints.Order("ml.g5.xlarge", 4, True, 2, 1)
    assert (scaling.autoscaling.at_least, scaling.autoscaling.at_most) == (2, 2)
    assert scaling.first_count == 2


# Connection


def fails(status: int, body: object) -> object:
    return lambda sent: FakeAnswer(status, body)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (fails(401, {"error": "The token is wrong.", "code": "t"}), "refuses the token"),
        (fails(403, {"error": "No right.", "code": "t"}), "may not use it"),
        (fails(500, {"error": "A fault.", "code": "t"}), "a fault of its own"),
        (fails(404, b"<html>Not Found</html>"), "it is not the API"),
        (fails(403, {"message": "Forbidden"}), "it is not the API"),
        (fails(200, b"<html>Welcome to nginx</html>"), "but not like the API"),
        (fails(200, {"hello": "world"}), "does not fit"),
        (fails(302, b""), "redirects"),
        (lambda sent: requests.ConnectTimeout(), "does not answer in time"),
        (lambda sent: requests.ConnectionError(), "cannot be reached"),
        (lambda sent: requests.exceptions.SSLError(), "speaks no https"),
    ],
)
def test_a_failed_test_says_what_it_means_at_once(studio, answer, told):
    studio.answer = answer
    text = connection.test_result(studio.access)
    assert told in text
    assert "sdaws-bad" in text
    assert len(studio.transport.sent) == 1  # nobody waits for the tries that come after


# Merge


def test_a_merge_names_the_models_that_are_missing():
    with pytest.raises(errors.CloudError, match="Choose model B and C too"):
        merge.checked(merge.Merge(MergeMethod.ADD_DIFFERENCE, "a.safetensors"))
    one = merge.Merge(MergeMethod.NO_INTERPOLATION, "a.safetensors")
    assert merge.checked(one) is one


def test_a_merge_sends_what_its_method_uses(studio):
    form = ("Weighted sum", "a.safetensors", "b.safetensors", "left-over.safetensors")
    sent = merge._merge(*form, 0.25, True, " mine ", "None", "")
    job_id = studio.access.client(ALICE).run_merge(sent)
    assert studio.cloud.merges == [
        {
            "interp_method": "Weighted sum", "primary_model_name": "a.safetensors",
            "secondary_model_name": "b.safetensors", "multiplier": 0.25, "save_as_half": True,
            "custom_name": "mine",
        }
    ]  # fmt: skip
    shown = merge.read_one(studio.access, ALICE, {"id": job_id})
    assert "a checkpoint you can choose" in shown.cards[0].content


# HTML


def test_what_comes_from_outside_is_escaped():
    evil = "<script>alert('x')</script>"
    for made in (
        html.notice("bad", Value(evil)),
        html.facts(("Name", Value(evil))),
        html.send_button("Go", "box", f"delete {evil}"),
        html.listing(html.Listing((html.Card(evil, ""),)), "reader", evil),
        card(endpoint_name=evil, error=evil),
    ):
        assert "<script>" not in made
        assert "'x'" not in made


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.25, "4.2 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (7260, "2 h 1 min"),
        (180000, "2 d 2 h"),
    ],
)
def test_lengths_of_time(seconds, text):
    assert html.duration(seconds) == text


@pytest.mark.parametrize(
    ("dollars", "text"),
    [(1.408, "$1.41"), (0.0016, "$0.0016"), (0.00001, "< $0.0001"), (0, "$0.00")],
)
def test_sums(dollars, text):
    assert html.money(dollars) == text
