"""A folder of pictures, sent as a data set: pictures and their captions, several at a time."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aws_extension.client import CloudClient
from aws_extension.errors import Cancelled, UploadFailed
from middleware_api.contract import DatasetState, is_valid_name

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTIONS = (".txt",)
# The bound of one data set.
FILES_MAX = 1000
# Small files wait for answers, not for the line.
AT_ONCE = 8
_NOT_IN_NAMES = re.compile(r"[^\w.\-]+")


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder, not of its subfolders. Raises UploadFailed."""
    return [file for file in _files(folder) if file.suffix.lower() in PICTURES]


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
        raise UploadFailed(
            f"'{folder}' has no pictures ({', '.join(PICTURES)}). Choose the folder that they are "
            "in; subfolders are not looked into."
        )
    files = _files(folder)
    if len(files) > FILES_MAX:
        raise UploadFailed(
            f"'{folder}' has {len(files)} pictures and captions; a data set holds {FILES_MAX}. "
            "Make several folders of it."
        )
    for file in files:
        if not is_valid_name(file.name):
            raise UploadFailed(
                f"'{file.name}' cannot be a name in the cloud. Rename it: letters, digits, spaces "
                "and . _ - ( ) + [ ] are allowed, no dot at the start."
            )
    name = dataset_name(folder, files)
    states = {one.name: one.state for one in client.training.list_datasets()}
    if states.get(name) is DatasetState.ENABLED:
        return name
    if name not in states:
        _send(client, name, files, on_progress, should_cancel)
    client.training.enable_dataset(name)
    return name


def dataset_name(folder: Path, files: list[Path]) -> str:
    """The folder's own name, and a mark that differs when its files do."""
    digest = hashlib.sha256()
    for file in files:
        found = file.stat()
        digest.update(f"{file.name}\0{found.st_size}\0{found.st_mtime_ns}\0".encode())
    stem = _NOT_IN_NAMES.sub("-", folder.resolve().name).strip("-.") or "pictures"
    return f"{stem[:60]}-{digest.hexdigest()[:8]}"


def _send(
    client: CloudClient,
    name: str,
    files: list[Path],
    on_progress: Callable[[int, int], None],
    should_cancel: Callable[[], bool],
) -> None:
    by_name = {file.name: file for file in files}
    urls = client.training.create_dataset(name, list(by_name))

    def put(file_name: str) -> None:
        client.storage.send("PUT", urls[file_name], body=by_name[file_name].read_bytes())

    with ThreadPoolExecutor(AT_ONCE) as pool:
        sent = [pool.submit(put, file_name) for file_name in urls]
        try:
            for done, one in enumerate(sent):
                if should_cancel():
                    raise Cancelled("The upload was stopped. Start it again.")
                on_progress(done, len(sent))
                one.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            client.training.delete_dataset(name)
            raise


def _files(folder: Path) -> list[Path]:
    try:
        return sorted(
            file
            for file in folder.iterdir()
            if file.is_file() and file.suffix.lower() in PICTURES + CAPTIONS
        )
    except OSError as fault:
        raise UploadFailed(
            f"The folder '{folder}' cannot be read ({fault.strerror}). Check its path."
        ) from fault
