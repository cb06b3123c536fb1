"""Rows 20, 20b, 21, 22 and 30: checkpoints."""

from __future__ import annotations

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Body, Query, Response

from middleware_api.api.body import StrictRoute
from middleware_api.api.common import (
    DEFAULT_LIMIT,
    Caller,
    Cursor,
    IdempotencyKey,
    Limit,
    errors,
    file_upload,
    needs,
    part_tags,
    set_cursor,
)
from middleware_api.api.wire import (
    CheckpointAnswer,
    CheckpointBody,
    CheckpointListAnswer,
    CheckpointListItem,
    CheckpointRenameBody,
    CheckpointStateBody,
    CheckpointSummary,
    CheckpointUploadAnswer,
    ImportBody,
    MessageAnswer,
    OriginalFile,
    PrefetchAnswer,
    PrefetchBody,
    time_text,
)
from middleware_api.contract import (
    CheckpointState,
    CheckpointType,
    PartTag,
    Scope,
    checkpoint_key,
)
from middleware_api.errors import InvalidRequest
from middleware_api.ports import Objects
from middleware_api.records import Checkpoint
from middleware_api.services.events import Services
from middleware_api.services.imports import progress
from middleware_api.services.uploads import NewFile


def checkpoint_router(services: Services, objects: Objects) -> APIRouter:
    """The routes over the services that make checkpoints."""
    service, imports, admission = services.checkpoints, services.imports, services.admission
    router = APIRouter(route_class=StrictRoute, tags=["checkpoints"])

    def location(checkpoint: Checkpoint) -> str:
        keys = [file.key for file in checkpoint.files]
        # An import has no files until their hosts have told the names.
        key = keys[0] if keys else checkpoint_key(checkpoint.type, checkpoint.id, "")
        return f"s3://{objects.bucket}/{key.rpartition('/')[0]}"

    def summary(checkpoint: Checkpoint) -> CheckpointSummary:
        return CheckpointSummary(
            id=checkpoint.id,
            type=checkpoint.type,
            s3_location=location(checkpoint),
            status=checkpoint.state,
            params=_shown_params(checkpoint),
            sources=[source.shown_url for source in checkpoint.sources],
            progress=progress(checkpoint),
            step=checkpoint.step,
            message=checkpoint.waits_for,
            error=checkpoint.error,
            can_retry=checkpoint.can_retry,
        )

    def list_item(checkpoint: Checkpoint) -> CheckpointListItem:
        return CheckpointListItem(
            id=checkpoint.id,
            s3Location=location(checkpoint),
            type=checkpoint.type,
            status=checkpoint.state,
            name=[file.name for file in checkpoint.files],
            created=checkpoint.created_at,
            params=_shown_params(checkpoint),
            size=sum(file.size or 0 for file in checkpoint.files),
            sha256=[file.original_sha256 or file.sha256 or "" for file in checkpoint.files],
            sources=[source.shown_url for source in checkpoint.sources],
            progress=progress(checkpoint),
            step=checkpoint.step,
            message=checkpoint.waits_for,
            error=checkpoint.error,
            can_retry=checkpoint.can_retry,
            originals=[
                OriginalFile(
                    name=file.original_name,
                    size=file.original_size,
                    sha256=file.original_sha256 or "",
                    became=file.name,
                )
                for file in checkpoint.files
                if file.original_name
            ],
        )

    @router.post("/checkpoint", **needs(Scope.MODELS, 409))
    async def create_checkpoint(principal: Caller, body: CheckpointBody) -> CheckpointUploadAnswer:
        """Begin an upload; a file whose sha256 is known already is not sent again."""
        names = [file.filename for file in body.filenames]
        if len(set(names)) < len(names):
            raise InvalidRequest("the same file name twice", ("body", "filenames"))
        files = [
            NewFile(file.filename, file.parts_number, file.size, file.sha256)
            for file in body.filenames
        ]
        checkpoint, uploads = service.create(
            principal, body.checkpoint_type, files, body.params, body.keep_original
        )
        return CheckpointUploadAnswer(
            checkpoint=summary(checkpoint), s3PresignUrl=[file_upload(u) for u in uploads]
        )

    @router.post("/upload_checkpoint", **needs(Scope.MODELS, 409))
    async def import_checkpoint(
        principal: Caller, body: ImportBody, idempotency_key: IdempotencyKey = None
    ) -> CheckpointAnswer:
        """Begin to fetch weights files from their URLs, as one checkpoint."""
        if len(set(body.modelUrl)) < len(body.modelUrl):
            raise InvalidRequest("the same URL twice", ("body", "modelUrl"))
        checkpoint = imports.create(
            principal,
            body.checkpointType,
            body.modelUrl,
            body.params,
            idempotency_key,
            body.keep_original,
        )
        return CheckpointAnswer(checkpoint=summary(checkpoint))

    @router.get("/checkpoint", responses=errors(404))
    async def get_checkpoint(checkpoint_id: Annotated[str, Query(alias="id")]) -> CheckpointAnswer:
        """One checkpoint."""
        return CheckpointAnswer(checkpoint=summary(service.get(checkpoint_id)))

    @router.get("/checkpoint/{checkpoint_id}/upload", **needs(Scope.MODELS, 404, 409))
    async def get_checkpoint_upload(
        principal: Caller, checkpoint_id: str
    ) -> CheckpointUploadAnswer:
        """Which parts have arrived, and fresh URLs for the others."""
        checkpoint = service.get_own(principal, checkpoint_id)
        uploads = service.missing_parts(checkpoint)
        return CheckpointUploadAnswer(
            checkpoint=summary(checkpoint), s3PresignUrl=[file_upload(u) for u in uploads]
        )

    @router.put("/checkpoint", **needs(Scope.MODELS, 404, 409))
    async def update_checkpoint(
        principal: Caller, body: Annotated[CheckpointStateBody, Body()]
    ) -> CheckpointAnswer:
        """Finish an upload (`Active` with its parts' tags), give it up, disable or enable.

        Files are examined first; it is Initial while they are checked, and those of torch
        converted.
        """
        checkpoint = service.get_own(principal, body.checkpoint_id)
        if body.multi_parts_tags:
            tags = _tags(body)
            # Gigabytes are hashed and copied: not on the event loop.
            after = await to_thread.run_sync(admission.complete, checkpoint, tags, body.sha256)
        else:
            if body.sha256:
                raise InvalidRequest("goes only with multi_parts_tags", ("body", "sha256"))
            after = service.set_state(checkpoint, CheckpointState(body.status))
        return CheckpointAnswer(checkpoint=summary(after))

    @router.patch("/checkpoint", **needs(Scope.MODELS, 404, 409))
    async def rename_checkpoint(principal: Caller, body: CheckpointRenameBody) -> CheckpointAnswer:
        """Give a file of a checkpoint another name; jobs that name the old one go on."""
        checkpoint = service.get_own(principal, body.checkpoint_id)
        renamed = service.rename(checkpoint, body.filename, body.new_name)
        return CheckpointAnswer(checkpoint=summary(renamed))

    @router.post("/checkpoint/{checkpoint_id}/retry", **needs(Scope.MODELS, 404, 409))
    async def retry_checkpoint(principal: Caller, checkpoint_id: str) -> CheckpointAnswer:
        """Convert one again whose conversion came to nothing."""
        checkpoint = service.get_own(principal, checkpoint_id)
        return CheckpointAnswer(checkpoint=summary(admission.retry(checkpoint)))

    @router.delete("/checkpoint", **needs(Scope.MODELS, 404))
    async def delete_checkpoint(
        principal: Caller, checkpoint_id: Annotated[str, Query(alias="id")]
    ) -> MessageAnswer:
        """Delete a checkpoint and its files; jobs that have not begun with it will fail."""
        service.delete(service.get_own(principal, checkpoint_id))
        return MessageAnswer(message=f"Checkpoint '{checkpoint_id}' deleted")

    @router.post("/checkpoint/{checkpoint_id}/prefetch", **needs(Scope.INFER, 404, 409))
    async def prefetch_checkpoint(
        principal: Caller, checkpoint_id: str, body: PrefetchBody
    ) -> PrefetchAnswer:
        """Have an endpoint that is idle load a checkpoint before a job asks for it."""
        hint = services.prefetching.prefetch(principal, checkpoint_id, body.endpoint_name)
        return PrefetchAnswer(
            endpoint_name=hint.endpoint_name, inference_id=hint.job_id, message=hint.reason
        )

    @router.get("/checkpoints", responses=errors())
    async def list_checkpoints(
        response: Response,
        status: Annotated[list[CheckpointState], Query()] = [],  # noqa: B006
        types: Annotated[list[CheckpointType], Query()] = [],  # noqa: B006
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> CheckpointListAnswer:
        """Newest first."""
        page = service.page(status, types, limit, cursor)
        set_cursor(response, page.next_cursor)
        return CheckpointListAnswer(
            checkpoints=[list_item(checkpoint) for checkpoint in page.items],
            next_cursor=page.next_cursor,
        )

    return router


def _shown_params(checkpoint: Checkpoint) -> dict[str, Any]:
    """The caller's own words; those on an import are joined by what the contract has there."""
    if not checkpoint.sources:
        return checkpoint.params
    return {
        "created": time_text(checkpoint.created_at),
        "multipart_upload": {file.name: None for file in checkpoint.files},
        **checkpoint.params,
    }


def _tags(body: CheckpointStateBody) -> dict[str, list[PartTag]]:
    if body.status != CheckpointState.ACTIVE.value:
        raise InvalidRequest(
            "multi_parts_tags go only with status Active", ("body", "multi_parts_tags")
        )
    return part_tags(body.multi_parts_tags)
