"""Uploads of one host: they run in the background, and the host's next start goes on with them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from aws_extension.client import CloudClient
from aws_extension.errors import (
    Cancelled,
    CloudError,
    ConnectionLost,
    ServerFault,
    TooManyRequests,
    UploadFailed,
)
from aws_extension.known_hashes import KnownHashes
from aws_extension.pace import Pace
from aws_extension.upload_progress import UploadProgress
from aws_extension.uploader import give_up, upload_checkpoint
from aws_extension.whole_file import write_whole
from middleware_api.contract import MIB, CheckpointType

# Small files wait for answers, not for the line: several at once. A large one has it to itself.
AT_ONCE = 4
LARGE_BYTES = 64 * MIB
RETRY_SECONDS = 30.0


class UploadState(Enum):
    """Where one upload is."""

    WAITING = "waiting"
    RUNNING = "running"
    OFFLINE = "offline"
    PAUSED = "paused"
    FAILED = "failed"


@dataclass(frozen=True)
class UploadOrder:
    """A file to upload; `sha256` is "" where it is not known."""

    path: Path
    kind: CheckpointType
    size: int
    sha256: str = ""

    @property
    def key(self) -> str:
        """Tells it from others."""
        return f"{self.kind.value}:{self.path}"


@dataclass
class Upload:
    """One order and how far it is; read it, but leave changes to the queue."""

    order: UploadOrder
    state: UploadState = UploadState.WAITING
    progress: UploadProgress | None = None
    error: str = ""
    stop: threading.Event = field(default_factory=threading.Event)
    is_given_up: bool = False


class UploadQueue:
    """The uploads of one host. What is finished leaves it."""

    def __init__(
        self,
        client: Callable[[], CloudClient],
        folder: Path,
        hashes: KnownHashes,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        """`folder` is where unfinished uploads are remembered; after `retry_seconds` one that
        lost the server is tried again."""
        self._retry_seconds = retry_seconds
        self._client = client
        self._folder = folder
        self._hashes = hashes
        self._lock = threading.Lock()
        self._uploads: dict[str, Upload] = {}
        self._threads = 0
        self._pace = Pace(time.monotonic)

    def all(self) -> tuple[Upload, ...]:
        """In the order in which they came."""
        with self._lock:
            return tuple(self._uploads.values())

    def add(self, orders: Iterable[UploadOrder]) -> None:
        """Begin to upload files; one that is here already goes on."""
        with self._lock:
            for order in orders:
                known = self._uploads.setdefault(order.key, Upload(order))
                if known.state in (UploadState.PAUSED, UploadState.FAILED):
                    known.state, known.error = UploadState.WAITING, ""
            self._write()
        self._start()

    def pause(self, key: str) -> None:
        """Stop one for now; what has arrived stays."""
        with self._lock:
            if (upload := self._uploads.get(key)) is not None:
                upload.state = UploadState.PAUSED
                upload.stop.set()
            self._write()

    def resume(self, key: str) -> None:
        """Go on with one that was paused or has failed."""
        with self._lock:
            upload = self._uploads.get(key)
        if upload is not None:
            self.add([upload.order])

    def cancel(self, key: str) -> None:
        """Give one up; what has arrived of it goes. Raises CloudError."""
        with self._lock:
            upload = self._uploads.pop(key, None)
            self._write()
        if upload is None:
            return
        upload.is_given_up = True
        upload.stop.set()
        if upload.state is not UploadState.RUNNING:
            give_up(self._client(), upload.order.path, self._folder)

    def take_up(self) -> None:
        """Go on with what the last start left, but for what was paused."""
        try:
            kept = json.loads(self._file.read_text())
            uploads = [
                Upload(
                    UploadOrder(
                        Path(one["path"]),
                        CheckpointType(one["kind"]),
                        int(one["size"]),
                        str(one["sha256"]),
                    ),
                    UploadState.PAUSED if one["paused"] else UploadState.WAITING,
                )
                for one in kept
            ]
        except (OSError, ValueError, KeyError, TypeError):
            return  # none were left; or the list is lost, and its files are asked for again
        with self._lock:
            for upload in uploads:
                self._uploads.setdefault(upload.order.key, upload)
        self._start()

    @property
    def _file(self) -> Path:
        return self._folder / "queue.json"

    def _write(self) -> None:
        kept = [
            {
                "path": str(one.order.path),
                "kind": one.order.kind.value,
                "size": one.order.size,
                "sha256": one.order.sha256,
                "paused": one.state is UploadState.PAUSED,
            }
            for one in self._uploads.values()
        ]
        write_whole(self._file, json.dumps(kept))

    def _start(self) -> None:
        with self._lock:
            waiting = sum(one.state is UploadState.WAITING for one in self._uploads.values())
            wanted = min(AT_ONCE - self._threads, waiting)
            self._threads += max(0, wanted)
        for _ in range(wanted):
            # A daemon: an upload does not keep the host from quitting, it goes on next time.
            threading.Thread(target=self._work, name="sdaws-uploads", daemon=True).start()

    def _work(self) -> None:
        while (upload := self._next()) is not None:
            self._run(upload)

    def _next(self) -> Upload | None:
        with self._lock:
            running = [one for one in self._uploads.values() if one.state is UploadState.RUNNING]
            has_large = any(_is_large(one) for one in running)
            for upload in self._uploads.values():
                if upload.state is UploadState.WAITING and not (has_large and _is_large(upload)):
                    upload.state = UploadState.RUNNING
                    upload.stop.clear()
                    return upload
            self._threads -= 1
            return None

    def _run(self, upload: Upload) -> None:
        order = upload.order
        try:
            upload_checkpoint(
                self._client(),
                order.path,
                order.kind,
                sha256=order.sha256,
                hashes=self._hashes,
                state_folder=self._folder,
                pace=self._pace if _is_large(upload) else None,
                on_progress=lambda progress: setattr(upload, "progress", progress),
                should_cancel=upload.stop.is_set,
            )
        except Cancelled:
            if upload.is_given_up:
                self._forget_parts(upload)
        except CloudError as fault:
            if _is_passing(fault):
                self._wait_for_line(upload, fault)
            else:
                self._end(upload, str(fault))
        except OSError as fault:  # the disk, in the middle of it
            self._end(upload, f"'{order.path.name}' could not be read: {fault}")
        else:
            with self._lock:
                self._uploads.pop(order.key, None)
                self._write()
        self._start()  # what had to wait for this one

    def _wait_for_line(self, upload: Upload, fault: CloudError) -> None:
        with self._lock:
            if upload.state is not UploadState.RUNNING:
                return
            upload.state, upload.error = UploadState.OFFLINE, str(fault)
        if not upload.stop.wait(self._retry_seconds):
            with self._lock:
                upload.state, upload.error = UploadState.WAITING, ""

    def _forget_parts(self, upload: Upload) -> None:
        try:
            give_up(self._client(), upload.order.path, self._folder)
        except CloudError:
            return  # the server forgets what is never finished by itself

    def _end(self, upload: Upload, error: str) -> None:
        with self._lock:
            if upload.state is UploadState.RUNNING:
                upload.state, upload.error = UploadState.FAILED, error


def _is_large(upload: Upload) -> bool:
    return upload.order.size > LARGE_BYTES


def _is_passing(fault: CloudError) -> bool:
    """Whether the same may work later by itself."""
    cause = fault.__cause__ if isinstance(fault, UploadFailed) else fault
    return isinstance(cause, (ConnectionLost, ServerFault, TooManyRequests))
