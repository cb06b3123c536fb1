"""A folder of pictures, sent as a data set: pictures and their captions, several at a time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from aws_extension.client import CloudClient
from aws_extension.dataset_uploads import DatasetOrder, send
from aws_extension.errors import UploadFailed
from middleware_api.contract import (
    CAPTION_ENDING,
    DATASET_FILES_MAX,
    PICTURE_ENDINGS,
    DatasetState,
    is_valid_name,
)

_NOT_IN_NAMES = re.compile(r"[^\w.\-]+")


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, not of its subfolders. Raises UploadFailed."""
    return [file for file in _files(folder) if file.suffix.lower() in PICTURE_ENDINGS]


def send_folder(
    client: CloudClient,
    folder: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    should_cancel: Callable[[], bool] = lambda: False,
) -> str:
    """The name of an Enabled data set of the folder's pictures and captions.

    The same folder, unchanged, is not sent again. Callbacks run in the calling thread. Raises
    UploadFailed, Cancelled or the API's errors.
    """
    if not pictures_in(folder):
        endings = ", ".join(PICTURE_ENDINGS)
        raise UploadFailed(
            f"'{folder}' has no pictures ({endings}). Choose the folder that they are in; "
            "subfolders are not looked into."
        )
    files = _files(folder)
    if len(files) > DATASET_FILES_MAX:
        raise UploadFailed(
            f"'{folder}' has {len(files)} pictures and captions; a data set holds "
            f"{DATASET_FILES_MAX}. Make several folders of it."
        )
    for file in files:
        if not is_valid_name(file.name):
            raise UploadFailed(
                f"'{file.name}' cannot be a name in the cloud. Rename it: letters, digits, spaces "
                "and . _ - ( ) + [ ] are allowed, no dot at the start."
            )
    name = dataset_name(folder, files)
    states = {one.name: one.state for one in client.datasets.all()}
    if states.get(name) is not DatasetState.ENABLED:
        order = DatasetOrder(name, tuple(files))
        send(client, order, lambda arrived, _: on_progress(arrived, len(files)), should_cancel)
    return name


def dataset_name(folder: Path, files: list[Path]) -> str:
    """The folder's own name, and a mark that differs when its files do."""
    digest = hashlib.sha256()
    for file in files:
        found = file.stat()
        digest.update(f"{file.name}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    stem = _NOT_IN_NAMES.sub("-", folder.resolve().name).strip("-.") or "pictures"
    return f"{stem[:60]}-{digest.hexdigest()[:8]}"


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(
            file
            for file in folder.iterdir()
            if file.is_file() and file.suffix.lower() in (*PICTURE_ENDINGS, CAPTION_ENDING)
        )
    except OSError as fault:
        raise UploadFailed(
            f"The folder '{folder}' cannot be read ({fault.strerror}). Check its path."
        ) from fault
