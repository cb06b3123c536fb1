"""A job watched by server-sent events, on a real server with a real worker."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.engine_checkpoints import write_checkpoint
from tests.server import Server

MODELS = {"Stable-diffusion": ["tiny.safetensors"]}


@pytest.fixture
def studio(server: Server, tmp_path: Path) -> Server:
    server.upload(write_checkpoint(tmp_path / "tiny.safetensors").read_bytes())
    assert server.deploy()["endpoint_status"] == "InService"
    return server


def watch(server: Server, job_id: str) -> Iterator[dict[str, Any]]:
    with server.client.stream("GET", f"/inference/v2/{job_id}/events", timeout=60) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def test_a_job_is_watched_to_its_end(studio: Server) -> None:
    job_id = studio.submit(task_type="txt2img", models=MODELS, width=64, height=64, steps=200)
    seen = list(watch(studio, job_id))
    assert seen[0]["status"] == "inprogress"
    assert seen[-1]["status"] == "succeed"
    assert seen[-1]["image_names"] == ["image_0.png"]
    fractions = [event["progress"] for event in seen]
    assert fractions == sorted(fractions)
    assert any(0 < fraction < 1 for fraction in fractions)
    assert len(list(watch(studio, job_id))) == 1, "a finished job has one thing to tell"


def test_a_stream_ends_with_the_server(studio: Server) -> None:
    """Ctrl-C does not wait for those who only watch; a second one leaves no worker behind."""
    job_id = studio.submit(task_type="txt2img", models=MODELS, width=512, height=512, steps=500)
    events = watch(studio, job_id)
    next(events)
    studio.process.send_signal(signal.SIGINT)
    assert all(event["status"] == "inprogress" for event in events)
    studio.stop()
    assert studio.process.returncode == 0


def test_an_unknown_job_and_a_stranger_are_refused(server: Server) -> None:
    assert server.client.get("/inference/v2/ghost/events").status_code == 404
    assert httpx.get(f"{server.url}/inference/v2/ghost/events").status_code == 401
