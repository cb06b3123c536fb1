"""What is remembered of unfinished uploads, so that the next start goes on with them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from aws_extension.whole_file import write_whole


@dataclass(frozen=True)
class Note:
    """An unfinished upload; `sha256` is "" where the file had not been read whole."""

    checkpoint_id: str
    sha256: str


class Notes:
    """Where the note of one file's upload to one server is kept; nowhere without a folder."""

    def __init__(self, folder: Path | None, path: Path, stamp: str, server: str) -> None:
        """`stamp` differs when the file has changed: then its note is another one's."""
        identity = json.dumps([str(path.resolve()), stamp, server])
        name = hashlib.sha256(identity.encode()).hexdigest()[:32]
        self._path = folder / f"upload-{name}.json" if folder else None

    def read(self) -> Note | None:
        """The note, when there is a readable one."""
        if self._path is None:
            return None
        try:
            raw = json.loads(self._path.read_text())
            return Note(str(raw["checkpoint_id"]), str(raw["sha256"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None  # a lost note only costs hashing again: the server knows the content

    def write(self, note: Note) -> None:
        """Keep it, whole or not at all."""
        if self._path is None:
            return
        write_whole(
            self._path, json.dumps({"checkpoint_id": note.checkpoint_id, "sha256": note.sha256})
        )

    def forget(self) -> None:
        """The upload is over."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
