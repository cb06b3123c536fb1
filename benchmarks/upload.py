"""`python -m benchmarks.upload`: sending weights, against what the machine and others can do.

The fast path goes into `benchmarks.sink`, which discards: what is measured is who sends. Each side
in turn, several rounds, each a process of its own; ratios are of the same round, and their median
is told. The bars, of time:

    known hash, 2 GiB        at most 1.25 of the time of raw sockets (sendfile, 4 connections)
                             at most 0.20 of the time of `aws s3 cp`, 0.60 of it tuned
    200 files of 10 MiB      at most 0.50 of the time of `aws s3 cp --recursive`
    hash not known           at most 1.15 of the time of hashing alone
    a store that is slow     at most 0.85 of the time of `aws s3 cp`, 0.95 of it tuned: into
                             ministack, an emulator of S3, which takes about 0.1 GB/s
    embedded store           at most 1.43 of the time in which the disk alone takes as much, until
                             the checkpoint is Active: hashed, compared, synced
    memory                   at most 256 MiB more than an idle process, for a file of 16 GiB

Times are of whole commands, start included, on both sides. On a machine with other work the ratio
of processor seconds says more than that of the clock, so both are told; the bar is the clock's.
Without the AWS CLI its rows are left out, without `make .venv-emulator/ready` those of ministack.
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
from pathlib import Path
from urllib.parse import urlsplit

from aws_extension.client import CloudClient
from aws_extension.known_hashes import KnownHashes
from aws_extension.upload_queue import UploadOrder, UploadQueue
from aws_extension.uploader import upload_checkpoint
from benchmarks.aws_cli import TUNED, Aws
from benchmarks.timing import Took, program, run, speed, tell
from middleware_api.contract import MIB, CheckpointType

EMULATOR_PYTHON = Path(__file__).parents[1] / ".venv-emulator/bin/python"
TOKEN = "benchmark-token-0123456789abcdef"
KIND = CheckpointType.VAE
SMALL_FILES, SMALL_BYTES = 200, 10 * MIB
RAW_PART = 64 * MIB
SLOW_BYTES = 256 * MIB
HUGE_BYTES, MEMORY_MOST = 16 * 1024 * MIB, 256 * MIB


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


def nothing(url: str, path: Path) -> None:
    """Only what each of these acts costs before it begins."""


ACTS: dict[str, Callable[[str, Path], None]] = {
    act.__name__: act
    for act in (
        raw_sockets, known_hash, unknown_hash, hash_alone, many_files, write_alone, into_store,
        nothing,
    )
}  # fmt: skip


def measure(act: Callable[[str, Path], None], url: str, path: Path) -> Took:
    """One act in a process of its own."""
    name = act.__name__
    return run([sys.executable, "-m", "benchmarks.upload", "--do", name, url, str(path)])


def write_random(path: Path, size: int) -> None:
    """A safetensors file of one tensor of random bytes; `size` is the tensor's."""
    tensor = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    header = json.dumps({"weight": tensor}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, size, 8 * MIB):
            file.write(os.urandom(min(8 * MIB, size - start)))


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
            raw = one_file(url, file, options.rounds)
            if shutil.which("aws"):
                against_aws(Aws(url, folder), raw, url, folder, file)
            else:
                print("no `aws` on this machine: its rows are left out")
            memory(url, folder)
        if shutil.which("aws") and EMULATOR_PYTHON.exists():
            slow_store(folder, options.rounds)
        else:
            print("no `aws`, or no ministack on this machine: their rows are left out")
        data = {"SDAWS_DATA_DIR": str(folder / "var"), "SDAWS_API_TOKEN": TOKEN}
        with program("middleware_api", "serve", "--port=0", **data) as url:
            store(url, file, options.rounds)


def one_file(url: str, file: Path, rounds: int) -> list[Took]:
    """Against raw sockets, and against hashing; what the raw sockets took."""
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
    return raw


