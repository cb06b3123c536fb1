"""Row 30 on a real server: from the request to an Active checkpoint, through kills and refusals."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from middleware_api.services.imports import PART_BYTES
from middleware_api.settings import SettingsError, read_settings
from tests.hostile_host import ETAG, TOKEN, Host, Request, Wire, answer, head
from tests.server import Server, until
from tests.weights import HEADER_BYTES, safetensors

WEIGHTS = safetensors(random.Random(3).randbytes(3 * PART_BYTES - HEADER_BYTES))
PATH = "/model.safetensors"
ENDED = ("Active", "Fail")


class Source:
    """A host on this machine; from two parts on its file comes byte by byte, or not at all, until
    it is let go or breaks off."""

    def __init__(self) -> None:
        self.host = Host()
        self.host.answers[PATH] = self._answer
        self.url = f"http://127.0.0.1:{self.host.port}{PATH}{TOKEN}"
        self.ranges: list[int] = []
        self.is_silent = False
        self._go = threading.Event()
        self._breaks_off = threading.Event()

    def let_go(self) -> None:
        self._go.set()

    def break_off(self) -> None:
        self._breaks_off.set()

    def stop(self) -> None:
        self.let_go()
        self.host.stop()

    def _answer(self, request: Request, wire: Wire) -> None:
        begin = 0
        if request.headers.get("if-range") == ETAG:
            begin = int(request.headers["range"].removeprefix("bytes=").removesuffix("-"))
        self.ranges.append(begin)
        size = len(WEIGHTS)
        headers = {"Content_Length": size - begin, "ETag": ETAG}
        if begin:
            headers["Content_Range"] = f"bytes {begin}-{size - 1}/{size}"
        wire.send(head("206 Partial Content" if begin else "200 OK", **headers))
        place = 2 * PART_BYTES + 1000
        wire.send(WEIGHTS[begin:place])
        while not self._go.wait(0.05) and not self._breaks_off.is_set():
            if not self.is_silent:
                wire.send(WEIGHTS[place : place + 1])
                place += 1
        if self._go.is_set():
            wire.send(WEIGHTS[place:])


@pytest.fixture
def source() -> Iterator[Source]:
    made = Source()
    yield made
    made.stop()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server that may import from this machine."""
    running = open_server(tmp_path / "var")
    yield running
    if running.process.poll() is None:
        running.stop()


def open_server(data_dir: Path) -> Server:
    return Server(data_dir, SDAWS_IMPORT_HOSTS="127.0.0.1, nas.local")


def begin(server: Server, *urls: str, **fields: object) -> dict[str, Any]:
    body = {"checkpointType": "Stable-diffusion", "modelUrl": list(urls), **fields}
    answer = server.client.post("/upload_checkpoint", json=body)
    assert answer.status_code == 200, answer.text
    checkpoint: dict[str, Any] = answer.json()["checkpoint"]
    return checkpoint


def checkpoint_of(server: Server, checkpoint_id: str) -> dict[str, Any]:
    answer = server.client.get("/checkpoint", params={"id": checkpoint_id})
    assert answer.status_code == 200, answer.text
    checkpoint: dict[str, Any] = answer.json()["checkpoint"]
    return checkpoint


def ended(server: Server, checkpoint_id: str) -> dict[str, Any]:
    return until(lambda: checkpoint_of(server, checkpoint_id), lambda seen: seen["status"] in ENDED)


def two_parts_have_arrived(server: Server) -> None:
    folder = server.data_dir / "multipart"
    until(lambda: {"parts": len(list(folder.glob("*/*-*")))}, lambda seen: seen["parts"] == 2)


def stored(server: Server, checkpoint: dict[str, Any]) -> bytes:
    folder = checkpoint["s3_location"].removeprefix("s3://embedded/")
    return (server.data_dir / "objects" / folder / "model.safetensors").read_bytes()


