"""What either of the container's storages must do, and what only S3 can do to it."""

from __future__ import annotations

import hashlib
import io
import logging
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

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
from middleware_api.container.storage import FolderStorage, Storage
from middleware_api.contract import ContainerCheckpoint
from tests.aws import BUCKET, REGION, Aws, aws
from tests.server import REPOSITORY

KEY = "Stable-diffusion/checkpoint/c1/straße [1].safetensors"
CONTENT = bytes(range(256)) * 40_000  # above 8 MiB, so that it comes in more than one part


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
            yield S3Storage(account.client("s3"), BUCKET, folder, Clock())


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


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# Both.


def test_an_object_comes_back_as_it_was_written(storage: Storage) -> None:
    storage.write("out/a/image é.png", b"one")
    storage.write("out/a/image é.png", b"")
    assert storage.read("out/a/image é.png") == b""
    with pytest.raises(FileNotFoundError):
        storage.read("out/a/none.png")


def test_what_it_wrote_itself_exists_at_once(storage: Storage) -> None:
    assert not storage.exists("out/a/cancel")
    storage.write("out/a/cancel", b"")
    assert storage.exists("out/a/cancel")
    assert not storage.exists("out/a/other")


def test_weights_are_a_file_named_as_the_key_ends(storage: Storage) -> None:
    storage.write(KEY, CONTENT)
    path = storage.weights(checkpoint())
    assert path.name == "straße [1].safetensors"
    assert path.read_bytes() == CONTENT
    assert storage.weights(checkpoint()) == path


def test_two_checkpoints_of_one_name_are_two_files(storage: Storage) -> None:
    keys = ["VAE/checkpoint/c1/a.safetensors", "VAE/checkpoint/c2/a.safetensors"]
    for key in keys:
        storage.write(key, key.encode())
    size = len(keys[0])
    paths = [storage.weights(checkpoint(key=key, size=size, sha256="")) for key in keys]
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
        lambda: storage.weights(checkpoint(key=key)),
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
    storage = S3Storage(client, BUCKET, folder, Clock())
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
    storage = S3Storage(account.client("s3"), BUCKET, folder, Clock())
    size = s3_storage.PART_BYTES + 1
    with account.counted() as calls, storage.writing(RESULT, size) as sink:
        sink.write(memoryview(bytes(size - 1)))
        sink.write(memoryview(b"1"))
    assert calls.count("UploadPart") == 1


def test_an_absent_object_is_asked_for_once_a_second(account: Aws, folder: Path) -> None:
    clock = Clock()
    storage = S3Storage(account.client("s3"), BUCKET, folder, clock)
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
    storage = S3Storage(s3, BUCKET, folder, Clock())
    s3.put_object(Bucket=BUCKET, Key="out/b/cancel", Body=b"")
    assert not storage.exists("out/a/cancel")
    assert storage.exists("out/b/cancel")


def test_weights_are_fetched_once(account: Aws, s3: Any, folder: Path) -> None:
    path = S3Storage(s3, BUCKET, folder, Clock()).weights(checkpoint())
    with account.counted() as calls:
        restarted = S3Storage(s3, BUCKET, folder, Clock())
        assert restarted.weights(checkpoint()) == path
    assert calls == []
    assert files(folder) == [path]


def test_a_name_as_long_as_file_systems_allow(s3: Any, folder: Path) -> None:
    key = f"VAE/checkpoint/c1/{'n' * 243}.safetensors"
    s3.put_object(Bucket=BUCKET, Key=key, Body=b"1")
    told = checkpoint(key=key, size=1, sha256="")
    assert S3Storage(s3, BUCKET, folder, Clock()).weights(told).read_bytes() == b"1"


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
    storage = S3Storage(s3, BUCKET, folder, Clock())
    for _ in range(2):  # what was refused once is not taken from the disk then
        with pytest.raises(CheckpointUnreadable, match=rf"straße \[1\]\.safetensors .*{words}"):
            storage.weights(checkpoint(**change))
    assert files(folder) == []


def test_weights_without_a_known_hash_are_checked_for_their_size(s3: Any, folder: Path) -> None:
    storage = S3Storage(s3, BUCKET, folder, Clock())
    assert storage.weights(checkpoint(sha256="")).read_bytes() == CONTENT


