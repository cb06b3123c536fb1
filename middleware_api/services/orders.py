"""Jobs on training machines: the order that one gets, and what the compute side says of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from middleware_api.contract import TrainState, order_key
from middleware_api.errors import StaleRecord
from middleware_api.ports import Objects, Records, TrainingJobs, TrainingStatus
from middleware_api.records import Model, TrainJob

J = TypeVar("J", TrainJob, Model)

# How often the compute side is asked about a job that has said nothing.
RECONCILE_SECONDS = 15.0


class Orders:
    """What the training of a model and its creation have in common."""

    def __init__(self, records: Records, objects: Objects, training_jobs: TrainingJobs) -> None:
        self._records = records
        self._objects = objects
        self._training_jobs = training_jobs

    def give(self, job: J, prefix: str, order: Mapping[str, object]) -> J:
        """Start a job whose record says that it runs; returns the record as it is then.

        The same order again changes nothing. Raises what the compute side refuses with.
        """
        input_prefix = f"{prefix}input/"
        self._objects.write(order_key(input_prefix), json.dumps(order).encode())
        name = self._training_jobs.start(job, input_prefix, f"{prefix}output/")
        latest = job
        while latest.state is job.state:
            try:
                return self._records.update(replace(latest, compute_name=name))
            except StaleRecord:
                latest = self._records.get(type(job), job.id)
        # Somebody stopped it meanwhile; where it has ended of itself this changes nothing.
        self._training_jobs.stop(latest)
        return latest

    def ask(self, job: J) -> TrainingStatus:
        """What the compute side says of a started job; one that it does not know has failed."""
        status = self._training_jobs.status(job)
        if status is not None:
            return status
        return TrainingStatus(
            TrainState.FAILED,
            f"The compute side does not know the job '{job.compute_name}' any more, and has not "
            "told its end. Start a new one.",
        )
