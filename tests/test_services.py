"""Deadlines, late and double events, and choices: on real records and objects, with a clock that
the test moves and a compute side that does only what it is told."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from middleware_api import contract
from middleware_api.bootstrap import make_services
from middleware_api.contract import (
    CheckpointState,
    CheckpointType,
    DeploymentState,
    EndpointState,
    InferenceState,
    Invocation,
    InvocationResult,
    TaskType,
)
from middleware_api.embedded.database import Database
from middleware_api.embedded.objects import FolderObjects
from middleware_api.embedded.records import SqliteRecords
from middleware_api.errors import Conflict, NotFound
from middleware_api.ports import EndpointChanged, EndpointStatus, InvocationFinished
from middleware_api.records import Checkpoint, Endpoint, InferenceJob
from middleware_api.services.checkpoints import UPLOAD_DEADLINE_SECONDS, NewFile, cut_into_parts
from middleware_api.services.endpoints import DEPLOY_DEADLINE_SECONDS
from middleware_api.services.events import EventHandlers, reconcile
from middleware_api.services.inference import RECONCILE_SECONDS, InferenceRequest

MIB = 1024 * 1024


@dataclass
class PretendEndpoints:
    """A compute side that remembers what it was asked for."""

    statuses: dict[str, EndpointStatus] = field(default_factory=dict)
    invoked: dict[str, str] = field(default_factory=dict)

    def create(self, endpoint: Endpoint) -> None:
        self.statuses[endpoint.name] = EndpointStatus(EndpointState.CREATING, 0, 0, frozenset())

    def delete(self, endpoint: Endpoint) -> None:
        del self.statuses[endpoint.name]

    def status(self, name: str) -> EndpointStatus:
        gone = EndpointStatus(EndpointState.DELETED, 0, 0, frozenset())
        return self.statuses.get(name, gone)

    def invoke(self, endpoint_name: str, invocation: Invocation) -> None:
        self.invoked[invocation["job_id"]] = endpoint_name

    def queue_position(self, job_id: str) -> int | None:
        return 0 if job_id in self.invoked else None

    def withdraw(self, job_id: str) -> bool:
        return False


class World:
    """The services over those parts."""

    def __init__(self, folder: Path) -> None:
        self.now = 1_000_000.0
        self.database = Database(folder / "records.sqlite3")
        self.records = SqliteRecords(self.database)
        self.objects = FolderObjects(folder, b"key", "http://store.test", self.clock)
        self.compute = PretendEndpoints()
        self.services = make_services(self.records, self.objects, self.compute, self.clock)
        self.events = EventHandlers(self.services)

    def clock(self) -> float:
        return self.now

    def pass_time(self, seconds: float) -> None:
        """Let time go by, and the reconciler look."""
        self.now += seconds
        reconcile(self.services, self.records, self.clock)

    def deploy(self, name: str, *, load: int = 0, loaded: frozenset[str] = frozenset()) -> Endpoint:
        """An endpoint in service."""
        endpoint = self.services.endpoints.create("me", name, "local", 1, None)
        self.events.endpoint_changed(EndpointChanged(endpoint.id, EndpointState.IN_SERVICE))
        self.compute.statuses[name] = EndpointStatus(EndpointState.IN_SERVICE, 1, load, loaded)
        return self.services.endpoints.get(endpoint.id)

    def checkpoint(self, name: str = "m.safetensors") -> Checkpoint:
        """An Active checkpoint."""
        service = self.services.checkpoints
        checkpoint, _ = service.create(
            "me", CheckpointType.STABLE_DIFFUSION, [NewFile(name, 1)], {}
        )
        etag = self.put_part(checkpoint, b"weights")
        return service.complete(checkpoint, {name: [{"PartNumber": 1, "ETag": etag}]})

    def put_part(self, checkpoint: Checkpoint, content: bytes) -> str:
        """Lay part 1 where a signed PUT would."""
        folder = self.objects.root.parent / "multipart" / checkpoint.files[0].upload_id
        (folder / "1-feed").write_bytes(content)
        return "feed"

    def submit(self, endpoint: str | None = None) -> InferenceJob:
        """A job with that checkpoint."""
        models = {CheckpointType.STABLE_DIFFUSION: ["m.safetensors"]}
        request = InferenceRequest(TaskType.TXT2IMG, models, endpoint, {"prompt": "x"})
        return self.services.inference.submit("me", request, None)

    def job(self, job: InferenceJob) -> InferenceJob:
        """The job as it is now."""
        return self.services.inference.get(job.id)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.database.close()


def result(job: InferenceJob, status: str = "succeed") -> InvocationFinished:
    answer = InvocationResult(job_id=job.id, status=status, images=[], parameters={}, info="{}")
    return InvocationFinished(job.id, job.endpoint_name, result=answer)


def test_a_late_or_second_event_changes_nothing(world: World) -> None:
    world.deploy("a")
    world.checkpoint()
    job = world.submit()
    assert world.events.invocation_starting(job.id)
    world.events.invocation_finished(result(job))
    done = world.job(job)
    assert done.state is InferenceState.SUCCEEDED
    world.events.invocation_finished(result(job))
    world.events.invocation_finished(InvocationFinished(job.id, "a", failure="late"))
    assert world.job(job) == done
    assert not world.events.invocation_starting(job.id)
    world.events.invocation_finished(InvocationFinished("unknown", "a", failure="?"))


def test_a_failure_keeps_the_reason_and_the_pictures_made_before(world: World) -> None:
    world.deploy("a")
    world.checkpoint()
    job = world.submit()
    for index in (10, 9):
        world.objects.write(contract.image_key(job.id, index), b"png")
    world.events.invocation_finished(InvocationFinished(job.id, "a", failure="out of memory"))
    failed = world.job(job)
    assert (failed.state, failed.error) == (InferenceState.FAILED, "out of memory")
    assert failed.image_names == ("image_9.png", "image_10.png")
    assert len(world.services.inference.image_urls(failed)) == 2


def test_a_cancel_that_the_worker_did_not_answer_is_still_a_cancel(world: World) -> None:
    world.deploy("a")
    world.checkpoint()
    job = world.submit()
    assert world.services.inference.cancel(job).state is InferenceState.IN_PROGRESS
    world.events.invocation_finished(InvocationFinished(job.id, "a", failure="worker died"))
    assert world.job(job).state is InferenceState.CANCELLED


def test_a_job_that_was_never_queued_is_queued_by_the_reconciler(world: World) -> None:
    world.deploy("a")
    world.checkpoint()
    job = world.submit()
    world.compute.invoked.clear()
    world.pass_time(RECONCILE_SECONDS + 1)
    assert world.compute.invoked == {job.id: "a"}
    assert world.job(job).state is InferenceState.IN_PROGRESS


def test_a_body_that_never_comes_ends_the_job(world: World) -> None:
    world.deploy("a")
    world.checkpoint()
    models = {CheckpointType.STABLE_DIFFUSION: ["m.safetensors"]}
    job, url = world.services.inference.prepare(
        "me", InferenceRequest(TaskType.IMG2IMG, models, None, {}), None
    )
    assert url.startswith("http://store.test/")
    world.pass_time(12 * 3600 + 1)
    ended = world.job(job)
    assert ended.state is InferenceState.FAILED
    assert "never uploaded" in ended.error


def test_an_upload_that_stops_fails_and_leaves_nothing_behind(world: World) -> None:
    service = world.services.checkpoints
    checkpoint, _ = service.create("me", CheckpointType.LORA, [NewFile("l.safetensors", 3)], {})
    world.put_part(checkpoint, b"first")
    world.pass_time(UPLOAD_DEADLINE_SECONDS + 1)
    ended = service.get(checkpoint.id)
    assert ended.state is CheckpointState.FAILED
    assert "1 of 3 parts" in ended.error
    assert list((world.objects.root.parent / "multipart").iterdir()) == []


def test_a_deployment_that_hangs_fails_with_advice(world: World) -> None:
    endpoint = world.services.endpoints.create("me", "slow", "local", 1, None)
    world.pass_time(DEPLOY_DEADLINE_SECONDS + 1)
    ended = world.services.endpoints.get(endpoint.id)
    assert (ended.state, ended.deployment) == (EndpointState.FAILED, DeploymentState.FAILED)
    assert "30 minutes" in ended.error
    with pytest.raises(NotFound, match=r"m\.safetensors"):
        world.submit("slow")
    world.checkpoint()
    with pytest.raises(Conflict, match=r"Failed.*30 minutes"):
        world.submit("slow")


def test_the_endpoint_that_has_the_checkpoint_is_chosen_then_the_idlest(world: World) -> None:
    checkpoint = world.checkpoint()
    world.deploy("idle", load=0)
    world.deploy("busy", load=5)
    assert world.submit().endpoint_name == "idle"
    world.deploy("warm", load=3, loaded=frozenset({checkpoint.files[0].key}))
    assert world.submit().endpoint_name == "warm"
    assert world.submit("busy").endpoint_name == "busy"


def test_a_name_is_free_again_when_its_endpoint_is_gone(world: World) -> None:
    endpoint = world.deploy("studio")
    with pytest.raises(Conflict, match="exists already"):
        world.deploy("studio")
    world.services.endpoints.delete(["studio"])
    with pytest.raises(Conflict, match="being deleted"):
        world.services.endpoints.choose("studio", [])
    world.events.endpoint_changed(EndpointChanged(endpoint.id, EndpointState.DELETED))
    assert world.services.endpoints.get(endpoint.id).deployment is DeploymentState.DELETED
    assert world.deploy("studio").id != endpoint.id


def test_a_disabled_checkpoint_cannot_be_used_until_it_is_enabled(world: World) -> None:
    service = world.services.checkpoints
    checkpoint = world.checkpoint()
    world.deploy("a")
    disabled = service.set_state(checkpoint, CheckpointState.DISABLED)
    with pytest.raises(NotFound, match=r"m\.safetensors"):
        world.submit()
    service.set_state(disabled, CheckpointState.ACTIVE)
    assert world.submit().checkpoints[0].name == "m.safetensors"


@pytest.mark.parametrize(
    ("start", "to"),
    [
        (CheckpointState.ACTIVE, CheckpointState.FAILED),
        (CheckpointState.INITIAL, CheckpointState.DISABLED),
        (CheckpointState.FAILED, CheckpointState.ACTIVE),
    ],
)
def test_a_checkpoint_goes_only_where_its_life_cycle_goes(
    world: World, start: CheckpointState, to: CheckpointState
) -> None:
    service = world.services.checkpoints
    checkpoint = world.checkpoint()
    if start is not CheckpointState.ACTIVE:
        checkpoint, _ = service.create("me", CheckpointType.VAE, [NewFile("v.pt", 1)], {})
    if start is CheckpointState.FAILED:
        checkpoint = service.set_state(checkpoint, CheckpointState.FAILED)
        with pytest.raises(Conflict, match="nothing is left to upload"):
            service.missing_parts(checkpoint)
    with pytest.raises(Conflict, match=f"cannot become {to.value}"):
        service.set_state(checkpoint, to)


def test_the_newest_checkpoint_of_a_name_is_the_one_that_is_used(world: World) -> None:
    world.deploy("a")
    first, second = world.checkpoint(), world.checkpoint()
    assert first.id != second.id
    assert second.id in world.submit().checkpoints[0].key


@pytest.mark.parametrize("size", [1, 5 * MIB, 5 * MIB + 1, 2 * 1024 * MIB, 16 * 1024 * MIB])
@pytest.mark.parametrize("parts", [1, 4, 257, 10_000])
def test_parts_cover_the_file_within_the_stores_rules(size: int, parts: int) -> None:
    count, part_size = cut_into_parts(size, parts)
    assert part_size >= 5 * MIB
    assert part_size % MIB == 0
    assert count <= parts
    lengths = [min(part_size, size - start) for start in range(0, size, part_size)]
    assert (len(lengths), sum(lengths)) == (count, size)
    assert all(length >= 5 * MIB for length in itertools.islice(lengths, len(lengths) - 1))
