"""Rows 11-16: lists of weights files by type, plain uploads, and merging checkpoints."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from middleware_api.api.body import StrictRoute
from middleware_api.api.common import (
    DEFAULT_LIMIT,
    Caller,
    Cursor,
    Limit,
    errors,
    needs,
    set_cursor,
)
from middleware_api.api.wire import MergeAnswer, MergeBody
from middleware_api.contract import (
    UPLOAD_URL_SECONDS,
    UPLOADS_PREFIX,
    CheckpointState,
    CheckpointType,
    Scope,
    is_valid_name,
)
from middleware_api.errors import Forbidden, InvalidRequest, NotAvailable
from middleware_api.ports import Objects
from middleware_api.services.access import Principal
from middleware_api.services.checkpoints import CheckpointService

# The contract's own spelling of each path.
_LISTS = {
    "get-texual-inversion-list": CheckpointType.EMBEDDINGS,
    "get-lora-list": CheckpointType.LORA,
    "get-hypernetwork-list": CheckpointType.HYPERNETWORKS,
    "get-controlnet-model-list": CheckpointType.CONTROLNET,
}


def weights_router(service: CheckpointService, objects: Objects) -> APIRouter:
    """The routes over one service."""
    router = APIRouter(route_class=StrictRoute, tags=["checkpoints"])

    def add_list(path: str, kind: CheckpointType) -> None:
        async def list_names(
            response: Response, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
        ) -> list[str]:
            page = service.page([CheckpointState.ACTIVE], [kind], limit, cursor)
            set_cursor(response, page.next_cursor)
            return [file.name for checkpoint in page.items for file in checkpoint.files]

        router.add_api_route(
            f"/inference/{path}",
            list_names,
            name=path.replace("-", "_"),
            description=f"Names of the Active checkpoints of type {kind.value}, newest first.",
            responses=errors(),
        )

    for path, kind in _LISTS.items():
        add_list(path, kind)

    @router.get("/inference/generate-s3-presigned-url-for-uploading", **needs(Scope.MODELS))
    async def generate_upload_url(
        principal: Caller,
        key: Annotated[str, Query(min_length=1, max_length=1024)],
        s3_bucket_name: Annotated[str | None, Query()] = None,
    ) -> str:
        """A presigned PUT URL for a key under `uploads/`."""
        if s3_bucket_name not in (None, objects.bucket):
            raise Forbidden(
                f"This server writes to its own bucket '{objects.bucket}' alone. Leave "
                "s3_bucket_name out.",
                "bucket_not_ours",
            )
        _check_upload_key(principal, key)
        return objects.presigned_put(key, UPLOAD_URL_SECONDS)

    @router.post("/inference/run-model-merge", **needs(Scope.MODELS, 404, 501))
    async def run_model_merge(body: MergeBody) -> MergeAnswer:
        """Merge checkpoints; not available in this version."""
        for name in (
            body.primary_model_name,
            body.secondary_model_name,
            body.tertiary_model_name,
        ):
            if name is not None:
                service.resolve(CheckpointType.STABLE_DIFFUSION, name)
        if body.bake_in_vae is not None:
            service.resolve(CheckpointType.VAE, body.bake_in_vae)
        raise NotAvailable(
            "Merging checkpoints is not available in this version of the middleware. Merge them in "
            "the WebUI's Checkpoint Merger and upload the result."
        )

    return router


def _check_upload_key(principal: Principal, key: str) -> None:
    prefix = UPLOADS_PREFIX if principal.is_admin else f"{UPLOADS_PREFIX}{principal.name}/"
    if not key.startswith(prefix):
        raise Forbidden(
            f"The key must begin with '{prefix}': nothing else can be written by this route.",
            "key_not_allowed",
        )
    if not all(is_valid_name(part) for part in key.split("/")):
        raise InvalidRequest("each part of the key must be a valid name", ("query", "key"))
