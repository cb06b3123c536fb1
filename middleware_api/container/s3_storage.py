"""The object store in S3, for a worker on SageMaker: weights are copied to its own disk once."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from s3transfer.exceptions import (  # type: ignore[import-untyped]
    RetriesExceededError,
    S3DownloadFailedError,
)

from middleware_api.container.errors import CheckpointUnreadable, StorageUnreachable
from middleware_api.container.storage import PARTIAL, key_parts, sha256_of, whole_file
from middleware_api.contract import ContainerCheckpoint

ABSENT_SECONDS = 1.0
"""How long an absent object is taken for absent without asking again."""

logger = logging.getLogger(__name__)

_ABSENT = frozenset({"404", "NoSuchKey"})
# A job has minutes: rather wait for S3 than lose what the GPU has made.
_CONFIG = Config(
    signature_version="s3v4",
    connect_timeout=5,
    read_timeout=30,
    retries={"mode": "standard", "total_max_attempts": 5},
)


def s3_client(region: str | None) -> Any:
    """boto3's client for S3, with this process's own credentials."""
    return boto3.Session(region_name=region).client("s3", config=_CONFIG)


class S3Storage:
    """`Storage` in a bucket.

    Weights lie under `folder`, each in a folder named by its key's hash, which other workers may
    share. `clock` gives seconds that never go back.
    """

    def __init__(self, s3: Any, bucket: str, folder: Path, clock: Callable[[], float]) -> None:
        self._s3, self._bucket, self._folder, self._clock = s3, bucket, folder, clock
        # Only a cancel marker is asked for again and again, so the last answer is enough.
        self._absent: tuple[str, float] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._remove_stale()

    def exists(self, key: str) -> bool:
        """See `Storage`: S3 is asked at most once a second for what is not there."""
        key_parts(key)
        now = self._clock()
        if self._absent and self._absent[0] == key and now < self._absent[1] + ABSENT_SECONDS:
            return False
        try:
            with _in_words(key):
                self._s3.head_object(Bucket=self._bucket, Key=key)
        except FileNotFoundError:
            self._absent = (key, now)
            return False
        return True

    def read(self, key: str) -> bytes:
        """See `Storage`."""
        key_parts(key)
        with _in_words(key):
            content: bytes = self._s3.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        return content

    def write(self, key: str, content: bytes) -> None:
        """See `Storage`."""
        key_parts(key)
        with _in_words(key):
            self._s3.put_object(Bucket=self._bucket, Key=key, Body=content)
        if self._absent and self._absent[0] == key:
            self._absent = None

    def weights(self, checkpoint: ContainerCheckpoint) -> Path:
        """See `Storage`; raises CheckpointUnreadable, DiskFull and StorageUnreachable."""
        key, name = checkpoint["key"], checkpoint["name"]
        path = self._folder / hashlib.sha256(key.encode()).hexdigest() / key_parts(key)[-1]
        if path.is_file():
            return path
        no_room = (
            f"The endpoint's machine has no room left for {name} "
            f"({checkpoint['size'] / 1e9:.2f} GB). Use fewer different checkpoints on this "
            "endpoint, or make an endpoint of an instance type with a larger disk."
        )
        with whole_file(path, no_room) as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # tells that its process lives; see _remove_stale
            try:
                with _in_words(key):
                    self._s3.download_fileobj(self._bucket, key, file)
            except FileNotFoundError as error:
                raise CheckpointUnreadable(
                    f"{name} is not in the object store. Upload it again, or pick another "
                    "checkpoint."
                ) from error
            _require_whole(file, checkpoint)
        return path

    def check(self) -> None:
        """See `Storage`. S3 is not asked: a machine in this one's place would not mend it."""
        if not os.access(self._folder, os.R_OK | os.W_OK):
            raise StorageUnreachable("The folder for weights cannot be written.")

    def _remove_stale(self) -> None:
        """Removes what processes that were killed have left; a living one holds its lock."""
        for partial in self._folder.glob(f"*/{PARTIAL}"):
            with suppress(BlockingIOError, FileNotFoundError), partial.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                partial.unlink()


def _require_whole(file: BinaryIO, checkpoint: ContainerCheckpoint) -> None:
    name, size = checkpoint["name"], file.seek(0, os.SEEK_END)
    if size != checkpoint["size"]:
        raise CheckpointUnreadable(
            f"{name} has {size} bytes in the object store where {checkpoint['size']} are "
            "expected. Upload it again."
        )
    file.seek(0)
    if checkpoint["sha256"] and sha256_of(file) != checkpoint["sha256"].lower():
        raise CheckpointUnreadable(
            f"{name} in the object store is not the file that was uploaded: its SHA-256 differs. "
            "Upload it again."
        )


@contextmanager
def _in_words(key: str) -> Iterator[None]:
    """Turns what S3 refuses into FileNotFoundError or StorageUnreachable.

    The whole reason goes to the log: it may name accounts and roles, which are not the user's.
    """
    try:
        yield
    except ClientError as error:
        code = error.response["Error"]["Code"]
        if code in _ABSENT:
            raise FileNotFoundError(key) from error
        request_id = error.response.get("ResponseMetadata", {}).get("RequestId", "unknown")
        raise _unreachable(key, f"{code}, request {request_id}", error) from error
    except (BotoCoreError, RetriesExceededError, S3DownloadFailedError) as error:
        raise _unreachable(key, type(error).__name__, error) from error


def _unreachable(key: str, reason: str, error: Exception) -> StorageUnreachable:
    logger.warning("S3 failed for %s: %s", key, error)
    return StorageUnreachable(
        f"The object store did not answer for {key} ({reason}). Run the job again; if it happens "
        "twice, tell whoever runs this deployment."
    )
