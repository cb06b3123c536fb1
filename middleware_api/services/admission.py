"""From bytes that are all in place to a checkpoint that requests can name.

A store that has not hashed what it put together has it read once more, outside of any request (see
`verification`). Files of tensors are examined where they lie, and that is all. Files of torch are
pickles, which can run programs when they are opened: a worker opens them in a sandbox and writes
their tensors anew, as a job of its own. Until all that is done, their checkpoint is `Initial`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from middleware_api.contract import (
    INFERENCE_FINAL,
    MIB,
    CheckpointState,
    CheckpointStep,
    CheckpointType,
    InferenceState,
    PartTag,
    TaskType,
    checkpoint_key,
    converted_checkpoint_id,
    converted_name,
    is_pickled,
)
from middleware_api.errors import Conflict, ContentDiffers, FileRefused, NotFound
from middleware_api.ports import Objects, Records, Runners
from middleware_api.records import Checkpoint, CheckpointFile, InferenceJob, UsedCheckpoint
from middleware_api.services.checkpoints import CheckpointService
from middleware_api.services.examination import examine
from middleware_api.services.hashing import hashed
from middleware_api.services.inference import InferenceService
from middleware_api.services.uploads import require_hashable

# How often a conversion is looked after, and how long one may wait for an endpoint.
RECONCILE_SECONDS = 30.0
DEADLINE_SECONDS = 24 * 3600

# Reading so much takes a second or two: less than asking again would.
HASH_NOW_BYTES = 32 * MIB

CHECKING = "Its bytes are here. It can be used as soon as its content is checked."
_NO_ENDPOINT = (
    "Its bytes are here. It waits for an endpoint in service, which converts it to .safetensors: "
    "create one, or wait until one that is starting is ready."
)


class AdmissionService:
    """The only way to `Active` for what users bring."""

    def __init__(
        self,
        records: Records,
        objects: Objects,
        checkpoint_service: CheckpointService,
        inference_service: InferenceService,
        runners: Runners,
        clock: Callable[[], float],
    ) -> None:
        self._records = records
        self._objects = objects
        self._runners = runners
        self._checkpoint_service = checkpoint_service
        self._inference_service = inference_service
        self._clock = clock

    def complete(
        self,
        checkpoint: Checkpoint,
        tags: dict[str, list[PartTag]],
        hashes: Mapping[str, str] = MappingProxyType({}),
    ) -> Checkpoint:
        """Make the uploaded parts a checkpoint: `Active`, or `Initial` while it is checked and
        converted.

        `hashes` are SHA-256 by file name that were not known when it began. Raises ContentDiffers
        and FileRefused, after which it is `Fail` and its bytes are gone.
        """
        has_arrived = checkpoint.step is not None and checkpoint.arrived_at is not None
        if has_arrived or checkpoint.state is CheckpointState.ACTIVE:
            return checkpoint  # the caller did not hear our first answer
        try:
            return self.admit(self._checkpoint_service.assemble(checkpoint, tags, hashes))
        except (ContentDiffers, FileRefused) as fault:
            latest = self._checkpoint_service.get(checkpoint.id)
            self._checkpoint_service.fail(latest, fault.message)
            raise

    def adopt(
        self, checkpoint_id: str, owner: str, kind: CheckpointType, hashes: Mapping[str, str]
    ) -> Checkpoint:
        """Make an Active checkpoint of what a program has written, where it lies, once it is
        examined like any other; `hashes` as `CheckpointService.adopt` takes them.

        Raises NotFound and FileRefused.
        """
        for key, sha256 in hashes.items():
            examine(self._objects, self._checkpoint_service.finished(key, sha256))
        return self._checkpoint_service.adopt(checkpoint_id, owner, kind, hashes)

    def admit(self, checkpoint: Checkpoint) -> Checkpoint:
        """Examine all files; then it is `Active`, or `Initial` until it is checked and converted.

        Raises FileRefused, ContentDiffers.
        """
        for file in checkpoint.files:
            if not file.is_hashed:
                require_hashable(self._objects, file.name, file.size or 0)
            examine(self._objects, file)
        _require_own_names(checkpoint)
        if sum(file.size or 0 for file in _unhashed(checkpoint)) <= HASH_NOW_BYTES:
            checkpoint = self._hashed(checkpoint)
        if _unhashed(checkpoint):
            # Whoever runs it now has little time left; its next runner has all of its own.
            return self._check(_arrived(checkpoint, self._clock()))
        if not _pickled(checkpoint):
            return self._checkpoint_service.activate(checkpoint)
        return self._convert(_arrived(checkpoint, self._clock()))

    def job_ended(self, job_id: str) -> None:
        """A job has ended; those that are no conversions are none of our business."""
        checkpoint_id = converted_checkpoint_id(job_id)
        if checkpoint_id is None:
            return
        try:
            checkpoint = self._checkpoint_service.get(checkpoint_id)
        except NotFound:  # deleted meanwhile
            return
        if checkpoint.step is CheckpointStep.CONVERTING and checkpoint.conversion_id == job_id:
            self.reconcile(checkpoint)

    def retry(self, checkpoint: Checkpoint) -> Checkpoint:
        """Convert one again whose conversion came to nothing. Raises Conflict where its bytes
        are gone, or were refused."""
        if checkpoint.step is CheckpointStep.CONVERTING:
            return checkpoint  # the caller did not hear our first answer
        if not checkpoint.can_retry:
            raise Conflict(
                f"Checkpoint '{checkpoint.id}' is {checkpoint.state.value}, and there is nothing "
                "to try again: only a conversion that did not fail by its file can be, within 24 "
                "hours. Upload the file again.",
                "nothing_to_retry",
            )
        now = self._clock()
        again = self._records.update(
            replace(
                checkpoint,
                state=CheckpointState.INITIAL,
                error="",
                arrived_at=now,
                check_at=now + RECONCILE_SECONDS,
                conversion=checkpoint.conversion + 1,
            )
        )
        return self._convert(again)

    def reconcile(self, checkpoint: Checkpoint) -> None:
        """Look after one that waits for its conversion: begin it, or take its end in."""
        job = self._inference_service.existing(checkpoint.conversion_id)
        if job is None:
            if self._clock() > (checkpoint.arrived_at or 0) + DEADLINE_SECONDS:
                hours = DEADLINE_SECONDS // 3600
                self._checkpoint_service.fail_for_now(
                    checkpoint,
                    f"No endpoint was in service for {hours} hours to convert it to .safetensors. "
                    "Create an endpoint, then try it again; or convert it yourself.",
                )
            else:
                self._convert(checkpoint)
        elif job.state not in INFERENCE_FINAL:
            self._wait(checkpoint, checkpoint.waits_for)
        elif job.state is InferenceState.SUCCEEDED:
            self._take_in(checkpoint, job)
        else:
            self._conversion_failed(checkpoint, job)

    def _conversion_failed(self, checkpoint: Checkpoint, job: InferenceJob) -> None:
        """By the file's fault for good, and else until somebody tries it again."""
        reason = job.error or "Its conversion to .safetensors was cancelled."
        if self._inference_service.files.is_refused(job):
            self._checkpoint_service.fail(checkpoint, reason)
        else:
            self._checkpoint_service.fail_for_now(
                checkpoint, f"{reason} Its bytes are kept for 24 hours: try it again."
            )

    def _convert(self, checkpoint: Checkpoint) -> Checkpoint:
        """Begin its conversion, where there is an endpoint."""
        job_id = checkpoint.conversion_id
        if self._inference_service.existing(job_id) is not None:
            return checkpoint  # the caller did not hear our first answer
        used = tuple(
            UsedCheckpoint(
                type=checkpoint.type,
                name=file.name,
                key=file.key,
                size=file.size or 0,
                sha256=file.sha256 or "",
            )
            for file in _pickled(checkpoint)
        )
        try:
            job = self._inference_service.unasked_job(
                checkpoint.owner, job_id, TaskType.CONVERT, used
            )
        except Conflict:
            return self._wait(checkpoint, _NO_ENDPOINT)
        # First the word on it: a quick worker must not be done before.
        checkpoint = self._wait(
            checkpoint,
            f"Its bytes are here. Endpoint '{job.endpoint_name}' converts it to .safetensors, as "
            f"job {job_id}.",
        )
        try:
            self._inference_service.start(job, {})
        except Conflict as refusal:
            checkpoint = self._wait(checkpoint, refusal.message)
        return checkpoint

    def _hashed(self, checkpoint: Checkpoint) -> Checkpoint:
        return replace(
            checkpoint,
            files=tuple(
                file if file.is_hashed else hashed(self._objects, file) for file in checkpoint.files
            ),
        )

    def _check(self, checkpoint: Checkpoint) -> Checkpoint:
        """Have its content checked, where the store has not done so."""
        checkpoint = self._wait(checkpoint, checkpoint.waits_for or CHECKING)
        self._runners.begin(checkpoint.id)
        return checkpoint

    def _wait(self, checkpoint: Checkpoint, waits_for: str) -> Checkpoint:
        return self._records.update(
            replace(checkpoint, waits_for=waits_for, check_at=self._clock() + RECONCILE_SECONDS)
        )

    def _take_in(self, checkpoint: Checkpoint, job: InferenceJob) -> None:
        """Put what the worker has written in the place of the pickled files."""
        outcome = self._inference_service.files.outcome(job)
        made = outcome.result["checkpoints"] if outcome and outcome.result else []
        hashes = {file["key"]: file["sha256"] for file in made}
        files = []
        try:
            for file in checkpoint.files:
                if is_pickled(file.name):
                    file = self._converted(checkpoint, file, hashes)
                    # Whoever wrote it has had untrusted files in its hands.
                    examine(self._objects, file)
                files.append(file)
        except (NotFound, FileRefused) as fault:
            self._checkpoint_service.fail(checkpoint, fault.message)
            return
        if not checkpoint.keep_original:
            for file in _pickled(checkpoint):
                self._objects.delete(file.key)
        self._checkpoint_service.activate(replace(checkpoint, files=tuple(files)))

    def _converted(
        self, checkpoint: Checkpoint, file: CheckpointFile, hashes: dict[str, str]
    ) -> CheckpointFile:
        name = converted_name(file.name)
        key = checkpoint_key(checkpoint.type, checkpoint.conversion_id, name)
        return replace(
            file,
            name=name,
            key=key,
            size=self._objects.size(key),
            sha256=hashes.get(key) or None,
            original_name=file.name,
            original_size=file.size,
            original_sha256=file.sha256,
        )


def _arrived(checkpoint: Checkpoint, now: float) -> Checkpoint:
    """Nobody fetches it any more, and the tokens in its URLs are forgotten."""
    return replace(
        checkpoint,
        arrived_at=now if checkpoint.arrived_at is None else checkpoint.arrived_at,
        leased_until=0.0,
        sources=tuple(replace(source, url="") for source in checkpoint.sources),
    )


def _unhashed(checkpoint: Checkpoint) -> list[CheckpointFile]:
    return [file for file in checkpoint.files if not file.is_hashed]


def _pickled(checkpoint: Checkpoint) -> list[CheckpointFile]:
    return [file for file in checkpoint.files if is_pickled(file.name)]


def _require_own_names(checkpoint: Checkpoint) -> None:
    """Raises FileRefused when two files would have one name after their conversion."""
    names = Counter(
        converted_name(file.name) if is_pickled(file.name) else file.name
        for file in checkpoint.files
    )
    (name, count), *_ = names.most_common(1)
    if count > 1:
        raise FileRefused(
            f"Two files of this checkpoint would be named '{name}' after their conversion. Rename "
            "one, or make each a checkpoint of its own."
        )
