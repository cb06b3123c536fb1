"""By what checkpoints are found: their files' names, and their content."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from middleware_api.contract import CheckpointState, CheckpointType
from middleware_api.errors import Conflict, NotFound
from middleware_api.ports import Records
from middleware_api.records import Checkpoint, UsedCheckpoint
from middleware_api.services.names import taking_name
from middleware_api.services.uploads import NewFile


class CheckpointNames:
    """Unique keys that point at checkpoints; of several with one name at the newest."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def show(self, checkpoint: Checkpoint) -> None:
        """Let an Active one be found."""
        for key in _keys(checkpoint):
            self._records.bind(key, checkpoint.id)

    def hide(self, checkpoint: Checkpoint) -> None:
        """Let it not be found any more."""
        for key in _keys(checkpoint):
            self._records.release(key, checkpoint.id)

    def note_begun(self, checkpoint: Checkpoint, file: NewFile) -> None:
        """Let an unfinished upload of one file be found by its owner."""
        key = _unfinished_key(checkpoint.owner, checkpoint.type, file)
        self._records.bind(key, checkpoint.id)

    def find(self, kind: CheckpointType, name: str) -> UsedCheckpoint | None:
        """The file of an Active checkpoint that requests may call so."""
        checkpoint_id = self._records.lookup(_name_key(kind, name))
        if checkpoint_id is None:
            return None
        checkpoint = self._records.get(Checkpoint, checkpoint_id)
        file = next((file for file in checkpoint.files if name in file.names), None)
        # One that was renamed may be not hidden yet under its old name.
        if checkpoint.state is not CheckpointState.ACTIVE or file is None:
            return None
        return UsedCheckpoint(
            type=kind, name=name, key=file.key, size=file.size or 0, sha256=file.sha256 or ""
        )

    def same_content(
        self, owner: str, kind: CheckpointType, files: list[NewFile]
    ) -> Checkpoint | None:
        """What is there, or on its way from this owner, of a single file whose hash is known."""
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

    @contextmanager
    def taking(self, checkpoint: Checkpoint, name: str) -> Iterator[None]:
        """Give the name to one that is renamed within the block. Raises Conflict when another
        Active one has it."""

        def holds(holder: Checkpoint) -> bool:
            is_other = holder.id != checkpoint.id and holder.state is CheckpointState.ACTIVE
            return is_other and any(name in file.names for file in holder.files)

        key, refusal = _name_key(checkpoint.type, name), partial(name_taken, checkpoint, name)
        with taking_name(self._records, key, checkpoint, refusal, holds):
            yield


def name_taken(checkpoint: Checkpoint, name: str) -> Conflict:
    """Why it cannot be named so."""
    return Conflict(
        f"An Active {checkpoint.type.value} checkpoint has the name '{name}' already. Choose "
        "another one.",
        "checkpoint_name_taken",
    )


def _keys(checkpoint: Checkpoint) -> list[str]:
    """A single file's also by its content, converted or as it came."""
    keys = [_name_key(checkpoint.type, name) for f in checkpoint.files for name in f.names]
    if len(checkpoint.files) == 1:
        (file,) = checkpoint.files
        for name, sha256 in (
            (file.name, file.sha256),
            (file.original_name, file.original_sha256),
        ):
            if sha256:
                keys.append(_content_key(checkpoint.type, name, sha256))
    return keys


def _name_key(kind: CheckpointType, name: str) -> str:
    return f"checkpoint-name/{kind.value}/{name}"


def _content_key(kind: CheckpointType, name: str, sha256: str) -> str:
    return f"checkpoint-content/{kind.value}/{sha256}/{name}"


def _unfinished_key(owner: str, kind: CheckpointType, file: NewFile) -> str:
    return f"checkpoint-upload/{owner}/{kind.value}/{file.sha256}/{file.size}/{file.name}"
