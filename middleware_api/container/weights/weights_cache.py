"""Weights files on this machine's disk, shared by all its workers and bounded by bytes.

Locks on the files themselves keep the peace, so a killed worker leaves none behind:

- a file that is being written is `.<name>.part`, and its writer alone holds it;
- a whole file has its own name, and whoever uses it shares its lock, so nobody evicts it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from middleware_api.container.errors import DiskFull
from middleware_api.container.storage import NO_ROOM, PARTIAL, OnBytes

WAIT_SECONDS = 0.1


class WeightsCache:
    """Least recently used out first, and never a file that is in use.

    The bound holds for what is kept: a single larger file is fetched all the same.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        self._remove_stale()

    @contextmanager
    def use(
        self, name: str, size: int, fetch: Callable[[int], None], look: OnBytes, no_room: str
    ) -> Iterator[Path]:
        """Lends the file of that name, which nobody removes until the block ends.

        When it is not there `fetch` writes its `size` bytes to a file descriptor; of several
        workers that want it one does, and the others wait. `look` is called while they do, and
        may raise to stop waiting. Raises DiskFull in the words of `no_room`, and what `fetch`
        raises; nothing is left then.
        """
        path = self._folder / name
        held = None
        while held is None:
            held = _shared(path)
            if held is None:
                held = self._made(path, size, fetch, no_room)
            if held is None:
                look(0)
                time.sleep(WAIT_SECONDS)
        try:
            os.utime(held)
            yield path
        finally:
            os.close(held)

    def _made(
        self, path: Path, size: int, fetch: Callable[[int], None], no_room: str
    ) -> int | None:
        """The new file, held; None when another worker is at it or was quicker."""
        partial = path.with_name(f".{path.name}.part")
        file = os.open(partial, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            if not _lock(file, fcntl.LOCK_EX) or not _is(file, partial):
                os.close(file)
                return None
            if path.exists():
                partial.unlink(missing_ok=True)
                os.close(file)
                return None
            try:
                self._fill(file, size, fetch, no_room)
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
        except BaseException:
            with suppress(OSError):
                os.close(file)
            raise
        fcntl.flock(file, fcntl.LOCK_SH)
        return file

    def _fill(self, file: int, size: int, fetch: Callable[[int], None], no_room: str) -> None:
        self._make_room(size)
        try:
            os.ftruncate(file, 0)
            if size:  # that there is room is found out before minutes of fetching
                os.posix_fallocate(file, 0, size)
            fetch(file)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise DiskFull(no_room) from error
            raise

    def _make_room(self, incoming: int) -> None:
        kept = [(path.stat(), path) for path in self._folder.iterdir() if _is_whole(path)]
        total = sum(found.st_size for found, _ in kept)
        for found, path in sorted(kept, key=lambda item: item[0].st_mtime_ns):
            is_room = shutil.disk_usage(self._folder).free >= incoming
            if is_room and total + incoming <= self._max_bytes:
                return
            if _evict(path):
                total -= found.st_size

    def _remove_stale(self) -> None:
        """Removes what processes that were killed have left; a living one holds its lock."""
        for partial in self._folder.glob(PARTIAL):
            _evict(partial)


def _shared(path: Path) -> int | None:
    """The whole file, its lock shared; None when there is none, or it is just being removed."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    if _lock(file, fcntl.LOCK_SH) and _is(file, path):
        return file
    os.close(file)
    return None


def _evict(path: Path) -> bool:
    """Removes a file that nobody holds."""
    try:
        file = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return True
    try:
        if not _lock(file, fcntl.LOCK_EX):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(file)


def _lock(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno != errno.EWOULDBLOCK:
            raise
        return False
    return True


def _is(file: int, path: Path) -> bool:
    """Whether the open file still bears that name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file), path.stat())
    return False


def _is_whole(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")
