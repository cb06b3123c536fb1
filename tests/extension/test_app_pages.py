"""A journey through each page of the tab, in a real browser."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from tests.extension.browsing import Visit, app, sync_api
from tests.extension.browsing import browser as browser  # a fixture
from tests.extension.pretend_cloud import CHECKPOINT, TOKEN, PretendCloud, serve
from tests.extension.test_datasets import drawing

PAGES = (
    "Generate", "Connection", "Endpoints", "Models", "Jobs", "Data sets", "Training", "Merge",
)  # fmt: skip


class Studio(NamedTuple):
    """One host that several browsers look at."""

    cloud: PretendCloud
    address: str
    folder: Path


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    cloud, folder = PretendCloud(polls=0), tmp_path_factory.mktemp("studio")
    with serve(cloud) as url, app(folder, url, TOKEN) as address:
        yield Studio(cloud, address, folder)


def generated(visit: Visit, prompt: str) -> None:
    visit.open("Generate")
    visit.generate(prompt)
    visit.page.wait_for_selector("#sdaws_status :text('Pictures made:')", timeout=30_000)


def until(page, holds: Callable[[], bool]) -> None:
    """Wait for what the page does elsewhere; its requests pass through this very thread."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "not within 20 s"
        page.wait_for_timeout(20)


def count(visit: Visit, selector: str, number: int) -> None:
    """Wait until that many are in view."""
    sync_api.expect(visit.page.locator(f"{selector}:visible")).to_have_count(number, timeout=15_000)


def test_an_endpoint_is_created_and_deleted_on_its_card(browser, studio):
    visit = Visit(browser, studio.address)
    page = visit.page
    visit.open("Endpoints")
    page.wait_for_selector("#sdaws_endpoints :text('pretend-1')")
    page.fill("#sdaws_endpoint_name input, #sdaws_endpoint_name textarea", "portraits")
    page.click("#sdaws_create_endpoint")
    card = page.locator(".sdaws-panel", has_text="portraits")
    card.wait_for()
    # The first click asks; “Keep”, which has the focus, takes it back.
    card.get_by_text("Delete…").click()
    card.get_by_text("Its running jobs stop").wait_for()
    page.keyboard.press("Enter")
    card.get_by_text("Its running jobs stop").wait_for(state="hidden")
    assert "portraits" in studio.cloud.endpoints
    card.get_by_text("Delete…").click()
    card.get_by_text("Yes, delete it").click()
    card.wait_for(state="detached")
    assert studio.cloud.endpoints == ["pretend-1"]
    # A WebUI that runs already may make the pictures: its address is asked for.
    assert "engine" not in studio.cloud.ordered[0]
    page.click("#sdaws_engine input")
    page.click("#sdaws_engine li:has-text('webui')")
    page.fill("#sdaws_webui_url input, #sdaws_webui_url textarea", "http://studio:7860")
    page.click("#sdaws_create_endpoint")
    page.locator(".sdaws-panel", has_text="pretend-2").wait_for()
    sent = studio.cloud.ordered[1]
    assert (sent["engine"], sent["webui_url"]) == ("webui", "http://studio:7860")
    # A machine of AWS brings its bounds and its price while idle.
    page.click("#sdaws_machine input")
    page.click("#sdaws_machine li:has-text('ml.g5.xlarge')")
    page.wait_for_selector("#sdaws_idle_cost :text('Idle, it costs nothing')")
    page.click("#sdaws_scales input")
    page.wait_for_selector("#sdaws_idle_cost :text('$1.41 / h')")
    assert visit.complaints == []


