"""The task convert: files of torch opened in a sandbox, their tensors written as .safetensors."""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from middleware_api import contract
from middleware_api.container.errors import CheckpointUnreadable
from middleware_api.container.job import Answer, Job
from middleware_api.container.progress import Step
from middleware_api.container.storage import Storage
from middleware_api.container.weights import unpickle
from middleware_api.container.weights.tensor_file import DTYPE_NAMES, LazyTensor, header_of
from middleware_api.contract import CheckpointType, ContainerCheckpoint
from middleware_api.tensor_header import HEADER_MAX_BYTES

# Processor time: what a start takes, and what reading takes on a slow disk.
START_SECONDS = 60
BYTES_A_SECOND = 20 * 1024**2
# Of the clock, which also runs while others have the processor or the object store is slow.
WAITS_A_SECOND = 10

_PIECE = 4 * 1024**2
_LOOK_SECONDS = 0.5
# What the sandbox is told; of this process's own environment it sees nothing.
_ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "LANG": "C.UTF-8"}


def convert(job: Job) -> Answer:
    """One file for each of the job's; a cancelled conversion leaves nothing."""
    made: list[ContainerCheckpoint] = []
    with job.until_cancelled():
        made += [_convert(job, told) for told in job.invocation["checkpoints"]]
    return Answer(images=(), info="{}", checkpoints=tuple(made))


def _convert(job: Job, told: ContainerCheckpoint) -> ContainerCheckpoint:
    path = job.weights(told)
    name = contract.converted_name(told["name"])
    kind = CheckpointType(told["type"])
    key = contract.checkpoint_key(kind, job.invocation["job_id"], name)
    job.progress.phase("converting checkpoint")

    def note(done: int, size: int) -> None:
        job.progress.note("converting checkpoint", Step(done, size, None))

    source = Unpickled(told["name"], path, job.storage, key)
    size, sha256 = copy_unpickled(source, {}, job.stop_if_asked, note)
    return ContainerCheckpoint(type=told["type"], name=name, key=key, size=size, sha256=sha256)


@dataclass(frozen=True)
class Unpickled:
    """A file of torch on this machine, and where its tensors are to go."""

    name: str
    path: Path
    storage: Storage
    key: str


def copy_unpickled(
    source: Unpickled,
    more_metadata: Mapping[str, str],
    stop_if_asked: Callable[[], None],
    note: Callable[[int, int], None],
) -> tuple[int, str]:
    """The new file's size and SHA-256. `note` is told how many of how many bytes are written.

    Raises CheckpointUnreadable, DiskFull, StorageUnreachable, and what `stop_if_asked` raises.
    """
    with _unpickled(source.name, source.path, stop_if_asked) as program:
        tensors, metadata = _described(program, source.name)
        header = header_of(tensors, {**metadata, **more_metadata, "format": "pt"})
        size = len(header) + sum(tensor.n_bytes for tensor in tensors.values())
        digest = hashlib.sha256(header)
        done = len(header)
        with source.storage.writing(source.key, size) as sink:
            sink.write(memoryview(header))
            while done < size:
                piece = program.read(min(_PIECE, size - done))
                digest.update(piece)
                sink.write(memoryview(piece))
                done += len(piece)
                note(done, size)
            program.finish()
    return size, digest.hexdigest()


class _Program:
    """The sandbox while it runs; every wait for it ends when the job is cancelled."""

    def __init__(
        self, process: subprocess.Popen[bytes], name: str, stop_if_asked: Callable[[], None]
    ) -> None:
        assert process.stdout is not None
        self._process, self._name, self._stop_if_asked = process, name, stop_if_asked
        self._out = process.stdout.fileno()
        self._ready = selectors.DefaultSelector()
        self._ready.register(self._out, selectors.EVENT_READ)

    def read(self, most: int) -> bytes:
        """Some bytes, at least one. Raises CheckpointUnreadable when it has no more."""
        while True:
            self._stop_if_asked()
            if self._ready.select(_LOOK_SECONDS):
                break
        piece = os.read(self._out, most)
        if not piece:
            raise self.refusal()
        return piece

    def exactly(self, length: int) -> bytes:
        content = bytearray()
        while len(content) < length:
            content += self.read(length - len(content))
        return bytes(content)

    def finish(self) -> None:
        """Raises CheckpointUnreadable unless it has said all and ended well."""
        if self._process.wait() or os.read(self._out, 1):
            raise self.refusal()

    def refusal(self) -> CheckpointUnreadable:
        """Why it has come to nothing."""
        assert self._process.stderr is not None
        code = self._process.wait()
        words = self._process.stderr.read().strip().rpartition(b"\n")[2]
        try:
            reason = json.loads(words)["reason"]
        except (ValueError, TypeError, KeyError):
            reason = "one that takes more time or memory to open than a file of its size may"
            if code >= 0:
                reason = f"one that cannot be opened (exit code {code})"
        return CheckpointUnreadable(
            f"{self._name} was refused: it is {str(reason)[:1000]}. Use a .safetensors file of "
            "these weights, from a source that you trust."
        )

    def close(self) -> None:
        self._ready.close()


@contextmanager
def _unpickled(name: str, path: Path, stop_if_asked: Callable[[], None]) -> Iterator[_Program]:
    """The program at work on the file; it is gone when the block ends."""
    size = path.stat().st_size
    seconds = START_SECONDS + size // BYTES_A_SECOND
    command = [sys.executable, "-I", "-B", unpickle.__file__, str(size), str(seconds)]
    with (
        tempfile.TemporaryDirectory() as folder,
        path.open("rb") as weights,
        subprocess.Popen(
            command,
            stdin=weights,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=_ENVIRONMENT,
            start_new_session=True,
        ) as process,
    ):
        patience = threading.Timer(WAITS_A_SECOND * seconds, process.kill)
        patience.start()
        program = _Program(process, name, stop_if_asked)
        try:
            yield program
        finally:
            patience.cancel()
            program.close()
            process.kill()


def _described(program: _Program, name: str) -> tuple[dict[str, LazyTensor], dict[str, str]]:
    """What the program says that it will write. It may have fallen to the file that it reads, so
    nothing of it is believed. Raises CheckpointUnreadable."""
    length = int.from_bytes(program.exactly(8), "little")
    if length > HEADER_MAX_BYTES:
        raise CheckpointUnreadable(f"{name} was refused: it describes itself in {length} bytes.")
    document = json.loads(program.exactly(length))
    tensors: dict[str, LazyTensor] = {}
    for tensor, type_, shape in document["tensors"]:
        dtype = _DTYPES.get(type_)
        if dtype is None:
            raise CheckpointUnreadable(
                f"{name} was refused: its tensor {tensor!a} is of the type {type_}, which "
                ".safetensors files do not have. Save it as another type."
            )
        tensors[tensor] = LazyTensor(dtype, tuple(shape), _never)
    metadata = {str(key): str(text) for key, text in document["metadata"].items()}
    return tensors, metadata


def _never(start: int, stop: int) -> torch.Tensor:
    raise AssertionError("its bytes come from the program")


_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPE_NAMES}
