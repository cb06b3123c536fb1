"""Rows 17-19 and 23-25: models and training jobs."""

from __future__ import annotations

import re
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Query, Response

from middleware_api import prices
from middleware_api.api.body import StrictRoute
from middleware_api.api.common import (
    DEFAULT_LIMIT,
    Caller,
    Cursor,
    IdempotencyKey,
    Limit,
    file_upload,
    needs,
    part_tags,
    set_cursor,
)
from middleware_api.api.wire import (
    MessageAnswer,
    ModelAnswer,
    ModelBody,
    ModelJob,
    ModelListAnswer,
    ModelListItem,
    ModelStateBody,
    ModelSummary,
    ModelUploadAnswer,
    NewTrainAnswer,
    TrainAnswer,
    TrainBody,
    TrainDetail,
    TrainDetailAnswer,
    TrainListAnswer,
    TrainListItem,
    TrainParams,
    TrainSampleShown,
    TrainStateBody,
    TrainSummary,
)
from middleware_api.contract import (
    CheckpointType,
    ModelState,
    Scope,
    TrainState,
    model_output_prefix,
    model_prefix,
    train_prefix,
)
from middleware_api.errors import InvalidRequest
from middleware_api.ports import Objects
from middleware_api.records import Model, TrainJob
from middleware_api.services.access import Principal
from middleware_api.services.models import ModelService, NewModel
from middleware_api.services.training import NewTrainJob, TrainingService, TrainLook
from middleware_api.services.uploads import NewFile

_DATASET_LOCATION = re.compile(r"s3://([^/]*)/dataset/([^/]*)/?")


