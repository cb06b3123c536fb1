"""What is here and in the cloud side by side, and uploads that run in the background."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import requests
from PIL import Image

from aws_extension import errors
from aws_extension.answers import parse_checkpoint
from aws_extension.client import CloudClient
from aws_extension.fake_transport import FakeAnswer, FakeTransport
from aws_extension.folder_models import FolderModels
from aws_extension.http import Retries
from aws_extension.known_hashes import KnownHashes
from aws_extension.pages.model_list import list_models, picture_beside
from aws_extension.upload_queue import Upload, UploadOrder, UploadQueue, UploadState
from middleware_api.contract import CheckpointType
from tests.extension.pretend_checkpoints import PART_SIZE
from tests.extension.pretend_cloud import TOKEN, PretendCloud

LORA = CheckpointType.LORA
CONTENT = b"weights" * (3 * PART_SIZE // 7)


def until(holds: Callable[[], bool]) -> None:
    """Wait for what a thread does; at most 20 s."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "not within 20 s"
        time.sleep(0.005)


def file_of(folder: Path, name: str = "detail.safetensors", content: bytes = CONTENT) -> Path:
    path = folder / "models" / "Lora" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def in_cloud(identity: str, name: str, size: int, sha256: str = "", state: str = "Active"):
    return parse_checkpoint(
        {"id": identity, "type": "Lora", "status": state, "name": [name], "size": size,
         "sha256": [sha256]}
    )  # fmt: skip


# Side by side


def test_files_are_matched_by_hash_or_by_name_and_size(tmp_path):
    hashes = KnownHashes()
    same = file_of(tmp_path, "renamed here.safetensors", b"a")
    hashes.put(same, f"1 {same.stat().st_mtime_ns}", "aa" * 32)
    file_of(tmp_path, "unread.safetensors", b"bb")
    file_of(tmp_path, "other content.safetensors", b"cc")
    cloud = [
        in_cloud("c1", "a.safetensors", 1, "aa" * 32),
        in_cloud("c2", "unread.safetensors", 2, "bb" * 32),
        in_cloud("c3", "other content.safetensors", 3, "cc" * 32),
        in_cloud("c4", "failed.safetensors", 2, state="Fail"),
    ]
    rows = list_models(FolderModels(tmp_path / "models"), cloud, [], hashes.get)[LORA]
    assert [(r.name, bool(r.local), r.cloud.id if r.cloud else "") for r in rows] == [
        ("failed.safetensors", False, "c4"),
        ("other content.safetensors", True, ""),
        ("other content.safetensors", False, "c3"),
        ("renamed here.safetensors", True, "c1"),
        ("unread.safetensors", True, "c2"),
    ]
    assert [row.name for row in rows if row.can_upload] == ["other content.safetensors"]


def test_a_converted_file_is_the_one_that_it_was_converted_from(tmp_path):
    file_of(tmp_path, "by name.ckpt", b"abc")
    known = file_of(tmp_path, "by hash.pt", b"abcd")
    hashes = KnownHashes()
    hashes.put(known, f"4 {known.stat().st_mtime_ns}", "dd" * 32)
    cloud = []
    for identity, name, size in (("c1", "by name.ckpt", 3), ("c2", "other.pt", 4)):
        came = {"name": name, "size": size, "sha256": "dd" * 32 if size == 4 else "cc" * 32}
        cloud.append(
            parse_checkpoint(
                {"id": identity, "type": "Lora", "status": "Active", "size": 99,
                 "name": ["renamed.safetensors"], "sha256": [came["sha256"]],
                 "originals": [{**came, "became": "renamed.safetensors"}]}
            )
        )  # fmt: skip
    rows = list_models(FolderModels(tmp_path / "models"), cloud, [], hashes.get)[LORA]
    assert [(row.name, row.cloud and row.cloud.id) for row in rows] == [
        ("by hash.pt", "c2"),
        ("by name.ckpt", "c1"),
    ]
    assert cloud[0].may_have(3)
    assert not cloud[0].may_have(4)


def test_a_failed_one_that_can_be_tried_again_is_the_file_here(tmp_path):
    file_of(tmp_path, "a.pt", b"abc")
    raw = {"id": "c1", "type": "Lora", "status": "Fail", "name": ["a.pt"], "size": 3}
    for can_retry in (True, False):
        cloud = [parse_checkpoint({**raw, "can_retry": can_retry})]
        rows = list_models(FolderModels(tmp_path / "models"), cloud, [], lambda path: "")[LORA]
        assert len(rows) == (1 if can_retry else 2)


def test_an_upload_from_elsewhere_has_a_row_too(tmp_path):
    order = UploadOrder(tmp_path / "else.safetensors", LORA, 5)
    rows = list_models(FolderModels(tmp_path), [], [Upload(order)], lambda path: "")
    assert [(row.name, row.can_upload) for row in rows[LORA]] == [("else.safetensors", False)]


