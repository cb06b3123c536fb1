"""On AWS nobody has hashed what was put together: it is read once more before it can be used."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from middleware_api.aws.clients import Clients
from middleware_api.aws.objects import S3Objects
from middleware_api.aws.records import DynamoRecords
from middleware_api.bootstrap import make_services
from middleware_api.contract import (
    CheckpointState,
    CheckpointStep,
    CheckpointType,
    EndpointState,
    InferenceState,
    PartTag,
    conversion_id,
)
from middleware_api.errors import ContentDiffers, FileRefused, NotFound
from middleware_api.ports import EndpointChanged, EndpointStatus
from middleware_api.records import Checkpoint, InferenceJob
from middleware_api.services import admission, hashing, verification
from middleware_api.services.events import EventHandlers, go_on, reconcile
from middleware_api.services.leases import LEASE_SECONDS
from middleware_api.services.uploads import NewFile
from tests.aws import BUCKET, TABLE, Aws, aws
from tests.hostile_weights import saved
from tests.pretend_training import PretendTrainingJobs
from tests.weights import safetensors
from tests.world import ADMIN_TOKEN, ME, NO_FETCHER, PretendEndpoints, PretendRunners

KIND = CheckpointType.LORA
NAME = "m.safetensors"
WEIGHTS = safetensors(bytes(range(256)) * 100)
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
OTHER_SHA256 = hashlib.sha256(b"something else").hexdigest()


def never() -> bool:
    return False


class World:
    """The services on moto's DynamoDB and S3, with a clock that the test moves."""

    def __init__(self, account: Aws) -> None:
        clients = Clients(account.session)
        self.now = 1_000_000.0
        self.account = account
        self.records = DynamoRecords(clients.dynamodb, TABLE, self.clock)
        self.objects = S3Objects(clients.s3, BUCKET)
        self.compute, self.runners = PretendEndpoints(), PretendRunners()
        self.services = make_services(
            self.records,
            self.objects,
            self.compute,
            PretendTrainingJobs(),
            self.runners,
            NO_FETCHER,
            ADMIN_TOKEN,
            self.clock,
        )

    def clock(self) -> float:
        return self.now

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        reconcile(self.services, self.records, self.clock)

    def upload(
        self, *files: tuple[str, bytes], sha256: str | None = None, told_late: bool = False
    ) -> Checkpoint:
        """All parts sent and the upload completed; its hash announced before or at the end."""
        early = None if told_late else sha256
        announced = [NewFile(name, 1, len(content), early) for name, content in files]
        made, _ = self.services.checkpoints.create(ME, KIND, announced, {})
        tags = {}
        for file, (_, content) in zip(made.files, files, strict=True):
            etag = self.objects.write_part(file.key, file.upload_id, 1, content)
            tags[file.name] = [PartTag(PartNumber=1, ETag=etag)]
        late = {files[0][0]: sha256} if told_late and sha256 else {}
        return self.services.admission.complete(made, tags, late)

    def now_of(self, checkpoint: Checkpoint) -> Checkpoint:
        return self.services.checkpoints.get(checkpoint.id)

    def run(self, checkpoint: Checkpoint) -> Checkpoint:
        assert go_on(self.services, checkpoint.id, never)
        return self.now_of(checkpoint)

    def leftovers(self) -> list[str]:
        s3 = self.account.client("s3")
        found = s3.list_objects_v2(Bucket=BUCKET).get("Contents", ())
        open_uploads = s3.list_multipart_uploads(Bucket=BUCKET).get("Uploads", ())
        return [one["Key"] for one in (*found, *open_uploads)]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Small files stand for large ones: none is checked within its request, and all in pieces."""
    monkeypatch.setattr(admission, "HASH_NOW_BYTES", 0)
    monkeypatch.setattr(hashing, "PIECE_BYTES", 1000)
    with aws() as account:
        yield World(account)


@pytest.mark.parametrize("told_late", [False, True])
def test_an_upload_is_active_when_its_content_is_the_announced_one(
    world: World, told_late: bool
) -> None:
    waiting = world.upload((NAME, WEIGHTS), sha256=SHA256, told_late=told_late)
    assert (waiting.state, waiting.step) == (CheckpointState.INITIAL, CheckpointStep.CHECKING)
    assert waiting.waits_for == admission.CHECKING
    assert world.runners.begun == [waiting.id]
    with pytest.raises(NotFound):
        world.services.checkpoints.resolve(KIND, NAME)
    active = world.run(waiting)
    assert (active.state, active.waits_for, active.check_at) == (CheckpointState.ACTIVE, "", None)
    assert world.services.checkpoints.resolve(KIND, NAME).sha256 == SHA256


@pytest.mark.parametrize("told_late", [False, True])
def test_other_content_than_was_announced_is_refused_and_leaves_nothing(
    world: World, told_late: bool
) -> None:
    waiting = world.upload((NAME, WEIGHTS), sha256=OTHER_SHA256, told_late=told_late)
    failed = world.run(waiting)
    assert failed.state is CheckpointState.FAILED
    assert SHA256 in failed.error
    assert OTHER_SHA256 in failed.error
    assert world.leftovers() == []
    assert world.run(waiting) == failed, "a second message changes nothing"
    again, uploads = world.services.checkpoints.create(
        ME, KIND, [NewFile(NAME, 1, len(WEIGHTS), OTHER_SHA256)], {}
    )
    assert again.id != failed.id
    assert uploads, "it is nobody's content"


def test_a_hash_that_nobody_announced_is_noted_and_known_from_then_on(world: World) -> None:
    active = world.run(world.upload((NAME, WEIGHTS)))
    assert [(f.sha256, f.is_hashed) for f in active.files] == [(SHA256, True)]
    file = NewFile(NAME, 1, len(WEIGHTS), SHA256)
    known, uploads = world.services.checkpoints.create(ME, KIND, [file], {})
    assert (known.id, uploads) == (active.id, [])


def test_small_files_are_checked_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "HASH_NOW_BYTES", len(WEIGHTS))
    assert world.upload((NAME, WEIGHTS)).state is CheckpointState.ACTIVE
    with pytest.raises(ContentDiffers):
        world.upload(("other.safetensors", WEIGHTS), sha256=OTHER_SHA256)
    assert world.runners.begun == []
    two = world.upload(("a.safetensors", WEIGHTS), ("b.safetensors", WEIGHTS))
    assert two.step is CheckpointStep.CHECKING, "together they are too much for a request"


def test_a_file_that_no_call_could_read_is_refused_before_a_byte_is_sent(world: World) -> None:
    most = world.objects.hash_max_bytes or 0
    with pytest.raises(FileRefused, match="34,359,738,368 bytes"):
        world.services.checkpoints.create(ME, KIND, [NewFile(NAME, 1, most + 1)], {})
    assert world.leftovers() == []
    world.objects.hash_max_bytes = len(WEIGHTS) - 1  # of one whose size was not announced
    made, _ = world.services.checkpoints.create(ME, KIND, [NewFile(NAME, 1)], {})
    etag = world.objects.write_part(made.files[0].key, made.files[0].upload_id, 1, WEIGHTS)
    with pytest.raises(FileRefused):
        world.services.admission.complete(made, {NAME: [PartTag(PartNumber=1, ETag=etag)]})
    assert world.leftovers() == []
    assert world.now_of(made).state is CheckpointState.FAILED


def test_a_second_completion_and_a_second_message_change_nothing(world: World) -> None:
    waiting = world.upload((NAME, WEIGHTS), sha256=SHA256)
    assert world.services.admission.complete(waiting, {}) == waiting
    runs: list[Checkpoint] = []

    def meanwhile() -> bool:
        """The second message and the second completion come while the first is worked on."""
        if world.now_of(waiting).checks and len(runs) < 3:
            before = world.now_of(waiting)
            assert go_on(world.services, waiting.id, never)
            world.services.admission.complete(before, {})
            assert world.now_of(waiting) == before
            runs.append(before)
        return False

    assert go_on(world.services, waiting.id, meanwhile)
    assert len(runs) == 3
    active = world.now_of(waiting)
    assert active.state is CheckpointState.ACTIVE
    assert world.run(active) == active


def test_of_several_files_those_that_are_checked_stay_checked(world: World) -> None:
    waiting = world.upload(("a.safetensors", WEIGHTS), ("b.safetensors", safetensors(b"b" * 5000)))
    looks = iter(range(1000))

    def enough() -> bool:
        return next(looks) > 30  # in the middle of the second one

    assert not go_on(world.services, waiting.id, enough)
    stopped = world.now_of(waiting)
    assert [file.is_hashed for file in stopped.files] == [True, False]
    assert stopped.leased_until == 0.0
    assert world.run(waiting).state is CheckpointState.ACTIVE


def test_a_file_that_takes_longer_than_a_call_fails_with_how_far_it_came(world: World) -> None:
    waiting = world.upload((NAME, WEIGHTS))

    def run_out_of_time() -> bool:
        looks = iter(range(1000))
        return go_on(world.services, waiting.id, lambda: next(looks) > 5)

    for _ in range(verification.TRIES_ALLOWED - 1):
        assert not run_out_of_time()
        assert world.now_of(waiting).state is CheckpointState.INITIAL
    assert run_out_of_time()
    failed = world.now_of(waiting)
    assert failed.state is CheckpointState.FAILED
    assert f"Of the {len(WEIGHTS):,} bytes" in failed.error
    assert "only 6,000" in failed.error
    assert world.leftovers() == []


def test_a_call_whose_time_is_over_at_its_begin_is_no_try(world: World) -> None:
    waiting = world.upload((NAME, WEIGHTS))
    assert not go_on(world.services, waiting.id, lambda: True)
    assert world.now_of(waiting) == waiting


def test_a_killed_runner_is_replaced_and_not_for_ever(world: World) -> None:
    waiting = world.upload((NAME, WEIGHTS))
    for _ in range(verification.TRIES_ALLOWED):
        with pytest.raises(KeyboardInterrupt):
            go_on(world.services, waiting.id, killed_after_one_look())
        world.runners.begun.clear()
        world.pass_time(LEASE_SECONDS - 1)
        assert world.runners.begun == [], "it may still be alive"
        world.pass_time(2)
        assert world.runners.begun == [waiting.id]
    failed = world.run(waiting)
    assert failed.state is CheckpointState.FAILED
    assert "begun 4 times and never finished" in failed.error
    assert world.leftovers() == []


def killed_after_one_look() -> Any:
    looks = iter([False])

    def enough() -> bool:
        try:
            return next(looks)
        except StopIteration:
            raise KeyboardInterrupt from None

    return enough


def test_one_whose_runner_died_at_the_very_end_becomes_active(world: World) -> None:
    waiting = world.upload((NAME, WEIGHTS))
    (file,) = waiting.files
    hashed = replace(file, sha256=SHA256, is_hashed=True)
    world.records.update(replace(waiting, files=(hashed,)))
    world.runners.begun.clear()
    world.pass_time(verification.RECONCILE_SECONDS)
    assert world.runners.begun == [waiting.id]
    assert world.run(waiting).state is CheckpointState.ACTIVE


def test_a_message_that_was_lost_is_sent_again_until_the_day_is_over(world: World) -> None:
    waiting = world.upload((NAME, WEIGHTS))
    for _ in range(3):
        world.runners.begun.clear()
        world.pass_time(verification.RECONCILE_SECONDS)
        assert world.runners.begun == [waiting.id]
    world.pass_time(verification.DEADLINE_SECONDS)
    failed = world.now_of(waiting)
    assert failed.state is CheckpointState.FAILED
    assert "within 24 hours" in failed.error
    assert world.leftovers() == []


def test_an_object_that_is_gone_fails_with_that_reason(world: World) -> None:
    waiting = world.upload((NAME, WEIGHTS))
    world.objects.delete(waiting.files[0].key)
    for _ in range(verification.TRIES_ALLOWED - 1):
        told = world.run(waiting)
        assert told.state is CheckpointState.INITIAL
        assert "not in the object store" in told.waits_for
    failed = world.run(waiting)
    assert failed.state is CheckpointState.FAILED
    assert "not in the object store" in failed.error


def test_giving_it_up_stops_the_check(world: World) -> None:
    waiting = world.upload((NAME, WEIGHTS))

    def enough() -> bool:
        latest = world.now_of(waiting)
        if latest.state is CheckpointState.INITIAL and latest.checks:
            world.services.checkpoints.set_state(latest, CheckpointState.FAILED)
        return False

    assert go_on(world.services, waiting.id, enough)
    failed = world.now_of(waiting)
    assert (failed.state, failed.error) == (
        CheckpointState.FAILED,
        "The upload was given up by its owner.",
    )
    assert world.leftovers() == []
    world.services.checkpoints.delete(failed)
    assert go_on(world.services, waiting.id, never), "a message for what is deleted"


def test_progress_is_told_while_it_is_read(world: World) -> None:
    waiting = world.upload((NAME, WEIGHTS))
    told = set()

    def enough() -> bool:
        world.now += 3
        told.add(world.now_of(waiting).waits_for)
        return False

    assert go_on(world.services, waiting.id, enough)
    assert any("% of 'm.safetensors' are read" in line for line in told)


def test_a_file_of_torch_is_checked_before_it_is_converted(world: World) -> None:
    endpoint = world.services.endpoints.create(ME, "e", "ml.g5.xlarge", 1, None)
    EventHandlers(world.services).endpoint_changed(
        EndpointChanged(endpoint.id, EndpointState.IN_SERVICE)
    )
    world.compute.known[endpoint.id] = EndpointStatus(EndpointState.IN_SERVICE, 1, 0)
    content = saved({"a": torch.zeros(3)})
    waiting = world.upload(("m.ckpt", content))
    assert world.services.inference.existing(conversion_id(waiting.id)) is None
    converting = world.run(waiting)
    assert converting.step is CheckpointStep.CONVERTING
    job = world.records.get(InferenceJob, conversion_id(waiting.id))
    assert job.state is InferenceState.IN_PROGRESS
    assert [used.sha256 for used in job.checkpoints] == [hashlib.sha256(content).hexdigest()]
