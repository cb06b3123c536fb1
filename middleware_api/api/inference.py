"""Rows 1-6b and 23: inference jobs."""

from __future__ import annotations

from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Body, Query, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from middleware_api import contract
from middleware_api.api.body import StrictRoute, parse_json
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
from middleware_api.api.training import create_train
from middleware_api.api.wire import (
    InferenceBody,
    InferenceJobAnswer,
    InferenceOrUpload,
    MessageAnswer,
    NewTrainAnswer,
    RunOrTrain,
    SubmittedAnswer,
    TrainBody,
    UploadParamsBody,
    complete_time_text,
    time_text,
)
from middleware_api.contract import SUBMITTABLE_TASKS, InferenceState, Scope, TaskType
from middleware_api.errors import Conflict, InvalidRequest, NotAvailable
from middleware_api.ports import Objects
from middleware_api.prices import cost
from middleware_api.records import InferenceJob
from middleware_api.services.inference import InferenceRequest, InferenceService
from middleware_api.services.training import TrainingService

JobId = Annotated[str, Query(alias="jobID")]

# What the containers can do today; the others are in the contract and come with their engine.
_AVAILABLE = frozenset(
    {
        *(TaskType.TXT2IMG, TaskType.IMG2IMG),
        *(TaskType.EXTRA_SINGLE_IMAGE, TaskType.EXTRA_BATCH_IMAGES, TaskType.INTERROGATE),
    }
)