def test_an_import_answers_at_once_and_becomes_active(server: Server, source: Source) -> None:
    begun = begin(server, source.url, params={"message": "description"})
    shown = source.url.removesuffix(TOKEN)
    assert begun["status"] == "Initial"
    assert begun["type"] == "Stable-diffusion"
    assert begun["s3_location"] == f"s3://embedded/Stable-diffusion/checkpoint/{begun['id']}"
    assert begun["params"]["message"] == "description"
    assert {"created", "multipart_upload"} < set(begun["params"])
    assert (begun["sources"], begun["progress"], begun["error"]) == ([shown], 0, "")
    until(lambda: checkpoint_of(server, begun["id"]), lambda seen: seen["progress"] > 0.5)
    (listed,) = server.client.get("/checkpoints").json()["checkpoints"]
    assert (listed["name"], listed["size"]) == (["model.safetensors"], len(WEIGHTS))
    assert 0.5 < listed["progress"] < 1
    source.let_go()
    active = ended(server, begun["id"])
    assert (active["status"], active["progress"]) == ("Active", 1)
    assert active["params"]["multipart_upload"] == {"model.safetensors": None}
    assert stored(server, active) == WEIGHTS
    for path in ("/checkpoints", f"/checkpoint?id={begun['id']}"):
        assert "secret" not in server.client.get(path).text


def test_kill_in_the_middle_and_the_next_server_goes_on_from_the_parts(
    server: Server, source: Source
) -> None:
    begun = begin(server, source.url)
    two_parts_have_arrived(server)
    server.kill()
    source.let_go()
    again = open_server(server.data_dir)
    active = ended(again, begun["id"])
    assert active["status"] == "Active", active["error"]
    assert source.ranges == [0, 0, 2 * PART_BYTES]
    assert stored(again, active) == WEIGHTS
    again.stop()


@pytest.mark.parametrize(("is_silent", "seconds"), [(False, 4), (True, 12)])
def test_a_server_that_is_stopped_does_not_wait_for_an_import(
    server: Server, source: Source, is_silent: bool, seconds: float
) -> None:
    source.is_silent = is_silent
    begun = begin(server, source.url)
    two_parts_have_arrived(server)
    asked = time.monotonic()
    server.stop()
    assert server.process.returncode == 0
    assert time.monotonic() - asked < seconds
    source.let_go()
    again = open_server(server.data_dir)
    assert stored(again, ended(again, begun["id"])) == WEIGHTS
    assert source.ranges[-1] == 2 * PART_BYTES
    again.stop()


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
def test_giving_up_and_deleting_leave_nothing(server: Server, source: Source, method: str) -> None:
    begun = begin(server, source.url)
    two_parts_have_arrived(server)
    if method == "PUT":
        body = {"checkpoint_id": begun["id"], "status": "Fail"}
        answered = server.client.put("/checkpoint", json=body)
    else:
        answered = server.client.delete("/checkpoint", params={"id": begun["id"]})
    assert answered.status_code == 200, answered.text
    folder = server.data_dir / "multipart"
    until(lambda: {"uploads": len(list(folder.iterdir()))}, lambda seen: seen["uploads"] == 0)
    left = server.client.get("/checkpoints").json()["checkpoints"]
    assert [checkpoint["status"] for checkpoint in left] == (["Fail"] if method == "PUT" else [])
    assert not list((server.data_dir / "objects").rglob("*.safetensors"))


def test_a_source_that_dies_in_the_middle_is_asked_again(server: Server, source: Source) -> None:
    begun = begin(server, source.url)
    two_parts_have_arrived(server)
    whole = source.host.answers[PATH]
    source.host.answers[PATH] = answer(b"", "503 Service Unavailable")
    source.break_off()
    until(lambda: {"asked": len(source.host.requests)}, lambda seen: seen["asked"] > 2)
    assert checkpoint_of(server, begun["id"])["status"] == "Initial"
    source.host.answers[PATH] = whole
    source.let_go()
    active = ended(server, begun["id"])
    assert active["status"] == "Active", active["error"]
    assert stored(server, active) == WEIGHTS
    assert source.ranges == [0, 0, 2 * PART_BYTES]


def test_a_private_address_is_refused_unless_it_is_opened_by_name(
    tmp_path: Path, source: Source
) -> None:
    server = Server(tmp_path / "closed")
    failed = ended(server, begin(server, source.url)["id"])
    assert failed["status"] == "Fail"
    assert "'127.0.0.1' is not on the public internet" in failed["error"]
    assert source.host.requests == []
    server.stop()


