"""SHA-256 of files that this machine has read whole once: none is read for it again."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path

from aws_extension.errors import UploadFailed
from aws_extension.mapped_file import windows
from aws_extension.whole_file import write_whole


class KnownHashes:
    """Hashes by path, size and time of change, in one file; without a folder, in memory."""

    def __init__(self, folder: Path | None = None) -> None:
        self._path = folder / "hashes.json" if folder else None
        self._lock = threading.Lock()
        self._kept: dict[str, list[object]] | None = None

    def get(self, path: Path) -> str:
        """The hash of the file as it is now, or ""."""
        with self._lock:
            entry = self._read().get(str(path.resolve()))
            return str(entry[1]) if entry and entry[0] == stamp_of(path) else ""

    def put(self, path: Path, stamp: str, sha256: str) -> None:
        """Remember a hash; `stamp` is `stamp_of` from before the file was read."""
        with self._lock:
            kept = self._read()
            kept[str(path.resolve())] = [stamp, sha256]
            if self._path is not None:
                write_whole(self._path, json.dumps(kept))

    def _read(self) -> dict[str, list[object]]:
        if self._kept is None:
            self._kept = {}
            if self._path is not None:
                try:
                    self._kept = dict(json.loads(self._path.read_text()))
                except (OSError, ValueError, TypeError):
                    self._kept = {}  # a lost file only costs reading again
        return self._kept


def stamp_of(path: Path) -> str:
    """Differs when the file has changed. Raises OSError."""
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


class FileHash:
    """A file's SHA-256, computed by a thread of its own from its making on."""

    def __init__(self, path: Path) -> None:
        self.done = 0
        self._path = path
        self._stop = threading.Event()
        self._fault: OSError | UploadFailed | None = None
        self._digest = hashlib.sha256()
        self._thread = threading.Thread(target=self._run, name="sdaws-hash", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether it is over, at the latest after `seconds`."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def result(self) -> str:
        """In hex, once it is over. Raises OSError, UploadFailed."""
        self._thread.join()
        if self._fault is not None:
            raise self._fault
        return self._digest.hexdigest()

    def stop(self) -> None:
        """It is not needed any more."""
        self._stop.set()

    def _run(self) -> None:
        try:
            with self._path.open("rb") as file:
                for window in windows(file, 0, self._path.stat().st_size):
                    if self._stop.is_set():
                        return
                    self._digest.update(window)
                    self.done += len(window)
        except (OSError, UploadFailed) as fault:
            self._fault = fault
