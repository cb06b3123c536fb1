"""One invocation from its parameters to its outcome: its task, progress, cancelling, saving."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, cast

from middleware_api import contract
from middleware_api.container.errors import (
    BadRequest,
    ContainerError,
    FailedBefore,
    JobCancelled,
    Unforeseen,
    WorkerStopping,
)
from middleware_api.container.progress import ProgressReporter
from middleware_api.container.storage import Storage

_PICTURE_FIELDS = ("init_images", "mask", "latent_mask", "firstpass_image", "image", "imageList")
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
class Answer:
    """What a task answers: the keys of its pictures, a JSON document, the weights it made."""

    images: tuple[str, ...]
    info: str
    checkpoints: tuple[contract.ContainerCheckpoint, ...] = ()


@dataclass
class Job:
    """One job as its task sees it. `content` is the caller's own request, still unread; what is
    in `held` ends with the job."""

    invocation: contract.Invocation
    content: bytes
    started: datetime
    storage: Storage
    progress: ProgressReporter
    stopping: threading.Event
    held: ExitStack
    cancelled: bool = False

    @contextmanager
    def until_cancelled(self) -> Iterator[None]:
        """Ends its block early when the job is cancelled; what comes after it still runs."""
        try:
            yield
        except JobCancelled:
            self.cancelled = True

    def stop_if_asked(self) -> None:
        """Raises JobCancelled or WorkerStopping; cheap enough for every step."""
        if self.stopping.is_set():
            raise _stopping()
        if self.storage.exists(contract.cancel_key(self.invocation["job_id"])):
            raise JobCancelled

    def weights(self, checkpoint: contract.ContainerCheckpoint) -> Path:
        """The checkpoint's file, which stays on this machine until the job ends.

        It may take minutes to come. Raises JobCancelled before it begins and while it comes: a
        job that was cancelled while it waited must cost nothing. It may be all that this machine
        was started for.
        """
        self.stop_if_asked()
        self.progress.phase("fetching checkpoint")
        path = self.held.enter_context(
            self.storage.weights(checkpoint, lambda count: self.stop_if_asked())
        )
        self.stop_if_asked()
        return path

    def save_picture(self, index: int, extension: str, content: bytes) -> str:
        """Stores an encoded picture; the answer is its key."""
        key = contract.image_key(self.invocation["job_id"], index, extension)
        self.storage.write(key, content)
        return key


Task = Callable[[Job], Answer]
"""Does one kind of job: reads its content, works inside `until_cancelled`, answers."""


@dataclass(frozen=True)
class JobRunner:
    """Runs invocations; the caller sees to it that there is one at a time.

    `tasks` holds what this worker can do, by task type. `stopping` is set when the process must
    end; `clock` gives epoch seconds.
    """

    tasks: Mapping[str, Task]
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
            self._note_outcome(
                job_id, contract.Outcome(result=None, failure=str(error), code=error.code)
            )
            raise
        self._note_outcome(job_id, contract.Outcome(result=result, failure=None, code=""))
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
        task = self.tasks.get(invocation["task_type"])
        if task is None:
            raise BadRequest(
                f"Task type {invocation['task_type']!r} is not available here. "
                f"Use one of: {', '.join(self.tasks)}.",
                "unsupported_task",
            )
        started = datetime.fromtimestamp(self.clock(), timezone.utc).astimezone()
        content = self._params(invocation["params_key"])
        job_id = invocation["job_id"]
        progress = ProgressReporter(self.storage, job_id, self.clock)
        try:
            with ExitStack() as held:
                job = Job(invocation, content, started, self.storage, progress, self.stopping, held)
                answer = task(job)
            progress.phase("cancelled" if job.cancelled else "done")
        finally:
            progress.close()
        state = contract.InferenceState
        return contract.InvocationResult(
            job_id=job_id,
            status=(state.CANCELLED if job.cancelled else state.SUCCEEDED).value,
            images=[*answer.images],
            parameters=_echo(content),
            info=answer.info,
            checkpoints=[*answer.checkpoints],
        )

    def _params(self, key: str) -> bytes:
        try:
            return self.storage.read(key)
        except FileNotFoundError as error:
            raise BadRequest(
                f"The parameters {key} are not in the object store. Submit the job again.",
                "missing_params",
            ) from error


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
    if "alwayson_scripts" in fields:
        fields["alwayson_scripts"] = _without_pictures(fields["alwayson_scripts"])
    return {**fields, **{name: None for name in _PICTURE_FIELDS if name in fields}}


def _without_pictures(value: Any) -> Any:
    """Arguments of scripts, whose pictures may stand anywhere: no other text is so long."""
    if isinstance(value, dict):
        return {name: _without_pictures(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_without_pictures(each) for each in value]
    return None if isinstance(value, str) and len(value) > contract.PROMPT_MAX_BYTES else value


def _stopping() -> WorkerStopping:
    return WorkerStopping("This worker is shutting down. The job can be queued again.")
