"""One worker process: the inference container's own `serve` program, and how to talk to it."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import threading
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import httpx

from middleware_api.container.gpus import VARIABLE as GPUS_VARIABLE
from middleware_api.contract import EngineName, Invocation, InvocationResult

START_SECONDS = 120.0
STOP_SECONDS = 5.0
_READY = "serving on "
CONTAINER_PROGRAM = "middleware_api.container.serve"


class WorkerDied(Exception):
    """The process ended, or would not start; the message says how."""


class WorkerRefused(Exception):
    """The process answered that it cannot do the job; the message is its reason."""


class WorkerStopping(Exception):
    """The process was told to stop and hands its job back."""


@dataclass(frozen=True)
class WorkerSettings:
    """What each worker is given. `threads` is torch's; `job_seconds` bounds one invocation;
    `program` is a module that speaks as the container's own does; `webui_url` is where the WebUI of
    the engine `webui` is. `gpu` is the one that it may use, as CUDA names it; "" leaves it all."""

    objects_root: Path
    threads: int
    cache_bytes: int | None = None
    job_seconds: float = 3600.0
    program: str = CONTAINER_PROGRAM
    engine: EngineName = EngineName.DIFFUSERS
    webui_url: str = ""
    gpu: str = ""


class Worker:
    """A running `serve` process.

    Its standard input is a lifeline: when this server is gone, however it went, the pipe closes
    and the worker ends itself.
    """

    def __init__(self, settings: WorkerSettings, name: str) -> None:
        self._settings = settings
        self._token = secrets.token_urlsafe(24)
        self._last_words: deque[str] = deque(maxlen=20)
        self._name = name
        environment = {
            **os.environ,
            "SDAWS_OBJECTS": str(settings.objects_root),
            "SDAWS_THREADS": str(settings.threads),
            "SDAWS_WORKER_TOKEN": self._token,
            "SDAWS_ENGINE": settings.engine.value,
            "SDAWS_WEBUI_URL": settings.webui_url,
        }
        # The API's token is none of the container's business, nor is a bucket: it has a folder.
        for name in ("SDAWS_API_TOKEN", "SDAWS_BUCKET", "SDAWS_WEBUI_COMMAND"):
            environment.pop(name, None)
        if settings.engine is not EngineName.WEBUI:
            environment.pop("SDAWS_WEBUI_AUTH", None)
        if settings.gpu:
            environment[GPUS_VARIABLE] = settings.gpu
        if settings.cache_bytes is not None:
            environment["SDAWS_CACHE_BYTES"] = str(settings.cache_bytes)
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                settings.program,
                "--port=0",
                "--exit-with-parent",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[2],
            # Ctrl-C in the terminal is for the server; it stops its workers in good order.
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._relay_log, daemon=True)
        self._listener.start()
        self._client: httpx.Client | None = None

    def wait_until_ready(self) -> None:
        """Block until the engine can take a job. Raises WorkerDied."""
        # The pipe ends when the process is killed, so a timer bounds the wait.
        timer = threading.Timer(START_SECONDS, self.process.kill)
        timer.start()
        try:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                if line.startswith(_READY):
                    self._client = httpx.Client(
                        base_url=line.removeprefix(_READY).strip(),
                        headers={"Authorization": f"Bearer {self._token}"},
                        timeout=httpx.Timeout(self._settings.job_seconds, connect=5),
                        trust_env=False,  # a proxy has no business between the two
                    )
                    return
        finally:
            timer.cancel()
        raise WorkerDied(f"The worker process did not start: {self._how_it_ended()}")

    def invoke(self, invocation: Invocation) -> InvocationResult:
        """Run one job to its end.

        Raises WorkerRefused with the engine's reason, WorkerDied or WorkerStopping.
        """
        assert self._client is not None, "wait_until_ready() first"
        try:
            answer = self._client.post("/invocations", json=invocation)
        except httpx.TimeoutException as error:
            self.process.kill()
            self.process.wait()
            raise WorkerRefused(
                f"The job ran longer than {self._settings.job_seconds:.0f} s and was stopped. "
                "Ask for fewer steps or pictures, or raise SDAWS_JOB_SECONDS."
            ) from error
        except httpx.TransportError as error:
            raise WorkerDied(self._how_it_ended()) from error
        if answer.status_code == 200:
            result: InvocationResult = answer.json()
            return result
        failure = answer.json()
        if failure["code"] == "worker_stopping":
            raise WorkerStopping
        raise WorkerRefused(failure["error"])

    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self.process.poll() is None

    def stop(self) -> None:
        """End the process: politely, then not. Returns when it is gone."""
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self._client is not None:
            self._client.close()
        self._listener.join()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()

    def _relay_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._last_words.append(line.rstrip())
            sys.stderr.write(f"[{self._name}] {line}")

    def _how_it_ended(self) -> str:
        try:
            code = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return "it closed its connection but still runs"
        self._listener.join(STOP_SECONDS)
        ended = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        last = self._last_words[-1] if self._last_words else ""
        return f"{ended}{f' after: {last}' if last else ''}"
