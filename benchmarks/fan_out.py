"""`python -m benchmarks.fan_out` makes a 4x4 grid side by side, as X/Y/Z plot's cells are.

The bars, as shares of the time on one worker: on two workers of one thread each, with the demo
checkpoint, at most 0.6; on four, with an engine that waits two seconds a picture as for a GPU, at
most 0.3. Needs as many processor cores as workers that compute.
"""

from __future__ import annotations

import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from aws_extension.client import CloudClient
from aws_extension.fan_out import Capacity, FanOut, Order
from aws_extension.uploader import upload_checkpoint
from middleware_api.contract import CheckpointType, TaskType
from middleware_api.embedded.middleware import embedded
from middleware_api.embedded.server import embedded_app
from middleware_api.embedded.worker import CONTAINER_PROGRAM
from middleware_api.settings import read_settings

DEMO = Path(__file__).parents[1] / "middleware_api" / "demo" / "demo.safetensors"
CELLS = 16
ROUNDS = 3


def main() -> int:
    """Prints the times and their ratios; 1 when a bar is missed."""
    computed = _ratio("demo checkpoint", CONTAINER_PROGRAM, workers=2, steps=40)
    waited = _ratio("2 s a picture", "benchmarks.waiting_worker", workers=4, steps=20)
    return 0 if computed <= 0.6 and waited <= 0.3 else 1


def _ratio(name: str, program: str, workers: int, steps: int) -> float:
    with tempfile.TemporaryDirectory() as folder, _server(Path(folder), program) as client:
        # The larger one first: with more workers than cores each is given one thread.
        for endpoint, count in (("many", workers), ("one", 1)):
            client.create_endpoint("local", count, endpoint)
        while not all(endpoint.is_ready for endpoint in client.list_endpoints()):
            time.sleep(0.2)
        upload_checkpoint(client, DEMO, CheckpointType.STABLE_DIFFUSION)
        for endpoint in ("one", "many"):
            _grid(client, endpoint, steps)  # loads the checkpoint
        ratios = []
        for _ in range(ROUNDS):
            one, many = (_grid(client, endpoint, steps) for endpoint in ("one", "many"))
            ratios.append(many / one)
            print(f"{name}: 1 worker {one:.1f} s, {workers} workers {many:.1f} s", flush=True)
    median = sorted(ratios)[ROUNDS // 2]
    print(f"{name}: {workers} workers take {median:.2f} of the time of 1")
    return median


def _grid(client: CloudClient, endpoint: str, steps: int) -> float:
    """Seconds until all pictures of a grid are here."""
    fields = {"prompt": "a red circle", "width": 64, "height": 64, "steps": steps, "cfg_scale": 5}
    models = {CheckpointType.STABLE_DIFFUSION: [DEMO.name]}
    since = time.monotonic()
    fan_out = FanOut(client, Capacity.of(client.list_endpoints(), endpoint).jobs_at_once)
    jobs = [
        fan_out.add(Order(TaskType.TXT2IMG, models, {**fields, "seed": seed}, endpoint))
        for seed in range(CELLS)
    ]
    results = [job.result() for job in jobs]
    fan_out.close()
    assert all(len(result.files) == 1 for result in results), results[0].failure
    return time.monotonic() - since


@contextmanager
def _server(folder: Path, program: str) -> Iterator[CloudClient]:
    settings = read_settings({}, data_dir=str(folder), port="0")
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    app = embedded_app(embedded(settings, url, program), lambda: server.should_exit)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield CloudClient(url, settings.api_token)
    finally:
        server.should_exit = True
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
