"""Where a training stands: an object about once a second, and lines that SageMaker reads."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from middleware_api import contract
from middleware_api.container.errors import ContainerError
from middleware_api.container.storage import Storage
from middleware_api.contract import TrainProgress, TrainSample, TrainSavedState

REPORT_SECONDS = 1.0
PREPARATION = 0.1
"""The share of the progress that is done when the first step is taken."""

logger = logging.getLogger(__name__)


@dataclass
class LossCurve:
    """A loss for every so many steps: every second one is dropped when there are too many."""

    points: list[tuple[int, float]] = field(default_factory=list)
    stride: int = 1

    def add(self, step: int, loss: float) -> None:
        if step % self.stride:
            return
        self.points.append((step, loss))
        while len(self.points) > contract.TRAIN_LOSSES_MAX:
            self.stride *= 2
            self.points = [point for point in self.points if point[0] % self.stride == 0]


class TrainReporter:
    """Writes from a thread of its own. A write that fails is logged: a training does not fail for
    its progress bar. `clock` gives epoch seconds, `tell` takes the lines."""

    def __init__(
        self,
        storage: Storage,
        output_prefix: str,
        clock: Callable[[], float],
        tell: Callable[[str], None],
    ) -> None:
        self._storage, self._clock, self._tell = storage, clock, tell
        self._key = contract.train_progress_key(output_prefix)
        self._before = self._told_before()
        self._curve = LossCurve()
        self._progress = TrainProgress(
            phase="starting",
            fraction=0.0,
            step=0,
            steps=0,
            loss=None,
            learning_rate=None,
            seconds_left=None,
            losses=[],
            samples=[],
            checkpoints=[],
            warnings=[],
            updated_at=clock(),
        )
        self._changed = threading.Condition()
        self._dirty = self._closed = False
        self._writing = threading.Lock()
        self._pace: tuple[int, float] | None = None
        self._told = -REPORT_SECONDS
        self._thread = threading.Thread(target=self._write_changes, daemon=True)
        self._thread.start()

    @property
    def warnings(self) -> list[str]:
        return [*self._progress["warnings"]]

    def phase(self, name: str, share: float | None = None) -> None:
        """What happens now and, before the first step, how much of the preparation is done."""
        with self._change() as progress:
            progress["phase"] = name
            if share is not None:
                progress["fraction"] = PREPARATION * share

    def part(self, name: str, share: float) -> None:
        """The same for a job without steps: how much of the whole is done."""
        with self._change() as progress:
            progress["phase"], progress["fraction"] = name, share

    def warn(self, sentence: str) -> None:
        logger.warning("%s", sentence)
        with self._change() as progress:
            if sentence not in progress["warnings"]:
                progress["warnings"].append(sentence)

    def resume(self, step: int) -> None:
        """Take over what a former process of this job has told, up to that step."""
        before = self._before
        if before is None:
            return
        with self._change() as progress:
            for at, loss in before["losses"]:
                if at <= step:
                    self._curve.add(at, loss)
            progress["samples"] = [s for s in before["samples"] if s["step"] <= step]

    def step(self, step: int, steps: int, loss: float, learning_rate: float) -> None:
        """After so many of all steps."""
        now = self._clock()
        if self._pace is None:
            self._pace = (step, now)
        with self._change() as progress:
            self._curve.add(step, loss)
            before = progress["loss"]
            mean = loss if before is None else 0.9 * before + 0.1 * loss
            progress["phase"], progress["step"], progress["steps"] = "training", step, steps
            progress["fraction"] = PREPARATION + (1 - PREPARATION) * step / steps
            progress["loss"], progress["learning_rate"] = mean, learning_rate
            progress["losses"] = [*self._curve.points]
            first, began = self._pace
            if step > first:
                progress["seconds_left"] = (steps - step) * (now - began) / (step - first)
        if now >= self._told + REPORT_SECONDS or step == steps:
            self._told = now
            self._tell(
                f"progress={progress['fraction']:.4f} loss={mean:.6g} "
                f"learning_rate={learning_rate:.4g} step={step} steps={steps}"
            )

    def sample(self, made: TrainSample) -> None:
        with self._change() as progress:
            progress["samples"].append(made)

    def saved(self, states: list[TrainSavedState]) -> None:
        """Those that are kept, oldest first."""
        with self._change() as progress:
            progress["checkpoints"] = states

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Nothing is written under the job's folder meanwhile (see `Storage.writing`)."""
        with self._writing:
            yield

    def close(self) -> None:
        """What was told last is written."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _told_before(self) -> TrainProgress | None:
        """What a former process of this job has told last."""
        try:
            before: TrainProgress = json.loads(self._storage.read(self._key))
        except (ContainerError, OSError, ValueError) as fault:
            logger.info("no earlier progress: %s", fault)
            return None
        return before

    @contextmanager
    def _change(self) -> Iterator[TrainProgress]:
        with self._changed:
            yield self._progress
            self._dirty = True
            self._changed.notify()

    def _write_changes(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._dirty or self._closed)
                self._progress["updated_at"] = self._clock()
                content = json.dumps(self._progress).encode()
                dirty, closed = self._dirty, self._closed
                self._dirty = False
            if dirty:
                try:
                    with self._writing:
                        self._storage.write(self._key, content)
                except (ContainerError, OSError) as fault:
                    logger.warning("progress not written: %s", fault)
            with self._changed:
                if closed or self._closed:
                    if not self._dirty:
                        return
                    continue
                self._changed.wait_for(lambda: self._closed, REPORT_SECONDS)
