"""A compute side for training that does only what it is told."""

from __future__ import annotations

from dataclasses import dataclass, field

from middleware_api.contract import TrainState
from middleware_api.errors import ServiceError
from middleware_api.ports import TrainingStatus
from middleware_api.records import Model, TrainJob


@dataclass
class PretendTrainingJobs:
    """`ports.TrainingJobs` that remembers what it was asked for, by the jobs' ids.

    `started` counts the machines that were really begun: the same job again begins none.
    """

    refusal: ServiceError | None = None
    known: dict[str, TrainingStatus] = field(default_factory=dict)
    prefixes: dict[str, tuple[str, str]] = field(default_factory=dict)
    started: int = 0
    stopped: list[str] = field(default_factory=list)

    def start(self, job: TrainJob | Model, input_prefix: str, output_prefix: str) -> str:
        if self.refusal is not None:
            raise self.refusal
        if job.id not in self.known:
            self.known[job.id] = TrainingStatus(TrainState.TRAINING)
            self.started += 1
        self.prefixes[job.id] = (input_prefix, output_prefix)
        return f"{job.KIND}-{job.id}"

    def stop(self, job: TrainJob | Model) -> None:
        self.stopped.append(job.id)

    def status(self, job: TrainJob | Model) -> TrainingStatus | None:
        return self.known.get(job.id)
