"""Bringing a checkpoint to an endpoint before a job asks for it.

A hint and no more: it wakes no endpoint, waits in no queue, counts for nobody's day, and leaves
no record when its job has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from middleware_api.contract import CheckpointState, CheckpointType, TaskType
from middleware_api.errors import Conflict
from middleware_api.services.access import Principal
from middleware_api.services.checkpoints import CheckpointService
from middleware_api.services.endpoints import EndpointService
from middleware_api.services.inference import InferenceService


@dataclass(frozen=True)
class Prefetch:
    """What came of the hint; `job_id` is empty where there was nothing to do, as `reason` says."""

    endpoint_name: str
    job_id: str
    reason: str


class PrefetchService:
    """Hints, up to the queue; from there on they are inference jobs that make nothing."""

    def __init__(
        self,
        inference_service: InferenceService,
        checkpoint_service: CheckpointService,
        endpoint_service: EndpointService,
        new_id: Callable[[], str],
    ) -> None:
        self._inference_service = inference_service
        self._checkpoint_service = checkpoint_service
        self._endpoint_service = endpoint_service
        self._new_id = new_id

    def prefetch(
        self, caller: Principal, checkpoint_id: str, endpoint_name: str | None
    ) -> Prefetch:
        """Have the endpoint, or the one that a job would get, load a checkpoint.

        Raises NotFound, and Conflict for a checkpoint that no job can begin with, or when no
        endpoint is in service.
        """
        checkpoint = self._checkpoint_service.get(checkpoint_id)
        kind = CheckpointType.STABLE_DIFFUSION
        if checkpoint.type is not kind or checkpoint.state is not CheckpointState.ACTIVE:
            raise Conflict(
                f"Checkpoint '{checkpoint_id}' is a {checkpoint.type.value} checkpoint in state "
                f"{checkpoint.state.value}; only an Active {kind.value} one can be loaded.",
                "checkpoint_not_usable",
            )
        used = self._checkpoint_service.resolve(kind, checkpoint.files[0].name)
        job = self._inference_service.unasked_job(
            caller.name, self._new_id(), TaskType.PREFETCH, (used,), endpoint_name
        )
        endpoint = self._endpoint_service.get(job.endpoint_id)
        if not self._endpoint_service.is_idle(endpoint):
            reason = "It is busy, or has no instance awake: the first job will load it."
            return Prefetch(endpoint.name, "", reason)
        if used.key in endpoint.loaded:
            return Prefetch(endpoint.name, "", "Its latest job has left it in memory.")
        self._inference_service.start(job, {})
        return Prefetch(endpoint.name, job.id, "")