def against_aws(aws: Aws, raw: list[Took], url: str, folder: Path, file: Path) -> None:
    """Against the AWS CLI as it comes, tuned, and with many files."""
    size = file.stat().st_size
    many = folder / "many"
    many.mkdir()
    for number in range(SMALL_FILES):
        write_random(many / f"{number:03}.safetensors", SMALL_BYTES)
    default, tuned, ours, theirs_many, ours_many = [], [], [], [], []
    for _ in raw:
        ours.append(measure(known_hash, url, file))
        default.append(aws.copy(file))
        tuned.append(aws.copy(file, TUNED))
        ours_many.append(measure(many_files, url, many))
        theirs_many.append(aws.copy(many, "", "--recursive"))
    least = statistics.median(r.seconds / d.seconds for r, d in zip(raw, default, strict=True))
    more = f"theirs {speed(size, default)}; raw sockets are {least:.2f} of it"
    tell("known hash : aws s3 cp", ours, default, 0.20, more)
    tell("known hash : aws s3 cp, tuned", ours, tuned, 0.60, f"theirs {speed(size, tuned)}")
    size = SMALL_FILES * SMALL_BYTES
    more = f"{speed(size, ours_many)}; theirs {speed(size, theirs_many)}"
    tell(f"{SMALL_FILES} files : aws s3 cp --recursive", ours_many, theirs_many, 0.50, more)


def memory(url: str, folder: Path) -> None:
    """A file that is mostly a hole: there is no disk for a real one on every machine."""
    file = folder / "huge.safetensors"
    write_random(file, MIB)
    os.truncate(file, HUGE_BYTES)
    more = measure(unknown_hash, url, file).peak - measure(nothing, url, file).peak
    verdict = "holds" if more <= MEMORY_MOST else "MISSED"
    most = f"of at most {MEMORY_MOST // MIB} MiB"
    print(f"{'memory above idle, 16 GiB':<36}{more / MIB:6.0f} {most}  {verdict}", flush=True)
    file.unlink()


@contextmanager
def ministack(folder: Path) -> Iterator[str]:
    """An emulator of S3, with an empty bucket; its URL."""
    # Not by every process: most need no S3.
    from botocore.exceptions import EndpointConnectionError

    from benchmarks.s3_desk import BUCKET, s3_client

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    bounds = {"BIND_HOST": "127.0.0.1", "GATEWAY_PORT": port, "LOG_LEVEL": "ERROR"}
    process = subprocess.Popen(
        [EMULATOR_PYTHON, "-m", "ministack"], cwd=folder, env={**os.environ, **bounds}
    )
    try:
        url = f"http://127.0.0.1:{port}"
        while process.poll() is None:
            try:
                s3_client(url).create_bucket(Bucket=BUCKET)
                break
            except EndpointConnectionError:
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def slow_store(folder: Path, rounds: int) -> None:
    """Where the store is what all wait for: it reckons checksums, and what it stores, in Python."""
    file = folder / "slow.safetensors"
    write_random(file, SLOW_BYTES)
    ours: dict[str, list[Took]] = {"crc32": [], "md5": []}
    default, tuned = [], []
    with (
        ministack(folder) as url,
        program("benchmarks.s3_desk", url, "crc32") as crc32,
        program("benchmarks.s3_desk", url, "md5") as md5,
    ):
        aws = Aws(url, folder, "s3://weights/k")
        for _ in range(rounds):
            ours["crc32"].append(measure(known_hash, crc32, file))
            default.append(aws.copy(file))
            ours["md5"].append(measure(known_hash, md5, file))
            tuned.append(aws.copy(file, TUNED))
    for checksum, took in ours.items():
        more = f"{speed(SLOW_BYTES, took)}; theirs "
        what = f"slow store, {checksum} : aws s3 cp"
        tell(what, took, default, 0.85, more + speed(SLOW_BYTES, default))
        tell(f"{what}, tuned", took, tuned, 0.95, more + speed(SLOW_BYTES, tuned))


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
