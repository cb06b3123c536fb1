"""Sending a weights file: hash, ask, send the missing parts, complete.

Memory is bounded by what the kernel maps: parts are views into the file, never copies.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aws_extension.answers import Checkpoint, CheckpointUpload, UploadPlan
from aws_extension.client import CloudClient
from aws_extension.errors import (
    Cancelled,
    CloudError,
    Conflict,
    ConnectionLost,
    Forbidden,
    NotFound,
    ServerFault,
    TooManyRequests,
    UnexpectedAnswer,
    UploadFailed,
)
from middleware_api.contract import MIB, CheckpointState, CheckpointType, PartTag, is_valid_name

PART_MIN, PART_MAX = 8 * MIB, 64 * MIB
PARTS_WANTED = 100
PARTS_IN_FLIGHT = 4
PART_ATTEMPTS = 5
# A send that takes longer than the connect timeout fails (Python bounds one `sendall` as a
# whole), so a part goes out in slices that a slow line manages in time: 256 KiB in 30 s.
SLICE_BYTES = 256 * 1024
PART_TIMEOUT_SECONDS = (30.0, 120.0)
HASH_BYTES = 4 * MIB
REPORT_SECONDS = 0.2
SPEED_WINDOW_SECONDS = 5.0


@dataclass(frozen=True)
class UploadProgress:
    """How far an upload is; bytes, and bytes a second over the last seconds."""

    phase: Literal["hashing", "sending", "finishing", "done"]
    done: int
    total: int
    bytes_per_second: float = 0.0

    @property
    def fraction(self) -> float:
        """0..1 of this phase."""
        return self.done / self.total if self.total else 1.0

    def describe(self) -> str:
        """One line for the user."""
        if self.phase == "done":
            return "Uploaded"
        if self.phase == "finishing":
            return "All parts sent, the server puts them together…"
        verb = "Reading" if self.phase == "hashing" else "Sending"
        line = f"{verb} {self.done / 1e6:,.1f} of {self.total / 1e6:,.1f} MB"
        if not self.bytes_per_second:
            return line
        left = duration((self.total - self.done) / self.bytes_per_second)
        return f"{line}, {self.bytes_per_second / 1e6:.1f} MB/s, {left} left"


def duration(seconds: float) -> str:
    """A time as people say it: "40 s", "3 min", "2.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Meter:
    """Bytes sent by all threads, and their speed over the last seconds."""

    def __init__(self, total: int, clock: Callable[[], float], arrived: int = 0) -> None:
        self._total = total
        self._clock = clock
        self._done = arrived  # before: that was not our speed
        self._lock = threading.Lock()
        self._marks: deque[tuple[float, int]] = deque([(clock(), arrived)])

    def add(self, count: int) -> None:
        """Count bytes; negative when a part has to be sent again."""
        with self._lock:
            self._done += count

    def progress(self) -> UploadProgress:
        """As of now; call it a few times a second."""
        with self._lock:
            now, done = self._clock(), self._done
            self._marks.append((now, done))
            while len(self._marks) > 2 and now - self._marks[0][0] > SPEED_WINDOW_SECONDS:
                self._marks.popleft()
            since, before = self._marks[0]
        speed = max(0.0, (done - before) / (now - since)) if now > since else 0.0
        return UploadProgress("sending", done, self._total, speed)


class PartBody:
    """One part as a request body: sized, and read in slices of the mapped file without a copy."""

    def __init__(self, view: memoryview, meter: Meter, stop: threading.Event) -> None:
        self._view = view
        self._meter = meter
        self._stop = stop
        self.sent = 0

    def __len__(self) -> int:
        return len(self._view)

    def __iter__(self) -> Iterator[memoryview]:
        for start in range(0, len(self._view), SLICE_BYTES):
            if self._stop.is_set():
                raise Cancelled("The upload was stopped.")
            piece = self._view[start : start + SLICE_BYTES]
            yield piece
            self.sent += len(piece)
            self._meter.add(len(piece))

    def forget(self) -> None:
        """Take back what was counted: the part is sent again."""
        self._meter.add(-self.sent)
        self.sent = 0


class UrlBook:
    """Current URLs of the missing parts; asks for fresh ones when one was refused."""

    def __init__(
        self, client: CloudClient, checkpoint_id: str, filename: str, urls: Mapping[int, str]
    ) -> None:
        self._client = client
        self._checkpoint_id = checkpoint_id
        self._filename = filename
        self._urls = dict(urls)
        self._lock = threading.Lock()

    def url(self, number: int) -> str:
        """The URL to put a part at."""
        with self._lock:
            return self._urls[number]

    def renew(self, number: int, refused: str) -> None:
        """Fetch fresh URLs, once for all threads that were refused with the same set."""
        with self._lock:
            if self._urls[number] != refused:
                return
            state = self._client.upload_state(self._checkpoint_id)
            self._urls.update(_plan_of(state, self._filename).urls)