def model_router(service: ModelService, objects: Objects) -> APIRouter:
    """The routes over one service."""
    router = APIRouter(route_class=StrictRoute, tags=["models"])

    def output(model: Model) -> str:
        prefix = model_output_prefix(model.type, model.name, model.id)
        return f"s3://{objects.bucket}/{prefix}"

    @router.post("/model", **needs(Scope.TRAIN, 404, 409))
    async def create_model(
        principal: Caller, body: ModelBody, idempotency_key: IdempotencyKey = None
    ) -> ModelUploadAnswer:
        """Begin a model, and the upload of the weights that it is made of."""
        names = [file.filename for file in body.filenames]
        if len(set(names)) < len(names):
            raise InvalidRequest("the same file name twice", ("body", "filenames"))
        request = NewModel(
            name=body.name,
            type=body.model_type,
            files=tuple(
                NewFile(file.filename, file.parts_number, file.size, file.sha256)
                for file in body.filenames
            ),
            checkpoint_id=body.checkpoint_id,
            params=body.params,
        )
        model, uploads = service.create(principal, request, idempotency_key)
        prefix = model_prefix(model.type, model.name, model.id)
        return ModelUploadAnswer(
            job=ModelSummary(
                id=model.id,
                status=model.state,
                s3_base=f"s3://{objects.bucket}/{prefix.rstrip('/')}",
                model_type=model.type,
                params=model.params,
                s3PresignUrl=[file_upload(upload) for upload in uploads],
            )
        )

    @router.put("/model", **needs(Scope.TRAIN, 404, 409))
    async def update_model(principal: Caller, body: ModelStateBody) -> ModelAnswer:
        """Finish the upload and make the model (`Creating`), or give it up (`Fail`)."""
        model = service.get(principal, body.model_id)
        if body.status == ModelState.CREATING.value:
            tags = part_tags(body.multi_parts_tags)
            # Gigabytes are hashed and copied: not on the event loop.
            after = await to_thread.run_sync(service.make, model, tags)
        else:
            after = service.give_up(model)
        return ModelAnswer(
            job=ModelJob(
                output_path=output(after),
                id=after.id,
                endpointName=after.compute_name,
                jobStatus=after.state,
                jobType=after.type,
                error=after.error,
            )
        )

    @router.delete("/model", **needs(Scope.TRAIN, 404, 409))
    async def delete_model(
        principal: Caller, model_id: Annotated[str, Query(alias="id")]
    ) -> MessageAnswer:
        """Delete a model and its files; training jobs that have not begun with it will fail."""
        service.delete(service.get(principal, model_id))
        return MessageAnswer(message=f"Model '{model_id}' deleted")

    @router.get("/models", **needs(Scope.TRAIN))
    async def list_models(
        principal: Caller,
        response: Response,
        types: Annotated[list[CheckpointType], Query()] = [],  # noqa: B006
        status: Annotated[list[ModelState], Query()] = [],  # noqa: B006
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> ModelListAnswer:
        """Newest first."""
        page = service.page(principal, status, types, limit, cursor)
        set_cursor(response, page.next_cursor)
        return ModelListAnswer(
            models=[
                ModelListItem(
                    id=model.id,
                    model_name=model.name,
                    created=model.created_at,
                    params=model.params,
                    status=model.state,
                    output_s3_location=output(model),
                    model_type=model.type,
                    checkpoint_id=model.checkpoint_id,
                    progress=service.progress(model),
                    error=model.error,
                )
                for model in page.items
            ],
            next_cursor=page.next_cursor,
        )

    return router


def train_router(service: TrainingService, objects: Objects) -> APIRouter:
    """The routes over one service."""
    router = APIRouter(route_class=StrictRoute, tags=["training"])

    @router.post("/train", **needs(Scope.TRAIN, 404, 409, 429))
    async def create_train_job(
        principal: Caller, body: TrainBody, idempotency_key: IdempotencyKey = None
    ) -> NewTrainAnswer:
        """Create a training job, which waits to be started."""
        return create_train(service, objects, principal, body, idempotency_key)

    @router.get("/train", **needs(Scope.TRAIN, 404))
    async def get_train_job(
        principal: Caller, job_id: Annotated[str, Query(alias="train_job_id")]
    ) -> TrainDetailAnswer:
        """One training job: how far it is, its loss curve and its sample pictures."""
        seen = await to_thread.run_sync(service.look, service.get(principal, job_id))
        return TrainDetailAnswer(job=_detail(service, seen))

    @router.put("/train", **needs(Scope.TRAIN, 404, 409))
    async def update_train_job(principal: Caller, body: TrainStateBody) -> TrainAnswer:
        """Start a training job (`Training`), or stop it (`Stopped`)."""
        job = service.get(principal, body.train_job_id)
        if body.status == TrainState.TRAINING.value:
            after = service.start(principal, job)
        else:
            after = service.stop(job)
        return TrainAnswer(job=_summary(after, objects))

    @router.delete("/train", **needs(Scope.TRAIN, 404, 409))
    async def delete_train_job(
        principal: Caller, job_id: Annotated[str, Query(alias="id")]
    ) -> MessageAnswer:
        """Delete a training job that does not run; the checkpoint that came of it stays."""
        service.delete(service.get(principal, job_id))
        return MessageAnswer(message=f"Training job '{job_id}' deleted")

    @router.get("/trains", **needs(Scope.TRAIN))
    async def list_train_jobs(
        principal: Caller,
        response: Response,
        types: Annotated[list[CheckpointType], Query()] = [],  # noqa: B006
        status: Annotated[list[TrainState], Query()] = [],  # noqa: B006
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> TrainListAnswer:
        """Newest first."""
        page = service.page(principal, status, types, limit, cursor)
        set_cursor(response, page.next_cursor)
        return TrainListAnswer(
            trainJobs=[TrainListItem(**_item(service, service.latest(job))) for job in page.items],
            next_cursor=page.next_cursor,
        )

    return router


def _item(service: TrainingService, job: TrainJob) -> dict[str, Any]:
    """The fields of a `TrainListItem`."""
    ran = service.ran_seconds(job)
    return {
        "id": job.id,
        "modelName": job.model_name,
        "status": job.state,
        "trainType": job.type,
        "created": job.created_at,
        "started": job.started_at,
        "completed": job.completed_at,
        "sagemakerTrainName": job.compute_name,
        "instance_type": job.instance_type,
        "progress": job.progress,
        "loss": job.loss,
        "steps": job.steps,
        "step_seconds": job.step_seconds,
        "estimated_cost": prices.cost(job.instance_type, ran),
        "error": job.error,
        "checkpoint_id": job.checkpoint_id,
    }


def _detail(service: TrainingService, seen: TrainLook) -> TrainDetail:
    told, checkpoint = seen.progress, seen.checkpoint
    return TrainDetail(
        **_item(service, seen.job),
        params=seen.job.params,
        model_id=seen.job.model_id,
        phase=seen.phase,
        step=told["step"] if told else 0,
        learning_rate=told["learning_rate"] if told else None,
        seconds_left=told["seconds_left"] if told and seen.phase else None,
        losses=told["losses"] if told else [],
        samples=[
            TrainSampleShown(step=sample["step"], prompt=sample["prompt"], url=url)
            for sample, url in seen.samples
        ],
        warnings=told["warnings"] if told else [],
        checkpoint_type=checkpoint.type if checkpoint else None,
        checkpoint_names=[file.name for file in checkpoint.files] if checkpoint else [],
    )


def create_train(
    service: TrainingService,
    objects: Objects,
    principal: Principal,
    body: TrainBody,
    idempotency_key: str | None,
) -> NewTrainAnswer:
    """Create a training job and show it: what `POST /train` and row 23 have in common."""
    request = NewTrainJob(
        type=body.train_type,
        model_id=body.model_id,
        datasets=_dataset_names(body.params, objects.bucket),
        instance_type=body.params.training_params.training_instance_type or "",
        params=body.params.model_dump(mode="json", exclude_unset=True),
    )
    return NewTrainAnswer(
        job=_summary(service.create(principal, request, idempotency_key), objects)
    )


def _dataset_names(params: TrainParams, bucket: str) -> tuple[str, ...]:
    """The data sets that the parameters speak of, each once.

    The training program may read these and no others, so a location elsewhere is refused; a
    concept's folder that is no location is the program's own affair.
    """
    training = params.training_params
    concepts = params.config_params.concepts_list
    listed = [
        (location, ("body", "params", "training_params", field, index))
        for field in ("data_tar_list", "class_data_tar_list")
        for index, location in enumerate(getattr(training, field))
        if location
    ]
    folders = [
        (location, ("body", "params", "config_params", "concepts_list", index, field))
        for index, concept in enumerate(concepts)
        for field in ("instance_data_dir", "class_data_dir")
        if (location := getattr(concept, field)).startswith("s3://")
    ]
    names: dict[str, None] = {}
    for location, place in (*listed, *folders):
        match = _DATASET_LOCATION.fullmatch(location)
        if match is None or match[1] not in ("", bucket):
            raise InvalidRequest(
                f"must be s3://{bucket}/dataset/<name>, the location of one of your data sets",
                place,
            )
        names[match[2]] = None
    return tuple(names)


def _summary(job: TrainJob, objects: Objects) -> TrainSummary:
    prefix = train_prefix(job.type, job.model_name, job.id)
    return TrainSummary(
        id=job.id,
        status=job.state,
        created=job.created_at,
        trainType=job.type,
        params=job.params,
        input_location=f"s3://{objects.bucket}/{prefix}input",
        error=job.error,
    )
