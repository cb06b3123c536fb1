"""What is here and what is in the cloud, side by side: matched by hash, else by name and size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aws_extension.answers import Checkpoint
from aws_extension.model_needs import LocalFile, LocalModels
from aws_extension.upload_queue import Upload, UploadOrder
from middleware_api.contract import CheckpointState, CheckpointType

_PICTURES = tuple(
    f"{between}.{kind}" for kind in ("png", "jpg", "jpeg", "webp") for between in ("", ".preview")
)


@dataclass(frozen=True)
class ModelRow:
    """One weights file: here, in the cloud, or both; and its upload while there is one."""

    kind: CheckpointType
    name: str
    size: int | None
    local: LocalFile | None = None
    cloud: Checkpoint | None = None
    upload: Upload | None = None

    @property
    def key(self) -> str:
        """Tells it from others."""
        return self.order.key if self.order else f"cloud:{self.cloud.id if self.cloud else ''}"

    @property
    def order(self) -> UploadOrder | None:
        """To upload it; None for what is not here."""
        if self.local is None:
            return self.upload.order if self.upload else None
        return UploadOrder(self.local.path, self.kind, self.local.size, self.local.sha256)

    @property
    def can_upload(self) -> bool:
        """Whether it is here alone, and nothing is done about it yet."""
        return self.local is not None and self.cloud is None and self.upload is None


def list_models(
    local: LocalModels,
    cloud: Sequence[Checkpoint],
    uploads: Iterable[Upload],
    known_hash: Callable[[Path], str],
) -> dict[CheckpointType, list[ModelRow]]:
    """The rows of each type that has any, by name."""
    under_way = {upload.order.key: upload for upload in uploads}
    rows: dict[CheckpointType, list[ModelRow]] = {}
    for kind in CheckpointType:
        there = [one for one in cloud if one.type == kind.value]
        found = []
        for file in local.of(kind):
            order = UploadOrder(file.path, kind, file.size, file.sha256)
            upload = under_way.pop(order.key, None)
            match = _match(file, file.sha256 or known_hash(file.path), there)
            if match is not None:
                there.remove(match)
            found.append(ModelRow(kind, file.path.name, file.size, file, match, upload))
        for key, upload in list(under_way.items()):
            if upload.order.kind is kind:  # asked for, and not in the host's own lists
                order = under_way.pop(key).order
                found.append(ModelRow(kind, order.path.name, order.size, upload=upload))
        for one in there:
            name = ", ".join(one.names) or one.id
            found.append(ModelRow(kind, name, one.size, cloud=one))
        if found:
            rows[kind] = sorted(found, key=lambda row: row.name.casefold())
    return rows


def picture_beside(path: Path) -> Path | None:
    """The preview picture that the WebUI shows for a weights file."""
    stem = path.with_suffix("")
    candidates = (stem.with_name(stem.name + ending) for ending in _PICTURES)
    return next((found for found in candidates if found.is_file()), None)


def _match(file: LocalFile, sha256: str, there: Sequence[Checkpoint]) -> Checkpoint | None:
    usable = [one for one in there if one.state is not CheckpointState.FAILED or one.can_retry]
    for one in usable:
        if sha256 and (sha256 in one.sha256 or any(o.sha256 == sha256 for o in one.originals)):
            return one
    for one in usable:
        is_unknown = not sha256 or not any(one.sha256)
        if is_unknown and one.may_be(file.path.name, file.size):
            return one
    return None
