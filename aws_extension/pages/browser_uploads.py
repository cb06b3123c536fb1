"""The host's part in an upload from a browser: it asks the cloud for where the parts go.

The bytes go from the browser to the object store; the token stays here.
"""

from __future__ import annotations

from typing import Any

from aws_extension.access import CloudAccess
from aws_extension.answers import CheckpointUpload
from aws_extension.errors import UploadFailed
from aws_extension.pace import Pace
from middleware_api.contract import CheckpointState, CheckpointType, PartTag, is_valid_name


def begin(access: CloudAccess, asked: dict[str, Any]) -> dict[str, Any]:
    """Start the upload of `{"name", "size", "type"}`. Raises CloudError."""
    name, size = str(asked["name"]), int(asked["size"])
    kind = CheckpointType(asked["type"])
    if not is_valid_name(name) or size <= 0:
        raise UploadFailed(
            f"'{name}' cannot be uploaded under its name, or is empty. Letters, digits, spaces "
            "and . _ - ( ) + [ ] are allowed, no dot at the start."
        )
    part_size = Pace(lambda: 0.0).part_size(size)
    made = access.client().create_checkpoint(kind, name, size, "", -(-size // part_size))
    return _plan(made)


def go_on(access: CloudAccess, asked: dict[str, Any]) -> dict[str, Any]:
    """What is missing of `{"id"}`, with fresh URLs. Raises CloudError."""
    return _plan(access.client().upload_state(str(asked["id"])))


def complete(access: CloudAccess, asked: dict[str, Any]) -> dict[str, Any]:
    """Finish `{"id", "name", "tags"}`. Raises CloudError."""
    tags: list[PartTag] = [
        {"PartNumber": int(number), "ETag": str(etag)} for number, etag in asked["tags"]
    ]
    made = access.client().complete_checkpoint(str(asked["id"]), {str(asked["name"]): tags})
    if made.state not in (CheckpointState.ACTIVE, CheckpointState.INITIAL):
        raise UploadFailed(f"The server has it as {made.state.value}: {made.error}")
    # What is checked or converted there goes on by itself; the list tells its end.
    return {"id": made.id, "is_ready": made.state is CheckpointState.ACTIVE}


def _plan(upload: CheckpointUpload) -> dict[str, Any]:
    (plan,) = upload.plans
    return {
        "id": upload.checkpoint.id,
        "part_size": plan.part_size,
        "checksum": plan.checksum,
        "parts": [[number, url] for number, url in plan.urls.items()],
        "arrived": [[part.number, part.etag] for part in plan.arrived],
    }


ACTS = {"begin": begin, "go_on": go_on, "complete": complete}
