"""What the services need of the world: records, objects, and somewhere to compute.

Each port has an embedded adapter (`middleware_api.embedded`) and one on AWS
(`middleware_api.aws`); services know these protocols and nothing behind them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from middleware_api.contract import (
    EndpointState,
    Invocation,
    InvocationResult,
    PartChecksum,
    PartTag,
    TrainState,
)
from middleware_api.records import Endpoint, Model, Record, TrainJob

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Page(Generic[R]):
    """Newest first; `next_cursor` is None on the last page."""

    items: list[R]
    next_cursor: str | None


class Records(Protocol):
    """Durable records with conditional writes, and unique keys that point at things."""

    def add(self, record: Record) -> None:
        """Store a new record. Raises Conflict when its id exists."""

    def get(self, kind: type[R], record_id: str) -> R:
        """Raises NotFound."""

    def update(self, record: R) -> R:
        """Replace the version that `record` was read at; raises StaleRecord if it has moved on.

        Returns the record as stored, ready for the next update.
        """

    def remove(self, record: Record) -> None:
        """Forget a record, conditionally like `update`."""

    def page(
        self,
        kind: type[R],
        *,
        owner: str | None = None,
        states: Collection[str] = (),
        labels: Collection[str] = (),
        limit: int,
        cursor: str | None = None,
    ) -> Page[R]:
        """Filters are ORs; empty means all, as does no `owner`. Costs the same however many
        rows exist.

        Raises InvalidRequest for a cursor that this method did not make.
        """

    def due(self, kind: type[R], now: float, limit: int) -> list[R]:
        """Records whose `check_at` has passed, most overdue first."""

    def claim(self, key: str, value: str, seconds: float | None = None) -> str:
        """Bind a unique key if it is free; returns the value that it is bound to now.

        With `seconds` it is free again after that time.
        """

    def count(self, key: str, limit: int, seconds: float) -> bool:
        """Add one to a counter that is forgotten after `seconds`; False when it is at `limit`."""

    def lookup(self, key: str) -> str | None:
        """The value that a unique key is bound to."""

    def bind(self, key: str, value: str) -> None:
        """Bind a unique key, whatever it was bound to."""

    def release(self, key: str, value: str) -> None:
        """Free a unique key if it is still bound to `value`."""


@dataclass(frozen=True)
class StoredPart:
    """A part that has arrived whole."""

    number: int
    etag: str
    size: int


@dataclass(frozen=True)
class StoredObject:
    """A finished object. `sha256` (hex) is there when the store computed it."""

    size: int
    sha256: str | None


class Objects(Protocol):
    """An object store with S3's ideas: keys, presigned URLs, multipart uploads."""

    bucket: str
    part_checksum: PartChecksum
    """Which checksum a part's PUT may carry, for the store to refuse bytes that do not fit."""
    hash_max_bytes: int | None
    """The largest object that a runner can read and hash in one call; None where the store
    itself tells the hash of what it puts together."""

    def write(self, key: str, content: bytes) -> None:
        """Store a whole object; readers see the old one or the new one, never a mixture."""

    def read(self, key: str) -> bytes:
        """Raises NotFound."""

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """`length` bytes from `start` on; fewer where the object ends. Raises NotFound."""

    def size(self, key: str) -> int | None:
        """Bytes of an object, or None when there is none."""

    def delete(self, key: str) -> None:
        """Delete one object; none is no error."""

    def delete_all(self, prefix: str) -> None:
        """Delete every object below a prefix that ends in '/'; none is no error."""

    def keys(self, prefix: str) -> list[str]:
        """Keys below a prefix that ends in '/', sorted."""

    def sizes(self, prefix: str) -> dict[str, int]:
        """The bytes of each object below a prefix that ends in '/', by its key."""

    def presigned_get(self, key: str, seconds: int) -> str:
        """A URL that reads one object."""

    def presigned_put(self, key: str, seconds: int) -> str:
        """A URL that writes one object."""

    def start_multipart(self, key: str, part_size: int = 0) -> str:
        """Returns the upload id.

        `part_size` is a promise: the bytes of every part but the last; 0 is none.
        """

    def presigned_part(self, key: str, upload_id: str, number: int, seconds: int) -> str:
        """A URL that writes part `number` (from 1)."""

    def write_part(self, key: str, upload_id: str, number: int, content: bytes) -> str:
        """Store part `number` (from 1) from this side; returns its ETag."""

    def arrived_parts(self, key: str, upload_id: str) -> list[StoredPart]:
        """In order of their numbers. Raises NotFound for an unknown upload."""

    def complete_multipart(self, key: str, upload_id: str, tags: Iterable[PartTag]) -> StoredObject:
        """Make the object of exactly these parts.

        Raises Conflict naming the first part that is absent, differs, or is too small.
        """

    def abort_multipart(self, key: str, upload_id: str) -> None:
        """Forget the parts. Unknown uploads are no error: a second abort changes nothing."""


