"""The object store as a folder, with signed, expiring URLs that the same server answers.

    objects/<key>                 finished objects, under their own names
    multipart/<upload id>/        parts, see `part_folder`
    incoming/                     what is being received; renamed when whole

No object is written where it will lie, so a kill at any moment leaves a whole object or none.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

from middleware_api.contract import PartChecksum, PartTag
from middleware_api.embedded.part_folder import PartFolder, Receiver
from middleware_api.errors import Forbidden, NotFound
from middleware_api.multipart import require_parts
from middleware_api.ports import StoredObject, StoredPart

OBJECTS_PATH = "/_objects/"
_CHUNK = 4 * 1024 * 1024

# The address by which the present caller reached us: behind 0.0.0.0 or a proxy only the request
# knows it, and a URL that it cannot reach would be no use to it.
caller_base_url: ContextVar[str | None] = ContextVar("caller_base_url", default=None)


@dataclass(frozen=True)
class SignedTarget:
    """What a signed URL allows: one method on one object, or on one part of an upload."""

    method: str
    key: str
    expires: int
    upload_id: str = ""
    part: int = 0


class FolderObjects:
    """`ports.Objects` in a folder."""

    bucket = "embedded"
    part_checksum: PartChecksum = "crc32"
    hash_max_bytes: int | None = None

    def __init__(
        self, root: Path, signing_key: bytes, base_url: str, clock: Callable[[], float]
    ) -> None:
        self.root = root / "objects"
        self._multipart = root / "multipart"
        self._incoming = root / "incoming"
        self._signing_key = signing_key
        self._base_url = base_url
        self._clock = clock
        self._lock = threading.Lock()
        self._part_folders: dict[str, PartFolder] = {}
        # What was being received when the last server stopped will not be finished.
        shutil.rmtree(self._incoming, ignore_errors=True)
        for folder in (self.root, self._multipart, self._incoming):
            folder.mkdir(parents=True, exist_ok=True)

    def write(self, key: str, content: bytes) -> None:
        """See `ports.Objects`."""
        temporary = self._temporary()
        temporary.write_bytes(content)
        self._put_in_place(temporary, self.path(key))

    def read(self, key: str) -> bytes:
        """See `ports.Objects`."""
        try:
            return self.path(key).read_bytes()
        except (FileNotFoundError, IsADirectoryError) as error:
            raise NotFound(f"There is no object '{key}'.") from error

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """See `ports.Objects`."""
        try:
            with self.path(key).open("rb") as file:
                file.seek(start)
                return file.read(length)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise NotFound(f"There is no object '{key}'.") from error

    def size(self, key: str) -> int | None:
        """See `ports.Objects`."""
        path = self.path(key)
        return path.stat().st_size if path.is_file() else None

    def delete(self, key: str) -> None:
        """See `ports.Objects`."""
        self.path(key).unlink(missing_ok=True)

    def delete_all(self, prefix: str) -> None:
        """See `ports.Objects`."""
        shutil.rmtree(self.path(prefix), ignore_errors=True)

    def keys(self, prefix: str) -> list[str]:
        """See `ports.Objects`."""
        return sorted(path.relative_to(self.root).as_posix() for path in self._below(prefix))

    def sizes(self, prefix: str) -> dict[str, int]:
        """See `ports.Objects`."""
        return {
            path.relative_to(self.root).as_posix(): path.stat().st_size
            for path in self._below(prefix)
        }

    def presigned_get(self, key: str, seconds: int) -> str:
        """See `ports.Objects`."""
        return self._sign(SignedTarget("GET", key, self._expiry(seconds)))

    def presigned_put(self, key: str, seconds: int) -> str:
        """See `ports.Objects`."""
        return self._sign(SignedTarget("PUT", key, self._expiry(seconds)))

    def start_multipart(self, key: str, part_size: int = 0) -> str:
        """See `ports.Objects`."""
        self.path(key)
        upload_id = secrets.token_hex(16)
        parts = PartFolder.begin(self._multipart / upload_id, part_size)
        with self._lock:
            self._part_folders[upload_id] = parts
        return upload_id

    def presigned_part(self, key: str, upload_id: str, number: int, seconds: int) -> str:
        """See `ports.Objects`."""
        return self._sign(SignedTarget("PUT", key, self._expiry(seconds), upload_id, number))

    def write_part(self, key: str, upload_id: str, number: int, content: bytes) -> str:
        """See `ports.Objects`."""
        with self._parts(key, upload_id).receiver(number, self._temporary()) as receiver:
            receiver.write(content)
            return receiver.finish()

    def arrived_parts(self, key: str, upload_id: str) -> list[StoredPart]:
        """See `ports.Objects`."""
        return self._parts(key, upload_id).arrived()

    def complete_multipart(self, key: str, upload_id: str, tags: Iterable[PartTag]) -> StoredObject:
        """See `ports.Objects`."""
        target = self.path(key)
        if target.is_file():
            # We died between putting the object in place and saying so.
            self.abort_multipart(key, upload_id)
            return _describe(target)
        parts = self._parts(key, upload_id)
        chosen = list(tags)
        require_parts(parts.arrived(), chosen)
        temporary = self._temporary()
        sha256 = parts.make_whole([tag["PartNumber"] for tag in chosen], temporary)
        size = temporary.stat().st_size
        self._put_in_place(temporary, target)
        self.abort_multipart(key, upload_id)
        return StoredObject(size, sha256)

    def abort_multipart(self, key: str, upload_id: str) -> None:
        """See `ports.Objects`."""
        with self._lock:
            self._part_folders.pop(upload_id, None)
        shutil.rmtree(self._multipart / upload_id, ignore_errors=True)

    def _below(self, prefix: str) -> Iterator[Path]:
        # A leading dot marks what a worker is still writing.
        for path in self.path(prefix).rglob("*"):
            if path.is_file() and not path.name.startswith("."):
                yield path

    def path(self, key: str) -> Path:
        """Where an object lies. Keys are made by `contract` from checked names; one that would
        leave the folder is a fault."""
        path = (self.root / key).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise Forbidden(f"'{key}' is no key of this store.")
        return path

    def verify(self, target: SignedTarget, signature: str) -> None:
        """Raises Forbidden unless this very target was signed here and has not expired."""
        if not hmac.compare_digest(self._signature(target), signature):
            raise Forbidden(
                "This URL was not made by this server, or was changed. Ask for a new one.",
                "signature_wrong",
            )
        if target.expires < self._clock():
            raise Forbidden("This URL has expired. Ask for a new one.", "url_expired")

    def receiver(self, target: SignedTarget) -> Receiver:
        """Takes what a signed PUT brings. Raises NotFound for an upload that is over."""
        if target.upload_id:
            parts = self._parts(target.key, target.upload_id)
            return parts.receiver(target.part, self._temporary())
        temporary, place = self._temporary(), self.path(target.key)
        return Receiver(
            temporary.open("wb", buffering=0),
            lambda etag: self._put_in_place(temporary, place),
            lambda: temporary.unlink(missing_ok=True),
        )

    def hash_ahead(self, target: SignedTarget) -> None:
        """A part has just arrived: do now what its upload's completion would wait for."""
        with suppress(NotFound):  # completed meanwhile
            self._parts(target.key, target.upload_id).hash_ahead()

    def _sign(self, target: SignedTarget) -> str:
        query = {"expires": str(target.expires), "signature": self._signature(target)}
        if target.upload_id:
            query |= {"uploadId": target.upload_id, "partNumber": str(target.part)}
        base = caller_base_url.get() or self._base_url
        return f"{base}{OBJECTS_PATH}{quote(target.key)}?{urlencode(query)}"

    def _signature(self, target: SignedTarget) -> str:
        fields = (target.method, target.key, str(target.expires), target.upload_id)
        message = "\n".join((*fields, str(target.part)))
        return hmac.new(self._signing_key, message.encode(), hashlib.sha256).hexdigest()

    def _expiry(self, seconds: int) -> int:
        return int(self._clock()) + seconds

    def _parts(self, key: str, upload_id: str) -> PartFolder:
        with self._lock:
            if (known := self._part_folders.get(upload_id)) is not None:
                return known
            folder = self._multipart / upload_id
            if not re.fullmatch("[0-9a-f]{32}", upload_id) or not folder.is_dir():
                raise NotFound(
                    f"The upload of '{key}' is finished or was given up. Start it again.",
                    "no_such_upload",
                )
            return self._part_folders.setdefault(upload_id, PartFolder(folder))

    def _temporary(self) -> Path:
        return self._incoming / secrets.token_hex(16)

    def _put_in_place(self, temporary: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, target)


def _describe(path: Path) -> StoredObject:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return StoredObject(path.stat().st_size, digest.hexdigest())
