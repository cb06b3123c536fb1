"""The object store as the container sees it: keys in, bytes out."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol

from middleware_api.container.errors import BadRequest, DiskFull, StorageUnreachable
from middleware_api.contract import ContainerCheckpoint

PARTIAL = ".*.part"
"""Pattern of the names of files that are not whole yet."""
NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


OnBytes = Callable[[int], None]
"""Is told how many bytes have come so far."""


class Sink(Protocol):
    """Takes a large object's bytes, from its first to its last."""

    def write(self, content: memoryview, /) -> object:
        """The bytes may change once it has returned."""


class Storage(Protocol):
    """Where jobs' objects and weights lie.

    Every method raises ContainerError; BadRequest for a key that is not a relative path.
    """

    def exists(self, key: str) -> bool:
        """Cheap enough to be asked at every sampler step: a no may be a second old."""

    def read(self, key: str) -> bytes:
        """Raises FileNotFoundError when there is no such object."""

    def write(self, key: str, content: bytes) -> None:
        """Readers see the old object or the whole new one."""

    def delete(self, key: str) -> None:
        """One that is not there is no error."""

    def sizes(self, prefix: str) -> dict[str, int]:
        """The whole objects under `prefix`, which ends with a slash, by their keys: in bytes."""

    def writing(self, key: str, size: int) -> AbstractContextManager[Sink]:
        """A large new object of `size` bytes, whole when the block ends.

        One that ends with an error leaves nothing; so does one that was killed, at the latest
        when the same key is written again. Nobody else may write under the key's folder.
        """

    def weights(
        self, checkpoint: ContainerCheckpoint, look: OnBytes
    ) -> AbstractContextManager[Path]:
        """The checkpoint's file on this machine, with its key's ending, until the block ends.

        May take minutes; then `look` gets the number of bytes that have come, a few times a
        second, and may raise to stop. A file that is missing is told of here or when it is opened.
        """

    def check(self) -> None:
        """Raises StorageUnreachable when this process cannot store anything any more."""


class FolderStorage:
    """Objects as files under one folder, for a worker that shares a disk with the API."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def exists(self, key: str) -> bool:
        """See `Storage`; a no is never old."""
        return self._path(key).exists()

    def read(self, key: str) -> bytes:
        """See `Storage`."""
        return self._path(key).read_bytes()

    def write(self, key: str, content: bytes) -> None:
        """See `Storage`; raises DiskFull."""
        no_room = (
            f"No room left to write {len(content)} bytes to {key}. Free disk space under the "
            "object store, then run the job again."
        )
        with whole_file(self._path(key), no_room) as file:
            file.write(content)

    def delete(self, key: str) -> None:
        """See `Storage`."""
        self._path(key).unlink(missing_ok=True)

    def sizes(self, prefix: str) -> dict[str, int]:
        """See `Storage`."""
        return {
            path.relative_to(self.root).as_posix(): path.stat().st_size
            for path in sorted(self._path(prefix).rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        }

    @contextmanager
    def writing(self, key: str, size: int) -> Iterator[Sink]:
        """See `Storage`; raises DiskFull."""
        path = self._path(key)
        for partial in path.parent.glob(PARTIAL):  # of a worker that was killed
            partial.unlink(missing_ok=True)
        no_room = (
            f"No room left for {path.name} ({size / 1e9:.2f} GB). Free disk space under the object "
            "store, then run the job again."
        )
        with whole_file(path, no_room) as file:
            yield file

    @contextmanager
    def weights(self, checkpoint: ContainerCheckpoint, look: OnBytes) -> Iterator[Path]:
        """See `Storage`; it is used where it lies. Whoever opens it finds out whether it is."""
        yield self._path(checkpoint["key"])

    def check(self) -> None:
        """See `Storage`."""
        if not os.access(self.root, os.R_OK | os.W_OK):
            raise StorageUnreachable("The object store's folder cannot be written.")

    def _path(self, key: str) -> Path:
        return self.root.joinpath(*key_parts(key))


def key_parts(key: str) -> tuple[str, ...]:
    """The names a key is made of; raises BadRequest when they would lead out of a folder."""
    parts = PurePosixPath(key).parts
    if not parts or key.startswith("/") or ".." in parts or "\0" in key:
        raise BadRequest(f"Object key {key!r} is not a relative path.", "bad_key")
    return parts


@contextmanager
def whole_file(path: Path, no_room: str) -> Iterator[BinaryIO]:
    """A new file that gets its name when it is complete, and leaves nothing when it fails.

    Raises DiskFull, in the words of `no_room`.
    """
    partial = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("x+b") as file:
                yield file
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise DiskFull(no_room) from error
        raise


def sha256_of(file: BinaryIO) -> str:
    """Hex digest of the rest of an open file."""
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
