"""Uploading checkpoints, and finding the one that a request names."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from middleware_api.contract import (
    CHECKPOINT_TRANSITIONS,
    MIB,
    PART_MIN_BYTES,
    UPLOAD_URL_SECONDS,
    CheckpointState,
    CheckpointType,
    FileUpload,
    PartTag,
    checkpoint_key,
)
from middleware_api.errors import Conflict, InvalidRequest, NotFound
from middleware_api.ports import Objects, Page, Records, StoredPart
from middleware_api.records import Checkpoint, CheckpointFile, UsedCheckpoint
from middleware_api.services.access import Principal

# An upload whose URLs have run out and that nobody asked about again is over.
UPLOAD_DEADLINE_SECONDS = 2 * UPLOAD_URL_SECONDS


@dataclass(frozen=True)
class NewFile:
    """A file that the caller is about to upload; `size` in bytes, `sha256` in hex."""

    name: str
    parts: int
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Upload:
    """Where the missing bytes of one file go, and which parts are there already."""

    urls: FileUpload
    arrived: list[StoredPart]


class CheckpointService:
    """Weights files, from the first part to the name in a request."""

    def __init__(
        self,
        records: Records,
        objects: Objects,
        clock: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self._records = records
        self._objects = objects
        self._clock = clock
        self._new_id = new_id

    def create(
        self,
        caller: Principal,
        kind: CheckpointType,
        files: list[NewFile],
        params: dict[str, object],
    ) -> tuple[Checkpoint, list[Upload]]:
        """Begin an upload; a single file whose content is known already is not sent again.

        Its unfinished upload by the same owner goes on where it stopped.
        """
        if known := self._same_content(caller.name, kind, files):
            uploads = self.missing_parts(known) if known.state is CheckpointState.INITIAL else []
            return known, uploads
        checkpoint_id = self._new_id()
        now = self._clock()
        checkpoint = Checkpoint(
            id=checkpoint_id,
            owner=caller.name,
            created_at=now,
            check_at=now + UPLOAD_DEADLINE_SECONDS,
            type=kind,
            state=CheckpointState.INITIAL,
            files=tuple(self._start_file(kind, checkpoint_id, file) for file in files),
            params=params,
        )
        self._records.add(checkpoint)
        if len(files) == 1 and files[0].sha256:
            self._records.bind(_unfinished_key(caller.name, kind, files[0]), checkpoint_id)
        return checkpoint, self.missing_parts(checkpoint)

    def get(self, checkpoint_id: str) -> Checkpoint:
        """Raises NotFound."""
        return self._records.get(Checkpoint, checkpoint_id)

    def page(
        self,
        states: Collection[CheckpointState],
        kinds: Collection[CheckpointType],
        limit: int,
        cursor: str | None,
    ) -> Page[Checkpoint]:
        """Newest first."""
        return self._records.page(
            Checkpoint,
            states=[s.value for s in states],
            labels=[k.value for k in kinds],
            limit=limit,
            cursor=cursor,
        )

    def get_own(self, caller: Principal, checkpoint_id: str) -> Checkpoint:
        """To change it: raises Forbidden when it is another user's, NotFound."""
        checkpoint = self.get(checkpoint_id)
        caller.require_own(checkpoint)
        return checkpoint

    def delete(self, checkpoint: Checkpoint) -> None:
        """Forget a checkpoint and its bytes; jobs that have not begun with it will fail."""
        self._hide(checkpoint)
        self._forget_parts(checkpoint)
        # The record goes last: a deletion that was cut short can be asked for again.
        for file in checkpoint.files:
            self._objects.delete_all(file.key.rpartition("/")[0] + "/")
        self._records.remove(checkpoint)

    def missing_parts(self, checkpoint: Checkpoint) -> list[Upload]:
        """Fresh URLs for what has not arrived, file by file."""
        if checkpoint.state is not CheckpointState.INITIAL:
            raise Conflict(
                f"Checkpoint '{checkpoint.id}' is {checkpoint.state.value}: nothing is left to "
                "upload. Only a checkpoint in state Initial takes parts.",
                "not_uploading",
            )
        return [self._missing_parts(file) for file in checkpoint.files]

    def complete(self, checkpoint: Checkpoint, tags: dict[str, list[PartTag]]) -> Checkpoint:
        """Make the uploaded parts a checkpoint that requests can name (`Initial` → `Active`)."""
        if checkpoint.state is CheckpointState.ACTIVE:
            return checkpoint  # the caller did not hear our first answer
        self._require(checkpoint, CheckpointState.ACTIVE)
        by_file = _tags_by_file(checkpoint, tags)
        stored = []
        for file in checkpoint.files:
            if not file.upload_id:
                stored.append(file)
                continue
            found = self._objects.complete_multipart(file.key, file.upload_id, by_file[file.name])
            if fault := _difference(file, found.size, found.sha256):
                self._records.update(
                    replace(checkpoint, state=CheckpointState.FAILED, error=fault, check_at=None)
                )
                raise Conflict(fault, "content_differs")
            done = replace(file, upload_id="", size=found.size, sha256=found.sha256 or file.sha256)
            stored.append(done)
            # One file at a time, so that a crash between two costs neither.
            checkpoint = self._records.update(
                replace(
                    checkpoint,
                    files=tuple(done if f.name == file.name else f for f in checkpoint.files),
                )
            )
        active = self._records.update(
            replace(checkpoint, state=CheckpointState.ACTIVE, check_at=None)
        )
        self._make_findable(active)
        return active

    def set_state(self, checkpoint: Checkpoint, state: CheckpointState) -> Checkpoint:
        """Disable, enable again, or give an upload up."""
        if checkpoint.state is state:
            return checkpoint
        if checkpoint.state is CheckpointState.INITIAL and state is CheckpointState.ACTIVE:
            raise Conflict(
                f"Checkpoint '{checkpoint.id}' is still uploading. Send multi_parts_tags with "
                f"the ETags of its parts: {', '.join(f.name for f in checkpoint.files)}.",
                "parts_missing",
            )
        self._require(checkpoint, state)
        error = "The upload was given up by its owner." if state is CheckpointState.FAILED else ""
        changed = self._records.update(replace(checkpoint, state=state, error=error, check_at=None))
        if state is CheckpointState.FAILED:
            self._forget_parts(changed)
        if state is CheckpointState.ACTIVE:
            self._make_findable(changed)
        else:
            self._hide(changed)
        return changed

    def resolve(self, kind: CheckpointType, name: str) -> UsedCheckpoint:
        """The Active checkpoint of that name; the newest when there are several.

        Raises NotFound, which names it.
        """
        checkpoint_id = self._records.lookup(_name_key(kind, name))
        if checkpoint_id is not None:
            checkpoint = self._records.get(Checkpoint, checkpoint_id)
            if checkpoint.state is CheckpointState.ACTIVE:
                file = next(f for f in checkpoint.files if f.name == name)
                return UsedCheckpoint(
                    type=kind,
                    name=name,
                    key=file.key,
                    size=file.size or 0,
                    sha256=file.sha256 or "",
                )
        raise NotFound(
            f"There is no Active {kind.value} checkpoint named '{name}'. Upload it first, or "
            "choose one that GET /checkpoints?status=Active lists.",
            "checkpoint_not_found",
        )

    def expire(self, checkpoint: Checkpoint) -> None:
        """End an upload whose deadline has passed."""
        arrived = sum(
            len(self._objects.arrived_parts(f.key, f.upload_id))
            for f in checkpoint.files
            if f.upload_id
        )
        expected = sum(f.parts for f in checkpoint.files)
        hours = UPLOAD_DEADLINE_SECONDS // 3600
        failed = self._records.update(
            replace(
                checkpoint,
                state=CheckpointState.FAILED,
                check_at=None,
                error=f"The upload was not finished within {hours} hours: {arrived} of {expected} "
                "parts had arrived. Start it again.",
            )
        )
        self._forget_parts(failed)

    def _start_file(
        self, kind: CheckpointType, checkpoint_id: str, file: NewFile
    ) -> CheckpointFile:
        parts, part_size = cut_into_parts(file.size, file.parts)
        key = checkpoint_key(kind, checkpoint_id, file.name)
        return CheckpointFile(
            name=file.name,
            key=key,
            upload_id=self._objects.start_multipart(key),
            parts=parts,
            part_size=part_size,
            size=file.size,
            sha256=file.sha256,
        )

    def _same_content(
        self, owner: str, kind: CheckpointType, files: list[NewFile]
    ) -> Checkpoint | None:
        if len(files) != 1 or not files[0].sha256:
            return None
        for key in (
            _content_key(kind, files[0].name, files[0].sha256),
            _unfinished_key(owner, kind, files[0]),
        ):
            checkpoint_id = self._records.lookup(key)
            if checkpoint_id is None:
                continue
            try:
                known = self._records.get(Checkpoint, checkpoint_id)
            except NotFound:  # deleted by half
                continue
            if known.state in (CheckpointState.ACTIVE, CheckpointState.INITIAL):
                return known
        return None

    def _missing_parts(self, file: CheckpointFile) -> Upload:
        arrived = self._objects.arrived_parts(file.key, file.upload_id) if file.upload_id else []
        there = {part.number for part in arrived}
        missing = [n for n in range(1, file.parts + 1) if n not in there] if file.upload_id else []
        return Upload(
            urls=FileUpload(
                filename=file.name,
                upload_id=file.upload_id,
                bucket=self._objects.bucket,
                key=file.key,
                part_size=file.part_size,
                parts=[
                    {
                        "PartNumber": number,
                        "url": self._objects.presigned_part(
                            file.key, file.upload_id, number, UPLOAD_URL_SECONDS
                        ),
                    }
                    for number in missing
                ],
            ),
            arrived=arrived,
        )

    def _forget_parts(self, checkpoint: Checkpoint) -> None:
        for file in checkpoint.files:
            if file.upload_id:
                self._objects.abort_multipart(file.key, file.upload_id)

    def _make_findable(self, checkpoint: Checkpoint) -> None:
        for file in checkpoint.files:
            self._records.bind(_name_key(checkpoint.type, file.name), checkpoint.id)
            if file.sha256 and len(checkpoint.files) == 1:
                key = _content_key(checkpoint.type, file.name, file.sha256)
                self._records.bind(key, checkpoint.id)

    def _hide(self, checkpoint: Checkpoint) -> None:
        for file in checkpoint.files:
            self._records.release(_name_key(checkpoint.type, file.name), checkpoint.id)
            if file.sha256:
                key = _content_key(checkpoint.type, file.name, file.sha256)
                self._records.release(key, checkpoint.id)

    def _require(self, checkpoint: Checkpoint, state: CheckpointState) -> None:
        if state not in CHECKPOINT_TRANSITIONS[checkpoint.state]:
            allowed = sorted(s.value for s in CHECKPOINT_TRANSITIONS[checkpoint.state])
            raise Conflict(
                f"Checkpoint '{checkpoint.id}' is {checkpoint.state.value} and cannot become "
                f"{state.value}; from here it can become: {', '.join(allowed) or 'nothing'}.",
                "state_not_allowed",
            )


