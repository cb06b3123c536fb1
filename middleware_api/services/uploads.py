"""Files that arrive in parts: where each part goes, and how they become objects."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from middleware_api.contract import (
    MIB,
    PART_MIN_BYTES,
    UPLOAD_URL_SECONDS,
    FileUpload,
    PartTag,
)
from middleware_api.errors import Conflict, ContentDiffers, FileRefused, InvalidRequest
from middleware_api.ports import Objects, StoredObject, StoredPart
from middleware_api.records import CheckpointFile

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


class Uploads:
    """The files of a checkpoint or a model, from announced to stored."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def start(self, key: str, file: NewFile) -> CheckpointFile:
        """Begin to take a file's parts."""
        parts, part_size = cut_into_parts(file.size, file.parts)
        return CheckpointFile(
            name=file.name,
            key=key,
            upload_id=self._objects.start_multipart(key, part_size),
            parts=parts,
            part_size=part_size,
            size=file.size,
            sha256=file.sha256,
        )

    def missing_parts(self, files: Collection[CheckpointFile]) -> list[Upload]:
        """Fresh URLs for what has not arrived, file by file."""
        return [self._missing_parts(file) for file in files]

    def complete(
        self, files: tuple[CheckpointFile, ...], tags: dict[str, list[PartTag]]
    ) -> Iterator[tuple[CheckpointFile, ...]]:
        """Make objects of the parts; yields all files after each, for the caller to note.

        One file at a time, so that a crash between two costs neither. Raises ContentDiffers for
        bytes that are not the announced ones, Conflict for parts that are not there.
        """
        for file in files:
            if not file.upload_id:
                continue
            found = self._objects.complete_multipart(file.key, file.upload_id, tags[file.name])
            require_same(file, found)
            done = replace(
                file,
                upload_id="",
                size=found.size,
                sha256=found.sha256 or file.sha256,
                is_hashed=found.sha256 is not None,
            )
            files = tuple(done if f.name == file.name else f for f in files)
            yield files

    def abort(self, files: Collection[CheckpointFile]) -> None:
        """Forget the parts of what is not complete."""
        for file in files:
            if file.upload_id:
                self._objects.abort_multipart(file.key, file.upload_id)

    def told(self, files: Collection[CheckpointFile]) -> str:
        """How much has arrived, in words."""
        arrived = sum(
            len(self._objects.arrived_parts(f.key, f.upload_id)) if f.upload_id else f.parts
            for f in files
        )
        return f"{arrived} of {sum(f.parts for f in files)} parts had arrived"

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
                checksum=self._objects.part_checksum,
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


def tags_by_file(
    owner: str, files: Collection[CheckpointFile], tags: dict[str, list[PartTag]]
) -> dict[str, list[PartTag]]:
    """Match the request's keys to the files; `<name>.tar` also means `<name>`, and the reverse.

    `owner` is what the files belong to, in words. Raises InvalidRequest for a key that fits no
    file, Conflict for an incomplete file without tags.
    """
    names = {file.name for file in files}
    by_file: dict[str, list[PartTag]] = {}
    for key, parts in tags.items():
        meant = (key, key.removesuffix(".tar"), f"{key}.tar")
        name = next((name for name in meant if name in names), None)
        if name is None:
            raise InvalidRequest(
                f"{owner} has no file '{key}'; it has: {', '.join(sorted(names)) or 'none'}.",
                ("body", "multi_parts_tags", key),
            )
        by_file[name] = parts
    for file in files:
        if file.upload_id and not by_file.get(file.name):
            raise Conflict(
                f"File '{file.name}' has no parts in multi_parts_tags. Upload its {file.parts} "
                "parts and send their ETags.",
                "parts_missing",
            )
    return by_file


def require_hashable(objects: Objects, name: str, size: int) -> None:
    """Raises FileRefused for a file of which nobody could tell whether it is the announced one."""
    most = objects.hash_max_bytes
    if most is not None and size > most:
        raise FileRefused(
            f"File '{name}' has {size:,} bytes, and this deployment takes files of at most "
            f"{most:,} bytes. Use a smaller one, such as the same weights in half precision."
        )


def require_same(file: CheckpointFile, found: StoredObject) -> None:
    """Raises ContentDiffers when what is stored is not what was announced."""
    if file.size is not None and file.size != found.size:
        raise ContentDiffers(
            f"File '{file.name}' arrived with {found.size} bytes, but {file.size} were "
            "announced. Upload it again."
        )
    if file.sha256 and found.sha256 and file.sha256 != found.sha256:
        raise ContentDiffers(
            f"File '{file.name}' arrived with sha256 {found.sha256}, but {file.sha256} was "
            "announced: it changed or was damaged on its way. Upload it again."
        )
