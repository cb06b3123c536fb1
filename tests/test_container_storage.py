"""What either of the container's storages must do, and what only S3 can do to it."""

from __future__ import annotations

import errno
import hashlib
import io
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.response import StreamingBody
from botocore.stub import Stubber

from middleware_api.container import s3_storage
from middleware_api.container.errors import (
    BadRequest,
    CheckpointUnreadable,
    DiskFull,
    JobCancelled,
    StorageUnreachable,
)
from middleware_api.container.s3_storage import S3Storage, s3_client
from middleware_api.container.storage import FolderStorage, OnBytes, Storage
from middleware_api.container.weights import ranged_download
from middleware_api.contract import ContainerCheckpoint
from tests.aws import BUCKET, REGION, Aws, aws
from tests.server import REPOSITORY

KEY = "Stable-diffusion/checkpoint/c1/straße [1].safetensors"
CONTENT = bytes(range(256)) * 40_000
MAX_BYTES = 100_000_000


class Clock:
    """Seconds that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def checkpoint(**changes: Any) -> ContainerCheckpoint:
    told = ContainerCheckpoint(
        type="Stable-diffusion",
        name="straße [1].safetensors",
        key=KEY,
        size=len(CONTENT),
        sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    return {**told, **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a storage keeps on this machine."""
    made = tmp_path / "folder"
    made.mkdir()
    return made


@pytest.fixture(params=["embedded", "aws"])
def storage(request: pytest.FixtureRequest, folder: Path) -> Iterator[Storage]:
    if request.param == "embedded":
        yield FolderStorage(folder)
    else:
        with aws() as account:
            yield S3Storage(account.client("s3"), BUCKET, folder, MAX_BYTES, Clock())


@pytest.fixture
def account() -> Iterator[Aws]:
    with aws() as made:
        yield made


@pytest.fixture
def s3(account: Aws) -> Any:
    """A client of somebody else, and the checkpoint uploaded by it."""
    client = account.client("s3")
    client.put_object(Bucket=BUCKET, Key=KEY, Body=CONTENT)
    return client


def fetched(
    storage: Storage, told: ContainerCheckpoint, look: OnBytes = lambda count: None
) -> Path:
    """The file, which nobody removes here."""
    with storage.weights(told, look) as path:
        return path


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# Both.


def test_an_object_comes_back_as_it_was_written(storage: Storage) -> None:
    storage.write("out/a/image é.png", b"one")
    storage.write("out/a/image é.png", b"")
    assert storage.read("out/a/image é.png") == b""
    with pytest.raises(FileNotFoundError):
        storage.read("out/a/none.png")


def test_a_folder_is_listed_and_what_is_deleted_is_gone(storage: Storage) -> None:
    storage.write("dataset/cats/b.png", b"four")
    storage.write("dataset/cats/a é.txt", b"")
    storage.write("dataset/cats2/c.png", b"x")
    assert storage.sizes("dataset/cats/") == {"dataset/cats/a é.txt": 0, "dataset/cats/b.png": 4}
    storage.delete("dataset/cats/b.png")
    storage.delete("dataset/cats/b.png")
    assert storage.sizes("dataset/cats/") == {"dataset/cats/a é.txt": 0}
    assert storage.sizes("dataset/dogs/") == {}


def test_what_it_wrote_itself_exists_at_once(storage: Storage) -> None:
    assert not storage.exists("out/a/cancel")
    storage.write("out/a/cancel", b"")
    assert storage.exists("out/a/cancel")
    assert not storage.exists("out/a/other")


def test_weights_are_a_file_that_ends_as_the_key_does(storage: Storage) -> None:
    storage.write(KEY, CONTENT)
    path = fetched(storage, checkpoint())
    assert path.suffix == ".safetensors"
    assert path.read_bytes() == CONTENT
    assert fetched(storage, checkpoint()) == path


def test_two_checkpoints_of_one_name_are_two_files(storage: Storage) -> None:
    keys = ["VAE/checkpoint/c1/a.safetensors", "VAE/checkpoint/c2/a.safetensors"]
    for key in keys:
        storage.write(key, key.encode())
    size = len(keys[0])
    paths = [fetched(storage, checkpoint(key=key, size=size, sha256="")) for key in keys]
    assert [path.read_bytes().decode() for path in paths] == keys


RESULT = "Stable-diffusion/checkpoint/merge-5a1e/mix [1].safetensors"