@dataclass(frozen=True)
class EndpointStatus:
    """What the compute side says of an endpoint now.

    `error` is its own reason for `Failed`; `load` is the number of jobs waiting or running there.
    """

    state: EndpointState
    instance_count: int = 0
    load: int = 0
    error: str = ""


class Endpoints(Protocol):
    """Machines that run the inference container and take jobs from a durable queue."""

    patience_seconds: float
    """After this long a job that was accepted cannot be alive any more; may be infinite."""

    def create(self, endpoint: Endpoint) -> None:
        """Begin to start it; `EndpointChanged` events tell the rest.

        Raises Conflict or NotAvailable when the compute side refuses; nothing is left then.
        """

    def entered_service(self, endpoint: Endpoint) -> None:
        """Set up what an endpoint can only have once it is in service; again is no error.

        Raises Conflict when the compute side refuses.
        """

    def delete(self, endpoint: Endpoint) -> None:
        """Begin to stop it; its jobs end as failed; `EndpointChanged` follows. Again is no
        error, nor is one that the compute side does not know."""

    def left_service(self, endpoint: Endpoint) -> None:
        """Clear away what is left of an endpoint that is gone; again is no error."""

    def statuses(self, endpoints: Collection[Endpoint]) -> dict[str, EndpointStatus]:
        """By id, for each of them; costs no more for others that exist. One that the compute
        side does not know is `Deleted`."""

    def invoke(self, endpoint_id: str, invocation: Invocation) -> None:
        """Queue a job durably. The same job a second time changes nothing."""

    def accepted(self, job_id: str) -> bool:
        """Whether the compute side has taken the job and not told its end."""

    def queue_position(self, job_id: str) -> int | None:
        """0 while running, n for the n-th in its queue, None when not known."""

    def withdraw(self, job_id: str) -> bool:
        """Take a job that no instance has begun out of the queue; False when it is too late."""


@dataclass(frozen=True)
class TrainingStatus:
    """What the compute side says of a training machine's job now.

    `state` is Training, also while its machine is still coming or going, or one of the three
    ends; `error` is the compute side's own reason, never empty for `Fail`. `phase` is a word or
    two for people on what it waits for while its program does not run.
    """

    state: TrainState
    error: str = ""
    phase: str = ""


class TrainingJobs(Protocol):
    """Machines that each run one long job and are gone at its end.

    There are two kinds of job: a `TrainJob` trains, and a `Model` is made of weights into what
    training starts from. The adapter chooses the program and the machine (`instance_type` of a
    `TrainJob` where it is not empty), and derives its own name for a job from the record's id
    alone, so that the same job is always the same to it. It bounds a job's running time; one
    that was stopped by that bound is `Fail`, not `Stopped`.
    """

    def start(self, job: TrainJob | Model, input_prefix: str, output_prefix: str) -> str:
        """Begin to run it; returns the compute side's name for it, for people to find it by.

        The object at `contract.order_key(input_prefix)` tells the program what to do; what it
        makes goes under `output_prefix`. The same job a second time changes nothing and returns
        the same name, whether it runs or has ended. `TrainingChanged` tells the end. Raises
        Conflict (no quota, no such instance type) when the compute side refuses; nothing runs
        then.
        """

    def stop(self, job: TrainJob | Model) -> None:
        """Begin to stop it; `TrainingChanged` follows. One that has ended, or that the compute
        side does not know, is no error."""

    def status(self, job: TrainJob | Model) -> TrainingStatus | None:
        """None for a job that the compute side does not know. It is to know one for at least
        a day after its end: until then the reconciler has asked."""


class Runners(Protocol):
    """Where long work on a checkpoint is done, outside of any request: it is imported, or its
    content checked."""

    def begin(self, checkpoint_id: str) -> None:
        """Have `services.events.go_on` called soon, until it says that there is nothing to do.

        The same checkpoint again, while it waits or is worked on, changes nothing.
        """


@dataclass(frozen=True)
class InvocationFinished:
    """An instance has answered, or never will. Exactly one of `result` and `failure` is set."""

    job_id: str
    result: InvocationResult | None = None
    failure: str | None = None


@dataclass(frozen=True)
class EndpointChanged:
    """The compute side's word on an endpoint; `error` is its own reason for `Failed`."""

    endpoint_id: str
    state: EndpointState
    error: str = ""


@dataclass(frozen=True)
class TrainingChanged:
    """The compute side's word on a training machine's job, the id being the `TrainJob`'s or the
    `Model`'s; `error` is its own reason, never empty for `Fail`."""

    job_id: str
    state: TrainState
    error: str = ""


class EventSink(Protocol):
    """What the compute side's adapters tell the services; events may come late or twice."""

    def invocation_starting(self, job_id: str) -> bool:
        """An instance is about to run the job; False when nobody wants it any more."""

    def invocation_finished(self, event: InvocationFinished) -> None:
        """The job's end."""

    def endpoint_changed(self, event: EndpointChanged) -> None:
        """An endpoint's new state."""

    def training_changed(self, event: TrainingChanged) -> None:
        """The state of a `TrainJob`, or of the job that makes a `Model`."""