@pytest.mark.parametrize("name", ["detail.png", "detail.preview.png", "detail.jpg"])
def test_the_picture_beside_a_file_is_found(tmp_path, name):
    path = file_of(tmp_path)
    assert picture_beside(path) is None
    Image.new("RGB", (8, 8)).save(path.with_name(name))
    assert picture_beside(path) == path.with_name(name)


# In the background


class Background:
    """A queue before a pretended cloud, and its next start."""

    def __init__(self, folder: Path) -> None:
        self.cloud = PretendCloud()
        self.answer = self.cloud
        self.cloud.checkpoints.all.clear()
        self._folder = folder / "state"
        self.queue = self.started()

    def started(self) -> UploadQueue:
        client = CloudClient(
            "http://cloud.test",
            TOKEN,
            adapter=FakeTransport(lambda sent: self.answer(sent)),
            retries=Retries(sleep=lambda seconds: None),
        )
        return UploadQueue(lambda: client, self._folder, KnownHashes(), retry_seconds=0.01)

    def hold(self, sent) -> FakeAnswer | Exception:
        """The first part arrives, no other does."""
        if "/parts/" in sent.url and not sent.url.endswith("/1"):
            return requests.ConnectionError("held")
        return self.cloud(sent)

    @property
    def states(self) -> list[UploadState]:
        return [upload.state for upload in self.queue.all()]


@pytest.fixture
def background(tmp_path) -> Background:
    return Background(tmp_path)


def order_of(path: Path) -> UploadOrder:
    return UploadOrder(path, LORA, path.stat().st_size)


def test_files_are_sent_in_the_background_and_leave_the_queue(background, tmp_path):
    files = [file_of(tmp_path, f"{n}.safetensors", CONTENT + bytes([n])) for n in range(6)]
    background.queue.add(order_of(path) for path in files)
    until(lambda: background.queue.all() == ())
    there = background.cloud.checkpoints.all
    assert sorted(one.name for one in there) == [path.name for path in files]
    assert {one.state for one in there} == {"Active"}


def test_a_lost_line_is_tried_again_by_itself(background, tmp_path):
    background.answer = background.hold
    background.queue.add([order_of(file_of(tmp_path))])
    until(lambda: bool(background.queue.all()[0].error))
    background.answer = background.cloud
    until(lambda: background.queue.all() == ())
    assert background.cloud.checkpoints.all[0].state == "Active"


def test_what_is_paused_stays_so_over_a_restart_and_then_goes_on(background, tmp_path):
    path = file_of(tmp_path)
    background.answer = background.hold
    background.queue.add([order_of(path)])
    until(lambda: bool(background.cloud.checkpoints.all))
    until(lambda: bool(background.cloud.checkpoints.all[0].parts))
    background.queue.pause(order_of(path).key)
    background.answer = background.cloud
    background.queue = background.started()
    background.queue.take_up()
    assert background.states == [UploadState.PAUSED]
    background.queue.resume(order_of(path).key)
    until(lambda: background.queue.all() == ())
    (made,) = background.cloud.checkpoints.all
    assert (made.state, made.sha256) == ("Active", hashlib.sha256(CONTENT).hexdigest())


def test_the_next_start_goes_on_with_what_was_under_way(background, tmp_path):
    """The first host is as good as killed: it never gets further."""
    background.answer = background.hold
    background.queue.add([order_of(file_of(tmp_path))])
    until(lambda: bool(background.queue.all()[0].error))
    next_start = background.started()
    background.answer = background.cloud
    next_start.take_up()
    until(lambda: next_start.all() == ())
    assert [one.state for one in background.cloud.checkpoints.all] == ["Active"]


def test_what_is_cancelled_leaves_nothing_in_the_cloud(background, tmp_path):
    path = file_of(tmp_path)
    background.answer = background.hold
    background.queue.add([order_of(path)])
    until(lambda: bool(background.queue.all()[0].error))
    background.queue.cancel(order_of(path).key)
    until(lambda: background.cloud.checkpoints.all == [])
    assert background.queue.all() == ()


def test_a_refusal_is_told_and_can_be_tried_again(background, tmp_path):
    background.cloud.checkpoints.refuse_parts_with = 404
    path = file_of(tmp_path)
    background.queue.add([order_of(path)])
    until(lambda: background.states == [UploadState.FAILED])
    assert "no longer knows" in background.queue.all()[0].error
    background.cloud.checkpoints.refuse_parts_with = 0
    background.queue.resume(order_of(path).key)
    until(lambda: background.queue.all() == ())


def test_a_file_that_has_gone_is_told(background, tmp_path):
    gone = UploadOrder(tmp_path / "gone.safetensors", LORA, 5)
    background.queue.add([gone])
    until(lambda: background.states == [UploadState.FAILED])
    assert "Check the path" in background.queue.all()[0].error
    with pytest.raises(errors.UploadFailed):
        background.queue.cancel(gone.key)
    assert background.queue.all() == ()
