"""The links that pages hand to the browser; `live` answers them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from aws_extension.access import CloudAccess
from aws_extension.answers import InferenceJob
from aws_extension.dataset_calls import DatasetFile

# Relative to the page, for hosts that are not at the root of their address.
STATE, THUMBNAIL, PREVIEW, PICTURE, MODEL, UPLOAD, SAMPLE, DATASET, CAPTION, LEAVE, DROP = (
    "sdaws/state", "sdaws/thumbnail", "sdaws/preview", "sdaws/picture", "sdaws/model",
    "sdaws/upload", "sdaws/sample", "sdaws/dataset", "sdaws/caption",
    "sdaws/leave", "sdaws/drop",
)  # fmt: skip


def watch(access: CloudAccess, page: str, user: str, query: Mapping[str, str]) -> str:
    """Where the browser asks what has changed on a page."""
    return access.seal.sign(f"{STATE}/{page}", {**query, "user": user})


def thumbnail(access: CloudAccess, job: InferenceJob, user: str) -> str:
    """A finished job's first picture, small; nothing for a job without."""
    if not job.image_names:
        return ""
    return access.seal.sign(f"{THUMBNAIL}/{job.id}", {"user": user})


def preview(access: CloudAccess, job: InferenceJob, user: str) -> str:
    """A running job's preview; its end differs when there may be another one."""
    if job.is_final or not job.preview_url:
        return ""
    return access.seal.sign(f"{PREVIEW}/{job.id}", {"user": user, "at": f"{job.progress:.3f}"})


def picture(access: CloudAccess, job: InferenceJob, index: int, user: str) -> str:
    """A finished job's picture as it was made."""
    return access.seal.sign(f"{PICTURE}/{job.id}", {"user": user, "index": str(index)})


def train_sample(access: CloudAccess, job_id: str, index: int, step: int, user: str) -> str:
    """A sample picture of a training; `step` makes the link its own."""
    query = {"user": user, "index": str(index), "step": str(step)}
    return access.seal.sign(f"{SAMPLE}/{job_id}", query)


def model_picture(access: CloudAccess, path: Path) -> str:
    """The picture beside a weights file of this machine."""
    return access.seal.sign(MODEL, {"path": str(path)})


def dataset_picture(access: CloudAccess, name: str, file: DatasetFile) -> str:
    """A picture of a data set in the cloud, small."""
    query = {"name": name, "file": file.name, "size": str(file.size)}
    return access.seal.sign(DATASET, query)


def caption(access: CloudAccess, path: Path) -> str:
    """Permission to write the caption of a picture of this machine."""
    return access.seal.sign(CAPTION, {"path": str(path)})


def leave_out(access: CloudAccess, path: Path) -> str:
    """Permission to leave a picture of this machine out of what is sent, or to take it in."""
    return access.seal.sign(LEAVE, {"path": str(path)})


def dataset_caption(access: CloudAccess, name: str, file: str) -> str:
    """Permission to write a caption of a data set in the cloud."""
    return access.seal.sign(CAPTION, {"name": name, "file": file})


def drop(access: CloudAccess) -> str:
    """Permission to keep files of the browser's machine on this one."""
    return access.seal.sign(DROP, {})


def browser_upload(access: CloudAccess) -> str:
    """Permission to send files from the browser; the act goes behind its path."""
    return access.seal.sign(UPLOAD, {})