def write_and_cancel(storage: Storage, content: bytes) -> None:
    with storage.writing(RESULT, len(content)) as sink:
        sink.write(memoryview(content))
        raise JobCancelled


def test_a_large_object_is_there_when_it_is_whole(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_storage, "PART_BYTES", 5 * 1024 * 1024)
    with storage.writing(RESULT, len(CONTENT)) as sink:
        piece = bytearray(1_280_000)
        for start in range(0, len(CONTENT), len(piece)):
            piece[:] = CONTENT[start : start + len(piece)]  # the caller uses its memory again
            sink.write(memoryview(piece))
        with pytest.raises(FileNotFoundError):
            storage.read(RESULT)
    assert storage.read(RESULT) == CONTENT


def test_a_large_object_that_fails_leaves_nothing(storage: Storage, folder: Path) -> None:
    with pytest.raises(JobCancelled):
        write_and_cancel(storage, CONTENT)
    with pytest.raises(FileNotFoundError):
        storage.read(RESULT)
    assert files(folder) == []


def test_what_a_killed_writer_left_goes_when_the_key_is_written_again(folder: Path) -> None:
    """On the disk; S3 drops it by the bucket's rule."""
    storage = FolderStorage(folder)
    storage.write(RESULT, b"")
    (folder / RESULT).with_name(".0123.part").write_bytes(b"half")
    with storage.writing(RESULT, 1) as sink:
        sink.write(memoryview(b"1"))
    assert files(folder) == [folder / RESULT]


@pytest.mark.parametrize("key", ["", ".", "/etc/passwd", "../x", "a/../../x", "a/..", "a\0b"])
def test_keys_cannot_leave_the_object_store(storage: Storage, key: str) -> None:
    for act in (
        lambda: storage.exists(key),
        lambda: storage.read(key),
        lambda: storage.write(key, b""),
        lambda: fetched(storage, checkpoint(key=key)),
        lambda: storage.writing(key, 1).__enter__(),
    ):
        with pytest.raises(BadRequest, match="not a relative path"):
            act()


def test_a_lost_folder_is_reported(storage: Storage, folder: Path) -> None:
    storage.check()
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(StorageUnreachable, match="cannot be written"):
        storage.check()


# S3 alone: what it is asked.


def test_a_large_object_goes_in_parts_and_a_failed_one_leaves_none(
    account: Aws, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_storage, "PART_BYTES", 5 * 1024 * 1024)
    client = account.client("s3")
    storage = S3Storage(client, BUCKET, folder, MAX_BYTES, Clock())
    with account.counted() as calls, storage.writing(RESULT, len(CONTENT)) as sink:
        sink.write(memoryview(CONTENT))
    assert calls == ["CreateMultipartUpload", "UploadPart", "UploadPart", "CompleteMultipartUpload"]
    with pytest.raises(JobCancelled):
        write_and_cancel(storage, bytes(len(CONTENT)))
    assert "Uploads" not in client.list_multipart_uploads(Bucket=BUCKET)
    assert storage.read(RESULT) == CONTENT  # an earlier one stands
    assert files(folder) == []


def test_the_largest_objects_have_no_more_parts_than_s3_takes(
    account: Aws, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_storage, "PARTS_MAX", 1)
    storage = S3Storage(account.client("s3"), BUCKET, folder, MAX_BYTES, Clock())
    size = s3_storage.PART_BYTES + 1
    with account.counted() as calls, storage.writing(RESULT, size) as sink:
        sink.write(memoryview(bytes(size - 1)))
        sink.write(memoryview(b"1"))
    assert calls.count("UploadPart") == 1


def test_an_absent_object_is_asked_for_once_a_second(account: Aws, folder: Path) -> None:
    clock = Clock()
    storage = S3Storage(account.client("s3"), BUCKET, folder, MAX_BYTES, clock)
    with account.counted() as calls:
        for step in range(30):  # three seconds of sampling
            clock.now = 100 + step / 10
            assert not storage.exists("out/a/cancel")
    assert calls == ["HeadObject"] * 3

    account.client("s3").put_object(Bucket=BUCKET, Key="out/a/cancel", Body=b"")
    assert not storage.exists("out/a/cancel")  # asked at 102.0
    clock.now = 103.0
    assert storage.exists("out/a/cancel")


