"""One invocation from its parameters to its pictures: progress, cancelling and saving."""

from __future__ import annotations

import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, cast

from torch import Tensor

from middleware_api import contract
from middleware_api.container import infotext, pictures
from middleware_api.container.checkpoint import StableDiffusion
from middleware_api.container.engine import CheckpointFile, Engine, Step
from middleware_api.container.errors import (
    BadRequest,
    ContainerError,
    FailedBefore,
    JobCancelled,
    Unforeseen,
    WorkerStopping,
)
from middleware_api.container.request import GenerationRequest, parse_request
from middleware_api.container.storage import Storage

PROGRESS_SECONDS = 0.5
logger = logging.getLogger(__name__)


def parse_invocation(body: bytes) -> contract.Invocation:
    """Raises BadRequest naming the part that is missing or of the wrong type."""
    try:
        raw = json.loads(body)
    except ValueError as error:
        raise BadRequest(f"The invocation is not JSON: {error}.", "bad_invocation") from error
    texts = ("job_id", "task_type", "params_key", "output_prefix")
    if not isinstance(raw, dict) or not all(isinstance(raw.get(name), str) for name in texts):
        raise BadRequest(f"The invocation needs the texts {', '.join(texts)}.", "bad_invocation")
    if not raw["job_id"] or not contract.is_valid_name(raw["job_id"]):
        raise BadRequest(f"{raw['job_id']!r} is not a job id.", "bad_invocation")
    if raw["output_prefix"] != contract.output_prefix(raw["job_id"]):
        raise BadRequest("output_prefix is not the job's own.", "bad_invocation")
    checkpoints = raw.get("checkpoints")
    parts = ("type", "name", "key", "sha256")
    if not isinstance(checkpoints, list) or not all(
        isinstance(c, dict)
        and all(isinstance(c.get(part), str) for part in parts)
        and type(c.get("size")) is int
        for c in checkpoints
    ):
        raise BadRequest(
            f"checkpoints must be a list of objects with {', '.join(parts)} and size.",
            "bad_invocation",
        )
    return cast(contract.Invocation, raw)


@dataclass(frozen=True)
class JobRunner:
    """Runs invocations; the caller sees to it that there is one at a time.

    `stopping` is set when the process must end; `clock` gives epoch seconds.
    """

    engine: Engine
    storage: Storage
    stopping: threading.Event
    clock: Callable[[], float] = time.time

    def run(self, invocation: contract.Invocation) -> contract.InvocationResult:
        """Raises ContainerError; pictures that were finished before are kept either way.

        The end is also written as the job's outcome, unless the job is to go again. A job that
        has an outcome when it comes is not run: queues may deliver twice.
        """
        job_id = invocation["job_id"]
        with _in_words(job_id):  # outside of what notes failures: a good outcome may be there
            earlier = self._earlier_outcome(job_id)
        if earlier is not None:
            return earlier
        try:
            with _in_words(job_id):
                result = self._run(invocation)
        except WorkerStopping:
            raise
        except ContainerError as error:
            self._note_outcome(job_id, contract.Outcome(result=None, failure=str(error)))
            raise
        self._note_outcome(job_id, contract.Outcome(result=result, failure=None))
        return result

    def _earlier_outcome(self, job_id: str) -> contract.InvocationResult | None:
        """Raises FailedBefore; None for a job that has not ended."""
        try:
            outcome: contract.Outcome = json.loads(self.storage.read(contract.outcome_key(job_id)))
        except FileNotFoundError:
            return None
        if outcome["result"] is None:
            raise FailedBefore(outcome["failure"])
        return outcome["result"]

    def _note_outcome(self, job_id: str, outcome: contract.Outcome) -> None:
        try:
            self.storage.write(contract.outcome_key(job_id), json.dumps(outcome).encode())
        except (ContainerError, OSError):  # the answer itself still carries the outcome
            logger.exception("outcome not written job=%s", job_id)

    def _run(self, invocation: contract.Invocation) -> contract.InvocationResult:
        if self.stopping.is_set():
            raise _stopping()
        job_id = invocation["job_id"]
        started = datetime.fromtimestamp(self.clock(), timezone.utc).astimezone()
        content = self._params(invocation["params_key"])
        request = parse_request(invocation["task_type"], content, random.Random())
        checkpoint, ignored = _choose_checkpoint(invocation["checkpoints"])
        made = _Made(checkpoint["sha256"])
        reporter = ProgressReporter(self.storage, job_id, self.clock)
        try:
            self._make(job_id, request, checkpoint, made, reporter)
            status = contract.InferenceState.SUCCEEDED
            reporter.phase("done")
        except JobCancelled:
            status = contract.InferenceState.CANCELLED
            reporter.phase("cancelled")
        finally:
            reporter.close()
        warnings = [*ignored, *self.engine.warnings(request)]
        info = infotext.info(
            request, checkpoint["name"], made.model_sha256, made.infotexts, warnings, started
        )
        return contract.InvocationResult(
            job_id=job_id,
            status=status.value,
            images=made.keys,
            parameters=_echo(content),
            info=json.dumps(info, ensure_ascii=False),
        )

    def _params(self, key: str) -> bytes:
        try:
            return self.storage.read(key)
        except FileNotFoundError as error:
            raise BadRequest(
                f"The parameters {key} are not in the object store. Submit the job again.",
                "missing_params",
            ) from error

    def _make(
        self,
        job_id: str,
        request: GenerationRequest,
        checkpoint: contract.ContainerCheckpoint,
        made: _Made,
        reporter: ProgressReporter,
    ) -> None:
        """Fills `made`; raises JobCancelled with what was finished until then."""
        # A job that was cancelled while it waited must cost nothing: it may be all that this
        # machine was started for.
        self._stop_if_asked(job_id)
        reporter.phase("fetching checkpoint")
        path = self.storage.weights(checkpoint)
        self._stop_if_asked(job_id)
        reporter.phase("loading checkpoint")
        file = CheckpointFile(path, checkpoint["name"], checkpoint["key"], checkpoint["sha256"])
        with self.engine.load(file) as model:
            made.model_sha256 = model.sha256
            reporter.draw = lambda clean: self._preview(model, clean)

            def on_step(step: Step) -> None:
                reporter.step(step)
                self._stop_if_asked(job_id)

            for picture in self.engine.generate(model, request, on_step):
                key = contract.image_key(job_id, picture.index, request.image_format)
                encoded = pictures.encode(picture.image, request.image_format, picture.infotext)
                self.storage.write(key, encoded)
                made.keys.append(key)
                made.infotexts.append(picture.infotext)

    def _stop_if_asked(self, job_id: str) -> None:
        if self.stopping.is_set():
            raise _stopping()
        if self.storage.exists(contract.cancel_key(job_id)):
            raise JobCancelled

    def _preview(self, model: StableDiffusion, clean: Tensor) -> bytes:
        return pictures.encode_preview(self.engine.preview(model, clean))


