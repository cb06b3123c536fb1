"""The services on real records and objects, with a clock that the test moves and a compute side
that does only what it is told."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from middleware_api.bootstrap import make_services
from middleware_api.contract import (
    CheckpointType,
    EndpointState,
    Invocation,
    InvocationResult,
    PartTag,
    Scope,
    TaskType,
)
from middleware_api.embedded.database import Database
from middleware_api.embedded.objects import FolderObjects
from middleware_api.embedded.records import SqliteRecords
from middleware_api.fetching import Fetcher, FetchPolicy
from middleware_api.ports import EndpointChanged, EndpointStatus, InvocationFinished
from middleware_api.records import Checkpoint, Endpoint, InferenceJob
from middleware_api.services.access import Principal
from middleware_api.services.events import EventHandlers, reconcile
from middleware_api.services.inference import InferenceRequest
from middleware_api.services.uploads import NewFile
from tests.pretend_training import PretendTrainingJobs
from tests.weights import safetensors

WEIGHTS = safetensors()
ADMIN_TOKEN = "the deployment's own token"


NO_FETCHER = Fetcher(FetchPolicy(frozenset(), max_bytes=0))
ME = Principal("me", frozenset({Scope.INFER, Scope.MODELS}))
OTHER = Principal("other", ME.scopes)


@dataclass
class PretendEndpoints:
    """A compute side that remembers what it was asked for, by the endpoints' ids."""

    known: dict[str, EndpointStatus] = field(default_factory=dict)
    invoked: dict[str, str] = field(default_factory=dict)
    orders: dict[str, Invocation] = field(default_factory=dict)
    patience_seconds: float = 7 * 3600
    refusal: Exception | None = None
    set_up: list[str] = field(default_factory=list)
    cleared: list[str] = field(default_factory=list)
    at_once: Callable[[str], None] | None = None
    """What an instance does with a job as soon as it is queued, by its id."""

    def create(self, endpoint: Endpoint) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.known[endpoint.id] = EndpointStatus(EndpointState.CREATING)

    def entered_service(self, endpoint: Endpoint) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.set_up.append(endpoint.id)

    def left_service(self, endpoint: Endpoint) -> None:
        self.cleared.append(endpoint.id)

    def delete(self, endpoint: Endpoint) -> None:
        self.known.pop(endpoint.id, None)

    def statuses(self, endpoints: Collection[Endpoint]) -> dict[str, EndpointStatus]:
        gone = EndpointStatus(EndpointState.DELETED)
        return {endpoint.id: self.known.get(endpoint.id, gone) for endpoint in endpoints}

    def invoke(self, endpoint_id: str, invocation: Invocation) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.invoked[invocation["job_id"]] = endpoint_id
        self.orders[invocation["job_id"]] = invocation
        if self.at_once is not None:
            self.at_once(invocation["job_id"])

    def accepted(self, job_id: str) -> bool:
        return job_id in self.invoked

    def queue_position(self, job_id: str) -> int | None:
        return 0 if job_id in self.invoked else None

    def withdraw(self, job_id: str) -> bool:
        return False


@dataclass
class PretendRunners:
    """Remembers which checkpoints were to be gone on with."""

    begun: list[str] = field(default_factory=list)

    def begin(self, checkpoint_id: str) -> None:
        self.begun.append(checkpoint_id)


class World:
    """The services over those parts."""

    def __init__(self, folder: Path, fetcher: Fetcher = NO_FETCHER) -> None:
        self.now = 1_000_000.0
        self.database = Database(folder / "records.sqlite3")
        self.records = SqliteRecords(self.database, self.clock)
        self.objects = FolderObjects(folder, b"key", "http://store.test", self.clock)
        self.compute = PretendEndpoints()
        self.training = PretendTrainingJobs()
        self.runners = PretendRunners()
        self.services = make_services(
            self.records,
            self.objects,
            self.compute,
            self.training,
            self.runners,
            fetcher,
            ADMIN_TOKEN,
            self.clock,
        )
        self.events = EventHandlers(self.services)

    def clock(self) -> float:
        return self.now

    def pass_time(self, seconds: float) -> None:
        """Let time go by, and the reconciler look."""
        self.now += seconds
        reconcile(self.services, self.records, self.clock)

    def deploy(self, name: str, *, load: int = 0) -> Endpoint:
        """An endpoint in service."""
        endpoint = self.services.endpoints.create(ME, name, "local", 1, None)
        self.events.endpoint_changed(EndpointChanged(endpoint.id, EndpointState.IN_SERVICE))
        self.compute.known[endpoint.id] = EndpointStatus(EndpointState.IN_SERVICE, 1, load)
        return self.services.endpoints.get(endpoint.id)

    def checkpoint(
        self,
        name: str = "m.safetensors",
        kind: CheckpointType = CheckpointType.STABLE_DIFFUSION,
        content: bytes = WEIGHTS,
    ) -> Checkpoint:
        """An Active checkpoint; Initial when it must be converted."""
        service = self.services.checkpoints
        checkpoint, _ = service.create(ME, kind, [NewFile(name, 1)], {})
        etag = self.put_part(checkpoint, content)
        tags = {name: [PartTag(PartNumber=1, ETag=etag)]}
        return self.services.admission.complete(checkpoint, tags)

    def put_part(self, checkpoint: Checkpoint, content: bytes) -> str:
        """Lay part 1 where a signed PUT would."""
        file = checkpoint.files[0]
        return self.objects.write_part(file.key, file.upload_id, 1, content)

    def submit(self, endpoint: str | None = None, caller: Principal = ME) -> InferenceJob:
        """A job with that checkpoint."""
        models = {CheckpointType.STABLE_DIFFUSION: ["m.safetensors"]}
        request = InferenceRequest(TaskType.TXT2IMG, models, endpoint, {"prompt": "x"})
        return self.services.inference.submit(caller, request, None)

    def job(self, job: InferenceJob) -> InferenceJob:
        """The job as it is now."""
        return self.services.inference.get(ME, job.id)


def result(job: InferenceJob, status: str = "succeed") -> InvocationFinished:
    answer = InvocationResult(
        job_id=job.id, status=status, images=[], parameters={}, info="{}", checkpoints=[]
    )
    return InvocationFinished(job.id, result=answer)
