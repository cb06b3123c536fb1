"""Training where there is no program for it yet."""

from __future__ import annotations

from middleware_api.errors import NotAvailable
from middleware_api.ports import TrainingStatus
from middleware_api.records import Model, TrainJob


class NoTrainingJobs:
    """`ports.TrainingJobs` of a deployment that has no training program: it refuses."""

    def require(self) -> None:
        """See `ports.TrainingJobs`."""
        raise _refusal()

    def start(self, job: TrainJob | Model, input_prefix: str, output_prefix: str) -> str:
        """See `ports.TrainingJobs`."""
        raise _refusal()

    def stop(self, job: TrainJob | Model) -> None:
        """See `ports.TrainingJobs`."""

    def status(self, job: TrainJob | Model) -> TrainingStatus | None:
        """See `ports.TrainingJobs`."""
        return None


def _refusal() -> NotAvailable:
    return NotAvailable(
        "Training and the creation of models are not available in this version of the "
        "middleware. Nothing was changed: what you uploaded stays where it is until its time "
        "runs out."
    )
