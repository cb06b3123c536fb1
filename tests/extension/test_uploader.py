"""Uploads against a pretended store that falters."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import pytest

from aws_extension import errors
from aws_extension.fake_transport import FakeAnswer, Sent
from aws_extension.known_hashes import KnownHashes, stamp_of
from aws_extension.mapped_file import windows
from aws_extension.pace import Pace
from aws_extension.part_sender import PartBody
from aws_extension.upload_progress import Meter, UploadProgress, duration
from aws_extension.uploader import HASH_FIRST_BYTES, give_up, upload_checkpoint
from middleware_api.contract import MIB, CheckpointState, CheckpointType
from tests.extension.fake_store import FakeStore

KIND = CheckpointType.STABLE_DIFFUSION


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(i % 251 for i in range(1_000_003)))
    return path


def test_a_file_arrives_whole_and_its_progress_is_told(fake_client, model):
    store = FakeStore(300_000, model.read_bytes())
    client, _ = fake_client(store)
    told: list[UploadProgress] = []
    checkpoint = upload_checkpoint(client, model, KIND, on_progress=told.append)
    assert checkpoint.state is CheckpointState.ACTIVE
    assert store.active
    assert [p.phase for p in told][-2:] == ["finishing", "done"]
    assert {"hashing", "sending"} <= {p.phase for p in told}
    assert all(0 <= p.fraction <= 1 for p in told)


def test_what_had_arrived_before_is_no_speed_of_ours(fake_time):
    meter = Meter(1_000_000, fake_time)
    meter.begin(600_000)
    fake_time.now = 1.0
    meter.add(100_000)
    progress = meter.progress()
    assert (progress.done, progress.bytes_per_second) == (700_000, 100_000)
    assert progress.describe() == "Sending 0.7 of 1.0 MB, 0.1 MB/s, 3 s left"


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (9000, "2.5 h")],
)
def test_times_are_told_as_people_say_them(seconds, told):
    assert duration(seconds) == told


def test_known_content_is_not_sent(fake_client, model):
    store = FakeStore(300_000, model.read_bytes(), active=True)
    client, transport = fake_client(store)
    upload_checkpoint(client, model, KIND)
    assert [sent.method for sent in transport.sent] == ["POST"]


def test_a_part_whose_connection_broke_is_sent_again(fake_client, model):
    store = FakeStore(300_000, model.read_bytes(), lose_every_first_try=True)
    client, _ = fake_client(store)
    told: list[UploadProgress] = []
    upload_checkpoint(client, model, KIND, on_progress=told.append)
    assert store.active
    assert set(store.tries.values()) == {2}
    assert max(p.done for p in told) == model.stat().st_size


def test_expired_urls_are_renewed(fake_client, model):
    store = FakeStore(300_000, model.read_bytes(), expire_first_urls=True)
    client, transport = fake_client(store)
    upload_checkpoint(client, model, KIND)
    assert store.active
    assert any(sent.url.endswith("/checkpoint/c1/upload") for sent in transport.sent)


def test_an_interrupted_upload_goes_on_without_hashing_again(fake_client, model, tmp_path):
    store = FakeStore(300_000, model.read_bytes())
    client, _ = fake_client(store)
    with pytest.raises(errors.Cancelled):
        upload_checkpoint(
            client,
            model,
            KIND,
            state_folder=tmp_path / "state",
            should_cancel=lambda: bool(store.parts),
        )
    before = dict(store.tries)
    assert before
    assert not store.active
    told: list[UploadProgress] = []
    upload_checkpoint(client, model, KIND, state_folder=tmp_path / "state", on_progress=told.append)
    assert store.active
    assert "hashing" not in {p.phase for p in told}
    assert list((tmp_path / "state").iterdir()) == []


def test_it_goes_on_without_a_note_too(fake_client, model):
    content = model.read_bytes()
    store = FakeStore(300_000, content, parts={2: content[300_000:600_000]}, mention_arrived=False)
    client, _ = fake_client(store)
    upload_checkpoint(client, model, KIND)
    assert store.active
    assert store.tries[2] == 0


def test_a_store_that_never_takes_a_part_says_so(fake_client, model):
    store = FakeStore(300_000, model.read_bytes())
    store.expire_first_urls = True

    def refuse(sent):
        answer = store(sent)
        store.issued = 0  # every set of URLs counts as the expired first
        return answer

    client, _ = fake_client(refuse)
    with pytest.raises(errors.UploadFailed, match="could not be sent"):
        upload_checkpoint(client, model, KIND)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [("empty.safetensors", b"", "is empty"), (".hidden", b"x", "cannot be its name")],
)
def test_what_cannot_be_sent_is_refused_before_any_request(
    fake_client, tmp_path, name, content, says
):
    path = tmp_path / name
    path.write_bytes(content)
    client, transport = fake_client(lambda sent: AssertionError("nothing may be sent"))
    with pytest.raises(errors.UploadFailed, match=says):
        upload_checkpoint(client, path, KIND)
    assert transport.sent == []


def test_a_missing_file_is_named(fake_client, tmp_path):
    client, _ = fake_client(lambda sent: AssertionError("nothing may be sent"))
    with pytest.raises(errors.UploadFailed, match="Check the path"):
        upload_checkpoint(client, tmp_path / "absent.safetensors", KIND)


def test_a_part_that_was_damaged_on_its_way_is_sent_again(fake_client, model):
    store = FakeStore(300_000, model.read_bytes(), damage_every_first_try=True)
    client, _ = fake_client(store)
    upload_checkpoint(client, model, KIND)
    assert store.active
    assert set(store.tries.values()) == {2}


@pytest.mark.parametrize("checksum", ["crc32", "md5", ""])
def test_parts_carry_the_checksum_that_the_store_asks_for(fake_client, model, checksum):
    store = FakeStore(300_000, model.read_bytes(), checksum=checksum)
    client, _ = fake_client(store)
    upload_checkpoint(client, model, KIND)
    assert store.active


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Larger than what is read before anything is asked."""
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        for number in range(HASH_FIRST_BYTES // MIB + 1):
            file.write(bytes([number]) * MIB)
    return path


def test_a_large_file_that_nobody_has_hashed_is_sent_while_it_is_read(fake_client, large, tmp_path):
    store = FakeStore(10 * MIB, large.read_bytes())
    client, transport = fake_client(store)
    hashes = KnownHashes(tmp_path / "state")
    upload_checkpoint(client, large, KIND, hashes=hashes)
    assert store.active
    created = next(sent for sent in transport.sent if sent.method == "POST")
    assert "sha256" not in created.json["filenames"][0]
    assert store.told == hashes.get(large) == hashlib.sha256(store.content).hexdigest()


def test_a_file_of_a_size_that_the_cloud_knows_is_read_first(fake_client, large):
    content = large.read_bytes()
    store = FakeStore(10 * MIB, content, active=True, sizes=[len(content)])
    client, transport = fake_client(store)
    upload_checkpoint(client, large, KIND)
    assert [sent.method for sent in transport.sent] == ["GET", "POST"]


def test_a_hash_is_of_the_file_as_it_was_read(model, tmp_path):
    hashes = KnownHashes(tmp_path / "state")
    hashes.put(model, stamp_of(model), "ab" * 32)
    assert KnownHashes(tmp_path / "state").get(model) == "ab" * 32
    model.write_bytes(b"other")
    assert hashes.get(model) == ""


def test_slices_grow_on_a_fast_line_and_stay_small_on_a_slow_one(fake_time, tmp_path):
    content = bytes(range(256)) * (10 * MIB // 256)
    (tmp_path / "part").write_bytes(b"12345" + content)
    for seconds, longest in ((0.01, 4 * MIB), (2.0, 256 * 1024)):
        with (tmp_path / "part").open("rb") as file:
            meter = Meter(len(content), fake_time)
            body = PartBody(file, 5, len(content), meter, threading.Event(), fake_time)
            slices = []
            for piece in body:
                slices.append(bytes(piece))
                fake_time.now += seconds
        assert b"".join(slices) == content
        assert max(map(len, slices)) == longest
        assert len(slices[0]) == 256 * 1024
        assert meter.done == len(content)


def test_a_file_that_became_shorter_is_named(tmp_path):
    (tmp_path / "model").write_bytes(bytes(1000))
    short = pytest.raises(errors.UploadFailed, match="'model' became shorter")
    with (tmp_path / "model").open("rb") as file, short:
        list(windows(file, 0, 1001))


def test_what_was_given_up_is_forgotten_on_both_sides(fake_client, model, tmp_path):
    store = FakeStore(300_000, model.read_bytes())
    client, _ = fake_client(store)
    state = tmp_path / "state"
    with pytest.raises(errors.Cancelled):
        upload_checkpoint(
            client, model, KIND, state_folder=state, should_cancel=lambda: bool(store.parts)
        )
    give_up(client, model, state)
    give_up(client, model, state)
    assert (store.parts, list(state.iterdir())) == ({}, [])


def test_more_lanes_are_tried_and_taken_back_when_they_bring_nothing(fake_time):
    pace = Pace(fake_time)
    assert pace.part_size(10 * MIB) == 10 * MIB
    assert pace.part_size(2048 * MIB) == 21 * MIB
    assert pace.part_size(10**12) == -(-(10**12) // 1000 // MIB) * MIB
    pace.begin(0)
    sent, lanes = 0, []
    # A line that eight lanes fill.
    for _ in range(6):
        fake_time.now += 2.0
        sent += min(pace.lanes, 8) * 2 * 40 * MIB
        pace.note(sent)
        lanes.append(pace.lanes)
    assert lanes == [6, 8, 10, 8, 8, 8]
    assert pace.part_size(2048 * MIB) == 40 * MIB


@pytest.mark.parametrize(
    ("ends", "is_ready", "says"),
    [
        ({"status": "Active"}, True, ""),
        ({"status": "Fail", "error": "It would run a program."}, True, "would run a program"),
        ({}, False, "It waits for an endpoint."),
    ],
)
def test_a_file_of_torch_is_waited_for_while_somebody_converts_it(
    fake_client, model, ends, is_ready, says
):
    store = FakeStore(300_000, model.read_bytes())
    waiting = {"id": "c1", "status": "Initial", "message": "It waits for an endpoint."}
    looks: list[str] = []

    def answer(sent: Sent) -> FakeAnswer | Exception:
        if sent.url.endswith("/endpoints"):
            state = "InService" if is_ready else "Creating"
            return FakeAnswer(
                body=[
                    {
                        "EndpointDeploymentJobId": "e1",
                        "endpoint_name": "e",
                        "endpoint_status": state,
                    }
                ]
            )
        if "/checkpoint?id=" in sent.url:
            looks.append(sent.url)
            return FakeAnswer(body={"checkpoint": {**waiting, **(ends if looks[2:] else {})}})
        given = store(sent)
        return (
            FakeAnswer(body={"checkpoint": waiting})
            if sent.method == "PUT" and store.active
            else given
        )

    client, _ = fake_client(answer)
    told: list[UploadProgress] = []
    if says:
        with pytest.raises(errors.UploadFailed, match=says):
            upload_checkpoint(client, model, KIND, on_progress=told.append)
    else:
        made = upload_checkpoint(client, model, KIND, on_progress=told.append)
        assert made.state is CheckpointState.ACTIVE
    assert len(looks) == (3 if is_ready else 0)
    assert [p.phase for p in told].count("converting") == len(looks)


def test_what_the_cloud_still_checks_is_waited_for_without_an_endpoint(fake_client, model):
    store = FakeStore(300_000, model.read_bytes())
    checking = {"id": "c1", "status": "Initial", "step": "checking", "message": "x"}
    looks: list[str] = []

    def answer(sent: Sent) -> FakeAnswer | Exception:
        assert not sent.url.endswith("/endpoints")
        if "/checkpoint?id=" in sent.url:
            looks.append(sent.url)
            end = {"status": "Active", "step": None} if len(looks) > 2 else {}
            return FakeAnswer(body={"checkpoint": {**checking, **end}})
        given = store(sent)
        is_done = sent.method == "PUT" and store.active
        return FakeAnswer(body={"checkpoint": checking}) if is_done else given

    client, _ = fake_client(answer)
    told: list[UploadProgress] = []
    made = upload_checkpoint(client, model, KIND, on_progress=told.append)
    assert made.state is CheckpointState.ACTIVE
    phases = [progress.phase for progress in told]
    assert (phases.count("checking"), phases.count("converting")) == (3, 0)
    assert "checks its content" in UploadProgress("checking", 1, 1).describe()