def test_a_job_is_opened_collected_run_again_and_deleted(browser, studio):
    visit = Visit(browser, studio.address)
    page = visit.page
    generated(visit, "a fox at night")
    mine = studio.cloud.jobs[-1]
    visit.open("Jobs")
    count(visit, "#sdaws_jobs .sdaws-card", 1)
    page.click("#sdaws_jobs .sdaws-card:has-text('To collect')")
    page.wait_for_function(
        "[...document.querySelectorAll('#sdaws_job .sdaws-pictures img')]"
        ".some((picture) => picture.naturalWidth > 0)"
    )
    assert page.input_value("#sdaws_job textarea").startswith("a fox at night\n")
    page.click("#sdaws_job button:has-text('Collect')")
    page.wait_for_selector("#sdaws_jobs_message :text('Pictures saved here:')")
    saved = list((studio.folder / "cloud-pictures").iterdir())
    assert len(saved) == mine.count
    page.click("#sdaws_job button:has-text('Re-run')")
    page.wait_for_selector("#sdaws_jobs_message :text('Sent again')")
    # Nobody touches the page: it sees by itself that the new job has finished.
    page.wait_for_selector("#sdaws_job :text('Finished')", timeout=15_000)
    page.click("text=← All jobs")
    count(visit, "#sdaws_jobs .sdaws-card", 2)
    page.click("#sdaws_collect_all")
    count(visit, "#sdaws_jobs .sdaws-card:has-text('Collected')", 2)
    assert len(list((studio.folder / "cloud-pictures").iterdir())) == 2 * mine.count
    page.click("#sdaws_jobs .sdaws-card >> nth=1")
    page.click("#sdaws_job button:has-text('Delete…')")
    page.click("#sdaws_job button:has-text('Yes, delete it')")
    count(visit, "#sdaws_jobs .sdaws-card", 1)
    assert mine not in studio.cloud.jobs
    assert TOKEN not in page.content()
    assert visit.complaints == []


def test_a_running_job_is_followed_and_cancelled(browser, studio):
    visit = Visit(browser, studio.address)
    studio.cloud.polls = 1000
    visit.generate("x")
    visit.page.wait_for_selector("#sdaws_status .sdaws-progress")
    visit.open("Jobs")
    visit.page.click("#sdaws_jobs .sdaws-card:has-text('Running')")
    visit.page.wait_for_selector("#sdaws_job .sdaws-progress")
    visit.page.click("#sdaws_job button:has-text('Cancel this job')")
    visit.page.wait_for_selector("#sdaws_job :text('Cancelled')")
    assert studio.cloud.jobs[-1].state == "cancelled"
    studio.cloud.polls = 0


def test_two_browsers_never_see_each_others_jobs(browser, studio):
    first, second = (Visit(browser, studio.address) for _ in range(2))
    generated(first, "only mine")
    second.open("Jobs")
    second.page.wait_for_selector("#sdaws_jobs :text('No jobs yet')")
    generated(second, "only yours")
    for visit in (first, second):
        visit.open("Jobs")
        count(visit, "#sdaws_jobs .sdaws-card", 1)
    # What the first browser was given opens nothing for the second.
    link = first.page.get_attribute("#sdaws_jobs .sdaws-listing", "data-sdaws-watch")
    mine = second.page.get_attribute("#sdaws_jobs .sdaws-listing", "data-sdaws-watch")
    user = "user=browser-"
    stolen = mine.replace(mine[mine.index(user) :][:37], link[link.index(user) :][:37])
    assert stolen != mine
    assert second.page.request.get(f"{studio.address}/{stolen}").status == 403


def test_filters_show_what_fits(browser, studio):
    visit = Visit(browser, studio.address)
    generated(visit, "x")
    visit.open("Jobs")
    count(visit, "#sdaws_jobs .sdaws-card", 1)
    visit.page.click("#sdaws_tab_jobs input >> nth=0")
    visit.page.click("li:has-text('Failed')")
    visit.page.wait_for_selector("#sdaws_jobs :text('No job fits')")


def test_checkpoints_are_merged_into_one(browser, studio):
    visit = Visit(browser, studio.address)
    page = visit.page
    studio.cloud.polls = 4
    visit.open("Merge")
    page.click("#sdaws_merge_a input")
    page.click(f"#sdaws_merge_a li:has-text('{CHECKPOINT}')")
    page.click("#sdaws_merge_run")
    page.wait_for_selector(":text('Choose model B too')")
    page.click("#sdaws_merge_method label:has-text('No interpolation')")
    page.wait_for_selector("#sdaws_merge_b", state="hidden")
    page.click("#sdaws_merge_run")
    page.wait_for_selector("#sdaws_merge_progress .sdaws-progress")
    page.wait_for_selector("#sdaws_merge_progress :text('a checkpoint you can choose')")
    assert studio.cloud.merges[-1]["interp_method"] == "No interpolation"
    studio.cloud.polls = 0


@pytest.mark.parametrize(("width", "theme"), [(1280, "dark"), (768, "light")])
def test_every_page_fits_and_every_control_has_a_name(browser, studio, width, theme):
    visit = Visit(browser, studio.address, width, theme)
    for name in PAGES:
        visit.open(name)
        visit.page.wait_for_selector(f".tab-nav button.selected:has-text('{name}')")
        wide = visit.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        assert wide <= 0, f"{name} is {wide} px too wide"
        assert visit.page.evaluate(NAMELESS) == [], name


