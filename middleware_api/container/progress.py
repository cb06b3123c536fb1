"""A running job's progress and preview, written from a thread of their own."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from middleware_api import contract
from middleware_api.container.errors import ContainerError
from middleware_api.container.storage import Storage

PROGRESS_SECONDS = 0.5
# After a preview, so many times what it took pass without one: on a CPU it takes from the sampler.
PREVIEW_PAUSE = 9
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """Where a job stands before it takes a step; `clean` is the guess of the step before, as its
    engine has it: what the reporter's `draw` makes a picture of."""

    done: int
    total: int
    clean: Any


class ProgressReporter:
    """Writes a job's progress and preview from its own thread, at most twice a second; previews
    take a tenth of the time at most.

    The sampler only leaves its latest step here. What was left last is always written by
    `close`. A write that fails is logged: a job does not fail for its progress bar.
    """

    def __init__(
        self, storage: Storage, job_id: str, clock: Callable[[], float] = time.time
    ) -> None:
        self.draw: Callable[[Any], bytes] | None = None
        self._storage, self._job_id, self._clock = storage, job_id, clock
        self._changed = threading.Condition()
        self._latest: tuple[str, Step] = ("starting", Step(0, 0, None))
        self._dirty = self._closed = False
        self._has_preview = False
        self._draw_from = self._started = clock()
        self._thread = threading.Thread(target=self._write_changes, daemon=True)
        self._thread.start()

    def phase(self, name: str) -> None:
        """Names what happens now, at the step where the job stands."""
        self.note(name, Step(self._latest[1].done, self._latest[1].total, None))

    def step(self, step: Step) -> None:
        self.note("sampling" if step.done < step.total else "saving", step)

    def note(self, phase: str, step: Step) -> None:
        """Says both what happens now, and where the job stands."""
        with self._changed:
            self._latest, self._dirty = (phase, step), True
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _write_changes(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._dirty or self._closed)
                (phase, step), dirty = self._latest, self._dirty
                self._dirty = False
                closed = self._closed
            if dirty:
                try:
                    self._write(phase, step)
                except (ContainerError, OSError, RuntimeError):  # torch raises RuntimeError
                    logger.exception("progress not written job=%s", self._job_id)
            if closed:
                return
            with self._changed:
                self._changed.wait_for(lambda: self._closed, timeout=PROGRESS_SECONDS)

    def _write(self, phase: str, step: Step) -> None:
        if step.clean is not None and self.draw is not None and self._clock() >= self._draw_from:
            self._write_preview(self.draw, step.clean)
        progress = contract.Progress(
            step=step.done,
            total_steps=step.total,
            fraction=step.done / step.total if step.total else 0.0,
            phase=phase,
            started_at=self._started,
            updated_at=self._clock(),
            has_preview=self._has_preview,
        )
        self._storage.write(contract.progress_key(self._job_id), json.dumps(progress).encode())

    def _write_preview(self, draw: Callable[[Any], bytes], clean: Any) -> None:
        began = self._clock()
        self._storage.write(contract.preview_key(self._job_id), draw(clean))
        self._has_preview = True
        now = self._clock()
        self._draw_from = now + PREVIEW_PAUSE * (now - began)
