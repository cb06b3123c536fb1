"""The things that the middleware remembers, as immutable records.

A change is `dataclasses.replace` plus `Records.update`, which is conditional on the version that
was read: of two writers one wins and the other is told.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from middleware_api.contract import (
    CheckpointState,
    CheckpointStep,
    CheckpointType,
    DatasetState,
    DeploymentState,
    EndpointState,
    EngineName,
    InferenceState,
    ModelState,
    Scope,
    TaskType,
    TrainState,
    conversion_id,
    converted_name,
    is_pickled,
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
    endpoint_id: str
    endpoint_name: str
    checkpoints: tuple[UsedCheckpoint, ...]
    instance_type: str = ""
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
    """An endpoint and the deployment that made it, which was over at `completed_at`; `ended_at`
    is when the endpoint itself failed or was gone.

    `engine` makes its pictures; `webui_url` is where its WebUI is, when that is not a worker's own.
    `loaded` holds the object keys of the checkpoints that its latest job used: the ones that its
    instances have in memory.
    """

    KIND: ClassVar[str] = "endpoint"

    name: str
    instance_type: str
    initial_instance_count: int
    autoscaling_enabled: bool = False
    min_instance_count: int = 0
    max_instance_count: int = 0
    engine: EngineName = EngineName.DIFFUSERS
    webui_url: str = ""
    deployment: DeploymentState = DeploymentState.IN_PROGRESS
    state: EndpointState = EndpointState.CREATING
    completed_at: float | None = None
    ended_at: float | None = None
    error: str = ""
    loaded: tuple[str, ...] = ()

    @property
    def index_state(self) -> str:
        return self.state.value


@dataclass(frozen=True, kw_only=True)
class CheckpointFile:
    """One weights file: what was announced of it, and where its parts go.

    `size` (bytes) and `sha256` (hex) are the caller's words until the upload is complete, then
    the store's. `upload_id` is empty once the bytes are in place. `is_hashed` tells that `sha256`
    is that of the stored bytes, and nobody's mere word. `original_name`, `original_size` and
    `original_sha256` are those of the pickled file that this one was converted from, if it was.
    """

    name: str
    key: str
    upload_id: str
    parts: int
    part_size: int
    size: int | None = None
    sha256: str | None = None
    is_hashed: bool = False
    original_name: str = ""
    original_size: int | None = None
    original_sha256: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """What requests may call it; as it came too, until it is renamed."""
        if self.original_name and converted_name(self.original_name) == self.name:
            return (self.name, self.original_name)
        return (self.name,)


@dataclass(frozen=True, kw_only=True)
class ImportSource:
    """Where one file of an imported checkpoint comes from, and how far it has come.

    The query of `url` may hold a token: `shown_url` is what people see, and `url` is empty once
    the import has ended. `name`, `size` (bytes) and `validator` are the host's words; `name` is
    empty until it was asked. `received` counts bytes, `failures` the tries since a part was last
    stored, `restarts` how often stored parts were of no more use.
    """

    url: str = field(repr=False)
    shown_url: str
    name: str = ""
    size: int | None = None
    validator: str | None = None
    received: int = 0
    failures: int = 0
    restarts: int = 0


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Record):
    """A weights file (or several that belong together), uploaded or imported.

    An imported one has a source for each file, in the same order, and no files until all hosts
    have told their names. Until `leased_until` one runner has the import, and nobody else.

    `arrived_at` is when the bytes of one that could not become Active at once were all in place;
    `waits_for` says in words what it waits for since then, and `checks` counts how often somebody
    began to check its content. `conversion` numbers the attempts to convert it. `keep_original`:
    the pickled files stay.
    """

    KIND: ClassVar[str] = "checkpoint"

    type: CheckpointType
    state: CheckpointState
    files: tuple[CheckpointFile, ...]
    params: dict[str, object] = field(default_factory=dict)
    sources: tuple[ImportSource, ...] = ()
    leased_until: float = 0.0
    arrived_at: float | None = None
    waits_for: str = ""
    checks: int = 0
    conversion: int = 1
    keep_original: bool = False
    error: str = ""

    @property
    def conversion_id(self) -> str:
        """The job that converts it, or has."""
        return conversion_id(self.id, self.conversion)

    @property
    def can_retry(self) -> bool:
        """Whether its bytes are still there after its conversion came to nothing."""
        return self.state is CheckpointState.FAILED and self.check_at is not None

    @property
    def step(self) -> CheckpointStep | None:
        """What it is at; None in any other state than Initial."""
        if self.state is not CheckpointState.INITIAL:
            return None
        if self.arrived_at is None:
            return CheckpointStep.IMPORTING if self.sources else CheckpointStep.UPLOADING
        is_checked = all(file.is_hashed for file in self.files)
        if is_checked and any(is_pickled(file.name) for file in self.files):
            return CheckpointStep.CONVERTING
        return CheckpointStep.CHECKING

    @property
    def index_state(self) -> str:
        return self.state.value

    @property
    def index_label(self) -> str:
        return self.type.value


@dataclass(frozen=True, kw_only=True)
class Model(Record):
    """A Dreambooth working model: what training starts from.

    It is made of its own uploaded `files`, or of the Active checkpoint `checkpoint_id`;
    `compute_name` is the compute side's word for the job that makes it, empty until it has
    confirmed the start.
    """

    KIND: ClassVar[str] = "model"

    name: str
    type: CheckpointType
    state: ModelState
    files: tuple[CheckpointFile, ...] = ()
    checkpoint_id: str = ""
    params: dict[str, object] = field(default_factory=dict)
    compute_name: str = ""
    error: str = ""

    @property
    def index_state(self) -> str:
        return self.state.value

    @property
    def index_label(self) -> str:
        return self.type.value


@dataclass(frozen=True, kw_only=True)
class TrainJob(Record):
    """One training run of a Dreambooth working model.

    `datasets` are the names of those that `params` speak of; `instance_type` is empty where the
    caller left the choice. `compute_name` is the compute side's word for the job, empty until it
    has confirmed the start. `progress` (0..1), `loss` and `steps` are the program's latest words
    that were noted, `step_seconds` what one step took then; `checkpoint_id` is the checkpoint that
    came of it.
    """

    KIND: ClassVar[str] = "train"

    type: CheckpointType
    state: TrainState
    model_id: str
    model_name: str
    params: dict[str, object]
    instance_type: str = ""
    datasets: tuple[str, ...] = ()
    compute_name: str = ""
    progress: float = 0.0
    loss: float | None = None
    steps: int = 0
    step_seconds: float | None = None
    checkpoint_id: str = ""
    started_at: float | None = None
    completed_at: float | None = None
    error: str = ""

    @property
    def index_state(self) -> str:
        return self.state.value

    @property
    def index_label(self) -> str:
        return self.type.value


@dataclass(frozen=True, kw_only=True)
class DatasetFile:
    """One file of a data set; `type` is the caller's own word for it."""

    name: str
    key: str
    type: str


@dataclass(frozen=True, kw_only=True)
class Dataset(Record):
    """Pictures to train on; its name is unique, and is part of its object keys."""

    KIND: ClassVar[str] = "dataset"

    name: str
    state: DatasetState
    files: tuple[DatasetFile, ...]
    params: dict[str, object] = field(default_factory=dict)

    @property
    def index_state(self) -> str:
        return self.state.value


@dataclass(frozen=True, kw_only=True)
class Token(Record):
    """A user's API token; only its hash is kept. `owner` is the user that it speaks for.

    `daily_jobs` bounds the jobs that may be submitted with it on one UTC day; None is no bound.
    """

    KIND: ClassVar[str] = "token"

    secret_hash: str
    scopes: tuple[Scope, ...]
    daily_jobs: int | None = None
    revoked_at: float | None = None

    @property
    def index_state(self) -> str:
        return "active" if self.revoked_at is None else "revoked"
