"""Sending the missing parts of a file, several at a time.

Memory stays at one window of the file a lane: parts are mapped piece by piece, never copied.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import BinaryIO

from aws_extension.answers import CheckpointUpload, UploadPlan
from aws_extension.client import CloudClient
from aws_extension.errors import (
    BadRequest,
    Cancelled,
    CloudError,
    ConnectionLost,
    Forbidden,
    NotFound,
    ServerFault,
    TooManyRequests,
    UnexpectedAnswer,
    UploadFailed,
)
from aws_extension.mapped_file import windows
from aws_extension.pace import LANES_MOST, Pace
from aws_extension.upload_progress import Meter
from middleware_api.contract import MIB, PartTag
from middleware_api.crc32 import crc32

PART_ATTEMPTS = 5
# A send that takes longer than the connect timeout fails (Python bounds one `sendall` as a
# whole), so a part goes out in slices that a slow line manages in time: 256 KiB in 30 s. Where
# they go out fast they grow, since each costs Python's time.
SLICE_BYTES, SLICE_BYTES_MOST = 256 * 1024, 4 * MIB
SLICE_SECONDS = 0.5
PART_TIMEOUT_SECONDS = (30.0, 120.0)
REPORT_SECONDS = 0.2


class PartBody:
    """One part as a request body: sized, and read in slices of the mapped file without a copy."""

    def __init__(
        self,
        file: BinaryIO,
        start: int,
        length: int,
        meter: Meter,
        stop: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._file = file
        self._start = start
        self._length = length
        self._meter = meter
        self._stop = stop
        self._clock = clock
        self.sent = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[memoryview]:
        size = SLICE_BYTES
        for window in self._windows():
            at = 0
            while at < len(window):
                if self._stop.is_set():
                    raise Cancelled("The upload was stopped.")
                began = self._clock()
                with window[at : at + size] as piece:
                    yield piece
                    at += len(piece)
                    self.sent += len(piece)
                    self._meter.add(len(piece))
                fast = self._clock() - began < SLICE_SECONDS
                size = min(2 * size, SLICE_BYTES_MOST) if fast else SLICE_BYTES

    def checksum_headers(self, checksum: str) -> dict[str, str]:
        """What has the store refuse other bytes than these, where it says how."""
        if checksum == "crc32":
            crc = 0
            for window in self._windows():
                crc = crc32(window, crc)
            return {"x-amz-checksum-crc32": base64.b64encode(crc.to_bytes(4, "big")).decode()}
        if checksum == "md5":
            digest = hashlib.md5(usedforsecurity=False)
            for window in self._windows():
                digest.update(window)
            return {"Content-MD5": base64.b64encode(digest.digest()).decode()}
        return {}

    def forget(self) -> None:
        """Take back what was counted: the part is sent again."""
        self._meter.add(-self.sent)
        self.sent = 0

    def _windows(self) -> Iterator[memoryview]:
        return windows(self._file, self._start, self._length)


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
            self._urls.update(plan_of(state, self._filename).urls)


def plan_of(upload: CheckpointUpload, filename: str) -> UploadPlan:
    """Where one file's parts go. Raises UnexpectedAnswer."""
    for plan in upload.plans:
        if plan.filename == filename:
            return plan
    raise UnexpectedAnswer(f"The server's upload has no place for '{filename}'. Start it again.")


def send_parts(
    client: CloudClient,
    checkpoint_id: str,
    plan: UploadPlan,
    path: Path,
    meter: Meter,
    pace: Pace,
    watch: Callable[[], None],
) -> list[PartTag]:
    """Send the missing parts; the tags of all parts in order.

    `watch` is called several times a second in the calling thread; what it raises ends the
    sending. Raises UploadFailed, Cancelled or the API's errors.
    """
    lengths = part_lengths(path.stat().st_size, plan.part_size)
    tags = {part.number: part.etag for part in plan.arrived}
    book = UrlBook(client, checkpoint_id, plan.filename, plan.urls)
    stop = threading.Event()
    waiting = sorted(plan.urls, reverse=True)
    running: set[Future[tuple[int, str]]] = set()

    with (
        path.open("rb") as file,
        ThreadPoolExecutor(LANES_MOST, thread_name_prefix="sdaws-upload") as pool,
    ):

        def put(number: int) -> tuple[int, str]:
            start = (number - 1) * plan.part_size
            body = PartBody(file, start, lengths[number], meter, stop)
            return number, _put_part(client, book, number, body, plan.checksum)

        pace.begin(meter.done)
        try:
            while waiting or running:
                while waiting and len(running) < pace.lanes:
                    running.add(pool.submit(put, waiting.pop()))
                done, running = wait(running, REPORT_SECONDS, FIRST_COMPLETED)
                tags.update(future.result() for future in done)
                pace.note(meter.done)
                watch()
        except BaseException:
            stop.set()
            for future in running:
                future.cancel()
            raise
    return [{"PartNumber": number, "ETag": tags[number]} for number in sorted(tags)]


def part_lengths(size: int, part_size: int) -> dict[int, int]:
    """Bytes of each part by its number."""
    starts = range(0, size, part_size)
    return {n: min(part_size, size - start) for n, start in enumerate(starts, start=1)}


def _put_part(
    client: CloudClient, book: UrlBook, number: int, body: PartBody, checksum: str
) -> str:
    """Put one part, again when the line or the store falters; returns its ETag."""
    for attempt in range(PART_ATTEMPTS):
        url = book.url(number)
        try:
            response = client.storage.send(
                "PUT",
                url,
                body=body,
                headers={
                    "Content-Type": "application/octet-stream",
                    **body.checksum_headers(checksum),
                },
                timeout=PART_TIMEOUT_SECONDS,
                may_repeat=False,  # here, so that the count and the URL are put right first
            )
        except (ConnectionLost, TooManyRequests, ServerFault, BadRequest) as fault:
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