@dataclass
class _Made:
    """What a job has come to so far; the model's hash is "" when nobody knows it yet."""

    model_sha256: str
    keys: list[str] = field(default_factory=list)
    infotexts: list[str] = field(default_factory=list)


class ProgressReporter:
    """Writes a job's progress and preview from its own thread, at most twice a second.

    The sampler only leaves its latest step here. What was left last is always written by
    `close`. A write that fails is logged: a job does not fail for its progress bar.
    """

    def __init__(
        self, storage: Storage, job_id: str, clock: Callable[[], float] = time.time
    ) -> None:
        self.draw: Callable[[Tensor], bytes] | None = None
        self._storage, self._job_id, self._clock = storage, job_id, clock
        self._changed = threading.Condition()
        self._latest: tuple[str, Step] = ("starting", Step(0, 0, None))
        self._dirty = self._closed = False
        self._has_preview = False
        self._started = clock()
        self._thread = threading.Thread(target=self._write_changes, daemon=True)
        self._thread.start()

    def phase(self, name: str) -> None:
        """Names what happens now, at the step where the job stands."""
        self._leave(name, Step(self._latest[1].done, self._latest[1].total, None))

    def step(self, step: Step) -> None:
        self._leave("sampling" if step.done < step.total else "saving", step)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _leave(self, phase: str, step: Step) -> None:
        with self._changed:
            self._latest, self._dirty = (phase, step), True
            self._changed.notify()

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
        if step.clean is not None and self.draw is not None:
            preview = self.draw(step.clean)
            self._storage.write(contract.preview_key(self._job_id), preview)
            self._has_preview = True
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


def _choose_checkpoint(
    checkpoints: list[contract.ContainerCheckpoint],
) -> tuple[contract.ContainerCheckpoint, list[str]]:
    """The checkpoint to sample with, and a warning for each file the engine cannot use yet."""
    wanted = contract.CheckpointType.STABLE_DIFFUSION.value
    chosen = next((c for c in checkpoints if c["type"] == wanted), None)
    if chosen is None:
        raise BadRequest(
            "The job names no Stable-diffusion checkpoint. Choose one.", "missing_checkpoint"
        )
    others = [
        f"{c['type']} file {c['name']} is not supported yet and was ignored."
        for c in checkpoints
        if c is not chosen
    ]
    return chosen, others


@contextmanager
def _in_words(job_id: str) -> Iterator[None]:
    """Turns a fault of ours into Unforeseen; the log has its traceback."""
    try:
        yield
    except ContainerError:
        raise
    except Exception as error:
        logger.exception("failed job=%s", job_id)
        raise Unforeseen(
            f"The worker failed on job {job_id} for a reason it did not foresee "
            f"({type(error).__name__}). Its log has the details; try again, and report it if "
            "it happens twice."
        ) from error


def _echo(content: bytes) -> dict[str, object]:
    """The caller's fields as the WebUI answers them: without the pictures they carried."""
    fields: dict[str, Any] = json.loads(content)
    return {**fields, **{name: None for name in ("init_images", "mask") if name in fields}}


def _stopping() -> WorkerStopping:
    return WorkerStopping("This worker is shutting down. The job can be queued again.")
