"""The object store as the container sees it: keys in, bytes out."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path, PurePosixPath

from middleware_api.container.errors import BadRequest, DiskFull

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}


class FolderStorage:
    """Objects as files under one folder, for a worker that shares a disk with the API."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def local_path(self, key: str) -> Path:
        """Where the object lies on this machine; raises BadRequest when the key leaves the root."""
        parts = PurePosixPath(key).parts
        if not parts or key.startswith("/") or ".." in parts or "\0" in key:
            raise BadRequest(f"Object key {key!r} is not a relative path.", "bad_key")
        return self.root.joinpath(*parts)

    def exists(self, key: str) -> bool:
        return self.local_path(key).exists()

    def read(self, key: str) -> bytes:
        """Raises FileNotFoundError when there is no such object."""
        return self.local_path(key).read_bytes()

    def write(self, key: str, content: bytes) -> None:
        """Readers see the old object or the whole new one; raises DiskFull."""
        path = self.local_path(key)
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                partial.write_bytes(content)
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise DiskFull(
                    f"No room left to write {len(content)} bytes to {key}. Free disk space under "
                    "the object store, then run the job again."
                ) from error
            raise
