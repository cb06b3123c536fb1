"""The container's program: GET /ping and POST /invocations, as SageMaker asks for.

`python -m middleware_api.container.serve --port 8080` prints `serving on http://HOST:PORT` on
stdout once it can take jobs. Logs go to stderr, one line each (in JSON with SDAWS_LOGS=json); what
we write there never holds a prompt, what a WebUI of ours writes is passed on as it is.
"""

from __future__ import annotations

import argparse
import hmac
import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from middleware_api.container import logs
from middleware_api.container.engines import (
    DiffusersSettings,
    OpenEngine,
    WorkerEngine,
    open_engine,
)
from middleware_api.container.errors import ContainerError, EngineDown, Unauthorized
from middleware_api.container.job import JobRunner, parse_invocation
from middleware_api.container.object_store import (
    DEFAULT_WEIGHTS_BYTES,
    Bucket,
    objects_of,
    open_storage,
)
from middleware_api.container.storage import Storage
from middleware_api.container.webui.driven import WebUiSettings
from middleware_api.contract import EngineName

logger = logging.getLogger("middleware_api.container")

DEFAULT_CACHE_BYTES = 6 * 1024**3  # one SD 1.5 in single precision and room beside it
"""Bound of the weights kept in memory when SDAWS_CACHE_BYTES is not set."""


@dataclass(frozen=True)
class Settings:
    """What the process is told from outside, read once. `objects` is a folder or a bucket."""

    objects: Path | Bucket
    engine: DiffusersSettings | WebUiSettings
    worker_token: str
    json_logs: bool = False

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
            engine=_engine(
                environment,
                DiffusersSettings(numbers["SDAWS_CACHE_BYTES"], numbers["SDAWS_THREADS"]),
            ),
            worker_token=environment.get("SDAWS_WORKER_TOKEN", ""),
            json_logs=environment.get("SDAWS_LOGS") == "json",
        )


def _engine(
    environment: Mapping[str, str], diffusers: DiffusersSettings
) -> DiffusersSettings | WebUiSettings:
    name = environment.get("SDAWS_ENGINE") or EngineName.DIFFUSERS.value
    if name == EngineName.DIFFUSERS.value:
        return diffusers
    if name == EngineName.WEBUI.value:
        return WebUiSettings.from_environment(environment)
    raise ValueError(
        f"SDAWS_ENGINE must be one of {', '.join(e.value for e in EngineName)}, not {name!r}."
    )


def create_app(worker_token: str, runner: JobRunner, engine: WorkerEngine) -> Starlette:
    """The two routes over one runner, which is used by one job at a time."""
    busy = threading.Lock()

    async def ping(request: Request) -> Response:
        if runner.stopping.is_set():
            return _error(503, "worker_stopping", "This worker is shutting down.")
        try:
            await run_in_threadpool(_check, runner.storage, engine)
        except ContainerError as error:
            return _error(error.status, error.code, str(error))
        return JSONResponse({"status": "ok"})

    def run(body: bytes) -> Response:
        invocation = parse_invocation(body)
        job_id, since = invocation["job_id"], time.monotonic()
        with busy, logs.about(job_id):
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


def _check(storage: Storage, engine: WorkerEngine) -> None:
    storage.check()
    engine.check()


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


def main(arguments: list[str] | None = None, open_engine: OpenEngine = open_engine) -> None:
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
    logs.start(settings.json_logs)
    try:
        engine = open_engine(settings.engine)
    except EngineDown as error:
        parser.exit(1, f"{error}\n")
    if options.exit_with_parent:
        threading.Thread(target=_exit_at_end_of_stdin, args=(engine,), daemon=True).start()

    stopping = threading.Event()
    runner = JobRunner(engine.tasks, open_storage(settings.objects), stopping)
    listener = socket.create_server((options.host, options.port))
    url = f"http://{options.host}:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        create_app(settings.worker_token, runner, engine),
        log_config=None,
        log_level="warning",
        lifespan="off",
    )
    try:
        Server(config, url, stopping).run(sockets=[listener])
    finally:
        engine.close()


def _exit_at_end_of_stdin(engine: WorkerEngine) -> None:
    """Whoever started this process is gone: nobody waits for an answer, so end at once."""
    while os.read(0, 4096):
        pass
    engine.kill()
    os._exit(0)


if __name__ == "__main__":
    main()