# Controls in view without a label, a name, or text.
NAMELESS = """
[...document.querySelectorAll("input, textarea, select, button")].filter((one) =>
    one.offsetParent !== null && one.type !== "file" &&
    !(one.labels && one.labels.length) && !one.closest("label") && !one.closest("fieldset") &&
    !one.getAttribute("aria-label") && !one.title && !one.innerText.trim() &&
    !one.closest(".block")?.querySelector("label, [data-testid='block-info']"))
    .map((one) => one.outerHTML.slice(0, 200))
"""


def test_a_model_is_renamed_and_the_rename_taken_back(browser, studio):
    before = list(studio.cloud.checkpoints.all)
    there = studio.cloud.checkpoints.add("VAE", "old name.safetensors")
    studio.cloud.checkpoints.add("VAE", "taken.safetensors")
    failed = studio.cloud.checkpoints.add("Lora", "lost.pt")
    failed.state, failed.error, failed.can_retry = "Fail", "The GPU was lost.", True
    visit = Visit(browser, studio.address)
    page = visit.page
    visit.open("Models")
    rows = page.locator("#sdaws_checkpoints .sdaws-row:not(.sdaws-row-head)")
    mine = rows.filter(has_text="old name.safetensors")
    mine.get_by_text("Rename…").click()
    # The part before the ending is selected: what is typed takes its place.
    page.keyboard.type("taken")
    page.keyboard.press("Enter")
    page.wait_for_selector(":text('The name is in use.')")
    mine.get_by_text("Rename…").click()
    page.keyboard.press("Escape")
    mine.get_by_text("Rename…").click()
    mine.locator("[data-sdaws-answer]").fill("new name.safetensors")
    mine.get_by_text("Rename", exact=True).click()
    rows.filter(has_text="new name.safetensors").wait_for()
    assert there.name == "new name.safetensors"
    page.click("#sdaws_models_message button:has-text('Undo')")
    mine.wait_for()
    assert there.name == "old name.safetensors"
    lost = rows.filter(has_text="lost.pt")
    lost.get_by_text("The GPU was lost.").wait_for()
    lost.get_by_text("Try again").click()
    lost.get_by_text("In the cloud", exact=True).wait_for()
    studio.cloud.checkpoints.all[:] = before


def test_a_folder_is_looked_at_captioned_sent_and_changed_in_the_cloud(browser, studio):
    folder = studio.folder / "my dogs"
    folder.mkdir()
    for seed in (1, 2):
        drawing(seed, (900, 450)).save(folder / f"{seed}.png")
    shutil.copyfile(folder / "1.png", folder / "again.png")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "2.txt").write_text("an old caption")
    visit = Visit(browser, studio.address)
    page = visit.page
    visit.open("Data sets")
    page.fill("#sdaws_folder input, #sdaws_folder textarea", str(folder))
    page.click("#sdaws_folder_look")
    cards = page.locator("#sdaws_pictures .sdaws-picture")
    sync_api.expect(cards).to_have_count(4, timeout=15_000)
    cards.nth(3).get_by_text("no picture that can be read").wait_for()
    cards.nth(2).get_by_text("The same file as").wait_for()
    page.wait_for_function(
        "[...document.querySelectorAll('#sdaws_pictures img')].every((one) => one.naturalWidth)"
    )
    # Of 900 × 450 the bucket of 704 × 320 keeps all of the width, and not of the height.
    kept = cards.nth(0).locator(".sdaws-kept")
    assert kept.evaluate("one => [one.style.left, one.style.width]") == ["0%", "100%"]
    assert float(kept.evaluate("one => parseFloat(one.style.height)")) < 95
    assert cards.nth(1).locator("textarea").input_value() == "an old caption"
    cards.nth(0).locator("textarea").fill("sks dog in the grass")
    cards.nth(1).locator("textarea").fill("a dog")
    page.keyboard.press("Tab")
    caption = folder / "2.txt"
    until(page, lambda: (folder / "1.txt").exists() and caption.read_text() == "a dog")
    assert (folder / "1.txt").read_text() == "sks dog in the grass"
    cards.nth(1).get_by_text("Leave it out").click()
    cards.nth(1).get_by_text("Left out").wait_for()
    cards.nth(1).get_by_text("Take it in").click()
    cards.nth(1).get_by_text("Leave it out").wait_for()
    page.fill("#sdaws_dataset_name input, #sdaws_dataset_name textarea", "dogs")
    page.click("#sdaws_dataset_send")
    panel = page.locator("#sdaws_datasets .sdaws-panel", has_text="dogs")
    panel.get_by_text("Enabled").wait_for()
    made = studio.cloud.datasets.get("dogs")
    assert set(made.files) == {"1.png", "1.txt", "2.png", "2.txt"}
    panel.get_by_text("Look", exact=True).click()
    there = page.locator("#sdaws_dataset .sdaws-picture")
    sync_api.expect(there).to_have_count(2, timeout=15_000)
    there.nth(0).locator("img").wait_for()
    assert there.nth(0).locator("textarea").input_value() == "sks dog in the grass"
    there.nth(0).locator("textarea").fill("a sks dog")
    there.nth(0).locator("textarea").blur()
    until(page, lambda: made.files["1.txt"] == b"a sks dog")
    there.nth(1).get_by_text("Take it out").click()
    sync_api.expect(there).to_have_count(1, timeout=15_000)
    assert set(made.files) == {"1.png", "1.txt"}
    page.click("text=← All data sets")
    panel.get_by_text("Disable", exact=True).click()
    panel.get_by_text("Enable", exact=True).wait_for()
    panel.get_by_text("Delete…").click()
    panel.get_by_text("Yes, delete it").click()
    panel.wait_for(state="detached")
    assert studio.cloud.datasets.all == []
    assert TOKEN not in page.content()
    assert visit.complaints == []


