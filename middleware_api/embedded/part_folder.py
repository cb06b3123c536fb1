"""One unfinished multipart upload on disk.

    part_size       bytes of every part but the last; not there when the caller cuts as it likes
    content         parts where they will stay: part n from (n - 1) * part size
    <n>-<etag>      part n has arrived whole; these files hold the parts that are not in `content`

What arrives in order is hashed while it is still in memory, so that completing costs little more
than a rename.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from middleware_api.crc32 import crc32
from middleware_api.errors import Conflict, Damaged, InvalidRequest, NotFound
from middleware_api.ports import StoredPart

_CHUNK = 4 * 1024 * 1024
_CONTENT, _PART_SIZE = "content", "part_size"


class Receiver:
    """Bytes on their way to the disk; `finish` puts them in place, leaving without it drops them.

    Not for two threads at a time.
    """

    def __init__(
        self,
        file: BinaryIO,
        settle: Callable[[str], None],
        drop: Callable[[], None],
        room: int | None = None,
    ) -> None:
        """`file` is unbuffered and stands where the bytes go, `room` the most that fits there."""
        self._file = file
        self._settle = settle
        self._drop = drop
        self._room = room
        self._crc = self._size = 0

    def __enter__(self) -> Receiver:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        fault: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._drop()

    def write(self, chunk: bytes | memoryview) -> None:
        """The next bytes. Raises Conflict when they are more than fit."""
        view = memoryview(chunk)
        if self._room is not None and self._size + len(view) > self._room:
            raise Conflict(
                f"This part has more than the {self._room} bytes that its upload's part_size says. "
                "Cut the file by part_size.",
                "part_too_large",
            )
        self._crc = crc32(view, self._crc)
        self._size += len(view)
        while view:
            view = view[self._file.write(view) :]

    def finish(self, crc: int | None = None) -> str:
        """All bytes are written; their ETag. Raises Damaged unless they have this CRC-32."""
        self._file.close()
        if crc is not None and crc != self._crc:
            raise Damaged(
                f"The bytes arrived with CRC-32 {self._crc:08x}, but {crc:08x} was announced: they "
                "were damaged on their way. Send them again."
            )
        etag = _etag(self._crc, self._size)
        self._settle(etag)
        return etag


class PartFolder:
    """The parts of one upload. One object for all threads: it knows which parts are under way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._part_size = _read_part_size(folder)
        self._lock = threading.Lock()
        self._under_way: set[int] = set()
        self._is_closed = False
        self._hashing = threading.Lock()
        self._hashed: list[tuple[int, str]] = []
        self._digest = hashlib.sha256()

    @classmethod
    def begin(cls, folder: Path, part_size: int) -> PartFolder:
        """An upload's folder, new; `part_size` 0 for a caller who cuts as it likes."""
        folder.mkdir()
        if part_size:
            (folder / _CONTENT).touch()
            (folder / _PART_SIZE).write_text(str(part_size))
        return cls(folder)

    def arrived(self) -> list[StoredPart]:
        """In order of their numbers."""
        parts = []
        for path in self.folder.glob("[0-9]*-*"):
            number, etag = path.name.split("-")
            parts.append(StoredPart(int(number), etag, _size_in(etag)))
        return sorted(parts, key=lambda part: part.number)

    def receiver(self, number: int, temporary: Path) -> Receiver:
        """Takes part `number`: at its place when this is the first time, else by way of
        `temporary`, so that the part that is there stays until the new one is whole."""
        if self._part_size and self._claim(number):
            file = (self.folder / _CONTENT).open("r+b", buffering=0)
            file.seek(self._start(number))
            return Receiver(
                file,
                lambda etag: (self.folder / f"{number}-{etag}").touch(),
                lambda: self._under_way.discard(number),
                room=self._part_size,
            )

        def settle(etag: str) -> None:
            with self._hashing:  # what is being hashed must not go away meanwhile
                self._forget_hash()
                for older in self.folder.glob(f"{number}-*"):
                    older.unlink()
                os.replace(temporary, self.folder / f"{number}-{etag}")

        return Receiver(
            temporary.open("wb", buffering=0), settle, lambda: temporary.unlink(missing_ok=True)
        )

    def hash_ahead(self) -> None:
        """Hash what has arrived in order and is not hashed yet, unless another thread does."""
        if not self._hashing.acquire(blocking=False):
            return
        try:
            before = -1
            while before < len(self._hashed):
                before = len(self._hashed)
                arrived = {part.number: part.etag for part in self.arrived()}
                while (etag := arrived.get(len(self._hashed) + 1)) is not None:
                    self._hash(len(self._hashed) + 1, etag, None)
        finally:
            self._hashing.release()

    def make_whole(self, numbers: Iterable[int], whole: Path) -> str:
        """One file of these parts, in this order; its SHA-256. No part is taken any more.

        Where they lie one behind the other in `content`, that becomes the file.
        """
        with self._lock:
            # A part that is under way would go on writing to what is the object by then.
            is_quiet, self._is_closed = not self._under_way, True
        try:
            with self._hashing:
                etags = {part.number: part.etag for part in self.arrived()}
                parts = [(number, etags[number]) for number in numbers]
                if is_quiet and self._lie_in_place(parts):
                    self._rename(parts, whole)
                else:
                    self._copy(parts, whole)
                return self._digest.hexdigest()
        except BaseException:
            self._is_closed = False
            raise

    def _rename(self, parts: list[tuple[int, str]], whole: Path) -> None:
        if self._hashed != parts[: len(self._hashed)]:
            self._forget_hash()
        for number, etag in parts[len(self._hashed) :]:
            self._hash(number, etag, None)
        content = self.folder / _CONTENT
        with content.open("r+b") as file:
            file.truncate(sum(_size_in(etag) for _, etag in parts))
            os.fsync(file.fileno())
        os.replace(content, whole)

    def _copy(self, parts: list[tuple[int, str]], whole: Path) -> None:
        self._forget_hash()
        with whole.open("wb", buffering=0) as copy:
            for number, etag in parts:
                self._hash(number, etag, copy)
            os.fsync(copy.fileno())

    def _forget_hash(self) -> None:
        self._hashed, self._digest = [], hashlib.sha256()

    def _claim(self, number: int) -> bool:
        """Whether the part's place may be written to: nobody does, and nothing is there."""
        with self._lock:
            if self._is_closed:
                raise NotFound("This upload is finished.", "no_such_upload")
            if number in self._under_way or any(self.folder.glob(f"{number}-*")):
                return False
            self._under_way.add(number)
            return True

    def _start(self, number: int) -> int:
        return (number - 1) * self._part_size

    def _lie_in_place(self, parts: list[tuple[int, str]]) -> bool:
        return bool(self._part_size) and all(
            number == place
            and (place == len(parts) or _size_in(etag) == self._part_size)
            and self._is_in_content(number, etag)
            for place, (number, etag) in enumerate(parts, start=1)
        )

    def _is_in_content(self, number: int, etag: str) -> bool:
        return bool(self._part_size) and not (self.folder / f"{number}-{etag}").stat().st_size

    def _hash(self, number: int, etag: str, copy: BinaryIO | None) -> None:
        """Add a part to the hash, and to a copy."""
        left = _size_in(etag)
        in_content = self._is_in_content(number, etag)
        path = self.folder / (_CONTENT if in_content else f"{number}-{etag}")
        with path.open("rb", buffering=0) as file:
            file.seek(self._start(number) if in_content else 0)
            while left and (chunk := file.read(min(left, _CHUNK))):
                self._digest.update(chunk)
                if copy is not None:
                    _write_all(copy, chunk)
                left -= len(chunk)
        self._hashed.append((number, etag))


def crc_of_header(text: str | None) -> int | None:
    """What `x-amz-checksum-crc32` says: four bytes in base64. Raises InvalidRequest."""
    if text is None:
        return None
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error:
        raw = b""
    if len(raw) != 4:
        raise InvalidRequest(
            "no CRC-32: four bytes, big endian, in base64", ("header", "x-amz-checksum-crc32")
        )
    return int.from_bytes(raw, "big")


def _etag(crc: int, size: int) -> str:
    """CRC-32 and size: enough to tell parts apart, at a fraction of MD5's cost."""
    return f"{crc:08x}{size:x}"


def _size_in(etag: str) -> int:
    return int(etag[8:], 16)


def _read_part_size(folder: Path) -> int:
    try:
        return int((folder / _PART_SIZE).read_text())
    except FileNotFoundError:
        return 0


def _write_all(file: BinaryIO, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[file.write(view) :]