def upload_checkpoint(
    client: CloudClient,
    path: Path,
    kind: CheckpointType,
    *,
    sha256: str = "",
    state_folder: Path | None = None,
    on_progress: Callable[[UploadProgress], None] = lambda progress: None,
    should_cancel: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> Checkpoint:
    """Upload one file and return its Active checkpoint; content that is there is not sent again.

    `sha256` spares the reading of a file whose hash is known. `state_folder` remembers an
    unfinished upload, so that the next call goes on with it and hashes nothing twice. Callbacks
    run in the calling thread. Raises UploadFailed, Cancelled or the API's errors; what has
    arrived stays on the server.
    """
    # 1. Look at the file.
    size, modified = _inspect(path)
    notes = _Notes(state_folder, path, size, modified, client.api_url)
    note = notes.read()
    # 2. Its hash tells the server what it has already.
    if note:
        sha256 = note.sha256
    sha256 = sha256 or _hash(path, size, on_progress, should_cancel)
    # 3. Ask where the (missing) parts go.
    upload = _resume(client, note) if note else None
    if upload is None:
        parts = max(1, size // _part_size(size))
        upload = client.create_checkpoint(kind, path.name, size, sha256, parts)
    if upload.checkpoint.state is CheckpointState.INITIAL:
        notes.write(_Note(upload.checkpoint.id, sha256))
        # 4. Send them.
        plan = _checked_plan(client, upload, path.name, size)
        tags = _send(
            client, upload.checkpoint.id, plan, path, size, on_progress, should_cancel, clock
        )
        # 5. Have them put together.
        on_progress(UploadProgress("finishing", size, size))
        checkpoint = client.complete_checkpoint(upload.checkpoint.id, {path.name: tags})
    else:
        checkpoint = upload.checkpoint
    notes.forget()
    if checkpoint.state is not CheckpointState.ACTIVE:
        raise UploadFailed(
            f"'{path.name}' is on the server, but as {checkpoint.state.value}: "
            f"{checkpoint.error or 'no reason was given'}."
        )
    on_progress(UploadProgress("done", size, size))
    return checkpoint


def _inspect(path: Path) -> tuple[int, int]:
    """Size and modification time. Raises UploadFailed for what cannot be sent."""
    try:
        found = path.stat()
    except OSError as fault:
        raise UploadFailed(
            f"'{path}' cannot be read ({fault.strerror}). Check the path."
        ) from fault
    if not path.is_file():
        raise UploadFailed(f"'{path}' is no file. Give the path of one weights file.")
    if found.st_size == 0:
        raise UploadFailed(f"'{path.name}' is empty. Fetch the file again.")
    if not is_valid_name(path.name):
        raise UploadFailed(
            f"'{path.name}' cannot be its name in the cloud. Rename it: letters, digits, spaces "
            "and . _ - ( ) + [ ] are allowed, no dot at the start."
        )
    return found.st_size, found.st_mtime_ns


def _part_size(size: int) -> int:
    """Bytes a part: about a hundred parts, each within 8 to 64 MiB."""
    return min(PART_MAX, max(PART_MIN, size // PARTS_WANTED))


def _hash(
    path: Path,
    size: int,
    on_progress: Callable[[UploadProgress], None],
    should_cancel: Callable[[], bool],
) -> str:
    digest = hashlib.sha256()
    done = 0
    buffer = bytearray(HASH_BYTES)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            if should_cancel():
                raise Cancelled("The upload was stopped.")
            digest.update(memoryview(buffer)[:count])
            done += count
            on_progress(UploadProgress("hashing", done, size))
    return digest.hexdigest()


def _plan_of(upload: CheckpointUpload, filename: str) -> UploadPlan:
    for plan in upload.plans:
        if plan.filename == filename:
            return plan
    raise UnexpectedAnswer(f"The server's upload has no place for '{filename}'. Start it again.")


def _checked_plan(
    client: CloudClient, upload: CheckpointUpload, filename: str, size: int
) -> UploadPlan:
    """A plan whose missing and arrived parts together are the file."""
    plan = _plan_of(upload, filename)
    wanted = -(-size // plan.part_size) if plan.part_size > 0 else 0
    if len(plan.urls) + len(plan.arrived) != wanted:
        # An upload that goes on may be answered without its arrived parts: ask for them.
        plan = _plan_of(client.upload_state(upload.checkpoint.id), filename)
        if len(plan.urls) + len(plan.arrived) != wanted:
            raise UnexpectedAnswer(
                f"The server's plan for '{filename}' does not add up to its size. Start the "
                "upload again."
            )
    return plan


def _send(
    client: CloudClient,
    checkpoint_id: str,
    plan: UploadPlan,
    path: Path,
    size: int,
    on_progress: Callable[[UploadProgress], None],
    should_cancel: Callable[[], bool],
    clock: Callable[[], float],
) -> list[PartTag]:
    """Send the missing parts, a few at a time; the tags of all parts in order."""
    lengths = _lengths(size, plan.part_size)
    meter = Meter(size, clock, sum(lengths[part.number] for part in plan.arrived))
    tags = {part.number: part.etag for part in plan.arrived}
    book = UrlBook(client, checkpoint_id, plan.filename, plan.urls)
    stop = threading.Event()
    with path.open("rb") as file:
        # Not closed by hand: a failed part's traceback may still hold a view of it.
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if len(content) != size:
        raise UploadFailed(f"'{path.name}' has changed while it was read. Try again.")
    whole = memoryview(content)

    def put(number: int) -> tuple[int, str]:
        start = (number - 1) * plan.part_size
        body = PartBody(whole[start : start + lengths[number]], meter, stop)
        return number, _put_part(client, book, number, body)

    with ThreadPoolExecutor(PARTS_IN_FLIGHT, thread_name_prefix="sdaws-upload") as pool:
        running: set[Future[tuple[int, str]]] = {
            pool.submit(put, number) for number in sorted(plan.urls)
        }
        try:
            while running:
                done, running = wait(running, REPORT_SECONDS, FIRST_COMPLETED)
                tags.update(future.result() for future in done)
                if should_cancel():
                    raise Cancelled("The upload was stopped. Start it again to go on from there.")
                on_progress(meter.progress())
        except BaseException:
            stop.set()
            for future in running:
                future.cancel()
            raise
    return [{"PartNumber": number, "ETag": tags[number]} for number in sorted(tags)]


def _lengths(size: int, part_size: int) -> dict[int, int]:
    """Bytes of each part by its number."""
    starts = range(0, size, part_size)
    return {n: min(part_size, size - start) for n, start in enumerate(starts, start=1)}


def _put_part(client: CloudClient, book: UrlBook, number: int, body: PartBody) -> str:
    """Put one part, again when the line or the store falters; returns its ETag."""
    for attempt in range(PART_ATTEMPTS):
        url = book.url(number)
        try:
            response = client.storage.send(
                "PUT",
                url,
                body=body,
                headers={"Content-Type": "application/octet-stream"},
                timeout=PART_TIMEOUT_SECONDS,
                may_repeat=False,  # here, so that the count and the URL are put right first
            )
        except (ConnectionLost, TooManyRequests, ServerFault) as fault:
            cause: CloudError = fault
            body.forget()
            if attempt + 1 < PART_ATTEMPTS:
                client.retries.sleep(client.retries.delay(attempt, None))
        except Forbidden as fault:
            cause = fault
            body.forget()
            book.renew(number, url)
        except NotFound as fault:
            raise UploadFailed(
                "The server no longer knows this upload. Start it again: it will begin anew."
            ) from fault
        else:
            if etag := response.headers.get("ETag"):
                return etag
            raise UnexpectedAnswer("The store took a part without naming its ETag.")
    raise UploadFailed(
        f"Part {number} could not be sent in {PART_ATTEMPTS} tries ({cause}) Start the upload "
        "again to go on where it stopped."
    ) from cause


@dataclass(frozen=True)
class _Note:
    """What is remembered of an unfinished upload."""

    checkpoint_id: str
    sha256: str


class _Notes:
    """Where the note of one file's upload to one server is kept."""

    def __init__(
        self, folder: Path | None, path: Path, size: int, modified: int, server: str
    ) -> None:
        identity = json.dumps([str(path.resolve()), size, modified, server])
        name = hashlib.sha256(identity.encode()).hexdigest()[:32]
        self._path = folder / f"upload-{name}.json" if folder else None

    def read(self) -> _Note | None:
        """The note, when there is a readable one."""
        if self._path is None:
            return None
        try:
            raw = json.loads(self._path.read_text())
            return _Note(str(raw["checkpoint_id"]), str(raw["sha256"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None  # a lost note only costs hashing again: the server knows the content

    def write(self, note: _Note) -> None:
        """Keep it, whole or not at all."""
        if self._path is None:
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        draft = self._path.with_suffix(".new")
        draft.write_text(json.dumps({"checkpoint_id": note.checkpoint_id, "sha256": note.sha256}))
        os.replace(draft, self._path)

    def forget(self) -> None:
        """The upload is over."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _resume(client: CloudClient, note: _Note) -> CheckpointUpload | None:
    """The noted upload as the server sees it, or None when it is no longer open there."""
    try:
        return client.upload_state(note.checkpoint_id)
    except (NotFound, Conflict):
        return None
