"""The object store as a folder, with signed, expiring URLs that the same server answers.

    objects/<key>                 finished objects, under their own names
    multipart/<upload id>/<n>     parts that have arrived whole, named `<n>-<etag>`
    incoming/                     what is being received; renamed when whole

Every write lands in `incoming/` first, so a kill at any moment leaves a whole object or none.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import shutil
import zlib
from collections.abc import AsyncIterator, Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

from anyio import to_thread

from middleware_api.contract import PartTag
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

    def __init__(
        self, root: Path, signing_key: bytes, base_url: str, clock: Callable[[], float]
    ) -> None:
        self.root = root / "objects"
        self._multipart = root / "multipart"
        self._incoming = root / "incoming"
        self._signing_key = signing_key
        self._base_url = base_url
        self._clock = clock
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

    def size(self, key: str) -> int | None:
        """See `ports.Objects`."""
        path = self.path(key)
        return path.stat().st_size if path.is_file() else None

    def delete_all(self, prefix: str) -> None:
        """See `ports.Objects`."""
        shutil.rmtree(self.path(prefix), ignore_errors=True)

    def keys(self, prefix: str) -> list[str]:
        """See `ports.Objects`."""
        # A leading dot marks what a worker is still writing.
        found = (
            path
            for path in self.path(prefix).rglob("*")
            if path.is_file() and not path.name.startswith(".")
        )
        return sorted(path.relative_to(self.root).as_posix() for path in found)

    def presigned_get(self, key: str, seconds: int) -> str:
        """See `ports.Objects`."""
        return self._sign(SignedTarget("GET", key, self._expiry(seconds)))

    def presigned_put(self, key: str, seconds: int) -> str:
        """See `ports.Objects`."""
        return self._sign(SignedTarget("PUT", key, self._expiry(seconds)))

    def start_multipart(self, key: str) -> str:
        """See `ports.Objects`."""
        upload_id = secrets.token_hex(16)
        folder = self._multipart / upload_id
        folder.mkdir()
        (folder / "key").write_text(key)
        return upload_id

    def presigned_part(self, key: str, upload_id: str, number: int, seconds: int) -> str:
        """See `ports.Objects`."""
        return self._sign(SignedTarget("PUT", key, self._expiry(seconds), upload_id, number))

    def write_part(self, key: str, upload_id: str, number: int, content: bytes) -> str:
        """See `ports.Objects`."""
        folder = self._upload_folder(key, upload_id)
        temporary = self._temporary()
        temporary.write_bytes(content)
        etag = _etag(zlib.crc32(content), len(content))
        _put_part(temporary, folder, number, etag)
        return etag

    def arrived_parts(self, key: str, upload_id: str) -> list[StoredPart]:
        """See `ports.Objects`."""
        parts = []
        for path in self._upload_folder(key, upload_id).glob("*-*"):
            number, etag = path.name.split("-")
            parts.append(StoredPart(int(number), etag, path.stat().st_size))
        return sorted(parts, key=lambda part: part.number)

    def complete_multipart(self, key: str, upload_id: str, tags: Iterable[PartTag]) -> StoredObject:
        """See `ports.Objects`. Hashes while it copies: the bytes are read once."""
        target = self.path(key)
        if target.is_file():
            # We died between putting the object in place and saying so.
            self.abort_multipart(key, upload_id)
            return _describe(target)
        folder = self._upload_folder(key, upload_id)
        chosen = list(tags)
        arrived = self.arrived_parts(key, upload_id)
        require_parts(arrived, chosen)
        etags = {part.number: part.etag for part in arrived}
        digest = hashlib.sha256()
        temporary = self._temporary()
        with temporary.open("wb") as whole:
            for tag in chosen:
                number = tag["PartNumber"]
                with (folder / f"{number}-{etags[number]}").open("rb") as part:
                    while chunk := part.read(_CHUNK):
                        digest.update(chunk)
                        whole.write(chunk)
            whole.flush()
            os.fsync(whole.fileno())
        size = temporary.stat().st_size
        self._put_in_place(temporary, target)
        shutil.rmtree(folder)
        return StoredObject(size, digest.hexdigest())

    def abort_multipart(self, key: str, upload_id: str) -> None:
        """See `ports.Objects`."""
        shutil.rmtree(self._multipart / upload_id, ignore_errors=True)

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

    async def receive(self, target: SignedTarget, body: AsyncIterator[bytes]) -> str:
        """Store what a signed PUT brings; returns its ETag. Memory stays at one chunk."""
        folder = self._upload_folder(target.key, target.upload_id) if target.upload_id else None
        temporary = self._temporary()
        crc = size = 0
        try:
            with temporary.open("wb") as file:
                async for chunk in _in_large_chunks(body):
                    crc = await to_thread.run_sync(_append, file.fileno(), chunk, crc)
                    size += len(chunk)
            etag = _etag(crc, size)
            if folder is None:
                self._put_in_place(temporary, self.path(target.key))
            else:
                _put_part(temporary, folder, target.part, etag)
        finally:
            temporary.unlink(missing_ok=True)
        return etag

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

    def _upload_folder(self, key: str, upload_id: str) -> Path:
        folder = self._multipart / upload_id
        if not re.fullmatch("[0-9a-f]{32}", upload_id) or not folder.is_dir():
            raise NotFound(
                f"The upload of '{key}' is finished or was given up. Start it again.",
                "no_such_upload",
            )
        return folder

    def _temporary(self) -> Path:
        return self._incoming / secrets.token_hex(16)

    def _put_in_place(self, temporary: Path, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(temporary, target)


def _etag(crc: int, size: int) -> str:
    """CRC-32 and size: enough to tell parts apart, at a fraction of MD5's cost."""
    return f"{crc:08x}{size:x}"


def _put_part(temporary: Path, folder: Path, number: int, etag: str) -> None:
    """One part number has one content: the newest, as in S3."""
    for older in folder.glob(f"{number}-*"):
        older.unlink()
    os.replace(temporary, folder / f"{number}-{etag}")


def _append(descriptor: int, chunk: bytes, crc: int) -> int:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]
    return zlib.crc32(chunk, crc)


async def _in_large_chunks(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Fewer trips to the disk's thread: network chunks are 64 KiB."""
    waiting: list[bytes] = []
    size = 0
    async for chunk in body:
        waiting.append(chunk)
        size += len(chunk)
        if size >= _CHUNK:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)


def _describe(path: Path) -> StoredObject:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return StoredObject(path.stat().st_size, digest.hexdigest())
