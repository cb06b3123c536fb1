"""The container's program: GET /ping and POST /invocations, as SageMaker asks for.

`python -m middleware_api.container.serve --port 8080` prints `serving on http://HOST:PORT` on
stdout once the engine can answer. Logs go to stderr, one line each, and never hold a prompt.
"""

from __future__ import annotations

import argparse
import hmac
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import diffusers.utils.logging
import torch
import transformers.utils.logging
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from middleware_api.container.engine import Engine
from middleware_api.container.errors import ContainerError, StorageUnreachable, Unauthorized
from middleware_api.container.job import JobRunner, Task, parse_invocation
from middleware_api.container.object_store import (
    DEFAULT_WEIGHTS_BYTES,
    Bucket,
    objects_of,
    open_storage,
)
from middleware_api.container.prompts import PromptEncoder
from middleware_api.container.tasks import tasks_of

logger = logging.getLogger("middleware_api.container")

DEFAULT_CACHE_BYTES = 6 * 1024**3  # one SD 1.5 in single precision and room beside it
"""Bound of the weights kept in memory when SDAWS_CACHE_BYTES is not set."""


@dataclass(frozen=True)
class Settings:
    """What the process is told from outside, read once. `objects` is a folder or a bucket."""

    objects: Path | Bucket
    cache_bytes: int
    threads: int
    worker_token: str

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> Settings:
        """Raises ValueError naming the variable that is missing or wrong."""
        numbers = {
            "SDAWS_CACHE_BYTES": DEFAULT_CACHE_BYTES,
            "SDAWS_THREADS": 1,
            "SDAWS_WEIGHTS_BYTES": DEFAULT_WEIGHTS_BYTES,
        }
        for name in numbers:
            value = environment.get(name, "")
            if value and not (value.isdecimal() and int(value) > 0):
                raise ValueError(f"{name} must be a whole number above 0, not {value!r}.")
            numbers[name] = int(value or numbers[name])
        return Settings(
            objects=objects_of(environment, numbers["SDAWS_WEIGHTS_BYTES"]),
            cache_bytes=numbers["SDAWS_CACHE_BYTES"],
            threads=numbers["SDAWS_THREADS"],
            worker_token=environment.get("SDAWS_WORKER_TOKEN", ""),
        )


def create_app(worker_token: str, runner: JobRunner) -> Starlette:
    """The two routes over one runner, which is used by one job at a time."""
    busy = threading.Lock()

    async def ping(request: Request) -> Response:
        if runner.stopping.is_set():
            return _error(503, "worker_stopping", "This worker is shutting down.")
        try:
            runner.storage.check()
        except StorageUnreachable as error:
            return _error(error.status, error.code, str(error))
        return JSONResponse({"status": "ok"})

    def run(body: bytes) -> Response:
        invocation = parse_invocation(body)
        job_id, since = invocation["job_id"], time.monotonic()
        with busy:
            logger.info("started job=%s task=%s", job_id, invocation["task_type"])
            try:
                result = runner.run(invocation)
            except ContainerError as error:
                logger.info("refused job=%s code=%s", job_id, error.code)
                return _error(error.status, error.code, str(error))
        seconds = time.monotonic() - since
        logger.info("finished job=%s status=%s seconds=%.2f", job_id, result["status"], seconds)
        return JSONResponse(result)

    async def invocations(request: Request) -> Response:
        try:
            _authorise(request, worker_token)
            return await run_in_threadpool(run, await request.body())
        except ContainerError as error:
            return _error(error.status, error.code, str(error))

    routes = [Route("/ping", ping), Route("/invocations", invocations, methods=["POST"])]
    return Starlette(routes=routes)


def _authorise(request: Request, token: str) -> None:
    given = request.headers.get("authorization", "").encode()
    if token and not hmac.compare_digest(given, f"Bearer {token}".encode()):
        raise Unauthorized("The worker token is missing or wrong.")


def _error(status: int, code: str, message: str) -> JSONResponse:
    return JSONResponse({"error": message, "code": code}, status)


class Server(uvicorn.Server):
    """Announces itself when it can answer, and ends with 0 on SIGTERM, its job stopped."""

    def __init__(self, config: uvicorn.Config, url: str, stopping: threading.Event) -> None:
        super().__init__(config)
        self._url, self._stopping = url, stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        print(f"serving on {self._url}", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Not the parent's: that one raises the signal again after closing down."""
        self._stopping.set()
        self.should_exit = True


def main(
    arguments: list[str] | None = None, tasks: Callable[[Engine], Mapping[str, Task]] = tasks_of
) -> None:
    """Runs until SIGTERM, SIGINT or, with --exit-with-parent, the end of stdin."""
    parser = argparse.ArgumentParser(prog="python -m middleware_api.container.serve")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    parser.add_argument(
        "--exit-with-parent", action="store_true", help="end when stdin reaches its end"
    )
    options = parser.parse_args(arguments)
    try:
        settings = Settings.from_environment(os.environ)
    except ValueError as error:
        parser.error(str(error))
    if options.exit_with_parent:
        threading.Thread(target=_exit_at_end_of_stdin, daemon=True).start()
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s"
    )
    transformers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(settings.threads)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stopping = threading.Event()
    engine = Engine(device, settings.cache_bytes, PromptEncoder())
    runner = JobRunner(tasks(engine), open_storage(settings.objects), stopping)
    listener = socket.create_server((options.host, options.port))
    url = f"http://{options.host}:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        create_app(settings.worker_token, runner),
        log_config=None,
        log_level="warning",
        lifespan="off",
    )
    Server(config, url, stopping).run(sockets=[listener])


def _exit_at_end_of_stdin() -> None:
    """Whoever started this process is gone: nobody waits for an answer, so end at once."""
    while os.read(0, 4096):
        pass
    os._exit(0)


if __name__ == "__main__":
    main()