def test_a_full_disk_says_what_to_do_and_leaves_nothing(
    s3: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = S3Storage(s3, BUCKET, folder, Clock())
    opened = Path.open

    def on_a_full_disk(path: Path, mode: str = "r") -> IO[Any]:
        if path.suffix != ".part":
            return opened(path, mode)
        path.touch(exist_ok=False)
        return open("/dev/full", "wb")

    with monkeypatch.context() as full:
        full.setattr(Path, "open", on_a_full_disk)
        with pytest.raises(DiskFull, match=r"no room left for straße .*0\.01 GB.*larger disk"):
            storage.weights(checkpoint())
    assert files(folder) == []
    assert storage.weights(checkpoint()).read_bytes() == CONTENT


# Hangs half-way through a download, as a slow network makes it.
_FETCHING = """
import sys, time
from pathlib import Path
from middleware_api.container.s3_storage import S3Storage

class S3:
    def download_fileobj(self, bucket, key, file):
        file.write(b"half")
        file.flush()
        print("half", flush=True)
        time.sleep(600)

storage = S3Storage(S3(), "bucket", Path(sys.argv[1]), time.monotonic)
storage.weights(dict(type="", name="", key=sys.argv[2], size=8, sha256=""))
"""


def test_a_killed_worker_leaves_no_half_file_that_counts(s3: Any, folder: Path) -> None:
    command = [sys.executable, "-c", _FETCHING, str(folder), KEY]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as fetching:
        try:
            assert fetching.stdout is not None
            assert fetching.stdout.readline() == "half\n"
            (half,) = files(folder)
            S3Storage(s3, BUCKET, folder, Clock())
            assert files(folder) == [half]  # another worker's business while that one lives
        finally:
            fetching.kill()
    restarted = S3Storage(s3, BUCKET, folder, Clock())
    assert files(folder) == []
    assert restarted.weights(checkpoint()).read_bytes() == CONTENT


# S3 alone: it fails.

ACTS: dict[str, Callable[[Storage], object]] = {
    "head_object": lambda storage: storage.exists(KEY),
    "get_object": lambda storage: storage.read(KEY),
    "put_object": lambda storage: storage.write(KEY, b""),
    "download": lambda storage: storage.weights(checkpoint()),
    "create_multipart_upload": lambda storage: storage.writing(KEY, 1).__enter__(),
}


def stubbed(folder: Path) -> tuple[S3Storage, Stubber]:
    """A storage whose S3 answers what it is told to."""
    client = boto3.Session("id", "secret", region_name=REGION).client("s3")
    return S3Storage(client, BUCKET, folder, Clock()), Stubber(client)


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
    storage = S3Storage(client, BUCKET, folder, Clock())
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


def test_a_download_that_breaks_off_is_tried_again_and_then_told(folder: Path) -> None:
    storage, stubber = stubbed(folder)
    stubber.add_response("head_object", {"ContentLength": 8, "ETag": '"e"'})
    for _ in range(5):
        body = StreamingBody(io.BytesIO(b"half"), 8)
        stubber.add_response("get_object", {"Body": body, "ContentLength": 8, "ETag": '"e"'})
    with stubber, pytest.raises(StorageUnreachable, match="RetriesExceededError"):
        storage.weights(checkpoint(size=8, sha256=""))
    stubber.assert_no_pending_responses()
    assert files(folder) == []


def test_weights_that_change_under_the_download_are_not_mixed(folder: Path) -> None:
    storage, stubber = stubbed(folder)
    stubber.add_response("head_object", {"ContentLength": 8, "ETag": '"e"'})
    stubber.add_client_error("get_object", "PreconditionFailed", http_status_code=412)
    with stubber, pytest.raises(StorageUnreachable, match="S3DownloadFailedError"):
        storage.weights(checkpoint(size=8, sha256=""))
    assert files(folder) == []


def test_the_client_asks_the_region_it_is_told(account: Aws) -> None:
    client = s3_client("ap-northeast-1")
    assert client.meta.region_name == "ap-northeast-1"
    assert s3_client(None).meta.region_name == REGION  # from AWS_DEFAULT_REGION
