"""Rows 11-16: lists of weights files by type, plain uploads, and merging checkpoints."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from middleware_api.api.body import StrictRoute
from middleware_api.api.common import (
    DEFAULT_LIMIT,
    Caller,
    Cursor,
    IdempotencyKey,
    JobCaller,
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
from middleware_api.errors import Forbidden, InvalidRequest
from middleware_api.ports import Objects
from middleware_api.services.access import Principal
from middleware_api.services.checkpoints import CheckpointService
from middleware_api.services.merging import MergeRequest, MergingService

# The contract's own spelling of each path.
_LISTS = {
    "get-texual-inversion-list": CheckpointType.EMBEDDINGS,
    "get-lora-list": CheckpointType.LORA,
    "get-hypernetwork-list": CheckpointType.HYPERNETWORKS,
    "get-controlnet-model-list": CheckpointType.CONTROLNET,
}


def weights_router(
    service: CheckpointService, merging: MergingService, objects: Objects
) -> APIRouter:
    """The routes over the checkpoints, and the one that merges them."""
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

    @router.post("/inference/run-model-merge", **needs(Scope.MODELS, 404, 409, 429))
    async def run_model_merge(
        caller: JobCaller, body: MergeBody, idempotency_key: IdempotencyKey = None
    ) -> MergeAnswer:
        """Merge checkpoints into a new one, as an inference job."""
        job = merging.submit(
            caller,
            MergeRequest(
                primary_model_name=body.primary_model_name,
                secondary_model_name=body.secondary_model_name,
                tertiary_model_name=body.tertiary_model_name,
                interp_method=body.interp_method,
                multiplier=body.multiplier,
                save_as_half=body.save_as_half,
                custom_name=body.custom_name or "",
                bake_in_vae=body.bake_in_vae,
                discard_weights=body.discard_weights,
            ),
            idempotency_key,
        )
        return MergeAnswer(
            primary_model_name=body.primary_model_name,
            secondary_model_name=body.secondary_model_name,
            tertiary_model_name=body.tertiary_model_name,
            inference_id=job.id,
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
