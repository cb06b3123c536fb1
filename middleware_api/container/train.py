"""The training program: `python -m middleware_api.container.train`, as SageMaker starts it.

What it is told and what it leaves behind is written down in `contract` (TRAIN_ROOT and what
follows it). One process does one order: it makes a model, or it trains one. Logs go to stderr.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import diffusers.utils.logging
import torch
import transformers.utils.logging

from middleware_api import contract
from middleware_api.container import logs
from middleware_api.container.errors import BadRequest, ContainerError
from middleware_api.container.object_store import Bucket, objects_of, open_storage
from middleware_api.container.storage import Storage
from middleware_api.container.training.job import StopAsked, TrainRun
from middleware_api.container.training.make_model import ModelMaker
from middleware_api.container.training.report import TrainReporter
from middleware_api.contract import (
    ContainerCheckpoint,
    ModelOrder,
    TrainOrder,
    TrainOutcome,
    TrainState,
)
from middleware_api.training_fields import BadSetting

logger = logging.getLogger("middleware_api.container")

_CPU_OUT_OF_MEMORY = ("can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class Settings:
    """What the process is told from outside, read once. `threads` 0 leaves torch's own number."""

    objects: Path | Bucket
    root: Path
    output_prefix: str
    threads: int

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> Settings:
        """Raises ValueError naming the variable that is missing or wrong."""
        output_prefix = environment.get(contract.TRAIN_OUTPUT_VARIABLE, "")
        if not output_prefix.endswith("/"):
            raise ValueError(
                f"{contract.TRAIN_OUTPUT_VARIABLE} must be the prefix of what the job writes, with "
                f"a slash at its end, not {output_prefix!r}."
            )
        threads = environment.get("SDAWS_THREADS") or "0"
        if not threads.isdecimal():
            raise ValueError(f"SDAWS_THREADS must be a whole number, not {threads!r}.")
        root = environment.get(contract.TRAIN_ROOT_VARIABLE) or contract.TRAIN_ROOT
        return Settings(objects_of(environment), Path(root), output_prefix, int(threads))


def read_order(root: Path) -> ModelOrder | TrainOrder:
    """Raises BadRequest when there is none, or none that can be read."""
    path = root / contract.TRAIN_ORDER_FILE
    try:
        raw = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BadRequest(f"The order in {path} cannot be read: {error}.", "bad_order") from error
    for kind in (ModelOrder, TrainOrder):
        if isinstance(raw, dict) and raw.keys() >= kind.__annotations__.keys():
            return cast("ModelOrder | TrainOrder", raw)
    raise BadRequest(f"The order in {path} is neither a model's nor a training's.", "bad_order")


class Program:
    """One order from its reading to its outcome."""

    def __init__(
        self,
        storage: Storage,
        settings: Settings,
        stopping: threading.Event,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._storage, self._settings, self._stopping = storage, settings, stopping
        self._clock = clock

    def run(self) -> int:
        """The exit code: 0 for what is complete or was stopped."""
        reporter = TrainReporter(
            self._storage, self._settings.output_prefix, self._clock, _print_line
        )
        weights: list[ContainerCheckpoint] = []
        error = ""
        try:
            weights = self._carry_out(reporter)
            state = TrainState.STOPPED if self._stopping.is_set() else TrainState.COMPLETE
        except StopAsked:
            state = TrainState.STOPPED
        except Exception as fault:  # the process's edge: whatever it was, the job ends with it
            state, error = TrainState.FAILED, reason_of(fault)
            logger.log(
                logging.INFO if isinstance(fault, ContainerError) else logging.ERROR,
                "failed: %s",
                error,
                exc_info=not isinstance(fault, (ContainerError, BadSetting)),
            )
        finally:
            reporter.close()
        outcome = TrainOutcome(
            state=state.value, error=error, weights=weights, warnings=reporter.warnings
        )
        return self._end(outcome)

    def _carry_out(self, reporter: TrainReporter) -> list[ContainerCheckpoint]:
        order = read_order(self._settings.root)
        prefix = self._settings.output_prefix
        if "model_id" in order:
            maker = ModelMaker(self._storage, reporter, self._stop_if_asked)
            maker.make(cast(ModelOrder, order), prefix)
            return []
        run = TrainRun(self._storage, reporter, prefix, self._stopping.is_set, self._clock)
        return run.train(order)

    def _stop_if_asked(self) -> None:
        if self._stopping.is_set():
            raise StopAsked

    def _end(self, outcome: TrainOutcome) -> int:
        """Tell the outcome, by the object store and by SageMaker's file for failures."""
        key = contract.train_outcome_key(self._settings.output_prefix)
        try:
            self._storage.write(key, json.dumps(outcome).encode())
        except (ContainerError, OSError) as fault:
            logger.exception("outcome not written")
            if not outcome["error"]:
                outcome["error"] = f"How it ended could not be stored: {fault}"
        logger.info("%s %s", outcome["state"], outcome["error"])
        if not outcome["error"]:
            return 0
        failure = self._settings.root / contract.TRAIN_FAILURE_FILE
        try:
            failure.parent.mkdir(parents=True, exist_ok=True)
            failure.write_text(outcome["error"])
        except OSError:
            logger.exception("reason not written to %s", failure)
        return 1


def reason_of(fault: Exception) -> str:
    """One sentence for the person whose job it is."""
    if isinstance(fault, torch.OutOfMemoryError):
        return (
            "The GPU has not enough memory for this training. Lower train_batch_size or "
            "resolution, switch gradient_checkpointing on, train a LoRA, or take an instance with "
            "a larger GPU."
        )
    is_full = isinstance(fault, RuntimeError) and any(m in str(fault) for m in _CPU_OUT_OF_MEMORY)
    if isinstance(fault, MemoryError) or is_full:
        return (
            "The machine has not enough memory for this training. Lower train_batch_size or "
            "resolution, train a LoRA, or take a larger instance."
        )
    if isinstance(fault, (ContainerError, BadSetting)):
        return str(fault)
    return (
        f"An unforeseen fault ended it ({type(fault).__name__}: {fault}). What was saved before is "
        "kept; the job's log has the details."
    )


def _print_line(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    """The exit code."""
    try:
        settings = Settings.from_environment(os.environ)
    except ValueError as error:
        print(f"middleware_api.container.train: {error}", file=sys.stderr)
        return 2
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.set())
    logs.start(is_json=os.environ.get("SDAWS_LOGS") == "json")
    transformers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.set_verbosity_error()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    return Program(open_storage(settings.objects), settings, stopping).run()


if __name__ == "__main__":
    sys.exit(main())
