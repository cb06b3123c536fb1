"""The SHA-256 of what is stored, where the store does not tell it: the object is read once more."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from middleware_api.contract import MIB
from middleware_api.errors import NotFound
from middleware_api.ports import Objects, StoredObject
from middleware_api.records import CheckpointFile
from middleware_api.services.uploads import require_same

# So many are in memory, and one more: the next pieces come while one is hashed.
PIECE_BYTES = 8 * MIB
PIECES_AHEAD = 2


def hashed(
    objects: Objects, file: CheckpointFile, watch: Callable[[int, int], None] | None = None
) -> CheckpointFile:
    """The file with the hash of its stored bytes; `watch` is told how many of how many are read.

    Raises ContentDiffers when they are not the announced ones, NotFound when they are gone.
    """
    size = objects.size(file.key)
    if size is None:
        raise NotFound(f"File '{file.name}' is not in the object store any more.")
    digest = hashlib.sha256()
    done = 0
    for piece in _pieces(objects, file.key, size):
        digest.update(piece)
        done += len(piece)
        if watch is not None:
            watch(done, size)
    if done != size:
        raise NotFound(f"File '{file.name}' changed while it was read.")
    found = StoredObject(size, digest.hexdigest())
    require_same(file, found)
    return replace(file, size=size, sha256=found.sha256, is_hashed=True)


def _pieces(objects: Objects, key: str, size: int) -> Iterator[bytes]:
    coming: deque[Future[bytes]] = deque()
    pool = ThreadPoolExecutor(PIECES_AHEAD, thread_name_prefix="hashing")
    try:
        for start in range(0, size, PIECE_BYTES):
            coming.append(pool.submit(objects.read_range, key, start, PIECE_BYTES))
            if len(coming) > PIECES_AHEAD:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
