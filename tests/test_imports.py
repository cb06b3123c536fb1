"""Imports from URLs, against a host that breaks off, lies and changes its mind: on real records
and objects, with a clock that the test moves."""

from __future__ import annotations

import logging
import random
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from middleware_api.contract import CheckpointState, CheckpointType, conversion_id
from middleware_api.errors import Conflict, NotFound
from middleware_api.fetching import Fetcher, FetchPolicy
from middleware_api.records import Checkpoint
from middleware_api.services.imports import (
    DEADLINE_SECONDS,
    FAILURES_ALLOWED,
    HEARTBEAT_SECONDS,
    PART_BYTES,
    RECONCILE_SECONDS,
    RESTARTS_ALLOWED,
    progress,
)
from middleware_api.services.leases import LEASE_SECONDS
from tests.hostile_host import (
    ETAG,
    INSIDE,
    TOKEN,
    Answer,
    Request,
    Wire,
    answer,
    head,
    hostile_world,
    redirect,
)
from tests.hostile_host import World as Outside
from tests.hostile_weights import saved, tarred
from tests.weights import HEADER_BYTES, safetensors, safetensors_beginning
from tests.world import ME
from tests.world import World as Services

WEIGHTS, OTHER_WEIGHTS = (
    safetensors(random.Random(seed).randbytes(2 * PART_BYTES + PART_BYTES // 2 - HEADER_BYTES))
    for seed in (1, 2)
)
MAX_BYTES = 8 * PART_BYTES
HOST = "http://weights.example"
HERE = f"{HOST}/model.safetensors{TOKEN}"
PATH = "/model.safetensors"
KIND = CheckpointType.STABLE_DIFFUSION


@dataclass
class Weights:
    """A file on a host that honours ranges, if it gives an ETag; a request that is for the body
    breaks off at the next place in `breaks_at`, while there is one."""

    content: bytes = WEIGHTS
    etag: str | None = ETAG
    breaks_at: list[int] = field(default_factory=list)
    ranges: list[int] = field(default_factory=list)

    def __call__(self, request: Request, wire: Wire) -> None:
        begin = 0
        if self.etag and request.headers.get("if-range") == self.etag:
            begin = int(request.headers["range"].removeprefix("bytes=").removesuffix("-"))
        self.ranges.append(begin)
        size = len(self.content)
        headers: dict[str, object] = {"Content_Length": size - begin}
        if self.etag:
            headers["ETag"] = self.etag
        if begin:
            headers["Content_Range"] = f"bytes {begin}-{size - 1}/{size}"
        # The first request only asks for name and size.
        stop = self.breaks_at.pop(0) if self.breaks_at and len(self.ranges) > 1 else size
        status = "206 Partial Content" if begin else "200 OK"
        wire.send(head(status, **headers), self.content[begin:stop])


class World(Services):
    """The services, and the host that they import from."""

    def __init__(self, folder: Path, outside: Outside) -> None:
        policy = FetchPolicy(frozenset(), MAX_BYTES)
        fetcher = Fetcher(policy, outside.resolve, outside.clock, outside.internet, outside.tls)
        super().__init__(folder, fetcher)
        self.outside = outside
        self.answers = outside.host.answers
        self.service = self.services.imports
        self.folder = folder

    def begin(self, *urls: str) -> Checkpoint:
        """An import that nobody has run yet."""
        return self.service.create(ME, KIND, list(urls or (HERE,)), {}, None)

    def run(self, checkpoint: Checkpoint, enough: Callable[[], bool] = lambda: False) -> Checkpoint:
        """The import after one run that had nothing left to do."""
        assert self.service.go_on(checkpoint.id, enough)
        return self.now_of(checkpoint)

    def run_when_it_is_time(self, checkpoint: Checkpoint) -> Checkpoint:
        """The same after the reconciler has begun its next try."""
        check_at = self.now_of(checkpoint).check_at
        assert check_at is not None
        self.runners.begun.clear()
        self.pass_time(check_at - self.now)
        assert self.runners.begun == [checkpoint.id]
        return self.run(checkpoint)

    def now_of(self, checkpoint: Checkpoint) -> Checkpoint:
        return self.services.checkpoints.get(checkpoint.id)

    def bytes_of(self, checkpoint: Checkpoint) -> list[bytes]:
        return [self.objects.read(file.key) for file in checkpoint.files]

    def leftovers(self) -> list[Path]:
        """Parts and objects on the disk."""
        folders = (self.folder / "multipart", self.folder / "objects")
        return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


class Hook:
    """An `enough` that does something once, in the middle of a transfer."""

    def __init__(self, world: World, act: Callable[[], object]) -> None:
        self._world = world
        self._act = act
        self.is_done = False

    def __call__(self) -> bool:
        has_parts = any(path.name.startswith("1-") for path in self._world.leftovers())
        if has_parts and not self.is_done:
            self.is_done = True
            self._act()
        return False


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with hostile_world() as outside:
        made = World(tmp_path, outside)
        yield made
        made.database.close()


def test_an_import_becomes_a_checkpoint_that_requests_can_name(world: World) -> None:
    world.answers[PATH] = Weights()
    begun = world.begin()
    assert (begun.state, begun.files, progress(begun)) == (CheckpointState.INITIAL, (), 0.0)
    assert world.runners.begun == [begun.id]
    assert world.outside.host.requests == []
    active = world.run(begun)
    assert (active.state, active.error, progress(active)) == (CheckpointState.ACTIVE, "", 1.0)
    assert active.version < 10, "no write for every chunk"
    assert world.bytes_of(active) == [WEIGHTS]
    used = world.services.checkpoints.resolve(KIND, "model.safetensors")
    assert (used.key, used.size) == (active.files[0].key, len(WEIGHTS))
    assert len(used.sha256) == 64
    asked = len(world.outside.host.requests)
    world.pass_time(10 * DEADLINE_SECONDS)
    assert world.run(begun) == active
    assert len(world.outside.host.requests) == asked


def test_several_urls_are_the_files_of_one_checkpoint(world: World) -> None:
    world.answers["/a.safetensors"] = answer(safetensors(b"first"))
    world.answers["/b"] = answer(
        safetensors(b"second"), Content_Disposition='attachment; filename="b.safetensors"'
    )
    active = world.run(world.begin(f"{HOST}/a.safetensors", f"{HOST}/b"))
    assert active.state is CheckpointState.ACTIVE
    assert [file.name for file in active.files] == ["a.safetensors", "b.safetensors"]
    assert world.bytes_of(active) == [safetensors(b"first"), safetensors(b"second")]
    for name in ("a.safetensors", "b.safetensors"):
        assert active.id in world.services.checkpoints.resolve(KIND, name).key


def test_the_same_bytes_a_second_time_are_no_error(world: World) -> None:
    world.answers[PATH] = Weights()
    first, second = (world.run(world.begin()) for _ in range(2))
    assert first.state is second.state is CheckpointState.ACTIVE
    assert first.files[0].sha256 == second.files[0].sha256


def test_a_token_in_a_url_is_shown_by_nothing_and_forgotten_at_the_end(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    world.answers[PATH] = Weights(breaks_at=[PART_BYTES])
    begun = world.begin()
    assert begun.sources[0].shown_url == f"{HOST}{PATH}"
    assert world.run(begun).error == ""
    assert "secret" in world.now_of(begun).sources[0].url, "it is needed for the next try"
    active = world.run_when_it_is_time(begun)
    assert active.sources[0].url == ""
    failed = world.run(world.begin(f"{HOST}/model.safetensors?key=secret", HERE))
    assert failed.state is CheckpointState.FAILED
    assert [source.url for source in failed.sources] == ["", ""]
    assert "secret" not in f"{begun} {active} {failed} {caplog.text}"
    assert "import" in caplog.text


def test_a_host_that_breaks_off_is_asked_for_the_rest(world: World) -> None:
    weights = Weights(breaks_at=[2 * PART_BYTES + 5000, 2 * PART_BYTES + 9000])
    world.answers[PATH] = weights
    waiting = world.run(world.begin())
    assert waiting.state is CheckpointState.INITIAL
    assert 0.79 < (progress(waiting) or 0) < 0.81
    again = world.run_when_it_is_time(waiting)
    assert again.state is CheckpointState.INITIAL
    active = world.run_when_it_is_time(again)
    assert active.state is CheckpointState.ACTIVE
    assert weights.ranges == [0, 0, 2 * PART_BYTES, 2 * PART_BYTES]
    assert world.bytes_of(active) == [WEIGHTS]


def test_what_arrived_before_a_kill_at_the_very_end_is_not_fetched_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Weights()
    world.answers[PATH] = weights
    with monkeypatch.context() as killed:
        killed.setattr(world.objects, "complete_multipart", _kill)
        with pytest.raises(Killed):
            world.run(world.begin())
    (page,) = world.services.checkpoints.page([], [], 1, None).items
    world.pass_time(LEASE_SECONDS + 1)
    active = world.run(page)
    assert active.state is CheckpointState.ACTIVE
    assert weights.ranges == [0, 0]
    assert world.bytes_of(active) == [WEIGHTS]


class Killed(BaseException):
    """The end of a process, as far as a test can play it."""


def _kill(*_: object) -> None:
    raise Killed


def test_a_file_that_changed_meanwhile_is_fetched_anew(world: World) -> None:
    world.answers[PATH] = Weights(breaks_at=[2 * PART_BYTES])
    waiting = world.run(world.begin())
    world.answers[PATH] = Weights(OTHER_WEIGHTS, '"v2"')
    active = world.run_when_it_is_time(waiting)
    assert world.bytes_of(active) == [OTHER_WEIGHTS]
    assert active.sources[0].restarts == 1


def test_a_host_that_cannot_go_on_is_begun_anew_a_few_times(world: World) -> None:
    weights = Weights(etag=None, breaks_at=[PART_BYTES + 1] * 10)
    world.answers[PATH] = weights
    checkpoint = world.run(world.begin())
    for _ in range(RESTARTS_ALLOWED):
        assert checkpoint.state is CheckpointState.INITIAL
        checkpoint = world.run_when_it_is_time(checkpoint)
    checkpoint = world.run_when_it_is_time(checkpoint)
    assert checkpoint.state is CheckpointState.FAILED
    assert "cannot go on with an interrupted one" in checkpoint.error
    assert world.leftovers() == []


def test_a_host_that_stays_down_ends_the_import_with_its_fault(world: World) -> None:
    world.answers[PATH] = answer(b"", "503 Service Unavailable")
    checkpoint = world.run(world.begin())
    for failures in range(1, FAILURES_ALLOWED + 1):
        assert checkpoint.sources[0].failures == failures
        assert checkpoint.state is CheckpointState.INITIAL
        checkpoint = world.run_when_it_is_time(checkpoint)
    assert checkpoint.state is CheckpointState.FAILED
    assert "HTTP 503" in checkpoint.error
    assert f"tried {FAILURES_ALLOWED + 1} times" in checkpoint.error


def test_only_tries_that_brought_nothing_are_counted(world: World) -> None:
    bytes_each_try = [PART_BYTES // 2] * FAILURES_ALLOWED + [PART_BYTES + 1]
    world.answers[PATH] = Weights(breaks_at=bytes_each_try)
    checkpoint = world.run(world.begin())
    for _ in range(FAILURES_ALLOWED):
        checkpoint = world.run_when_it_is_time(checkpoint)
    assert checkpoint.sources[0].failures == 1
    assert world.run_when_it_is_time(checkpoint).state is CheckpointState.ACTIVE


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (answer(b"<html>Log in</html>", Content_Type="text/html"), "is a web page"),
        (answer(b"gone", "404 Not Found"), "no file at"),
        (answer(b"login", "401 Unauthorized"), "login or a token"),
        (answer(b"", Content_Length=MAX_BYTES + 1), f"more than the {MAX_BYTES} bytes"),
        (answer(b""), "is empty"),
        (redirect("http://169.254.169.254/latest/meta-data"), "not on the public internet"),
        (redirect("http://inside.example/" + TOKEN), "not on the public internet"),
        (redirect("file:///etc/passwd"), "Only http and https"),
        (answer(b"x", Content_Disposition='attachment; filename="../x"'), "no name that can be"),
        (answer(b"x", Content_Disposition='attachment; filename="m.zip"'), "weights are only"),
        (answer(safetensors()[:-1]), "is no whole .safetensors file"),
        (answer(tarred()), "is a tar archive"),
    ],
)
def test_what_cannot_be_imported_fails_with_the_reason(
    world: World, given: Answer, says: str
) -> None:
    world.outside.names["inside.example"] = [INSIDE]
    world.answers[PATH] = given
    failed = world.run(world.begin())
    assert failed.state is CheckpointState.FAILED
    assert says in failed.error
    assert "secret" not in failed.error
    assert (failed.check_at, world.leftovers()) == (None, [])
    with pytest.raises(NotFound):
        world.services.checkpoints.resolve(KIND, "model.safetensors")


def test_a_body_larger_than_the_cap_that_was_not_announced_fails(world: World) -> None:
    def endless(_: Request, wire: Wire) -> None:
        wire.send(head())
        wire.send_for_ever(bytes(65_536))

    world.answers[PATH] = endless
    failed = world.run(world.begin())
    assert f"more than the {MAX_BYTES} bytes" in failed.error
    assert world.leftovers() == []


def test_a_body_of_unknown_size_is_imported_and_its_progress_not_guessed(world: World) -> None:
    seen: list[float | None] = []

    def unknown(_: Request, wire: Wire) -> None:
        wire.send(head(Transfer_Encoding="chunked"), b"%x\r\n" % len(WEIGHTS), WEIGHTS)
        wire.send(b"\r\n0\r\n\r\n")

    world.answers[PATH] = unknown
    begun = world.begin()
    active = world.run(begun, Hook(world, lambda: seen.append(progress(world.now_of(begun)))))
    assert seen == [None]
    assert (progress(active), world.bytes_of(active)) == (1.0, [WEIGHTS])


def test_two_files_of_one_name_fail_before_a_byte_is_fetched(world: World) -> None:
    world.answers[PATH] = Weights()
    world.answers["/other/model.safetensors"] = Weights()
    failed = world.run(world.begin(HERE, f"{HOST}/other/model.safetensors"))
    assert failed.state is CheckpointState.FAILED
    assert "both named 'model.safetensors'" in failed.error
    assert len(world.outside.host.requests) == 2


def test_a_runner_stops_when_its_time_is_over_and_the_next_one_goes_on(world: World) -> None:
    weights = Weights()
    world.answers[PATH] = weights
    begun = world.begin()
    is_over: list[bool] = []
    hook = Hook(world, lambda: is_over.append(True))
    assert not world.service.go_on(begun.id, lambda: hook() or bool(is_over))
    stopped = world.now_of(begun)
    assert (stopped.state, stopped.leased_until) == (CheckpointState.INITIAL, 0.0)
    assert stopped.check_at == world.now
    assert world.bytes_of(world.run(begun)) == [WEIGHTS]
    assert weights.ranges == [0, 0, PART_BYTES]


def test_two_runners_never_have_the_same_import(world: World) -> None:
    weights = Weights()
    world.answers[PATH] = weights
    begun = world.begin()
    hook = Hook(world, lambda: world.run(begun))
    assert world.bytes_of(world.run(begun, hook)) == [WEIGHTS]
    assert hook.is_done
    assert weights.ranges == [0, 0], "the second one found it taken"


def test_an_import_whose_runner_is_silent_is_taken_up_by_another(world: World) -> None:
    """The first one is not dead, only slow: it changes nothing any more."""
    weights = Weights()
    world.answers[PATH] = weights
    begun = world.begin()

    def take_over() -> None:
        world.runners.begun.clear()
        world.pass_time(LEASE_SECONDS - 1)
        assert world.runners.begun == []
        world.pass_time(2)
        assert world.runners.begun == [begun.id]
        assert world.run(begun).state is CheckpointState.ACTIVE

    hook = Hook(world, take_over)
    active = world.run(begun, hook)
    assert hook.is_done
    assert (active.state, active.error) == (CheckpointState.ACTIVE, "")
    assert weights.ranges == [0, 0, PART_BYTES]
    assert world.bytes_of(active) == [WEIGHTS]


def test_a_server_that_starts_goes_on_at_once(world: World) -> None:
    world.answers[PATH] = Weights()
    begun = world.begin()

    def restart() -> None:
        world.runners.begun.clear()
        world.service.recover()
        assert world.runners.begun == [begun.id]
        assert world.run(begun).state is CheckpointState.ACTIVE

    world.run(begun, Hook(world, restart))
    world.service.recover()
    assert world.runners.begun == [begun.id], "what has ended is left alone"


def test_an_order_that_was_lost_is_given_again(world: World) -> None:
    begun = world.begin()
    for _ in range(2):
        world.runners.begun.clear()
        world.pass_time(RECONCILE_SECONDS)
        assert world.runners.begun == [begun.id]


@pytest.mark.parametrize("is_deleted", [False, True])
def test_giving_an_import_up_stops_its_transfer(world: World, is_deleted: bool) -> None:
    world.answers[PATH] = Weights()
    begun = world.begin()
    checkpoints = world.services.checkpoints

    def give_up() -> None:
        if is_deleted:
            checkpoints.delete(world.now_of(begun))
        else:
            # What the caller has read is a few heartbeats old by now.
            checkpoints.set_state(begun, CheckpointState.FAILED)
        world.now += HEARTBEAT_SECONDS

    assert world.service.go_on(begun.id, Hook(world, give_up))
    assert world.leftovers() == []
    if is_deleted:
        with pytest.raises(NotFound):
            world.now_of(begun)
    else:
        assert world.now_of(begun).error == "The import was given up by its owner."


def test_an_import_that_ends_while_it_is_deleted_is_deleted(world: World) -> None:
    world.answers[PATH] = Weights()
    begun = world.begin()
    world.run(begun)
    world.services.checkpoints.delete(begun)
    assert world.leftovers() == []
    with pytest.raises(NotFound):
        world.services.checkpoints.resolve(KIND, "model.safetensors")


def test_progress_is_written_while_a_part_is_on_its_way(world: World) -> None:
    world.answers[PATH] = Weights()
    begun = world.begin()
    seen: list[float] = []

    def look() -> bool:
        world.now += 1
        seen.append(progress(world.now_of(begun)) or 0.0)
        return False

    world.run(begun, look)
    assert seen == sorted(seen)
    assert len(set(seen)) > 10


@pytest.mark.parametrize("is_running", [False, True])
def test_an_import_ends_after_its_day(world: World, is_running: bool) -> None:
    world.answers[PATH] = Weights()
    begun = world.begin()

    def a_day_passes() -> None:
        world.now = begun.created_at + DEADLINE_SECONDS + 1

    if is_running:
        world.run(begun, Hook(world, a_day_passes))
    else:
        a_day_passes()
        world.pass_time(0)
    failed = world.now_of(begun)
    assert failed.state is CheckpointState.FAILED
    assert "not finished within 24 hours" in failed.error
    assert world.leftovers() == []


def test_a_disk_that_is_full_is_tried_again_and_then_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    world.answers[PATH] = Weights()
    with monkeypatch.context() as disk:
        disk.setattr(world.objects, "write_part", full)
        checkpoint = world.run(world.begin())
        for _ in range(FAILURES_ALLOWED):
            assert checkpoint.state is CheckpointState.INITIAL
            checkpoint = world.run_when_it_is_time(checkpoint)
    assert checkpoint.state is CheckpointState.FAILED
    assert "No space left on device" in checkpoint.error


def test_parts_that_the_store_has_forgotten_are_fetched_again(world: World) -> None:
    world.answers[PATH] = Weights(breaks_at=[PART_BYTES + 1])
    waiting = world.run(world.begin())
    world.objects.abort_multipart(waiting.files[0].key, waiting.files[0].upload_id)
    assert world.bytes_of(world.run_when_it_is_time(waiting)) == [WEIGHTS]


def test_an_imported_file_of_torch_waits_for_its_conversion_and_is_fetched_once(
    world: World,
) -> None:
    world.answers["/m.ckpt"] = answer(saved({"a": torch.ones(2)}))
    begun = world.begin(f"{HOST}/m.ckpt{TOKEN}")
    waiting = world.run(begun)
    assert (waiting.state, progress(waiting)) == (CheckpointState.INITIAL, 1.0)
    assert "waits for an endpoint" in waiting.waits_for
    assert waiting.sources[0].url == ""
    asked = len(world.outside.host.requests)
    world.runners.begun.clear()
    world.deploy("studio")
    world.pass_time(LEASE_SECONDS)
    world.service.recover()
    assert world.runners.begun == []
    assert world.run(waiting) == world.now_of(waiting)
    assert len(world.outside.host.requests) == asked
    assert list(world.compute.orders) == [conversion_id(begun.id)]


def test_an_import_takes_no_parts_from_its_owner(world: World) -> None:
    begun = world.begin()
    service = world.services.checkpoints
    for act in (
        lambda: service.missing_parts(begun),
        lambda: world.services.admission.complete(begun, {"model.safetensors": []}),
        lambda: service.set_state(begun, CheckpointState.ACTIVE),
    ):
        with pytest.raises(Conflict, match="is being imported"):
            act()


def test_an_imported_checkpoint_is_disabled_and_enabled_like_any_other(world: World) -> None:
    world.answers[PATH] = Weights()
    active = world.run(world.begin())
    service = world.services.checkpoints
    disabled = service.set_state(active, CheckpointState.DISABLED)
    with pytest.raises(NotFound):
        service.resolve(KIND, "model.safetensors")
    service.set_state(disabled, CheckpointState.ACTIVE)
    assert service.resolve(KIND, "model.safetensors").key == active.files[0].key


def test_the_same_key_is_the_same_import(world: World) -> None:
    first = world.service.create(ME, KIND, [HERE], {}, "key")
    assert world.service.create(ME, KIND, [HERE], {}, "key") == first
    assert world.runners.begun == [first.id]
    with pytest.raises(Conflict, match="used for another request"):
        world.service.create(ME, KIND, [HERE], {"message": "other"}, "key")


def test_a_runner_holds_a_few_parts_of_a_large_file_in_memory(world: World) -> None:
    def large(_: Request, wire: Wire) -> None:
        wire.send(head(Content_Length=MAX_BYTES))
        beginning = safetensors_beginning(MAX_BYTES)
        piece = bytes(65_536)
        wire.send(beginning, piece[len(beginning) :])
        wire.send(*(piece for _ in range(MAX_BYTES // len(piece) - 1)))

    world.answers[PATH] = large
    begun = world.begin()
    tracemalloc.start()
    try:
        active = world.run(begun)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert active.files[0].size == MAX_BYTES
    assert peak < 3.5 * PART_BYTES
