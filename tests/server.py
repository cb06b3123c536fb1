"""A real embedded server in a process of its own, for tests that tell a journey."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

REPOSITORY = Path(__file__).parents[1]


class Server:
    """`python -m middleware_api serve` on a free port; `client` carries its token."""

    # What serves, and what it is told on its command line.
    PROGRAM: tuple[str, ...] = ("middleware_api", "serve", "--port=0")

    def __init__(self, data_dir: Path, **environment: str) -> None:
        self.data_dir = data_dir
        self.process = subprocess.Popen(
            [sys.executable, "-m", *self.PROGRAM],
            cwd=REPOSITORY,
            env={**os.environ, "SDAWS_DATA_DIR": str(data_dir), **environment},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("listening on "), f"the server did not start: {line!r}"
        self.url = line.removeprefix("listening on ").strip()
        token = environment.get("SDAWS_API_TOKEN") or (data_dir / "api_token").read_text().strip()
        self.client = httpx.Client(base_url=self.url, headers={"x-api-key": token}, timeout=30)

    def stop(self) -> None:
        """Ctrl-C, and wait."""
        self.client.close()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(20)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def kill(self) -> None:
        """kill -9."""
        self.client.close()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def job(self, job_id: str) -> dict[str, Any]:
        """Row 3."""
        answer = self.client.get("/inference/get-inference-job", params={"jobID": job_id})
        assert answer.status_code == 200, answer.text
        job: dict[str, Any] = answer.json()
        return job

    def submit(self, **fields: object) -> str:
        """Row 6; returns the job's id."""
        answer = self.client.post("/inference/v2", json=fields)
        assert answer.status_code == 200, answer.text
        job_id: str = answer.json()["inference_id"]
        return job_id

    def finished(self, job_id: str) -> dict[str, Any]:
        """The job once it is in a final state."""
        return until(lambda: self.job(job_id), lambda job: job["status"] not in PASSING)

    def deploy(self, name: str = "studio", count: int = 1) -> dict[str, Any]:
        """An endpoint, once its deployment has ended."""
        answer = self.client.post(
            "/endpoints",
            json={
                "instance_type": "local",
                "initial_instance_count": count,
                "endpoint_name": name,
            },
        )
        assert answer.status_code == 200, answer.text
        return self.endpoint(name, lambda e: e["endpoint_status"] != "Creating")

    def endpoint(self, name: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The newest endpoint of that name, once it is as wanted."""
        return until(
            lambda: next(
                e for e in self.client.get("/endpoints").json() if e["endpoint_name"] == name
            ),
            wanted,
        )

    def upload(
        self, content: bytes, name: str = "tiny.safetensors", kind: str = "Stable-diffusion"
    ) -> str:
        """A checkpoint, Active; returns its id."""
        created = self.client.post(
            "/checkpoint",
            json={
                "checkpoint_type": kind,
                "filenames": [{"filename": name, "parts_number": 1, "size": len(content)}],
            },
        ).json()
        target = created["s3PresignUrl"][0]
        tags = []
        for part in target["parts"]:
            start = (part["PartNumber"] - 1) * target["part_size"]
            sent = httpx.put(part["url"], content=content[start : start + target["part_size"]])
            assert sent.status_code == 200, sent.text
            tags.append({"PartNumber": part["PartNumber"], "ETag": sent.headers["ETag"]})
        done = self.client.put(
            "/checkpoint",
            json={
                "checkpoint_id": created["checkpoint"]["id"],
                "status": "Active",
                "multi_parts_tags": {name: tags},
            },
        )
        assert done.status_code == 200, done.text
        checkpoint_id: str = created["checkpoint"]["id"]
        return checkpoint_id


PASSING = ("created", "inprogress")


def until(
    look: Callable[[], dict[str, Any]], wanted: Callable[[dict[str, Any]], bool]
) -> dict[str, Any]:
    """What `look` sees once it is as wanted; fails after 90 s with the last look."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        seen = look()
        if wanted(seen):
            return seen
        time.sleep(0.02)
    raise AssertionError(f"still not as wanted: {seen}")
