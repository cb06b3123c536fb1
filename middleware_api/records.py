"""The things that the middleware remembers, as immutable records.

A change is `dataclasses.replace` plus `Records.update`, which is conditional on the version that
was read: of two writers one wins and the other is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from middleware_api.contract import (
    CheckpointState,
    CheckpointType,
    DeploymentState,
    EndpointState,
    InferenceState,
    TaskType,
)


@dataclass(frozen=True, kw_only=True)
class Record:
    """What every record has. Times are epoch seconds.

    `check_at` is when the reconciler must look at it next; None once nothing can change any more.
    """

    KIND: ClassVar[str]

    id: str
    owner: str
    created_at: float
    check_at: float | None = None
    version: int = 0

    @property
    def index_state(self) -> str:
        """The state that list filters and conditional writes go by."""
        raise NotImplementedError

    @property
    def index_label(self) -> str:
        """The second thing that lists are filtered by (a type), or an empty string."""
        return ""


@dataclass(frozen=True, kw_only=True)
class UsedCheckpoint:
    """A weights file that a job uses; `size` in bytes, `sha256` empty when not known."""

    type: CheckpointType
    name: str
    key: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class InferenceJob(Record):
    """One request for pictures; the request itself lies in the object store."""

    KIND: ClassVar[str] = "inference"

    state: InferenceState
    task_type: TaskType
    endpoint_name: str
    checkpoints: tuple[UsedCheckpoint, ...]
    started_at: float | None = None
    completed_at: float | None = None
    image_names: tuple[str, ...] = ()
    error: str = ""
    compute_event: str = ""

    @property
    def index_state(self) -> str:
        return self.state.value

    @property
    def index_label(self) -> str:
        return self.task_type.value


@dataclass(frozen=True, kw_only=True)
class Endpoint(Record):
    """An endpoint and the deployment that made it."""

    KIND: ClassVar[str] = "endpoint"

    name: str
    instance_type: str
    initial_instance_count: int
    autoscaling_enabled: bool = False
    min_instance_count: int = 0
    max_instance_count: int = 0
    deployment: DeploymentState = DeploymentState.IN_PROGRESS
    state: EndpointState = EndpointState.CREATING
    completed_at: float | None = None
    error: str = ""

    @property
    def index_state(self) -> str:
        return self.state.value


@dataclass(frozen=True, kw_only=True)
class CheckpointFile:
    """One weights file: what was announced of it, and where its parts go.

    `size` (bytes) and `sha256` (hex) are the caller's words until the upload is complete, then
    the store's. `upload_id` is empty once the bytes are in place.
    """

    name: str
    key: str
    upload_id: str
    parts: int
    part_size: int
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Record):
    """An uploaded weights file (or several that belong together)."""

    KIND: ClassVar[str] = "checkpoint"

    type: CheckpointType
    state: CheckpointState
    files: tuple[CheckpointFile, ...]
    params: dict[str, object] = field(default_factory=dict)
    error: str = ""

    @property
    def index_state(self) -> str:
        return self.state.value

    @property
    def index_label(self) -> str:
        return self.type.value
