"""Each GPU of a machine has a worker of its own: in the images and on one machine; AWS is told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from middleware_api import contract
from middleware_api.aws.endpoints import gpus_of
from middleware_api.container.crew import environment_of
from middleware_api.container.gpus import visible_gpus
from middleware_api.container.storage import FolderStorage
from middleware_api.contract import EngineName
from middleware_api.embedded.database import Database
from middleware_api.embedded.endpoints import ProcessEndpoints
from middleware_api.embedded.queue import JobQueue
from middleware_api.embedded.worker import WorkerSettings
from middleware_api.records import Endpoint
from tests.pretend_webui import free_port
from tests.server import REPOSITORY, until
from tests.test_endpoints_port import Heard


class Machine:
    """The images' program on a machine with two GPUs."""

    def __init__(self, root: Path) -> None:
        self.objects, self.webuis = FolderStorage(root / "objects"), root
        (root / "objects").mkdir()
        start = root / "webui.sh"
        start.write_text(
            'mkdir -p "$SDAWS_WEBUI_DATA" && exec "$PYTHON" -m tests.pretend_webui'
            ' --port "$SDAWS_WEBUI_PORT" --data-dir "$SDAWS_WEBUI_DATA"\n'
        )
        self.process = subprocess.Popen(
            [sys.executable, "-m", "middleware_api.container.crew", "--port=0"],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "PYTHON": sys.executable,
                "CUDA_VISIBLE_DEVICES": "0,1",
                "SDAWS_OBJECTS": str(root / "objects"),
                "SDAWS_ENGINE": "webui",
                "SDAWS_WEBUI_COMMAND": f"sh {start}",
                "SDAWS_WEBUI_DATA": str(root / "webui"),
                "SDAWS_WEBUI_PORT": str(free_port()),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        url = self.process.stdout.readline().removeprefix("serving on ").strip()
        self.client = httpx.Client(base_url=url, timeout=60)
        self.checkpoint: Any = {
            **{"type": "Stable-diffusion", "name": "a.safetensors", "key": "a.safetensors"},
            **{"size": 1, "sha256": ""},
        }
        self.objects.write("a.safetensors", b"a")

    def invoke(self, job_id: str, **fields: object) -> httpx.Response:
        params = f"txt2img/infer_v2/{job_id}/api_param.json"
        self.objects.write(params, json.dumps(fields).encode())
        body = {
            **{"job_id": job_id, "task_type": "txt2img", "params_key": params},
            **{"output_prefix": contract.output_prefix(job_id), "checkpoints": [self.checkpoint]},
        }
        return self.client.post("/invocations", json=body)

    def progress(self, job_id: str) -> dict[str, Any]:
        path = self.objects.root / contract.progress_key(job_id)
        return json.loads(path.read_text()) if path.exists() else {"step": 0}


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    running = Machine(tmp_path)
    yield running
    running.client.close()
    if running.process.poll() is None:
        running.process.kill()
    running.process.communicate(timeout=20)


def test_two_gpus_do_two_jobs_at_a_time(machine: Machine) -> None:
    first = machine.client.get("/ping")
    assert (first.status_code, first.json()["code"]) == (503, "engine_down")
    until(lambda: {"status": machine.client.get("/ping").status_code}, lambda s: s["status"] == 200)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(machine.invoke, f"j{n}", steps=60) for n in range(2)]
        answers = [job.result(timeout=30) for job in jobs]
        assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
        # Each has been shown the checkpoint by its own WebUI.
        assert len([*machine.webuis.glob("webui-*/models/Stable-diffusion/sdaws")]) == 2
        long = pool.submit(machine.invoke, "long", steps=5000)
        until(lambda: machine.progress("long"), lambda p: p["step"] > 0)
        machine.process.send_signal(signal.SIGTERM)
        answer = long.result(timeout=30)
    assert (answer.status_code, answer.json()["code"]) == (503, "worker_stopping")
    assert machine.process.wait(20) == 0


def test_each_worker_is_told_its_gpu_and_its_webui() -> None:
    told = environment_of(1, "3", {"SDAWS_WEBUI_COMMAND": "webui", "CUDA_VISIBLE_DEVICES": "2,3"})
    assert told["CUDA_VISIBLE_DEVICES"] == "3"
    assert told["SDAWS_WEBUI_URL"] == "http://127.0.0.1:7861"
    assert (told["SDAWS_WEBUI_PORT"], told["SDAWS_WEBUI_DATA"]) == ("7861", "/tmp/webui-1")
    assert environment_of(0, "0", {}) == {"CUDA_VISIBLE_DEVICES": "0"}


def test_gpus_are_counted_by_their_driver(tmp_path: Path) -> None:
    assert visible_gpus({"PATH": str(tmp_path)}) == []
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: A10G (UUID: GPU-1)'\necho 'GPU 1: A10G'\n")
    program.chmod(0o755)
    assert visible_gpus({"PATH": str(tmp_path)}) == ["0", "1"]
    assert visible_gpus({"PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "1"}) == ["1"]
    assert visible_gpus({"PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}) == []


def test_on_one_machine_workers_share_the_gpus_out(tmp_path: Path) -> None:
    database = Database(tmp_path / "queue.sqlite3")
    queue = JobQueue(database, time.time)
    # No such program: it is only looked at what each would be told.
    settings = WorkerSettings(tmp_path, threads=1, program="no.such.program")
    processes = ProcessEndpoints(queue, lambda _: settings, 10, gpus=("0", "1"))
    processes.tell(Heard())

    def gpus(name: str, count: int, engine: EngineName = EngineName.DIFFUSERS) -> list[str]:
        endpoint = Endpoint(
            id=name, owner="me", created_at=1.0, name=name, instance_type="local",
            initial_instance_count=count, engine=engine, webui_url="http://127.0.0.1:9",
        )  # fmt: skip
        processes.create(endpoint)
        return processes._running[name].gpus

    assert gpus("one", 1) == ["0"]
    assert gpus("two", 2) == ["1", "0"]
    assert gpus("box", 1, EngineName.WEBUI) == [""]
    assert gpus("three", 1) == ["1"]
    processes.stop()
    database.close()


def test_aws_is_told_how_many_jobs_a_machine_does_at_a_time() -> None:
    assert [gpus_of(f"ml.{kind}") for kind in ("g5.xlarge", "g5.12xlarge", "p4d.24xlarge")] == [
        *(1, 4, 8)
    ]
