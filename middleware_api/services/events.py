"""What the compute side tells, and what happens when it tells nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from middleware_api.contract import CheckpointStep
from middleware_api.errors import NotFound, ServiceError, StaleRecord
from middleware_api.ports import (
    EndpointChanged,
    InvocationFinished,
    Records,
    TrainingChanged,
)
from middleware_api.records import Checkpoint, Endpoint, InferenceJob, Model, TrainJob
from middleware_api.services.access import AccessService
from middleware_api.services.admission import AdmissionService
from middleware_api.services.checkpoints import CheckpointService
from middleware_api.services.datasets import DatasetService
from middleware_api.services.endpoints import EndpointService
from middleware_api.services.imports import ImportService
from middleware_api.services.inference import InferenceService
from middleware_api.services.merging import MergingService
from middleware_api.services.models import ModelService
from middleware_api.services.prefetching import PrefetchService
from middleware_api.services.training import TrainingService
from middleware_api.services.verification import VerificationService
from middleware_api.services.webui_api import WebUiService

logger = logging.getLogger(__name__)

T = TypeVar("T")

_BATCH = 100


@dataclass(frozen=True)
class Services:
    """All services of one deployment."""

    inference: InferenceService
    merging: MergingService
    endpoints: EndpointService
    checkpoints: CheckpointService
    imports: ImportService
    verification: VerificationService
    admission: AdmissionService
    prefetching: PrefetchService
    datasets: DatasetService
    models: ModelService
    training: TrainingService
    access: AccessService
    webui: WebUiService


class EventHandlers:
    """The one place where events come in, whoever sends them (see `EventSink`)."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def invocation_starting(self, job_id: str) -> bool:
        """Whether the job is still wanted."""
        return _settle(lambda: self._services.inference.starting(job_id))

    def invocation_finished(self, event: InvocationFinished) -> None:
        """The job's end."""
        _settle(lambda: self._services.inference.finished(event))
        _settle(lambda: self._services.admission.job_ended(event.job_id))

    def endpoint_changed(self, event: EndpointChanged) -> None:
        """An endpoint's new state."""
        _settle(lambda: self._services.endpoints.changed(event))

    def training_changed(self, event: TrainingChanged) -> None:
        """The state of a training machine's job; each service knows its own by their ids."""
        _settle(lambda: self._services.training.changed(event))
        _settle(lambda: self._services.models.changed(event))


def _settle(act: Callable[[], T]) -> T:
    """Run a handler again when somebody else changed its record between read and write.

    Each run reads afresh, and whoever won has moved the record on, so this ends.
    """
    while True:
        try:
            return act()
        except StaleRecord:
            continue


def reconcile(services: Services, records: Records, clock: Callable[[], float]) -> None:
    """Look after everything whose time has come, so that nothing stays in passing for ever.

    One record's trouble does not keep the others from their turn; it comes up again in the next
    round. Raises the first unforeseen error at the end of the round.
    """
    now = clock()
    round_ = _Round()
    for job in records.due(InferenceJob, now, _BATCH):
        round_.attempt(partial(services.inference.reconcile, job))
    for endpoint in records.due(Endpoint, now, _BATCH):
        round_.attempt(partial(services.endpoints.reconcile, endpoint))
    for checkpoint in records.due(Checkpoint, now, _BATCH):
        round_.attempt(partial(_look_after(services, checkpoint.step), checkpoint))
    for model in records.due(Model, now, _BATCH):
        round_.attempt(partial(services.models.reconcile, model))
    for train_job in records.due(TrainJob, now, _BATCH):
        round_.attempt(partial(services.training.reconcile, train_job))
    round_.end()


def go_on(services: Services, checkpoint_id: str, enough: Callable[[], bool]) -> bool:
    """Do the long work that a checkpoint waits for, until it is done or `enough` says so.

    Returns False when `enough` came first: call again. True is that nothing is to be done now.
    """
    try:
        step = services.checkpoints.get(checkpoint_id).step
    except NotFound:  # deleted meanwhile
        return True
    if step is CheckpointStep.IMPORTING:
        return services.imports.go_on(checkpoint_id, enough)
    if step is CheckpointStep.CHECKING:
        return services.verification.go_on(checkpoint_id, enough)
    return True


def _look_after(services: Services, step: CheckpointStep | None) -> Callable[[Checkpoint], None]:
    """Whose a checkpoint is at this step of its way to `Active`."""
    if step is CheckpointStep.IMPORTING:
        return services.imports.reconcile
    if step is CheckpointStep.CHECKING:
        return services.verification.reconcile
    if step is CheckpointStep.CONVERTING:
        return services.admission.reconcile
    return services.checkpoints.reconcile


class _Round:
    """One round of the reconciler."""

    def __init__(self) -> None:
        self._faults: list[Exception] = []

    def attempt(self, look_after: partial[None]) -> None:
        """Look after one record."""
        record_id = look_after.args[0].id
        try:
            look_after()
        except ServiceError as error:
            logger.warning("reconciling %s: %s", record_id, error.message)
        except Exception as fault:
            logger.exception("reconciling %s", record_id)
            self._faults.append(fault)

    def end(self) -> None:
        """Raises the first fault."""
        if self._faults:
            raise self._faults[0]
