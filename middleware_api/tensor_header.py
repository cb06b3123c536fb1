"""The header of a file of tensors, read and checked; nothing of the tensors themselves.

The format is https://github.com/huggingface/safetensors#format: eight bytes of length, a JSON
header of that length, and the tensors' bytes without holes. Standard library only: the middleware
asks here where a file may become a checkpoint, and it has no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

METADATA = "__metadata__"
LENGTH_BYTES = 8
# A full checkpoint's has some 300 KB; parsed, a header takes many times its length.
HEADER_MAX_BYTES = 16 * 1024 * 1024
_DIMENSIONS_MAX = 64
_COUNT_MAX = 1 << 63

_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}

Read = Callable[[int, int], bytes]
"""The bytes of a file from a place on; fewer than asked for where the file ends."""


class BadHeader(Exception):
    """The file is not what it must be; the message is the reason, as the end of a sentence."""


@dataclass(frozen=True)
class Place:
    """What a header says of a tensor; its bytes lie from `start` to `end` behind the header."""

    start: int
    end: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def bounds(self) -> tuple[int, int]:
        return self.start, self.end


@dataclass(frozen=True)
class Header:
    """A whole header; the tensors' bytes begin at `end` of the file."""

    end: int
    tensors: dict[str, Place]
    metadata: dict[str, str]


def read_header(read: Read, size: int) -> Header:
    """The header of a file of `size` bytes; reads nothing behind it.

    Nothing that it says is believed before it fits the file. Raises BadHeader, and what `read`
    raises.
    """
    length = int.from_bytes(_exactly(read, 0, min(LENGTH_BYTES, size)), "little")
    first = LENGTH_BYTES + length
    if size < LENGTH_BYTES or first > size:
        raise BadHeader("it is cut short, or no .safetensors file")
    if length > HEADER_MAX_BYTES:
        raise BadHeader(f"its header has {length} bytes")
    entries = _entries(_exactly(read, LENGTH_BYTES, length))
    metadata = _metadata(entries.pop(METADATA, {}))
    tensors = {name: _place(name, entry) for name, entry in entries.items()}
    at = 0
    for name, place in sorted(tensors.items(), key=lambda item: item[1].bounds):
        if place.start != at:
            raise BadHeader(f"tensor {_shown(name)} does not begin where the one before ends")
        at = place.end
    if first + at != size:
        raise BadHeader(f"its tensors take {at} bytes and the file has {size - first} for them")
    return Header(first, tensors, metadata)


def _exactly(read: Read, start: int, length: int) -> bytes:
    content = read(start, length)
    if len(content) != length:
        raise BadHeader("it ended while it was read")
    return content


def _entries(content: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(content, object_pairs_hook=_without_doubles)
        json.dumps(entries, ensure_ascii=False).encode()  # half a character fails here
    except (ValueError, RecursionError) as error:
        raise BadHeader(f"its header is no JSON ({error})") from error
    if not isinstance(entries, dict):
        raise BadHeader("its header is no JSON object")
    return entries


def _metadata(raw: object) -> dict[str, str]:
    if not isinstance(raw, dict) or not all(isinstance(v, str) for v in raw.values()):
        raise BadHeader("its metadata are not texts")
    return raw


def _place(name: str, raw: object) -> Place:
    fault = BadHeader(f"tensor {_shown(name)} is not described as it must be")
    if not isinstance(raw, dict) or raw.keys() != {"dtype", "shape", "data_offsets"}:
        raise fault
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not (_are_counts(shape) and _are_counts(offsets) and len(offsets) == 2):
        raise fault
    if len(shape) > _DIMENSIONS_MAX:  # a long product of large numbers takes minutes
        raise fault
    item = _ITEM_BYTES.get(dtype) if isinstance(dtype, str) else None
    if item is None:
        raise BadHeader(f"tensor {_shown(name)} is of the unknown type {dtype!r:.20}")
    place = Place(offsets[0], offsets[1], dtype, tuple(shape))
    needed = math.prod(shape) * item
    if place.end - place.start != needed:
        told = needed if needed < _COUNT_MAX else "many more"
        raise BadHeader(
            f"tensor {_shown(name)} takes {place.end - place.start} bytes where its shape needs "
            f"{told}"
        )
    return place


def _shown(name: str) -> str:
    """A name that somebody unknown has chosen, for a sentence that somebody else reads."""
    return name if name.isprintable() and len(name) <= 200 else f"{name[:200]!a}"


def _are_counts(raw: object) -> bool:
    return isinstance(raw, list) and all(type(n) is int and 0 <= n < _COUNT_MAX for n in raw)


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found
