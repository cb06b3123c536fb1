"""What can go wrong in the container, and how the HTTP answer names it.

ContainerError
├── BadRequest            400  the caller's request cannot be done as written
├── CheckpointUnreadable  400  a weights file is not what the engine can load
├── EngineDown            503  the engine cannot work now
├── EngineFailed          500  what the engine drives has failed at the job, in its own words
├── DiskFull              507  no room for pictures or weights
├── FailedBefore          409  the job came again after it had failed
├── StorageUnreachable    503  the object store does not take or give objects
├── TrainingFailed        500  a training that cannot go on
├── Unforeseen            500  a fault of ours; the log has the traceback
├── WorkerStopping        503  the process is going away, queue the job again
└── Unauthorized          401  the worker token is missing or wrong

JobCancelled is not an error: it unwinds the sampler when a cancel marker appears.
"""

from __future__ import annotations

from middleware_api.contract import WEIGHTS_REFUSED


class ContainerError(Exception):
    """A failure whose message is written for the person who asked for the picture."""

    status = 500
    code = "internal_error"


class BadRequest(ContainerError):
    """The request cannot be done as written; `code` narrows it down."""

    status = 400

    def __init__(self, message: str, code: str = "bad_request") -> None:
        super().__init__(message)
        self.code = code


class CheckpointUnreadable(ContainerError):
    """A weights file is missing, broken, or of a kind that the engine cannot load."""

    status = 400
    code = WEIGHTS_REFUSED


class DiskFull(ContainerError):
    """The object store, or the disk that weights are copied to, has no room left."""

    status = 507
    code = "disk_full"


class EngineDown(ContainerError):
    """The engine cannot work now: its GPU or its WebUI is gone."""

    status = 503
    code = "engine_down"


class EngineFailed(ContainerError):
    """What the engine drives has failed at the job; the message has its own reason."""

    code = "engine_failed"


class FailedBefore(ContainerError):
    """The job has ended already; the message is the one it failed with then."""

    status = 409
    code = "failed_before"


class StorageUnreachable(ContainerError):
    """The object store does not answer, or refuses what a worker must be able to do."""

    status = 503
    code = "storage_unreachable"


class TrainingFailed(ContainerError):
    """A training that cannot go on: its loss is no number, or the machine is too small for it."""

    code = "training_failed"


class Unforeseen(ContainerError):
    """A fault of ours; the log has the traceback."""


class WorkerStopping(ContainerError):
    """The process was asked to end while the job ran or waited."""

    status = 503
    code = "worker_stopping"


class Unauthorized(ContainerError):
    """The caller did not present the worker token."""

    status = 401
    code = "unauthorized"


class JobCancelled(Exception):
    """A cancel marker was found between two sampler steps."""