def test_pictures_that_are_dropped_are_kept_and_looked_at(browser, studio):
    source = studio.folder / "elsewhere.png"
    drawing(3).save(source)
    visit = Visit(browser, studio.address)
    page = visit.page
    visit.open("Data sets")
    page.wait_for_function(
        "document.querySelector('#sdaws_drop_link textarea, #sdaws_drop_link input').value"
    )
    page.set_input_files("#sdaws_folder_drop input[type=file]", str(source))
    card = page.locator("#sdaws_pictures .sdaws-picture")
    card.get_by_text("elsewhere.png").wait_for()
    kept = Path(page.input_value("#sdaws_folder input, #sdaws_folder textarea"))
    assert (kept / "elsewhere.png").read_bytes() == source.read_bytes()
    assert visit.complaints == []


def test_models_go_up_from_here_from_the_browser_and_from_a_url(browser, studio):
    for name in ("detail", "style"):
        path = studio.folder / "models" / "Lora" / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 50_000)
        Image.new("RGB", (64, 64), "teal").save(path.with_suffix(".png"))
    visit = Visit(browser, studio.address)
    page = visit.page
    visit.open("Models")
    rows = page.locator("#sdaws_checkpoints .sdaws-row:not(.sdaws-row-head)")
    rows.filter(has_text="detail.safetensors").locator("img").wait_for()
    page.check("#sdaws_checkpoints [data-sdaws-pick-all=Lora]")
    page.click("text=Upload what is selected")
    for name in ("detail", "style"):
        rows.filter(has_text=name).get_by_text("Here and in the cloud").wait_for()
    mine = rows.filter(has_text="detail.safetensors")
    mine.get_by_text("Disable", exact=True).click()
    mine.get_by_text("Enable", exact=True).click()
    mine.get_by_text("Here and in the cloud").wait_for()
    mine.get_by_text("Delete…").click()
    mine.get_by_text("The file here stays.").wait_for()
    mine.get_by_text("Yes, delete it").click()
    mine.get_by_text("Only here").wait_for()
    page.click("text=Another file")
    far = {"name": "far.safetensors", "mimeType": "", "buffer": b"far" * 100_000}
    page.set_input_files(".sdaws-browser input[type=file]", far)
    page.select_option(".sdaws-browser select", "VAE")
    page.click("[data-sdaws-browser-send]")
    page.wait_for_selector(".sdaws-browser-line :text('Uploaded')")
    rows.filter(has_text="far.safetensors").get_by_text("In the cloud", exact=True).wait_for()
    page.fill("#sdaws_import_url input, #sdaws_import_url textarea", "https://x.test/y.safetensors")
    page.click("#sdaws_import")
    page.wait_for_selector("#sdaws_checkpoints :text('The server fetches it:')")
    there = {one.name: one for one in studio.cloud.checkpoints.all}
    assert there["far.safetensors"].sha256 == hashlib.sha256(far["buffer"]).hexdigest()
    assert there["y.safetensors"].sources == ["https://x.test/y.safetensors"]
    assert TOKEN not in page.content()
    assert visit.complaints == []
