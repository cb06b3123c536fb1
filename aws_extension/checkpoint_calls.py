"""The checkpoints' half of the HTTP API: listed, uploaded, imported, changed."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from urllib.parse import quote

from requests import Response

from aws_extension import http
from aws_extension.answers import (
    Checkpoint,
    CheckpointUpload,
    parse_checkpoint,
    parse_checkpoint_upload,
    parse_list,
)
from aws_extension.calls import Calls, every_page, forget, object_in
from middleware_api.contract import CheckpointState, CheckpointType, PartTag


class CheckpointCalls(Calls):
    """These rows of one client."""

    def list_checkpoints(
        self, states: Sequence[CheckpointState] = (), types: Sequence[CheckpointType] = ()
    ) -> list[Checkpoint]:
        """Row 22, all pages."""
        params: http.Params = {
            "status": [state.value for state in states],
            "types": [kind.value for kind in types],
        }
        return [
            parse_checkpoint(item)
            for answer in every_page(self._call, "/checkpoints", params)
            for item in parse_list(object_in(answer).get("checkpoints"), "checkpoints")
        ]

    def create_checkpoint(
        self, kind: CheckpointType, filename: str, size: int, sha256: str, parts: int
    ) -> CheckpointUpload:
        """Row 20 (POST). With a `sha256` it is safe to repeat: the same content answers with the
        same upload. Without, "", it may be told when the upload is completed."""
        file: dict[str, object] = {"filename": filename, "parts_number": parts, "size": size}
        if sha256:
            file["sha256"] = sha256
        document: dict[str, object] = {
            "checkpoint_type": kind.value,
            "filenames": [file],
            "params": {},
        }
        return parse_checkpoint_upload(http.decode(self._call("POST", "/checkpoint", document)))

    def upload_state(self, checkpoint_id: str) -> CheckpointUpload:
        """Row 20b: which parts have arrived, and fresh URLs for the others."""
        path = f"/checkpoint/{quote(checkpoint_id, safe='')}/upload"
        return parse_checkpoint_upload(http.decode(self._call("GET", path)))

    def get_checkpoint(self, checkpoint_id: str) -> Checkpoint:
        """Row 20 (GET)."""
        return self._checkpoint_of(self._call("GET", "/checkpoint", params={"id": checkpoint_id}))

    def complete_checkpoint(
        self,
        checkpoint_id: str,
        tags: Mapping[str, Sequence[PartTag]],
        sha256: Mapping[str, str] | None = None,
    ) -> Checkpoint:
        """Row 21: the parts are all there, make it Active. `sha256` by file name."""
        document: dict[str, object] = {
            "checkpoint_id": checkpoint_id,
            "status": CheckpointState.ACTIVE.value,
            "multi_parts_tags": {name: list(parts) for name, parts in tags.items()},
        }
        if sha256:
            document["sha256"] = dict(sha256)
        return self._checkpoint_of(self._call("PUT", "/checkpoint", document))

    def prefetch_checkpoint(self, checkpoint_id: str, endpoint: str = "") -> None:
        """A hint that a job with this checkpoint may come soon."""
        path = f"/checkpoint/{quote(checkpoint_id, safe='')}/prefetch"
        self._call("POST", path, {"endpoint_name": endpoint} if endpoint else {})

    def set_checkpoint_state(self, checkpoint_id: str, state: CheckpointState) -> Checkpoint:
        """Row 21: disable, enable again, or give an upload up."""
        document = {"checkpoint_id": checkpoint_id, "status": state.value}
        return self._checkpoint_of(self._call("PUT", "/checkpoint", document))

    def rename_checkpoint(self, checkpoint_id: str, filename: str, new_name: str) -> Checkpoint:
        """Give one of its files another name."""
        document = {"checkpoint_id": checkpoint_id, "filename": filename, "new_name": new_name}
        return self._checkpoint_of(self._call("PATCH", "/checkpoint", document))

    def retry_checkpoint(self, checkpoint_id: str) -> Checkpoint:
        """Have one converted again whose conversion came to nothing."""
        path = f"/checkpoint/{quote(checkpoint_id, safe='')}/retry"
        return self._checkpoint_of(self._call("POST", path, {}))

    def delete_checkpoint(self, checkpoint_id: str) -> None:
        """Forget a checkpoint and its bytes; one that is gone already is as good."""
        forget(self._call, "/checkpoint", {"id": checkpoint_id})

    def import_checkpoint(self, kind: CheckpointType, url: str) -> Checkpoint:
        """Row 30: have the server fetch a weights file from a URL; one however often it is sent."""
        document: dict[str, object] = {
            "checkpointType": kind.value,
            "modelUrl": [url],
            "params": {},
        }
        return self._checkpoint_of(
            self._call("POST", "/upload_checkpoint", document, idempotency_key=str(uuid.uuid4()))
        )

    def _checkpoint_of(self, answer: Response) -> Checkpoint:
        return parse_checkpoint(object_in(answer).get("checkpoint"))
