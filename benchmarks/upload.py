"""`python -m benchmarks.upload`: sending weights, against what the machine and others can do.

The fast path goes into `benchmarks.sink`, which discards: what is measured is who sends. Each side
in turn, several rounds, each a process of its own; ratios are of the same round, and their median
is told. The bars, of time:

    known hash, 2 GiB        at most 1.25 of the time of raw sockets (sendfile, 4 connections)
                             at most 0.20 of the time of `aws s3 cp`, 0.60 of it tuned
    200 files of 10 MiB      at most 0.50 of the time of `aws s3 cp --recursive`
    hash not known           at most 1.15 of the time of hashing alone
    embedded store           at most 1.43 of the time in which the disk alone takes as much, until
                             the checkpoint is Active: hashed, compared, synced

Times are of whole commands, start included, on both sides. On a machine with other work the ratio
of processor seconds says more than that of the clock, so both are told; the bar is the clock's.
Without the AWS CLI its rows are left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from aws_extension.client import CloudClient
from aws_extension.known_hashes import KnownHashes
from aws_extension.upload_queue import UploadOrder, UploadQueue
from aws_extension.uploader import upload_checkpoint
from middleware_api.contract import MIB, CheckpointType

TOKEN = "benchmark-token-0123456789abcdef"
KIND = CheckpointType.VAE
SMALL_FILES, SMALL_BYTES = 200, 10 * MIB
RAW_PART = 64 * MIB
# The best that was found for it: no signature of the body, no checksum, large parts.
TUNED = """[default]
s3 =
  max_concurrent_requests = 4
  multipart_chunksize = 64MB
  multipart_threshold = 64MB
  payload_signing_enabled = false
request_checksum_calculation = when_required
"""


@dataclass(frozen=True)
class Took:
    """Seconds on the clock, and of the processor."""

    seconds: float
    cpu: float


def run(command: list[str], **environment: str) -> Took:
    """A whole command."""
    began, before = time.perf_counter(), os.times()
    subprocess.run(
        command, check=True, env={**os.environ, **environment}, stdout=subprocess.DEVNULL
    )
    after = os.times()
    cpu = after.children_user + after.children_system
    return Took(time.perf_counter() - began, cpu - before.children_user - before.children_system)


# What runs in a process of its own: `python -m benchmarks.upload --do <name> <url> <path>`.


def raw_sockets(url: str, path: Path) -> None:
    """The kernel sends the file by itself, over four connections."""
    address, size = urlsplit(url), path.stat().st_size
    starts = list(range(0, size, RAW_PART))
    lock = threading.Lock()

    def send() -> None:
        with (
            socket.create_connection((address.hostname or "", address.port or 80)) as line,
            path.open("rb") as file,
        ):
            while True:
                with lock:
                    if not starts:
                        return
                    start = starts.pop()
                length = min(RAW_PART, size - start)
                head = f"PUT /b/k HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
                line.sendall(head.encode())
                done = 0
                while done < length:
                    done += os.sendfile(line.fileno(), file.fileno(), start + done, length - done)
                line.recv(4096)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def known_hash(url: str, path: Path) -> None:
    """Ours, with a hash that somebody has told."""
    upload_checkpoint(CloudClient(url, TOKEN), path, KIND, sha256="ab" * 32)


def unknown_hash(url: str, path: Path) -> None:
    """Ours, of a file that nobody has read before."""
    upload_checkpoint(CloudClient(url, TOKEN), path, KIND)


def hash_alone(url: str, path: Path) -> None:
    """Only the hash."""
    digest, view = hashlib.sha256(), memoryview(bytearray(4 * MIB))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(view):
            digest.update(view[:count])


def many_files(url: str, path: Path) -> None:
    """Ours, a folder of files, as the Models page sends what was selected."""
    client = CloudClient(url, TOKEN)
    with tempfile.TemporaryDirectory() as folder:
        queue = UploadQueue(lambda: client, Path(folder), KnownHashes())
        queue.add(UploadOrder(file, KIND, file.stat().st_size) for file in sorted(path.iterdir()))
        while queue.all():
            time.sleep(0.01)


def write_alone(url: str, path: Path) -> None:
    """The same bytes into a file beside it, to the end: `fsync` included."""
    view, copy = memoryview(bytearray(8 * MIB)), path.with_suffix(".copy")
    with path.open("rb", buffering=0) as file, copy.open("wb", buffering=0) as target:
        while count := file.readinto(view):
            target.write(view[:count])
        os.fsync(target.fileno())
    copy.unlink()


def into_store(url: str, path: Path) -> None:
    """Ours into the embedded store, until it is Active: hashed there, compared, synced."""
    client = CloudClient(url, TOKEN)
    sha256 = path.with_suffix(".sha256").read_text()
    made = upload_checkpoint(client, path, KIND, sha256=sha256)
    (path.parent / "made").write_text(made.id)


ACTS: dict[str, Callable[[str, Path], None]] = {
    act.__name__: act
    for act in (
        raw_sockets, known_hash, unknown_hash, hash_alone, many_files, write_alone, into_store,
    )
}  # fmt: skip


def measure(act: Callable[[str, Path], None], url: str, path: Path) -> Took:
    """One act in a process of its own."""
    name = act.__name__
    return run([sys.executable, "-m", "benchmarks.upload", "--do", name, url, str(path)])


class Aws:
    """The AWS CLI against the sink."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._config = folder / "aws.conf"

    def copy(self, source: Path, config: str = "", *options: str) -> Took:
        """`aws s3 cp` with a configuration."""
        self._config.write_text(config or "[default]\n")
        return run(
            ["aws", "s3", "cp", *options, "--endpoint-url", self._url, "--only-show-errors",
             str(source), "s3://b/k"],
            AWS_CONFIG_FILE=str(self._config), AWS_ACCESS_KEY_ID="x", AWS_SECRET_ACCESS_KEY="x",
            AWS_DEFAULT_REGION="us-east-1", AWS_EC2_METADATA_DISABLED="true",
        )  # fmt: skip


