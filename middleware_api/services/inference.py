"""From a request for pictures to their URLs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from middleware_api import contract
from middleware_api.contract import (
    INFERENCE_FINAL,
    INFERENCE_TRANSITIONS,
    SUBMITTABLE_TASKS,
    UPLOAD_URL_SECONDS,
    CheckpointType,
    ContainerCheckpoint,
    InferenceState,
    Invocation,
    InvocationResult,
    TaskType,
)
from middleware_api.errors import Conflict, NotFound, ServiceError, Unavailable
from middleware_api.ports import (
    Endpoints,
    InvocationFinished,
    Page,
    Records,
)
from middleware_api.records import InferenceJob, UsedCheckpoint
from middleware_api.services.access import AccessService, Principal, token_user
from middleware_api.services.checkpoints import CheckpointService
from middleware_api.services.endpoints import EndpointService
from middleware_api.services.idempotency import claim_id
from middleware_api.services.job_files import JobFiles, require_final

logger = logging.getLogger(__name__)

# How often the compute side is asked about a job that has said nothing.
RECONCILE_SECONDS = 60.0


@dataclass(frozen=True)
class InferenceRequest:
    """A request, checked at the edge. `body` is the whole document that the engine gets.

    `asked` is what the caller sent, where that is not the same: by it a repeated request is known.
    """

    task_type: TaskType
    models: dict[CheckpointType, list[str]]
    endpoint_name: str | None
    body: dict[str, object]
    asked: dict[str, object] | None = None


@dataclass(frozen=True)
class JobProgress:
    """What can be said of a job that is not finished; absent parts are None.

    `started_at` is when an instance began it, in epoch seconds; `step` counts sampler steps over
    all its batches.
    """

    fraction: float
    queue_position: int | None
    eta_seconds: float | None
    preview_url: str | None
    phase: str
    started_at: float | None = None
    step: int = 0
    total_steps: int = 0


class InferenceService:
    """Inference jobs: submit, watch, cancel. What they have written is in `files`."""

    def __init__(
        self,
        records: Records,
        files: JobFiles,
        endpoints: Endpoints,
        checkpoint_service: CheckpointService,
        endpoint_service: EndpointService,
        access_service: AccessService,
        clock: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self._records = records
        self.files = files
        self._endpoints = endpoints
        self._checkpoint_service = checkpoint_service
        self._endpoint_service = endpoint_service
        self._access_service = access_service
        self._clock = clock
        self._new_id = new_id

    def submit(
        self, caller: Principal, request: InferenceRequest, idempotency_key: str | None
    ) -> InferenceJob:
        """Queue a job. The same key and body a second time answer with the first job.

        Raises NotFound for a checkpoint or endpoint that is not there, Conflict for an endpoint
        that is not in service or a key that was used for another body, QuotaExceeded.
        """
        asked = request.body if request.asked is None else request.asked
        job_id = claim_id(self._records, caller, idempotency_key, asked, self._new_id())
        return self._submit(caller, job_id, request)

    def rerun(
        self,
        caller: Principal,
        job: InferenceJob,
        request: InferenceRequest,
        idempotency_key: str | None,
    ) -> InferenceJob:
        """Queue a finished job's request again, as a new job; at any endpoint when the one that
        it named is gone. Raises what `submit` raises."""
        require_final(job)
        body = {"rerun_of": job.id, **request.body}
        if request.endpoint_name is not None:
            try:
                self._endpoint_service.find(request.endpoint_name)
            except NotFound:
                request = replace(request, endpoint_name=None)
        job_id = claim_id(self._records, caller, idempotency_key, body, self._new_id())
        return self._submit(caller, job_id, request)

    def _submit(self, caller: Principal, job_id: str, request: InferenceRequest) -> InferenceJob:
        if (first := self.existing(job_id)) is not None:
            return first
        return self.start(self.new_job(caller, job_id, request), request.body)

    def start(self, job: InferenceJob, body: dict[str, object]) -> InferenceJob:
        """Queue a new job with the document that its engine gets. Raises Conflict when the
        endpoint refuses it."""
        # First the record, then the queue: between the two the reconciler finds the job; the
        # other way round a quick worker would finish a job that has not begun.
        job = replace(
            job,
            state=InferenceState.IN_PROGRESS,
            check_at=self._clock() + RECONCILE_SECONDS,
        )
        self.files.write_params(job, body)
        self._records.add(job)
        return self._begin(job)

    def prepare(
        self, caller: Principal, request: InferenceRequest, idempotency_key: str | None
    ) -> tuple[InferenceJob, str]:
        """A job that waits for its (large) body, and the URL to put that at (row 6b)."""
        body = {"upload_params": True, **request.body}
        job_id = claim_id(self._records, caller, idempotency_key, body, self._new_id())
        job = self.existing(job_id)
        if job is None:
            job = self.new_job(caller, job_id, request)
            self._records.add(job)
        return job, self.files.params_put_url(job)

    def run(self, job: InferenceJob, body: dict[str, object]) -> InferenceJob:
        """Start a prepared job with its checked body."""
        if job.state is not InferenceState.CREATED:
            if job.state is InferenceState.IN_PROGRESS:
                return job  # the caller did not hear our first answer
            raise Conflict(
                f"Job '{job.id}' is {job.state.value}; only a created job can be run. Submit a "
                "new one.",
                "job_not_created",
            )
        self.files.write_params(job, body)
        job = self._records.update(
            replace(
                job,
                state=InferenceState.IN_PROGRESS,
                check_at=self._clock() + RECONCILE_SECONDS,
            )
        )
        return self._begin(job)

    def get(self, caller: Principal, job_id: str) -> InferenceJob:
        """Raises NotFound."""
        return caller.own(self._records.get(InferenceJob, job_id))

    def page(
        self,
        caller: Principal,
        states: Collection[InferenceState],
        task_types: Collection[TaskType],
        limit: int,
        cursor: str | None,
    ) -> Page[InferenceJob]:
        """Newest first."""
        return self._records.page(
            InferenceJob,
            owner=caller.listed_owner,
            states=[s.value for s in states],
            labels=[t.value for t in task_types],
            limit=limit,
            cursor=cursor,
        )

    def running(self, caller: Principal, limit: int) -> list[InferenceJob]:
        """The caller's own jobs for pictures that wait or run, newest first.

        One short query a task type, however many jobs there are.
        """
        page = self._records.page(
            InferenceJob,
            owner=caller.name,
            states=[InferenceState.IN_PROGRESS.value],
            labels=[t.value for t in SUBMITTABLE_TASKS],
            limit=limit,
        )
        return page.items

    def progress(self, job: InferenceJob) -> JobProgress:
        """How far a job is: what its worker last wrote, or its place in the queue."""
        if job.state in INFERENCE_FINAL:
            return JobProgress(
                fraction=1.0 if job.state is InferenceState.SUCCEEDED else 0.0,
                queue_position=None,
                eta_seconds=None,
                preview_url=None,
                phase=job.state.value,
            )
        if job.state is InferenceState.CREATED:
            return JobProgress(0.0, None, None, None, "waiting for its body")
        position = self._endpoints.queue_position(job.id)
        written = None if position else self.files.progress(job)
        if written is None:
            waiting = "starting" if position == 0 else "waiting for an instance"
            return JobProgress(0.0, position, None, None, waiting)
        eta = None
        if written["fraction"] > 0:
            elapsed = written["updated_at"] - written["started_at"]
            eta = max(0.0, elapsed / written["fraction"] - (self._clock() - written["started_at"]))
        return JobProgress(
            fraction=written["fraction"],
            queue_position=0,
            eta_seconds=eta,
            preview_url=self.files.preview_url(job) if written["has_preview"] else None,
            phase=written["phase"],
            started_at=written["started_at"],
            step=written["step"],
            total_steps=written["total_steps"],
        )

    def run_seconds(self, job: InferenceJob, progress: JobProgress) -> float | None:
        """How long an instance has been at it, or was; None when none has begun it."""
        started = progress.started_at if job.started_at is None else job.started_at
        if started is None or job.state is InferenceState.CREATED:
            return None
        return max(0.0, (job.completed_at or self._clock()) - started)

    def cancel(self, job: InferenceJob) -> InferenceJob:
        """Stop a job: at once if no instance has begun it, else within one sampler step.

        A finished job stays as it is.
        """
        if job.state in INFERENCE_FINAL:
            return job
        if job.state is InferenceState.CREATED:
            return self._finish(job, InferenceState.CANCELLED)
        self.files.ask_to_cancel(job)
        withdrawn = self._endpoints.withdraw(job.id)
        job = self._records.get(InferenceJob, job.id)
        return self._finish(job, InferenceState.CANCELLED) if withdrawn else job

    def delete(self, job: InferenceJob) -> None:
        """Forget a finished job, its request and its pictures. Raises Conflict before its end."""
        if job.state not in INFERENCE_FINAL:
            raise Conflict(
                f"Job '{job.id}' is {job.state.value}. Cancel it first, then delete it.",
                "job_not_finished",
            )
        # The record goes last: a deletion that was cut short can be asked for again.
        self.files.forget(job)
        self._records.remove(job)

    def starting(self, job_id: str) -> bool:
        """An instance is about to begin the job; False when nobody wants it any more."""
        job = self.existing(job_id)
        if job is None or job.state is not InferenceState.IN_PROGRESS:
            return False
        if self.files.is_cancelling(job):
            self._finish(job, InferenceState.CANCELLED)
            return False
        if (outcome := self.files.outcome(job)) is not None:
            # The job was run, and we died before we could note it.
            self.finished(outcome)
            return False
        self._records.update(replace(job, started_at=self._clock()))
        return True

    def finished(self, event: InvocationFinished) -> None:
        """Note a job's end; a late or second word changes nothing."""
        job = self.existing(event.job_id)
        if job is None or job.state in INFERENCE_FINAL:
            return
        raw = json.dumps(
            {
                "inferenceId": event.job_id,
                "endpointName": job.endpoint_name,
                "invocationStatus": "Failed" if event.result is None else "Completed",
                "failureReason": event.failure,
            }
        )
        job = replace(job, compute_event=raw)
        if event.result is None:
            cancelled = self.files.is_cancelling(job)
            state = InferenceState.CANCELLED if cancelled else InferenceState.FAILED
            self._finish(job, state, error=event.failure or "")
            return
        self.files.write_result(job, event.result)
        if job.task_type is TaskType.MERGE:
            self._adopt_merged(job, event.result)
        elif job.checkpoints and job.task_type is not TaskType.CONVERT:
            # A job without any leaves in memory what was there.
            self._endpoint_service.note_loaded(job.endpoint_id, job.checkpoints)
        self._finish(job, InferenceState(event.result["status"]))

    def reconcile(self, job: InferenceJob) -> None:
        """Find out about a job that has been silent: it waits, it runs, or it must go again."""
        if job.state is InferenceState.CREATED:
            self._finish(
                job,
                InferenceState.FAILED,
                error="Its body was never uploaded, or it was never run, within "
                f"{UPLOAD_URL_SECONDS // 3600} hours.",
            )
        elif (outcome := self.files.outcome(job)) is not None:
            self.finished(outcome)
        elif self._endpoint_service.is_gone(job.endpoint_id):
            self.finished(
                InvocationFinished(
                    job.id,
                    failure=f"Endpoint '{job.endpoint_name}' has failed or was deleted before the "
                    "job was done. Submit it to another one.",
                )
            )
        elif self._clock() > job.created_at + self._endpoints.patience_seconds:
            hours = self._endpoints.patience_seconds / 3600
            failure = f"The endpoint has said nothing of this job for {hours:.0f} hours. Try again."
            self.finished(InvocationFinished(job.id, failure=failure))
        else:
            if not self._endpoints.accepted(job.id):
                # The server died between writing the job and queueing it. Queueing is idempotent.
                self._invoke(job)
            self._records.update(replace(job, check_at=self._clock() + RECONCILE_SECONDS))

    def existing(self, job_id: str) -> InferenceJob | None:
        """The job of that id, whoever's it is; None when there is none."""
        try:
            return self._records.get(InferenceJob, job_id)
        except NotFound:
            return None

    def new_job(self, caller: Principal, job_id: str, request: InferenceRequest) -> InferenceJob:
        """A job that is not stored yet, and that counts for today. Raises what `submit` raises."""
        checkpoints = tuple(
            self._checkpoint_service.resolve(kind, name)
            for kind, names in request.models.items()
            for name in names
        )
        job = self.unasked_job(
            caller.name, job_id, request.task_type, checkpoints, request.endpoint_name
        )
        self._access_service.count_job(caller)
        return job

    def unasked_job(
        self,
        owner: str,
        job_id: str,
        task_type: TaskType,
        checkpoints: tuple[UsedCheckpoint, ...],
        endpoint_name: str | None = None,
    ) -> InferenceJob:
        """A job that is not stored yet and counts for nobody: what we want done ourselves.

        Raises Conflict when no endpoint is in service.
        """
        endpoint = self._endpoint_service.choose(endpoint_name, checkpoints)
        now = self._clock()
        return InferenceJob(
            id=job_id,
            owner=owner,
            created_at=now,
            check_at=now + UPLOAD_URL_SECONDS,
            state=InferenceState.CREATED,
            task_type=task_type,
            endpoint_id=endpoint.id,
            endpoint_name=endpoint.name,
            instance_type=endpoint.instance_type,
            checkpoints=checkpoints,
        )

    def _begin(self, job: InferenceJob) -> InferenceJob:
        """Queue a job that has been noted. Raises Conflict when the endpoint refuses it."""
        try:
            self._invoke(job)
        except Unavailable as error:
            logger.warning("job %s: %s The reconciler queues it.", job.id, error.message)
        except ServiceError as refusal:
            self._finish(job, InferenceState.FAILED, error=refusal.message)
            raise
        return job

    def _invoke(self, job: InferenceJob) -> None:
        self._endpoints.invoke(
            job.endpoint_id,
            Invocation(
                job_id=job.id,
                task_type=job.task_type.value,
                params_key=contract.params_key(job.task_type, job.id),
                checkpoints=[
                    ContainerCheckpoint(
                        type=used.type.value,
                        name=used.name,
                        key=used.key,
                        size=used.size,
                        sha256=used.sha256,
                    )
                    for used in job.checkpoints
                ],
                output_prefix=contract.output_prefix(job.id),
            ),
        )

    def _adopt_merged(self, job: InferenceJob, result: InvocationResult) -> None:
        """What a merge has made becomes a checkpoint of whoever's token asked for it."""
        hashes = {made["key"]: made["sha256"] for made in result["checkpoints"]}
        if hashes:
            self._checkpoint_service.adopt(
                contract.merged_checkpoint_id(job.id),
                token_user(job.owner),
                CheckpointType.STABLE_DIFFUSION,
                hashes,
            )

    def _finish(self, job: InferenceJob, state: InferenceState, error: str = "") -> InferenceJob:
        if state not in INFERENCE_TRANSITIONS[job.state]:
            raise Conflict(f"Job '{job.id}' is {job.state.value}, not to become {state.value}.")
        if job.task_type is TaskType.MERGE and state is not InferenceState.SUCCEEDED:
            self._checkpoint_service.drop_unless_adopted(
                contract.merged_checkpoint_id(job.id), CheckpointType.STABLE_DIFFUSION
            )
        written = self.files.progress(job) if job.started_at is None else None
        done = self._records.update(
            replace(
                job,
                state=state,
                # Where nobody told us that an instance begins, the instance has written it.
                started_at=job.started_at if written is None else written["started_at"],
                completed_at=self._clock(),
                check_at=None,
                image_names=self.files.image_names(job),
                error=error,
            )
        )
        logger.info("job %s %s", job.id, state.value)
        if job.task_type is TaskType.PREFETCH:  # it was a hint: nobody looks for what came of it
            self.files.forget(done)
            self._records.remove(done)
        return done
