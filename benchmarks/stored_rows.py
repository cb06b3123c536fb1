"""`python -m benchmarks.stored_rows`: does a list page or a submit cost more when more is stored?

Two data folders, with few and with many jobs and checkpoints, are asked in turn through the whole
HTTP application. The bar: the median with many is at most 1.3 times that with few.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Collection
from pathlib import Path

import httpx

from middleware_api.contract import (
    CheckpointState,
    CheckpointType,
    DeploymentState,
    EndpointState,
    InferenceState,
    TaskType,
)
from middleware_api.embedded.middleware import Embedded, embedded
from middleware_api.embedded.server import embedded_app
from middleware_api.records import Checkpoint, CheckpointFile, Endpoint, InferenceJob
from middleware_api.settings import Settings

BAR = 1.3
TOKEN = "benchmark-token-of-no-value"
ENDPOINT_ID = "the-endpoint"
NEWEST = 1_700_000_000.0

ASKED = {
    "jobs, newest 100": "/inference/list-inference-jobs",
    "jobs, failed ones": "/inference/list-inference-jobs?status=failed",
    "jobs, two states, one type": (
        "/inference/list-inference-jobs?status=failed&status=succeed&task_type=img2img"
    ),
    "checkpoints, newest 100": "/checkpoints",
    "checkpoints, Active LoRAs": "/checkpoints?types=Lora&status=Active",
    "endpoints": "/endpoints",
}
SUBMIT = "submit a job"


def fill(middleware: Embedded, rows: int) -> None:
    """`rows` finished jobs and as many checkpoints, in all states, and an endpoint in service."""
    rng = random.Random(rows)
    middleware.database.rows("PRAGMA synchronous = OFF")  # of this thread, while it fills
    middleware.records.add(
        Endpoint(
            id=ENDPOINT_ID,
            owner="admin",
            created_at=NEWEST,
            name="studio",
            instance_type="local",
            initial_instance_count=1,
            deployment=DeploymentState.SUCCEEDED,
            state=EndpointState.IN_SERVICE,
        )
    )
    middleware.records.claim("endpoint-name/studio", ENDPOINT_ID)
    ends = (InferenceState.SUCCEEDED, InferenceState.FAILED, InferenceState.CANCELLED)
    for number in range(rows):
        at = NEWEST - rows + number
        middleware.records.add(
            InferenceJob(
                id=f"job-{number:08}",
                owner=f"user{number % 5}",
                created_at=at,
                state=rng.choice(ends),
                task_type=rng.choice((TaskType.TXT2IMG, TaskType.IMG2IMG)),
                endpoint_id=ENDPOINT_ID,
                endpoint_name="studio",
                checkpoints=(),
                started_at=at,
                completed_at=at + 1,
                image_names=("image_0.png",),
            )
        )
        middleware.records.add(_checkpoint(number, at, rng.choice(list(CheckpointType))))
    newest = _checkpoint(rows, NEWEST, CheckpointType.STABLE_DIFFUSION)
    middleware.records.add(newest)
    middleware.records.bind("checkpoint-name/Stable-diffusion/model.safetensors", newest.id)


def _checkpoint(number: int, at: float, kind: CheckpointType) -> Checkpoint:
    file = CheckpointFile(
        name="model.safetensors",
        key=f"{kind.value}/checkpoint/{number}/model.safetensors",
        upload_id="",
        parts=1,
        part_size=0,
        size=2_000_000_000,
    )
    return Checkpoint(
        id=f"checkpoint-{number:08}",
        owner="admin",
        created_at=at,
        type=kind,
        state=CheckpointState.ACTIVE,
        files=(file,),
    )


def client(folder: Path, rows: int) -> httpx.AsyncClient:
    """The application over a folder with that many rows; no worker runs, jobs only queue."""
    folder.mkdir()
    settings = Settings("127.0.0.1", 0, folder, TOKEN, None, 3600.0)
    middleware = embedded(settings, "http://benchmark")
    fill(middleware, rows)
    middleware.database.rows("PRAGMA synchronous = FULL")
    middleware.endpoints.invoke = middleware.queue.put  # type: ignore[method-assign]
    transport = httpx.ASGITransport(embedded_app(middleware))
    return httpx.AsyncClient(
        transport=transport, base_url="http://benchmark", headers={"x-api-key": TOKEN}
    )


async def measure(few: httpx.AsyncClient, many: httpx.AsyncClient, rounds: int) -> float:
    """Prints both medians of each act; returns the worst ratio."""
    worst = 0.0
    for name in (*ASKED, SUBMIT):
        seconds: tuple[list[float], list[float]] = ([], [])
        for _ in range(rounds):
            for side, into in zip((few, many), seconds, strict=True):
                into.append(await _time(side, name))
        medians = [statistics.median(times) * 1000 for times in seconds]
        ratio = medians[1] / medians[0]
        worst = max(worst, ratio)
        print(f"{name:30} {medians[0]:8.2f} ms {medians[1]:8.2f} ms   {ratio:5.2f}", flush=True)
    return worst


async def _time(side: httpx.AsyncClient, name: str) -> float:
    began = time.perf_counter()
    if name == SUBMIT:
        models = {"Stable-diffusion": ["model.safetensors"]}
        body = {"task_type": "txt2img", "models": models, "prompt": "x"}
        answer = await side.post("/inference/v2", json=body)
    else:
        answer = await side.get(ASKED[name])
    taken = time.perf_counter() - began
    answer.raise_for_status()
    return taken


def main(arguments: Collection[str] | None = None) -> int:
    """Exit code 0 when the bar is reached, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--few", type=int, default=1_000)
    parser.add_argument("--many", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        sides = []
        for rows in (options.few, options.many):
            began = time.monotonic()
            sides.append(client(Path(folder) / str(rows), rows))
            print(f"{rows} jobs and checkpoints stored in {time.monotonic() - began:.0f} s")
        worst = asyncio.run(measure(sides[0], sides[1], options.rounds))
    print(f"worst ratio {worst:.2f} (bar {BAR})")
    return 0 if worst <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