def cut_into_parts(size: int | None, parts: int) -> tuple[int, int]:
    """Number of parts and bytes in each (the last may be shorter) for an upload.

    With `size` the part size is the size over `parts`, rounded up to whole MiB and at least
    5 MiB (S3's least), so there may be fewer parts; without it the caller cuts as it likes and
    the part size is 0.
    """
    if size is None:
        return parts, 0
    whole_mib = math.ceil(size / parts / MIB) * MIB
    part_size = max(whole_mib, PART_MIN_BYTES)
    return max(1, math.ceil(size / part_size)), part_size


def _tags_by_file(
    checkpoint: Checkpoint, tags: dict[str, list[PartTag]]
) -> dict[str, list[PartTag]]:
    """Match the request's keys to the checkpoint's files; `<name>.tar` also means `<name>`."""
    names = {file.name for file in checkpoint.files}
    by_file: dict[str, list[PartTag]] = {}
    for key, parts in tags.items():
        name = key if key in names else key.removesuffix(".tar")
        if name not in names:
            raise InvalidRequest(
                f"Checkpoint '{checkpoint.id}' has no file '{key}'; it has: "
                f"{', '.join(sorted(names))}.",
                ("body", "multi_parts_tags", key),
            )
        by_file[name] = parts
    for file in checkpoint.files:
        if file.upload_id and not by_file.get(file.name):
            raise Conflict(
                f"File '{file.name}' has no parts in multi_parts_tags. Upload its {file.parts} "
                "parts and send their ETags.",
                "parts_missing",
            )
    return by_file


def _difference(file: CheckpointFile, size: int, sha256: str | None) -> str | None:
    """Why the stored bytes are not the announced ones, or None when they are."""
    if file.size is not None and file.size != size:
        return (
            f"File '{file.name}' arrived with {size} bytes, but {file.size} were announced. "
            "Upload it again."
        )
    if file.sha256 and sha256 and file.sha256 != sha256:
        return (
            f"File '{file.name}' arrived with sha256 {sha256}, but {file.sha256} was announced: "
            "it changed or was damaged on its way. Upload it again."
        )
    return None


def _name_key(kind: CheckpointType, name: str) -> str:
    return f"checkpoint-name/{kind.value}/{name}"


def _content_key(kind: CheckpointType, name: str, sha256: str) -> str:
    return f"checkpoint-content/{kind.value}/{sha256}/{name}"


def _unfinished_key(owner: str, kind: CheckpointType, file: NewFile) -> str:
    return f"checkpoint-upload/{owner}/{kind.value}/{file.sha256}/{file.size}/{file.name}"