@contextmanager
def program(*arguments: str, **environment: str) -> Iterator[str]:
    """A server of this repository; its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def write_random(path: Path, size: int) -> None:
    """A safetensors file of one tensor of random bytes; `size` is the tensor's."""
    tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"weight": tensor}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, size, 8 * MIB):
            file.write(os.urandom(min(8 * MIB, size - start)))


def tell(what: str, ours: list[Took], theirs: list[Took], bar: float, more: str) -> None:
    """One row: ours over theirs, at most `bar`."""
    pairs = list(zip(ours, theirs, strict=True))
    clock = statistics.median(o.seconds / t.seconds for o, t in pairs)
    cpu = statistics.median(o.cpu / t.cpu for o, t in pairs)
    verdict = "holds" if clock <= bar else "MISSED"
    print(f"{what:<36}{clock:6.2f} of at most {bar:.2f}  {verdict:<6}  cpu {cpu:.2f}  {more}",
          flush=True)  # fmt: skip


def speed(size: int, took: list[Took]) -> str:
    """MB/s and CPU seconds a GiB, medians."""
    seconds = statistics.median(one.seconds for one in took)
    cpu = statistics.median(one.cpu for one in took)
    return f"{size / 1e6 / seconds:.0f} MB/s, {cpu / (size / 1024**3):.2f} CPU s/GiB"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.upload", description=__doc__)
    parser.add_argument("--size-gib", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where files are made (a temporary folder)")
    parser.add_argument("--do", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.do:
        name, url, path = options.do
        ACTS[name](url, Path(path))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        file = folder / "weights.safetensors"
        write_random(file, int(options.size_gib * 1024**3))
        print(f"{options.size_gib} GiB, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        with program("benchmarks.sink") as url:
            one_file(url, file, options.rounds)
            if shutil.which("aws"):
                against_aws(Aws(url, folder), url, folder, file, options.rounds)
            else:
                print("no `aws` on this machine: its rows are left out")
        data = {"SDAWS_DATA_DIR": str(folder / "var"), "SDAWS_API_TOKEN": TOKEN}
        with program("middleware_api", "serve", "--port=0", **data) as url:
            store(url, file, options.rounds)


def one_file(url: str, file: Path, rounds: int) -> None:
    """Against raw sockets, and against hashing."""
    size = file.stat().st_size
    raw, known, hashed, unknown = [], [], [], []
    for _ in range(rounds):
        raw.append(measure(raw_sockets, url, file))
        known.append(measure(known_hash, url, file))
        hashed.append(measure(hash_alone, url, file))
        unknown.append(measure(unknown_hash, url, file))
    more = f"{speed(size, known)}; raw {speed(size, raw)}"
    tell("known hash : raw sockets", known, raw, 1 / 0.80, more)
    more = f"{speed(size, unknown)}; hash {speed(size, hashed)}"
    tell("hash not known : hashing alone", unknown, hashed, 1.15, more)


def against_aws(aws: Aws, url: str, folder: Path, file: Path, rounds: int) -> None:
    """Against the AWS CLI as it comes, tuned, and with many files."""
    size = file.stat().st_size
    many = folder / "many"
    many.mkdir()
    for number in range(SMALL_FILES):
        write_random(many / f"{number:03}.safetensors", SMALL_BYTES)
    default, tuned, ours, theirs_many, ours_many = [], [], [], [], []
    for _ in range(rounds):
        ours.append(measure(known_hash, url, file))
        default.append(aws.copy(file))
        tuned.append(aws.copy(file, TUNED))
        ours_many.append(measure(many_files, url, many))
        theirs_many.append(aws.copy(many, "", "--recursive"))
    tell("known hash : aws s3 cp", ours, default, 0.20, f"theirs {speed(size, default)}")
    tell("known hash : aws s3 cp, tuned", ours, tuned, 0.60, f"theirs {speed(size, tuned)}")
    size = SMALL_FILES * SMALL_BYTES
    more = f"{speed(size, ours_many)}; theirs {speed(size, theirs_many)}"
    tell(f"{SMALL_FILES} files : aws s3 cp --recursive", ours_many, theirs_many, 0.50, more)


def store(url: str, file: Path, rounds: int) -> None:
    """The embedded store against the disk that it is on."""
    size, client = file.stat().st_size, CloudClient(url, TOKEN)
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(4 * MIB):
            digest.update(chunk)
    file.with_suffix(".sha256").write_text(digest.hexdigest())
    disk, stored = [], []
    for _ in range(rounds):
        disk.append(measure(write_alone, url, file))
        stored.append(measure(into_store, url, file))
        client.delete_checkpoint((file.parent / "made").read_text())
    more = f"{speed(size, stored)}; disk {speed(size, disk)}"
    tell("embedded store : writing alone", stored, disk, 1 / 0.70, more)


if __name__ == "__main__":
    main()
