"""Training jobs: from a model and data sets to a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace

from middleware_api import contract
from middleware_api.contract import (
    TRAIN_TRANSITIONS,
    CheckpointType,
    DatasetState,
    ModelState,
    TrainOrder,
    TrainProgress,
    TrainSample,
    TrainState,
)
from middleware_api.errors import Conflict, FileRefused, NotFound, ServiceError
from middleware_api.ports import Objects, Page, Records, TrainingChanged, TrainingJobs
from middleware_api.records import Checkpoint, TrainJob
from middleware_api.services.access import AccessService, Principal
from middleware_api.services.admission import AdmissionService
from middleware_api.services.datasets import DatasetService
from middleware_api.services.idempotency import claim_id
from middleware_api.services.models import ModelService
from middleware_api.services.orders import RECONCILE_SECONDS, Orders
from middleware_api.services.training_output import TrainingOutput, output_prefix

logger = logging.getLogger(__name__)

# A job that nobody starts is forgotten like an upload that nobody finishes.
START_DEADLINE_SECONDS = 24 * 3600
SAMPLE_URL_SECONDS = 3600


@dataclass(frozen=True)
class NewTrainJob:
    """A training job to be, checked at the edge. `params` are the caller's own words, which
    speak of the data sets in `datasets`; `instance_type` is empty without a wish."""

    type: CheckpointType
    model_id: str
    datasets: tuple[str, ...]
    instance_type: str
    params: dict[str, object]


@dataclass(frozen=True)
class TrainLook:
    """A training job from near: `progress` once its program has spoken, `phase` also before;
    each sample picture with a URL that shows it."""

    job: TrainJob
    phase: str
    progress: TrainProgress | None
    samples: list[tuple[TrainSample, str]]
    checkpoint: Checkpoint | None


class TrainingService:
    """Training jobs, which are their owner's alone."""

    def __init__(
        self,
        records: Records,
        objects: Objects,
        training_jobs: TrainingJobs,
        model_service: ModelService,
        dataset_service: DatasetService,
        admission_service: AdmissionService,
        access_service: AccessService,
        clock: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self._records = records
        self._objects = objects
        self._output = TrainingOutput(objects)
        self._training_jobs = training_jobs
        self._orders = Orders(records, objects, training_jobs)
        self._model_service = model_service
        self._dataset_service = dataset_service
        self._admission_service = admission_service
        self._access_service = access_service
        self._clock = clock
        self._new_id = new_id

    def create(
        self, caller: Principal, request: NewTrainJob, idempotency_key: str | None
    ) -> TrainJob:
        """A job that waits to be started. The same key and body a second time answer with the
        first job.

        Raises NotFound for a model or data set that is not the caller's, Conflict for a model of
        another type, QuotaExceeded.
        """
        job_id = claim_id(self._records, caller, idempotency_key, asdict(request), self._new_id())
        if (first := self._existing(job_id)) is not None:
            return first
        model = self._model_service.get(caller, request.model_id)
        if model.type is not request.type:
            raise Conflict(
                f"Model '{model.id}' is of type {model.type.value}: it cannot be trained as "
                f"{request.type.value}.",
                "model_type_differs",
            )
        for name in request.datasets:
            self._dataset_service.find(caller, name)
        self._access_service.count_job(caller)
        now = self._clock()
        job = TrainJob(
            id=job_id,
            owner=caller.name,
            created_at=now,
            check_at=now + START_DEADLINE_SECONDS,
            type=request.type,
            state=TrainState.INITIAL,
            model_id=model.id,
            model_name=model.name,
            params=request.params,
            instance_type=request.instance_type,
            datasets=request.datasets,
        )
        self._records.add(job)
        return job

    def get(self, caller: Principal, job_id: str) -> TrainJob:
        """Raises NotFound."""
        try:
            return caller.own(self._records.get(TrainJob, job_id))
        except NotFound as absent:
            raise NotFound(
                f"You have no training job with the id '{job_id}'. GET /trains lists yours.",
                "train_job_not_found",
            ) from absent

    def page(
        self,
        caller: Principal,
        states: Collection[TrainState],
        kinds: Collection[CheckpointType],
        limit: int,
        cursor: str | None,
    ) -> Page[TrainJob]:
        """Newest first."""
        return self._records.page(
            TrainJob,
            owner=caller.listed_owner,
            states=[s.value for s in states],
            labels=[k.value for k in kinds],
            limit=limit,
            cursor=cursor,
        )

    def latest(self, job: TrainJob) -> TrainJob:
        """The job with its program's latest words, which the record learns later."""
        return self._output.noted(job) if job.state is TrainState.TRAINING else job

    def ran_seconds(self, job: TrainJob) -> float:
        """How long it has run, or did; the wait for its machine counts too."""
        if job.started_at is None:
            return 0.0
        return (job.completed_at or self._clock()) - job.started_at

    def look(self, job: TrainJob) -> TrainLook:
        """A job from near."""
        progress = self._output.progress(output_prefix(job))
        phase = ""
        if job.state is TrainState.TRAINING:
            if progress is not None:
                phase = progress["phase"]
            elif (status := self._training_jobs.status(job)) is not None:
                phase = status.phase
        samples = progress["samples"] if progress else []
        return TrainLook(
            self.latest(job),
            phase,
            progress,
            [
                (sample, self._objects.presigned_get(sample["key"], SAMPLE_URL_SECONDS))
                for sample in samples
            ],
            self._checkpoint(job),
        )

    def start(self, caller: Principal, job: TrainJob) -> TrainJob:
        """Begin to train (`Initial` → `Training`).

        Raises NotFound for a model or data set that is gone, Conflict for one that is not ready
        or when the compute side refuses (the job can be started again then).
        """
        if job.state is TrainState.TRAINING:
            return job  # the caller did not hear our first answer
        _require(job, TrainState.TRAINING)
        self._require_input(caller, job)
        training = self._records.update(
            replace(
                job,
                state=TrainState.TRAINING,
                started_at=self._clock(),
                check_at=self._clock() + RECONCILE_SECONDS,
            )
        )
        try:
            return self._give_order(training)
        except ServiceError:
            # Refused: nothing runs, and nothing has begun that could not be begun again.
            self._records.update(
                replace(training, state=TrainState.INITIAL, started_at=None, check_at=job.check_at)
            )
            raise

    def stop(self, job: TrainJob) -> TrainJob:
        """Stop a job: at once when no machine has it, else when its machine says so.

        Returns the job as it is then.
        """
        if job.state is TrainState.STOPPED:
            return job
        _require(job, TrainState.STOPPED)
        if job.state is TrainState.TRAINING:
            self._training_jobs.stop(job)
            if self._training_jobs.status(job) is not None:
                return self._records.get(TrainJob, job.id)
        return self._end(job, TrainState.STOPPED)

    def delete(self, job: TrainJob) -> None:
        """Forget a job that does not run, and what it wrote; the checkpoint that came of it
        stays."""
        if job.state is TrainState.TRAINING:
            raise Conflict(
                f"Training job '{job.id}' is Training. Stop it first (PUT /train with status "
                "Stopped), then delete it.",
                "job_not_finished",
            )
        # The record goes last: a deletion that was cut short can be asked for again.
        self._output.clear(job)
        self._records.remove(job)

    def changed(self, event: TrainingChanged) -> None:
        """Note what the compute side says; a late or second word, or one on a model, changes
        nothing."""
        job = self._existing(event.job_id)
        if job is None or job.state is not TrainState.TRAINING:
            return
        if event.state in TRAIN_TRANSITIONS[job.state]:
            self._finish(job, event.state, event.error)

    def reconcile(self, job: TrainJob) -> None:
        """End what was never started; find out about what has been silent."""
        if job.state is TrainState.INITIAL:
            hours = START_DEADLINE_SECONDS // 3600
            reason = f"It was not started within {hours} hours. Create a new one."
            self._end(job, TrainState.FAILED, reason)
            return
        if not job.compute_name:
            # The server died between writing the record and giving the order.
            try:
                self._give_order(job)
            except ServiceError as refusal:
                self._end(job, TrainState.FAILED, refusal.message)
            return
        status = self._orders.ask(job)
        if status.state is TrainState.TRAINING:
            self._records.update(
                replace(self._output.noted(job), check_at=self._clock() + RECONCILE_SECONDS)
            )
        else:
            self.changed(TrainingChanged(job.id, status.state, status.error))

    def _existing(self, job_id: str) -> TrainJob | None:
        try:
            return self._records.get(TrainJob, job_id)
        except NotFound:
            return None

    def _require_input(self, caller: Principal, job: TrainJob) -> None:
        model = self._model_service.get(caller, job.model_id)
        if model.state is not ModelState.COMPLETE:
            raise Conflict(
                f"Model '{model.name}' ({model.id}) is {model.state.value}; training starts from "
                "a Complete one. Make it with PUT /model, and wait until GET /models says so.",
                "model_not_complete",
            )
        for name in job.datasets:
            dataset = self._dataset_service.find(caller, name)
            if dataset.state is not DatasetState.ENABLED:
                raise Conflict(
                    f"Data set '{name}' is {dataset.state.value}; training reads Enabled ones. "
                    "Enable it with PUT /dataset first.",
                    "dataset_not_enabled",
                )

    def _give_order(self, job: TrainJob) -> TrainJob:
        order = TrainOrder(
            job_id=job.id,
            type=job.type.value,
            model_prefix=contract.model_output_prefix(job.type, job.model_name, job.model_id),
            datasets={name: contract.dataset_prefix(name) for name in job.datasets},
            params=job.params,
        )
        return self._orders.give(job, _prefix(job), order)

    def _finish(self, job: TrainJob, state: TrainState, error: str) -> None:
        """End a job that has run; the weights that are there become a checkpoint."""
        job = self._output.noted(job)
        weights = self._output.weights(job)
        if weights is not None:
            try:
                checkpoint = self._admission_service.adopt(job.id, job.owner, *weights)
            except (FileRefused, NotFound) as refusal:
                state, error = TrainState.FAILED, f"{error} {refusal.message}".strip()
            else:
                job = replace(job, checkpoint_id=checkpoint.id)
        elif state is TrainState.COMPLETE:
            state = TrainState.FAILED
            error = f"The training program ended without weights under {output_prefix(job)}."
        if state is TrainState.COMPLETE:
            job = replace(job, progress=1.0)
        self._end(job, state, error)
        if job.checkpoint_id:
            self._output.clear_states(job)

    def _checkpoint(self, job: TrainJob) -> Checkpoint | None:
        try:
            return self._records.get(Checkpoint, job.checkpoint_id) if job.checkpoint_id else None
        except NotFound:  # it was deleted
            return None

    def _end(self, job: TrainJob, state: TrainState, error: str = "") -> TrainJob:
        ended = self._records.update(
            replace(job, state=state, error=error, completed_at=self._clock(), check_at=None)
        )
        logger.info("training job %s %s", job.id, state.value)
        return ended


def _prefix(job: TrainJob) -> str:
    return contract.train_prefix(job.type, job.model_name, job.id)


def _require(job: TrainJob, state: TrainState) -> None:
    if state not in TRAIN_TRANSITIONS[job.state]:
        allowed = sorted(s.value for s in TRAIN_TRANSITIONS[job.state])
        raise Conflict(
            f"Training job '{job.id}' is {job.state.value} and cannot become {state.value}; from "
            f"here it can become: {', '.join(allowed) or 'nothing'}.",
            "state_not_allowed",
        )