def test_one_jobs_absent_marker_says_nothing_of_anothers(s3: Any, folder: Path) -> None:
    storage = S3Storage(s3, BUCKET, folder, MAX_BYTES, Clock())
    s3.put_object(Bucket=BUCKET, Key="out/b/cancel", Body=b"")
    assert not storage.exists("out/a/cancel")
    assert storage.exists("out/b/cancel")


def test_weights_are_fetched_once(account: Aws, s3: Any, folder: Path) -> None:
    path = fetched(S3Storage(s3, BUCKET, folder, MAX_BYTES, Clock()), checkpoint())
    with account.counted() as calls:
        restarted = S3Storage(s3, BUCKET, folder, MAX_BYTES, Clock())
        assert fetched(restarted, checkpoint()) == path
    assert calls == []
    assert files(folder) == [path]


def test_a_name_as_long_as_file_systems_allow(s3: Any, folder: Path) -> None:
    key = f"VAE/checkpoint/c1/{'n' * 243}.safetensors"
    s3.put_object(Bucket=BUCKET, Key=key, Body=b"1")
    told = checkpoint(key=key, size=1, sha256="")
    assert fetched(S3Storage(s3, BUCKET, folder, MAX_BYTES, Clock()), told).read_bytes() == b"1"


# S3 alone: weights that are not, or cannot become, a whole file here.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"key": "gone.safetensors"}, "is not in the object store. Upload it again, or pick"),
        ({"size": 7}, "has 10240000 bytes in the object store where 7 are expected. Upload"),
        ({"sha256": "ab" * 32}, "its SHA-256 differs. Upload it again"),
    ],
    ids=["missing", "size", "sha256"],
)
def test_weights_that_are_not_what_was_uploaded_are_refused(
    s3: Any, folder: Path, change: dict[str, object], words: str
) -> None:
    storage = S3Storage(s3, BUCKET, folder, MAX_BYTES, Clock())
    for _ in range(2):  # what was refused once is not taken from the disk then
        with pytest.raises(CheckpointUnreadable, match=rf"straße \[1\]\.safetensors .*{words}"):
            fetched(storage, checkpoint(**change))
    assert files(folder) == []


def test_weights_without_a_known_hash_are_checked_for_their_size(s3: Any, folder: Path) -> None:
    storage = S3Storage(s3, BUCKET, folder, MAX_BYTES, Clock())
    assert fetched(storage, checkpoint(sha256="")).read_bytes() == CONTENT


