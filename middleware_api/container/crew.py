"""What the images start: `serve`, once for each GPU of the machine.

With one GPU or none this is `serve` itself. With several, this process answers /ping, and hands
each of /invocations to the worker that has least to do; SageMaker is told to send as many at once
as there are GPUs.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import threading
from collections.abc import Mapping, Sequence
from types import FrameType

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from middleware_api.container import logs, serve
from middleware_api.container.gpus import VARIABLE, visible_gpus
from middleware_api.container.kept_process import KeptProcess

PING_SECONDS = 1.5
_READY = "serving on "
_WEBUI_PORT = 7860


class CrewWorker:
    """One worker process; `jobs` are those that it has been handed and has not answered."""

    def __init__(self, gpu: str, environment: Mapping[str, str]) -> None:
        self.url = ""
        self.jobs = 0
        command = [sys.executable, "-m", serve.__name__, "--port=0"]
        what = f"The worker of GPU {gpu}"
        self.process = KeptProcess(what, command, self.is_healthy, self._hear, environment)

    def is_healthy(self) -> bool:
        """Whether it can take a job."""
        if not self.url:
            return False
        try:
            answer = httpx.get(f"{self.url}/ping", timeout=PING_SECONDS, trust_env=False)
        except httpx.HTTPError:
            return False
        return answer.is_success

    @property
    def is_up(self) -> bool:
        """Whether its process runs, and has been healthy once."""
        return not self.process.why_down

    def _hear(self, line: str) -> None:
        if line.startswith(_READY):
            self.url = line.removeprefix(_READY)
        else:
            sys.stderr.write(f"{line}\n")


def environment_of(place: int, gpu: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Of the worker at that place: its own GPU, and a WebUI of its own where it starts one."""
    own = {**environment, VARIABLE: gpu}
    if environment.get("SDAWS_WEBUI_COMMAND"):
        port = int(environment.get("SDAWS_WEBUI_PORT") or _WEBUI_PORT) + place
        own["SDAWS_WEBUI_PORT"] = str(port)
        own["SDAWS_WEBUI_URL"] = f"http://127.0.0.1:{port}"
        own["SDAWS_WEBUI_DATA"] = f"{environment.get('SDAWS_WEBUI_DATA', '/tmp/webui')}-{place}"
    return own


def crew_app(workers: Sequence[CrewWorker], stopping: threading.Event) -> Starlette:
    """The two routes of `serve` over several of them."""
    started: set[CrewWorker] = set()

    def ping(request: Request) -> Response:
        if stopping.is_set():
            return _refused(503, "worker_stopping", "This machine is shutting down.")
        running = [worker for worker in workers if worker.is_up]
        started.update(running)
        # All must have begun. Later one that is started again is waited for, while others work; one
        # that runs and cannot work is not.
        all_began = len(started) == len(workers)
        if not (running and all_began and all(worker.is_healthy() for worker in running)):
            return _refused(503, "engine_down", "A worker of this machine cannot work now.")
        return JSONResponse({"status": "ok"})

    async def invocations(request: Request) -> Response:
        running = [worker for worker in workers if worker.is_up]
        if not running:
            return _refused(503, "engine_down", "All workers of this machine are starting.")
        worker = min(running, key=lambda worker: worker.jobs)
        worker.jobs += 1
        try:
            return await _handed(worker, request)
        finally:
            worker.jobs -= 1

    routes = [Route("/ping", ping), Route("/invocations", invocations, methods=["POST"])]
    return Starlette(routes=routes)


async def _handed(worker: CrewWorker, request: Request) -> Response:
    headers = {name: value for name, value in request.headers.items() if name == "authorization"}
    async with httpx.AsyncClient(timeout=None, trust_env=False) as http:
        try:
            answer = await http.post(
                f"{worker.url}/invocations", content=await request.body(), headers=headers
            )
        except httpx.TransportError:
            return _refused(
                500,
                "worker_died",
                "The worker process ended over this job. It may need more memory than there is: "
                "ask for something smaller, or use a larger machine.",
            )
    return Response(answer.content, answer.status_code, media_type="application/json")


def _refused(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": message, "code": code}, status)


class _Server(serve.Server):
    """Passes the word on: its workers hand their jobs back while it waits for their answers."""

    def __init__(
        self,
        config: uvicorn.Config,
        url: str,
        stopping: threading.Event,
        workers: Sequence[CrewWorker],
    ) -> None:
        super().__init__(config, url, stopping)
        self._workers = workers

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        super().handle_exit(sig, frame)
        for worker in self._workers:
            worker.process.ask_to_stop()


def main(arguments: list[str] | None = None) -> None:
    """Runs until SIGTERM or SIGINT."""
    gpus = visible_gpus(os.environ)
    if len(gpus) < 2:
        serve.main(arguments)
        return
    parser = argparse.ArgumentParser(prog="python -m middleware_api.container.crew")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    options = parser.parse_args(arguments)
    logs.start(os.environ.get("SDAWS_LOGS") == "json")
    workers = [
        CrewWorker(gpu, environment_of(place, gpu, os.environ)) for place, gpu in enumerate(gpus)
    ]
    stopping = threading.Event()
    listener = socket.create_server((options.host, options.port))
    url = f"http://{options.host}:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        crew_app(workers, stopping), log_config=None, log_level="warning", lifespan="off"
    )
    for worker in workers:
        worker.process.start()
    try:
        _Server(config, url, stopping, workers).run(sockets=[listener])
    finally:
        for worker in workers:
            worker.process.stop()


if __name__ == "__main__":
    main()
