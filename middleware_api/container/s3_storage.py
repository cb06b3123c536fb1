"""The object store in S3, for a worker on SageMaker: weights are copied to its own disk once."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from middleware_api.container.errors import CheckpointUnreadable, StorageUnreachable
from middleware_api.container.storage import OnBytes, Sink, key_parts
from middleware_api.container.weights.ranged_download import RangedDownload
from middleware_api.container.weights.weights_cache import WeightsCache
from middleware_api.contract import MIB, PARTS_MAX, ContainerCheckpoint

ABSENT_SECONDS = 1.0
"""How long an absent object is taken for absent without asking again."""

PART_BYTES = 16 * MIB
"""How much of a large object is sent at a time."""

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

    Weights lie in `folder`, up to `max_bytes` of them, which other workers may share. `clock`
    gives seconds that never go back.
    """

    def __init__(
        self, s3: Any, bucket: str, folder: Path, max_bytes: int, clock: Callable[[], float]
    ) -> None:
        self._s3, self._bucket, self._folder, self._clock = s3, bucket, folder, clock
        self._cache = WeightsCache(folder, max_bytes)
        # Only a cancel marker is asked for again and again, so the last answer is enough.
        self._absent: tuple[str, float] | None = None

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

    def delete(self, key: str) -> None:
        """See `Storage`."""
        key_parts(key)
        with _in_words(key):
            self._s3.delete_object(Bucket=self._bucket, Key=key)

    def sizes(self, prefix: str) -> dict[str, int]:
        """See `Storage`."""
        key_parts(prefix)
        pages = self._s3.get_paginator("list_objects_v2")
        with _in_words(prefix):
            return {
                found["Key"]: found["Size"]
                for page in pages.paginate(Bucket=self._bucket, Prefix=prefix)
                for found in page.get("Contents", ())
            }

    @contextmanager
    def writing(self, key: str, size: int) -> Iterator[Sink]:
        """See `Storage`. What a killed process has sent is dropped by the bucket's rule on
        uploads that nobody finished."""
        key_parts(key)
        upload = _Upload(self._s3, self._bucket, key, size)
        try:
            yield upload
            upload.complete()
        finally:
            upload.abort_unless_complete()

    @contextmanager
    def weights(self, checkpoint: ContainerCheckpoint, look: OnBytes) -> Iterator[Path]:
        """See `Storage`; raises CheckpointUnreadable, DiskFull and StorageUnreachable."""
        key, name = checkpoint["key"], checkpoint["name"]
        suffix = PurePosixPath(key_parts(key)[-1]).suffix
        # One content is one file, whatever it is called. Its hash is checked before it is kept.
        content = checkpoint["sha256"].lower() or hashlib.sha256(key.encode()).hexdigest()
        no_room = (
            f"The endpoint's machine has no room left for {name} "
            f"({checkpoint['size'] / 1e9:.2f} GB). Use fewer different checkpoints on this "
            "endpoint, or make an endpoint of an instance type with a larger disk."
        )

        def fetch(file: int) -> None:
            self._fetch(checkpoint, file, look)

        with self._cache.use(
            f"{content}{suffix}", checkpoint["size"], fetch, look, no_room
        ) as path:
            yield path

    def _fetch(self, checkpoint: ContainerCheckpoint, file: int, look: OnBytes) -> None:
        """Raises CheckpointUnreadable for what is not there, or not what was uploaded."""
        key, name = checkpoint["key"], checkpoint["name"]
        try:
            with _in_words(key):
                head = self._s3.head_object(Bucket=self._bucket, Key=key)
                size = head["ContentLength"]
                if size != checkpoint["size"]:
                    raise CheckpointUnreadable(
                        f"{name} has {size} bytes in the object store where {checkpoint['size']} "
                        "are expected. Upload it again."
                    )
                download = RangedDownload(self._s3, self._bucket, key, size, head["ETag"])
                sha256 = download.run(file, look)
        except FileNotFoundError as error:
            raise CheckpointUnreadable(
                f"{name} is not in the object store. Upload it again, or pick another checkpoint."
            ) from error
        if checkpoint["sha256"] and sha256 != checkpoint["sha256"].lower():
            raise CheckpointUnreadable(
                f"{name} in the object store is not the file that was uploaded: its SHA-256 "
                "differs. Upload it again."
            )

    def check(self) -> None:
        """See `Storage`. S3 is not asked: a machine in this one's place would not mend it."""
        if not os.access(self._folder, os.R_OK | os.W_OK):
            raise StorageUnreachable("The folder for weights cannot be written.")


class _Upload:
    """A multipart upload that is fed piece by piece; holds one part in memory."""

    def __init__(self, s3: Any, bucket: str, key: str, size: int) -> None:
        self._s3, self._key = s3, key
        self._part_size = max(PART_BYTES, -(-size // PARTS_MAX))
        self._target = {"Bucket": bucket, "Key": key}
        self._tags: list[dict[str, object]] = []
        self._waiting = bytearray()
        self._is_complete = False
        with _in_words(key):
            self._target["UploadId"] = s3.create_multipart_upload(**self._target)["UploadId"]

    def write(self, content: memoryview, /) -> None:
        """See `Sink`."""
        self._waiting += content
        while len(self._waiting) >= self._part_size:
            self._send(bytes(self._waiting[: self._part_size]))
            del self._waiting[: self._part_size]

    def complete(self) -> None:
        if self._waiting or not self._tags:
            self._send(bytes(self._waiting))
        with _in_words(self._key):
            self._s3.complete_multipart_upload(
                **self._target, MultipartUpload={"Parts": self._tags}
            )
        self._is_complete = True

    def abort_unless_complete(self) -> None:
        """Called on the way out of a failure, which is what must be told."""
        if self._is_complete:
            return
        try:
            self._s3.abort_multipart_upload(**self._target)
        except (BotoCoreError, ClientError) as error:
            logger.warning("upload of %s not aborted: %s", self._key, error)

    def _send(self, content: bytes) -> None:
        number = len(self._tags) + 1
        with _in_words(self._key):
            answer = self._s3.upload_part(**self._target, PartNumber=number, Body=content)
        checksums = {name: answer[name] for name in ("ChecksumCRC32",) if name in answer}
        self._tags.append({"PartNumber": number, "ETag": answer["ETag"], **checksums})


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
    except BotoCoreError as error:
        raise _unreachable(key, type(error).__name__, error) from error


def _unreachable(key: str, reason: str, error: Exception) -> StorageUnreachable:
    logger.warning("S3 failed for %s: %s", key, error)
    return StorageUnreachable(
        f"The object store did not answer for {key} ({reason}). Run the job again; if it happens "
        "twice, tell whoever runs this deployment."
    )
