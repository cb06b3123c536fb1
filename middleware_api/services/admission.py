"""From bytes that are all in place to a checkpoint that requests can name.

Files of tensors are examined where they lie, and that is all. Files of torch are pickles, which
can run programs when they are opened: a worker opens them in a sandbox and writes their tensors
anew, as a job of its own. Until it has, their checkpoint is `Initial`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType

from middleware_api.contract import (
    INFERENCE_FINAL,
    CheckpointState,
    CheckpointType,
    InferenceState,
    PartTag,
    TaskType,
    checkpoint_key,
    conversion_id,
    converted_name,
    is_pickled,
)
from middleware_api.errors import Conflict, ContentDiffers, FileRefused, NotFound
from middleware_api.ports import Objects, Records
from middleware_api.records import Checkpoint, CheckpointFile, InferenceJob, UsedCheckpoint
from middleware_api.services.checkpoints import CheckpointService
from middleware_api.services.examination import examine
from middleware_api.services.inference import InferenceService

# How often a conversion is looked after, and how long one may wait for an endpoint.
RECONCILE_SECONDS = 30.0
DEADLINE_SECONDS = 24 * 3600

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
        clock: Callable[[], float],
    ) -> None:
        self._records = records
        self._objects = objects
        self._checkpoint_service = checkpoint_service
        self._inference_service = inference_service
        self._clock = clock

    def complete(
        self,
        checkpoint: Checkpoint,
        tags: dict[str, list[PartTag]],
        hashes: Mapping[str, str] = MappingProxyType({}),
    ) -> Checkpoint:
        """Make the uploaded parts a checkpoint: `Active`, or `Initial` while it is converted.

        `hashes` are SHA-256 by file name that were not known when it began. Raises ContentDiffers
        and FileRefused, after which it is `Fail` and its bytes are gone.
        """
        if checkpoint.state is CheckpointState.ACTIVE:
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
        """Examine all files; then it is `Active`, or `Initial` until a worker has converted it.

        Raises FileRefused.
        """
        for file in checkpoint.files:
            examine(self._objects, file)
        _require_own_names(checkpoint)
        if not _pickled(checkpoint):
            return self._checkpoint_service.activate(checkpoint)
        if checkpoint.arrived_at is None:
            # Nobody fetches it any more, and the tokens in its URLs are forgotten.
            checkpoint = replace(
                checkpoint,
                arrived_at=self._clock(),
                leased_until=0.0,
                sources=tuple(replace(source, url="") for source in checkpoint.sources),
            )
        return self._convert(checkpoint)

    def job_ended(self, job_id: str) -> None:
        """A job has ended; those that are no conversions are none of our business."""
        checkpoint_id = job_id.removeprefix(conversion_id(""))
        if checkpoint_id == job_id:
            return
        try:
            checkpoint = self._checkpoint_service.get(checkpoint_id)
        except NotFound:  # deleted meanwhile
            return
        if checkpoint.state is CheckpointState.INITIAL:
            self.reconcile(checkpoint)

    def reconcile(self, checkpoint: Checkpoint) -> None:
        """Look after one that waits for its conversion: begin it, or take its end in."""
        job = self._inference_service.existing(conversion_id(checkpoint.id))
        if job is None:
            if self._clock() > (checkpoint.arrived_at or 0) + DEADLINE_SECONDS:
                hours = DEADLINE_SECONDS // 3600
                self._checkpoint_service.fail(
                    checkpoint,
                    f"No endpoint was in service for {hours} hours to convert it to .safetensors. "
                    "Create an endpoint, then upload it again; or convert it yourself.",
                )
            else:
                self._convert(checkpoint)
        elif job.state not in INFERENCE_FINAL:
            self._wait(checkpoint, checkpoint.waits_for)
        elif job.state is InferenceState.SUCCEEDED:
            self._take_in(checkpoint, job)
        else:
            cancelled = "Its conversion to .safetensors was cancelled. Upload it again."
            self._checkpoint_service.fail(checkpoint, job.error or cancelled)

    def _convert(self, checkpoint: Checkpoint) -> Checkpoint:
        """Begin its conversion, where there is an endpoint."""
        job_id = conversion_id(checkpoint.id)
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
        key = checkpoint_key(checkpoint.type, conversion_id(checkpoint.id), name)
        return replace(
            file,
            name=name,
            key=key,
            size=self._objects.size(key),
            sha256=hashes.get(key) or None,
            original_name=file.name,
            original_sha256=file.sha256,
        )


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
