"""The task prefetch: a checkpoint on this machine's disk and in memory, before a job asks."""

from __future__ import annotations

from middleware_api.container.engine.engine import Engine
from middleware_api.container.engine.loading import CheckpointFile
from middleware_api.container.engine.roles import Roles
from middleware_api.container.job import Answer, Job


def prefetch(engine: Engine, job: Job) -> Answer:
    """Loads the job's checkpoints, and makes nothing."""
    with job.until_cancelled():
        for told in job.invocation["checkpoints"]:
            path = job.weights(told)
            job.progress.phase("loading checkpoint")
            with engine.loader.load(
                Roles(CheckpointFile(path, told["name"], told["key"], told["sha256"]))
            ):
                pass
    return Answer(images=(), info="{}")
