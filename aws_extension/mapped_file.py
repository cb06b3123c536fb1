"""Reading a large file without a copy: windows of it are mapped, one after the other."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from aws_extension.errors import UploadFailed
from middleware_api.contract import MIB

WINDOW_BYTES = 8 * MIB


def windows(file: BinaryIO, start: int, length: int) -> Iterator[memoryview]:
    """These bytes of a file; each window is in memory only until the next is asked for.

    Raises OSError, and UploadFailed for a file that has become shorter.
    """
    for at in range(start, start + length, WINDOW_BYTES):
        with _mapped(file, at, min(WINDOW_BYTES, start + length - at)) as window:
            yield window


@contextmanager
def _mapped(file: BinaryIO, start: int, length: int) -> Iterator[memoryview]:
    lead = start % mmap.ALLOCATIONGRANULARITY
    try:
        content = mmap.mmap(
            file.fileno(), lead + length, access=mmap.ACCESS_READ, offset=start - lead
        )
    except ValueError as fault:
        raise UploadFailed(
            f"'{Path(file.name).name}' became shorter while it was read. Start the upload again "
            "when nothing writes the file any more."
        ) from fault
    with content, memoryview(content) as whole, whole[lead:] as view:
        yield view
