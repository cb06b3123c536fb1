"""A job watched by server-sent events, on a real server with a real worker; and what a listener
does or waits for, with a job that the test itself moves on."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from starlette.testclient import TestClient

from middleware_api import contract
from middleware_api.api import event_stream
from middleware_api.contract import InferenceState, Progress, TaskType
from middleware_api.embedded.middleware import Embedded, embedded
from middleware_api.embedded.server import embedded_app
from middleware_api.records import InferenceJob
from middleware_api.settings import Settings
from tests.server import Server

MODELS = {"Stable-diffusion": ["tiny.safetensors"]}


def watch(server: Server, job_id: str) -> Iterator[dict[str, Any]]:
    with server.client.stream("GET", f"/inference/v2/{job_id}/events", timeout=60) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def test_a_job_is_watched_to_its_end(studio: Server) -> None:
    job_id = studio.submit(task_type="txt2img", models=MODELS, width=64, height=64, steps=100)
    seen = list(watch(studio, job_id))
    assert seen[0]["status"] == "inprogress"
    assert seen[-1]["status"] == "succeed"
    assert seen[-1]["image_names"] == ["image_0.png"]
    fractions = [event["progress"] for event in seen]
    assert fractions == sorted(fractions)
    assert any(0 < fraction < 1 for fraction in fractions)
    assert len(list(watch(studio, job_id))) == 1, "a finished job has one thing to tell"


def test_a_stream_ends_with_the_server(own_studio: Server) -> None:
    """Ctrl-C does not wait for those who only watch; a second one leaves no worker behind."""
    job_id = own_studio.submit(task_type="txt2img", models=MODELS, width=512, height=512, steps=500)
    events = watch(own_studio, job_id)
    next(events)
    own_studio.process.send_signal(signal.SIGINT)
    assert all(event["status"] == "inprogress" for event in events)
    own_studio.stop()
    assert own_studio.process.returncode == 0


def test_an_unknown_job_and_a_stranger_are_refused(studio: Server) -> None:
    assert studio.client.get("/inference/v2/ghost/events").status_code == 404
    assert httpx.get(f"{studio.url}/inference/v2/ghost/events").status_code == 401


TOKEN = "the deployment's own token"
JOB = InferenceJob(
    id="job",
    owner="anna",
    created_at=1.0,
    state=InferenceState.IN_PROGRESS,
    task_type=TaskType.TXT2IMG,
    endpoint_id="endpoint",
    endpoint_name="studio",
    checkpoints=(),
)


@pytest.fixture
def middleware(tmp_path: Path) -> Iterator[Embedded]:
    """Not started: nothing happens to its one job but what a test does."""
    settings = Settings("127.0.0.1", 0, tmp_path, TOKEN, None, 3600.0)
    made = embedded(settings, "http://store.test")
    made.records.add(JOB)
    yield made
    made.database.close()


class Listener:
    """A server's half of one request. `heard` gets all that has come so far, and says whether
    that is enough: then the caller hangs up."""

    def __init__(self, heard: Callable[[str], bool]) -> None:
        self.text = ""
        self._heard = heard
        self._has_asked = False
        self._hung_up = anyio.Event()

    async def listen(self, middleware: Embedded) -> None:
        """Until the stream ends; it must, within seconds."""
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},  # uvicorn's
            "method": "GET",
            "scheme": "http",
            "path": f"/inference/v2/{JOB.id}/events",
            "query_string": b"",
            "headers": [(b"x-api-key", TOKEN.encode())],
        }
        with anyio.fail_after(5):
            await embedded_app(middleware)(scope, self._receive, self._send)

    async def _receive(self) -> dict[str, object]:
        if not self._has_asked:
            self._has_asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._hung_up.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message.get("body"):
            self.text += message["body"].decode()
            if self._heard(self.text):
                self._hung_up.set()


def test_a_stream_ends_when_the_caller_hangs_up(middleware: Embedded) -> None:
    listener = Listener(lambda text: True)
    anyio.run(listener.listen, middleware)
    assert listener.text.count("event: job") == 1


def test_a_job_that_tells_nothing_is_still_heard_of(
    middleware: Embedded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_stream, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(event_stream, "HEARTBEAT_SECONDS", 0.05)
    listener = Listener(lambda text: text.count(": still there") == 2)
    anyio.run(listener.listen, middleware)
    assert listener.text.count("event: job") == 1


def test_a_job_that_is_deleted_ends_its_stream(middleware: Embedded) -> None:
    def delete(text: str) -> bool:
        middleware.records.remove(JOB)
        return False

    listener = Listener(delete)
    anyio.run(listener.listen, middleware)
    assert listener.text.count("event: job") == 1


def test_a_first_preview_is_told_even_when_nothing_else_is_new(middleware: Embedded) -> None:
    def move_on(text: str) -> bool:
        count = text.count("event: job")
        progress = Progress(
            step=1,
            total_steps=2,
            fraction=0.5,
            phase="sampling",
            started_at=2.0,
            updated_at=3.0,
            has_preview=count > 1,
        )
        middleware.objects.write(contract.progress_key(JOB.id), json.dumps(progress).encode())
        return count == 3

    listener = Listener(move_on)
    anyio.run(listener.listen, middleware)
    events = [
        json.loads(line.removeprefix("data: "))
        for line in listener.text.splitlines()
        if line.startswith("data: ")
    ]
    assert [event["preview_url"] is None for event in events] == [True, True, False]
    assert [event["progress"] for event in events] == [0.0, 0.5, 0.5]


def test_a_server_that_holds_no_connection_points_to_the_route_that_answers_at_once(
    middleware: Embedded,
) -> None:
    app = embedded_app(middleware, stopping=None)
    client = TestClient(app, headers={"x-api-key": TOKEN})  # not entered: nothing is started
    refused = client.get(f"/inference/v2/{JOB.id}/events")
    assert (refused.status_code, refused.json()["code"]) == (501, "not_available")
    assert f"/inference/get-inference-job?jobID={JOB.id}" in refused.json()["error"]
    assert client.get("/inference/v2/ghost/events").status_code == 404
    client.close()
