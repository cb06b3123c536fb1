"""Which object store a program of the container is told to use by its environment."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from middleware_api.container.storage import FolderStorage, Storage

DEFAULT_WEIGHTS_BYTES = 64 * 1024**3
"""Bound of the weights kept on the disk when SDAWS_WEIGHTS_BYTES is not set."""

DEFAULT_WEIGHTS_DIR = "/tmp/weights"
"""Where weights from a bucket are kept when SDAWS_WEIGHTS_DIR is not set."""


@dataclass(frozen=True)
class Bucket:
    """An object store in S3, and the folder that up to `max_bytes` of its weights are copied to.

    Without a `region` boto3 looks for one itself, but not in AWS_REGION.
    """

    name: str
    weights: Path
    max_bytes: int = DEFAULT_WEIGHTS_BYTES
    region: str | None = None


def objects_of(
    environment: Mapping[str, str], weights_bytes: int = DEFAULT_WEIGHTS_BYTES
) -> Path | Bucket:
    """Raises ValueError naming the variable that is missing or wrong."""
    folder, bucket = environment.get("SDAWS_OBJECTS"), environment.get("SDAWS_BUCKET")
    if folder and bucket:
        raise ValueError(
            "SDAWS_OBJECTS and SDAWS_BUCKET both name an object store. Set one of the two."
        )
    if folder:
        return Path(folder)
    if bucket:
        weights = Path(environment.get("SDAWS_WEIGHTS_DIR") or DEFAULT_WEIGHTS_DIR)
        return Bucket(bucket, weights, weights_bytes, environment.get("AWS_REGION") or None)
    raise ValueError(
        "SDAWS_OBJECTS must name the folder of the object store, or SDAWS_BUCKET its bucket in S3."
    )


def open_storage(objects: Path | Bucket) -> Storage:
    """The storage that the settings name."""
    if isinstance(objects, Path):
        return FolderStorage(objects)
    # boto3 takes a second to import and is not installed where there is no bucket.
    from middleware_api.container.s3_storage import S3Storage, s3_client

    client = s3_client(objects.region)
    return S3Storage(client, objects.name, objects.weights, objects.max_bytes, time.monotonic)