def test_a_full_disk_says_what_to_do_and_leaves_nothing(
    s3: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = S3Storage(s3, BUCKET, folder, MAX_BYTES, Clock())

    def on_a_full_disk(file: int, start: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", on_a_full_disk)
        with pytest.raises(DiskFull, match=r"no room left for straße .*0\.01 GB.*larger disk"):
            fetched(storage, checkpoint())
    assert files(folder) == []
    assert fetched(storage, checkpoint()).read_bytes() == CONTENT


# Hangs half-way through a download, as a slow network makes it.
_FETCHING = """
import io, sys, time
from pathlib import Path
from middleware_api.container.s3_storage import S3Storage

class Body(io.BytesIO):
    def read(self, size):
        if self.tell():
            print("half", flush=True)
            time.sleep(600)
        return super().read(size)

class S3:
    def head_object(self, **asked):
        return {"ContentLength": 8, "ETag": "e"}

    def get_object(self, **asked):
        return {"Body": Body(b"half")}

storage = S3Storage(S3(), "bucket", Path(sys.argv[1]), 100, time.monotonic)
with storage.weights(dict(name="", key=sys.argv[2], size=8, sha256=""), lambda count: None):
    pass
"""


def test_a_killed_worker_leaves_no_half_file_that_counts(s3: Any, folder: Path) -> None:
    command = [sys.executable, "-c", _FETCHING, str(folder), KEY]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as fetching:
        try:
            assert fetching.stdout is not None
            assert fetching.stdout.readline() == "half\n"
            (half,) = files(folder)
            S3Storage(s3, BUCKET, folder, MAX_BYTES, Clock())
            assert files(folder) == [half]  # another worker's business while that one lives
        finally:
            fetching.kill()
    restarted = S3Storage(s3, BUCKET, folder, MAX_BYTES, Clock())
    assert files(folder) == []
    assert fetched(restarted, checkpoint()).read_bytes() == CONTENT


# S3 alone: it fails.

ACTS: dict[str, Callable[[Storage], object]] = {
    "head_object": lambda storage: storage.exists(KEY),
    "get_object": lambda storage: storage.read(KEY),
    "put_object": lambda storage: storage.write(KEY, b""),
    "download": lambda storage: fetched(storage, checkpoint()),
    "create_multipart_upload": lambda storage: storage.writing(KEY, 1).__enter__(),
}


def stubbed(folder: Path) -> tuple[S3Storage, Stubber]:
    """A storage whose S3 answers what it is told to."""
    client = boto3.Session("id", "secret", region_name=REGION).client("s3")
    return S3Storage(client, BUCKET, folder, MAX_BYTES, Clock()), Stubber(client)


@pytest.mark.parametrize("act", list(ACTS))
def test_a_refusal_is_told_with_its_request_id_and_logged_whole(
    folder: Path, act: str, caplog: pytest.LogCaptureFixture
) -> None:
    storage, stubber = stubbed(folder)
    stubber.add_client_error(
        "head_object" if act == "download" else act,
        "AccessDenied",
        "arn:aws:sts::111122223333:assumed-role/endpoint may not",
        403,
        response_meta={"RequestId": "7F3A"},
    )
    words = r"did not answer for .*\(AccessDenied, request 7F3A\)\. Run the job again"
    with stubber, caplog.at_level(logging.WARNING), pytest.raises(StorageUnreachable, match=words):
        ACTS[act](storage)
    assert "111122223333" in caplog.text
    assert files(folder) == []


@pytest.mark.parametrize("act", list(ACTS))
def test_no_connection_is_told(folder: Path, act: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    client = boto3.Session("id", "secret", region_name=REGION).client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        config=Config(retries={"total_max_attempts": 1}),
    )
    storage = S3Storage(client, BUCKET, folder, MAX_BYTES, Clock())
    with pytest.raises(StorageUnreachable, match=r"\(EndpointConnectionError\)") as raised:
        ACTS[act](storage)
    assert str(port) in str(raised.value.__cause__)


def test_a_part_that_s3_refuses_is_told_also_when_the_upload_cannot_be_dropped(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage, stubber = stubbed(folder)
    stubber.add_response("create_multipart_upload", {"UploadId": "u1"})
    stubber.add_client_error("upload_part", "SlowDown", http_status_code=503)
    stubber.add_client_error("abort_multipart_upload", "AccessDenied", http_status_code=403)
    with stubber, pytest.raises(StorageUnreachable, match=r"\(SlowDown, "):  # noqa: SIM117
        with storage.writing(RESULT, 1) as sink:
            sink.write(memoryview(b"1"))
    stubber.assert_no_pending_responses()
    assert f"upload of {RESULT} not aborted" in caplog.text


def test_a_download_that_breaks_off_goes_on_where_it_was_and_is_told_in_the_end(
    folder: Path,
) -> None:
    storage, stubber = stubbed(folder)
    stubber.add_response("head_object", {"ContentLength": 8, "ETag": '"e"'})
    for place, content in ((0, b"ab"), (2, b"cd"), (4, b""), (4, b"e"), (5, b"f")):
        body = StreamingBody(io.BytesIO(content), 8 - place)
        wanted = {"Bucket": BUCKET, "Key": KEY, "IfMatch": '"e"', "Range": f"bytes={place}-7"}
        stubber.add_response("get_object", {"Body": body}, wanted)
    with stubber, pytest.raises(StorageUnreachable, match="IncompleteReadError"):
        fetched(storage, checkpoint(size=8, sha256=""))
    stubber.assert_no_pending_responses()
    assert files(folder) == []


def test_weights_that_change_under_the_download_are_not_mixed(folder: Path) -> None:
    storage, stubber = stubbed(folder)
    stubber.add_response("head_object", {"ContentLength": 8, "ETag": '"e"'})
    stubber.add_client_error("get_object", "PreconditionFailed", http_status_code=412)
    with stubber, pytest.raises(StorageUnreachable, match="PreconditionFailed"):
        fetched(storage, checkpoint(size=8, sha256=""))
    assert files(folder) == []


# S3 alone: the files on the worker's own disk.


def uploaded(s3: Any, name: str, size: int = 100) -> ContainerCheckpoint:
    """A checkpoint of its own content."""
    content = name.encode().ljust(size, b".")
    key = f"VAE/checkpoint/{name}/{name}.safetensors"
    s3.put_object(Bucket=BUCKET, Key=key, Body=content)
    sha256 = hashlib.sha256(content).hexdigest()
    return checkpoint(key=key, name=f"{name}.safetensors", size=size, sha256=sha256)


def test_a_large_file_comes_in_ranges_and_whole(
    account: Aws, s3: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranged_download, "RANGE_BYTES", 999_983)
    storage = S3Storage(s3, BUCKET, folder, MAX_BYTES, Clock())
    told: list[int] = []
    with account.counted() as calls:
        assert fetched(storage, checkpoint(), told.append).read_bytes() == CONTENT
    assert calls.count("GetObject") == 11
    assert told[-1] == len(CONTENT)


def test_one_content_is_one_file_whatever_it_is_called(account: Aws, s3: Any, folder: Path) -> None:
    storage = S3Storage(s3, BUCKET, folder, MAX_BYTES, Clock())
    path = fetched(storage, checkpoint())
    with account.counted() as calls:
        other = checkpoint(key="Lora/checkpoint/c2/other.safetensors", name="other.safetensors")
        assert fetched(storage, other) == path
    assert calls == []


def test_the_least_recently_used_go_first_and_none_that_is_in_use(s3: Any, folder: Path) -> None:
    storage = S3Storage(s3, BUCKET, folder, 350, Clock())
    a, b, c, d, e = (uploaded(s3, name) for name in "abcde")

    def used_at(told: ContainerCheckpoint, seconds: int) -> None:
        path = fetched(storage, told)
        os.utime(path, (seconds, seconds))

    def kept() -> set[str]:
        return {path.read_bytes()[:1].decode() for path in files(folder)}

    for seconds, told in enumerate((a, b, c)):
        used_at(told, seconds)
    used_at(a, 9)
    fetched(storage, d)
    assert kept() == {"a", "c", "d"}
    os.utime(fetched(storage, c), (1, 1))
    with storage.weights(c, lambda count: None) as in_use:
        os.utime(in_use, (1, 1))
        fetched(S3Storage(s3, BUCKET, folder, 350, Clock()), e)  # another worker
        assert in_use.read_bytes().startswith(b"c")
    assert kept() == {"c", "d", "e"}
    larger = uploaded(s3, "large", 1000)
    assert fetched(storage, larger).stat().st_size == 1000
    assert kept() == {"l"}


def test_two_that_want_one_file_fetch_it_once(account: Aws, s3: Any, folder: Path) -> None:
    """Each with a storage of its own, as two workers of a machine have."""
    waits = threading.Event()
    comes = threading.Event()

    def slow(count: int) -> None:
        comes.set()
        assert waits.wait(30)

    def waiting(count: int) -> None:
        waits.set()

    first, second = (S3Storage(s3, BUCKET, folder, MAX_BYTES, Clock()) for _ in range(2))
    with account.counted() as calls, ThreadPoolExecutor(2) as pool:
        one = pool.submit(fetched, first, checkpoint(), slow)
        assert comes.wait(30)
        other = pool.submit(fetched, second, checkpoint(), waiting)
        assert one.result() == other.result()
    assert calls == ["HeadObject", "GetObject"]
    assert files(folder) == [one.result()]


def test_a_cancel_stops_a_download_at_once(folder: Path) -> None:
    """Even when the line says nothing more."""
    silent = threading.Event()

    class Body(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            silent.wait(60)
            return b""

    class S3:
        def head_object(self, **asked: object) -> dict[str, object]:
            return {"ContentLength": 8, "ETag": "e"}

        def get_object(self, **asked: object) -> dict[str, object]:
            return {"Body": Body()}

    def cancelled(count: int) -> None:
        raise JobCancelled

    storage = S3Storage(S3(), BUCKET, folder, MAX_BYTES, Clock())
    began = time.monotonic()
    with pytest.raises(JobCancelled):
        fetched(storage, checkpoint(size=8, sha256=""), cancelled)
    assert time.monotonic() - began < 20
    assert files(folder) == []
    silent.set()


def test_the_client_asks_the_region_it_is_told(account: Aws) -> None:
    client = s3_client("ap-northeast-1")
    assert client.meta.region_name == "ap-northeast-1"
    assert s3_client(None).meta.region_name == REGION  # from AWS_DEFAULT_REGION