def test_a_file_above_the_cap_fails_with_the_reason(tmp_path: Path, source: Source) -> None:
    bounds = {"SDAWS_IMPORT_HOSTS": "127.0.0.1", "SDAWS_IMPORT_MAX_BYTES": "1000"}
    server = Server(tmp_path / "small", **bounds)
    failed = ended(server, begin(server, source.url)["id"])
    assert "more than the 1000 bytes" in failed["error"]
    assert "secret" not in failed["error"]
    server.stop()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("imports") / "var")
    yield running
    running.stop()


FITTING: dict[str, Any] = {
    "checkpointType": "Lora",
    "modelUrl": ["https://weights.example/model.safetensors?token=secret"],
}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"checkpointType": "Nonsense"}, "checkpointType"),
        ({"modelUrl": []}, "modelUrl"),
        ({"modelUrl": "https://weights.example/secret"}, "modelUrl"),
        ({"modelUrl": FITTING["modelUrl"] * 2}, "the same URL twice"),
        ({"modelUrl": [f"https://weights.example/{n}" for n in range(21)]}, "20"),
        ({"modelUrl": ["https://weights.example/" + 4096 * "secret"]}, "4096"),
        ({"modelUrl": ["ftp://weights.example/secret"]}, "Only http and https"),
        ({"modelUrl": ["file:///etc/secret"]}, "Only http and https"),
        ({"modelUrl": ["https://me:secret@weights.example/model"]}, "user name or password"),
        ({"modelUrl": ["https:///secret"]}, "no host"),
        ({"modelUrl": ["http://[::1/secret"]}, "not a URL"),
        ({"params": "secret"}, "params"),
    ],
)
def test_what_is_no_import_is_refused_without_an_echo(
    shared: Server, changes: dict[str, object], says: str
) -> None:
    refused = shared.client.post("/upload_checkpoint", json={**FITTING, **changes})
    assert refused.status_code == 422, refused.text
    assert says in refused.text
    assert "secret" not in refused.text
    assert shared.client.post("/upload_checkpoint").status_code == 422


def test_an_import_needs_a_token_with_the_scope(shared: Server) -> None:
    assert httpx.post(f"{shared.url}/upload_checkpoint", json=FITTING).status_code == 401
    made = shared.client.post("/tokens", json={"user": "anna", "scopes": ["infer"]}).json()
    headers = {"x-api-key": made["token"]}
    refused = httpx.post(f"{shared.url}/upload_checkpoint", json=FITTING, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (403, "scope_missing")


def test_an_import_that_runs_takes_no_parts(server: Server, source: Source) -> None:
    begun = begin(server, source.url)
    upload = server.client.get(f"/checkpoint/{begun['id']}/upload")
    assert (upload.status_code, upload.json()["code"]) == (409, "importing")
    body = {"checkpoint_id": begun["id"], "status": "Active"}
    assert server.client.put("/checkpoint", json=body).json()["code"] == "importing"


def test_the_same_idempotency_key_is_the_same_import(server: Server, source: Source) -> None:
    headers = {"Idempotency-Key": "once"}
    body = {"checkpointType": "Lora", "modelUrl": [source.url]}
    first, second = (
        server.client.post("/upload_checkpoint", json=body, headers=headers).json()["checkpoint"]
        for _ in range(2)
    )
    assert first["id"] == second["id"]
    body["checkpointType"] = "VAE"
    other = server.client.post("/upload_checkpoint", json=body, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"SDAWS_IMPORT_HOSTS": "http://nas/"}, "'http://nas/' is none"),
        ({"SDAWS_IMPORT_HOSTS": "nas:8080"}, "'nas:8080' is none"),
        ({"SDAWS_IMPORT_MAX_BYTES": "lots"}, "must be a whole number"),
        ({"SDAWS_IMPORT_MAX_BYTES": "0"}, "must be from 1"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    tmp_path: Path, given: dict[str, str], says: str
) -> None:
    with pytest.raises(SettingsError, match=says):
        read_settings({"SDAWS_DATA_DIR": str(tmp_path), **given})


def test_hosts_are_read_from_a_list_with_commas(tmp_path: Path) -> None:
    hosts = "NAS.local, 10.0.0.5 ,fd00::5,,"
    given = {"SDAWS_DATA_DIR": str(tmp_path), "SDAWS_IMPORT_HOSTS": hosts}
    assert read_settings(given).import_hosts == {"nas.local", "10.0.0.5", "fd00::5"}
    assert read_settings({"SDAWS_DATA_DIR": str(tmp_path)}).import_hosts == frozenset()
