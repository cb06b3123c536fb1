"""One process of the training program, and how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from middleware_api.contract import (
    TRAIN_FAILURE_FILE,
    TRAIN_ORDER_FILE,
    TRAIN_OUTPUT_VARIABLE,
    TRAIN_ROOT_VARIABLE,
)
from middleware_api.embedded.training_queue import QueuedTraining

TRAINING_PROGRAM = "middleware_api.container.train"
# From the polite signal to the other one: as long as SageMaker gives.
STOP_SECONDS = 120.0
_RELAY_SECONDS = 5.0


@dataclass(frozen=True)
class TrainerSettings:
    """What each process is given. `threads` is torch's; `train_seconds` bounds a job's running
    time in all; each job has a folder in `folder` until its end; `program` is a module that
    behaves as the container's own."""

    objects_root: Path
    folder: Path
    threads: int
    train_seconds: float
    stop_seconds: float = STOP_SECONDS
    program: str = TRAINING_PROGRAM


@dataclass(frozen=True)
class Ended:
    """How a process ended: `how` in words, `code` as `subprocess` has it (below 0 for a signal).

    `overran`: its time was over. `stubborn`: it was told to stop, and had to be killed.
    """

    code: int
    how: str
    seconds: float
    overran: bool
    stubborn: bool


class Trainer:
    """A running process; see `lifeline` for what becomes of it when this one dies."""

    def __init__(self, settings: TrainerSettings, job: QueuedTraining, order: bytes) -> None:
        """`order` is what the program is told."""
        self._settings = settings
        self._root = settings.folder / job.job_id
        self._started = time.monotonic()
        self._patience: threading.Timer | None = None
        self._stubborn = False
        self._last_words: deque[str] = deque(maxlen=20)
        self._lay_out(order)
        environment = {
            **os.environ,
            "SDAWS_OBJECTS": str(settings.objects_root),
            TRAIN_ROOT_VARIABLE: str(self._root),
            TRAIN_OUTPUT_VARIABLE: job.output_prefix,
            "SDAWS_THREADS": str(settings.threads),
            "OMP_NUM_THREADS": str(settings.threads),
        }
        # The API's token is none of the program's business, nor is a bucket: it has a folder.
        for name in ("SDAWS_API_TOKEN", "SDAWS_BUCKET"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "middleware_api.embedded.lifeline",
                str(self._root / "lock"),
                settings.program,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=environment,
            cwd=Path(__file__).parents[2],
            # Its children end with it; Ctrl-C in the terminal is for the server alone.
            start_new_session=True,
        )
        self._relay = threading.Thread(
            target=self._relay_log, args=(f"training {job.job_id[:8]}",), daemon=True
        )
        self._relay.start()

    def ask_to_stop(self, patience: float) -> None:
        """Ask it to save what it has and end; it is killed after `patience` seconds. Again
        shortens that."""
        if self._patience is not None:
            self._patience.cancel()
        if self.process.poll() is None:
            self.process.terminate()
        self._patience = threading.Timer(patience, self._kill)
        self._patience.daemon = True
        self._patience.start()

    def wait(self, seconds: float) -> Ended:
        """Block until it has ended; it is stopped after `seconds`."""
        overran = False
        try:
            self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            overran = True
            self.ask_to_stop(self._settings.stop_seconds)
            self.process.wait()
        if self._patience is not None:
            self._patience.cancel()
        self._end_children()
        self._relay.join(_RELAY_SECONDS)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        code = self.process.returncode
        return Ended(
            code, self._how(code), time.monotonic() - self._started, overran, self._stubborn
        )

    def _lay_out(self, order: bytes) -> None:
        """The folders that SageMaker gives."""
        file = self._root / TRAIN_ORDER_FILE
        failure = self._root / TRAIN_FAILURE_FILE
        for folder in (file.parent, failure.parent):
            folder.mkdir(parents=True, exist_ok=True)
        file.write_bytes(order)
        failure.unlink(missing_ok=True)

    def _kill(self) -> None:
        self._stubborn = True
        self.process.kill()

    def _end_children(self) -> None:
        # None are left, which macOS tells in its own way.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def _relay_log(self, name: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip():
                self._last_words.append(line.strip())
            sys.stderr.write(f"[{name}] {line}")

    def _how(self, code: int) -> str:
        ended = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        try:
            last = (self._root / TRAIN_FAILURE_FILE).read_text(errors="replace").strip()
        except FileNotFoundError:
            last = self._last_words[-1] if self._last_words else ""
        return f"{ended}{f' after: {last}' if last else ''}"
