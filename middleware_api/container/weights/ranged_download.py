"""One large object of S3, several ranges at a time, straight to their places in a file."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

from botocore.exceptions import BotoCoreError

from middleware_api.container.storage import OnBytes
from middleware_api.contract import MIB

RANGE_BYTES = 16 * MIB
RANGES_AT_A_TIME = 8
ATTEMPTS = 5
# Small enough to be in a core's cache when it is written; `readinto` took twice the time.
_PIECE = MIB // 4
_LOOK_SECONDS = 0.2


class RangedDownload:
    """Fetches one version of an object: what changes meanwhile is refused by S3 (`etag`)."""

    def __init__(self, s3: Any, bucket: str, key: str, size: int, etag: str) -> None:
        self._s3, self._size = s3, size
        self._wanted = {"Bucket": bucket, "Key": key, "IfMatch": etag}
        self._stop = threading.Event()

    def run(self, file: int, look: OnBytes) -> str:
        """Writes all of it; returns its SHA-256, which costs nothing while ranges are coming.

        `look` may raise to stop: at once, whatever the line does. Raises botocore's errors.
        """
        digest = hashlib.sha256()
        hashed = done = 0
        pool = ThreadPoolExecutor(RANGES_AT_A_TIME, thread_name_prefix="download")
        running: dict[Future[int], int] = {}
        finished: set[int] = set()
        try:
            own = _OwnDescriptor(file)
            for start in range(0, self._size, RANGE_BYTES):
                running[pool.submit(self._fetch, own, start)] = start
            del own
            while running:
                ended, _ = wait(running, _LOOK_SECONDS, FIRST_COMPLETED)
                for future in ended:
                    done += future.result()
                    finished.add(running.pop(future))
                while hashed in finished:
                    content = os.pread(file, min(RANGE_BYTES, self._size - hashed), hashed)
                    digest.update(content)
                    finished.remove(hashed)
                    hashed += len(content)
                look(done)
        finally:
            self._stop.set()
            pool.shutdown(wait=False)
        return digest.hexdigest()

    def _fetch(self, file: _OwnDescriptor, start: int) -> int:
        """One range; goes on where it breaks off. Answers its length."""
        end = min(start + RANGE_BYTES, self._size)
        at = start
        for attempt in range(ATTEMPTS):
            if self._stop.is_set():
                break
            answer = self._s3.get_object(**self._wanted, Range=f"bytes={at}-{end - 1}")
            try:
                while at < end and (piece := answer["Body"].read(min(_PIECE, end - at))):
                    if self._stop.is_set():
                        break
                    os.pwrite(file.number, piece, at)
                    at += len(piece)
            except BotoCoreError:
                if attempt + 1 == ATTEMPTS:
                    raise
            finally:
                answer["Body"].close()
            if at == end:
                break
        return at - start


class _OwnDescriptor:
    """Another descriptor of an open file, as long as anybody needs it: what is left behind at a
    sudden end must not write to what has got the number of ours by then."""

    def __init__(self, file: int) -> None:
        self.number = os.dup(file)

    def __del__(self) -> None:
        os.close(self.number)