def inference_router(
    service: InferenceService, training: TrainingService, objects: Objects
) -> APIRouter:
    """The routes over the inference service; one of them has a second meaning: to train."""
    router = APIRouter(route_class=StrictRoute, tags=["inference"])

    run_answers: dict[str, Any] = {"responses": errors(403, 404, 409, 429, 501)}

    def show(job: InferenceJob) -> InferenceJobAnswer:
        return job_answer(service, job)

    @router.get("/inference/test-connection", responses=errors())
    async def test_connection() -> MessageAnswer:
        """Is the server there, and the token right?"""
        return MessageAnswer(message="Success")

    @router.get("/inference/list-inference-jobs", **needs(Scope.INFER))
    async def list_inference_jobs(
        caller: JobCaller,
        response: Response,
        status: Annotated[list[InferenceState], Query()] = [],  # noqa: B006
        task_type: Annotated[list[TaskType], Query()] = [],  # noqa: B006
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> list[InferenceJobAnswer]:
        """Newest first."""
        page = service.page(caller, status, task_type, limit, cursor)
        set_cursor(response, page.next_cursor)
        return [show(job) for job in page.items]

    @router.get("/inference/get-inference-job", **needs(Scope.INFER, 404))
    async def get_inference_job(caller: JobCaller, job_id: JobId) -> InferenceJobAnswer:
        """One job, with its progress."""
        return show(service.get(caller, job_id))

    @router.get("/inference/get-inference-job-image-output", **needs(Scope.INFER, 404, 409))
    async def get_inference_job_image_output(caller: JobCaller, job_id: JobId) -> list[str]:
        """Presigned URLs of the pictures."""
        return service.files.image_urls(service.get(caller, job_id))

    @router.get("/inference/get-inference-job-param-output", **needs(Scope.INFER, 404, 409))
    async def get_inference_job_param_output(caller: JobCaller, job_id: JobId) -> list[str]:
        """A presigned URL of the parameters and info."""
        return service.files.param_urls(service.get(caller, job_id))

    @router.post("/inference/v2", **needs(Scope.INFER, 404, 409, 413, 429, 501))
    async def submit_inference(
        caller: JobCaller,
        body: Annotated[InferenceOrUpload, Body()],
        idempotency_key: IdempotencyKey = None,
    ) -> SubmittedAnswer:
        """Submit a job, or prepare one whose body follows (`upload_params`)."""
        request = _request(body)
        if isinstance(body, UploadParamsBody):
            job, url = service.prepare(caller, request, idempotency_key)
            return _submitted(job, url)
        return _submitted(service.submit(caller, request, idempotency_key))

    @router.post("/inference/v2/{job_id}/run", operation_id="run_inference_post", **run_answers)
    @router.put("/inference/v2/{job_id}/run", operation_id="run_inference_put", **run_answers)
    async def run_inference(
        principal: Caller,
        caller: JobCaller,
        job_id: str,
        body: Annotated[RunOrTrain | None, Body()] = None,
        idempotency_key: IdempotencyKey = None,
    ) -> SubmittedAnswer | NewTrainAnswer:
        """Run a prepared job; with `train_type` in the body, create a training job."""
        if isinstance(body, TrainBody):
            principal.require(Scope.TRAIN)
            return create_train(training, objects, principal, body, idempotency_key)
        principal.require(Scope.INFER)
        job = service.get(caller, job_id)
        if job.state is not InferenceState.CREATED:
            return _submitted(service.run(job, {}))
        # Up to hundreds of MB of pictures: not on the event loop.
        uploaded = await to_thread.run_sync(
            lambda: _uploaded_body(service.files.uploaded_params(job), job)
        )
        return _submitted(service.run(job, _document(uploaded)))

    @router.post("/inference/v2/{job_id}/cancel", **needs(Scope.INFER, 404))
    async def cancel_inference(caller: JobCaller, job_id: str) -> InferenceJobAnswer:
        """Stop a job; pictures that it has made are kept."""
        return show(service.cancel(service.get(caller, job_id)))

    @router.post("/inference/v2/{job_id}/rerun", **needs(Scope.INFER, 404, 409, 429, 501))
    async def rerun_inference(
        caller: JobCaller, job_id: str, idempotency_key: IdempotencyKey = None
    ) -> SubmittedAnswer:
        """Submit a finished job's request again, as a new job."""
        job = service.get(caller, job_id)
        body = await to_thread.run_sync(lambda: _stored_body(service, job))
        return _submitted(service.rerun(caller, job, _request(body), idempotency_key))

    @router.delete("/inference/v2/{job_id}", **needs(Scope.INFER, 404, 409))
    async def delete_inference(caller: JobCaller, job_id: str) -> MessageAnswer:
        """Delete a finished job with its pictures."""
        service.delete(service.get(caller, job_id))
        return MessageAnswer(message=f"Inference job '{job_id}' deleted")

    return router


def job_answer(service: InferenceService, job: InferenceJob) -> InferenceJobAnswer:
    """A job as rows 2 and 3 show it."""
    progress = service.progress(job)
    completed = job.completed_at
    run_seconds = service.run_seconds(job, progress)
    return InferenceJobAnswer(
        inference_info_name=contract.param_output_key(job.id),
        startTime=time_text(job.created_at),
        taskType=job.task_type,
        completeTime=None if completed is None else complete_time_text(completed),
        InferenceJobId=job.id,
        status=job.state,
        sagemakerRaw=job.compute_event,
        image_names=list(job.image_names),
        endpoint_name=job.endpoint_name,
        progress=progress.fraction,
        queue_position=progress.queue_position,
        eta_seconds=progress.eta_seconds,
        preview_url=progress.preview_url,
        phase=progress.phase,
        error=job.error,
        instance_type=job.instance_type,
        run_seconds=run_seconds,
        estimated_cost=None if run_seconds is None else cost(job.instance_type, run_seconds),
        checkpoint_names=[checkpoint.name for checkpoint in job.checkpoints],
    )


def _request(body: InferenceBody | UploadParamsBody) -> InferenceRequest:
    if body.task_type not in _AVAILABLE:
        raise NotAvailable(
            f"Task type {body.task_type.value} is not available in this version. Available: "
            f"{', '.join(sorted(t.value for t in _AVAILABLE))}."
        )
    return InferenceRequest(
        task_type=body.task_type,
        models=body.models,
        endpoint_name=body.sagemaker_endpoint_name or body.sagemaker_endpoint,
        body=_document(body),
    )


def _document(body: InferenceBody | UploadParamsBody) -> dict[str, object]:
    """What the engine gets: the fields that the caller has sent."""
    return body.model_dump(mode="json", exclude_unset=True)


def _stored_body(service: InferenceService, job: InferenceJob) -> InferenceBody:
    """Of a job that row 6 or 6b has made; raises Conflict for any other."""
    if job.task_type not in SUBMITTABLE_TASKS:
        raise Conflict(
            f"Job '{job.id}' is a {job.task_type.value}, which has a route of its own. Ask that "
            "one again.",
            "not_submittable",
        )
    return _uploaded_body(service.files.stored_params(job), job)


def _uploaded_body(content: bytes, job: InferenceJob) -> InferenceBody:
    """The uploaded body, checked like one that came by POST; the prepared job's own task type
    and models stand."""
    own = {"task_type": job.task_type.value}
    models: dict[str, list[str]] = {}
    for checkpoint in job.checkpoints:
        models.setdefault(checkpoint.type.value, []).append(checkpoint.name)
    document = {**_object(parse_json(content)), **own, "models": models}
    document.pop("upload_params", None)
    try:
        return InferenceBody.model_validate(document)
    except ValidationError as error:
        details = [{**e, "loc": ("api_param.json", *e["loc"])} for e in error.errors()]
        raise RequestValidationError(details) from error


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise InvalidRequest("the body must be a JSON object", ("body",))
    return value


def _submitted(job: InferenceJob, upload_url: str | None = None) -> SubmittedAnswer:
    return SubmittedAnswer(
        inference_id=job.id,
        status=job.state,
        endpoint_name=job.endpoint_name,
        output_path=f"{contract.output_prefix(job.id)}result/",
        api_params_s3_upload_url=upload_url,
    )
