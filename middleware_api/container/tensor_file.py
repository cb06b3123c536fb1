"""Files of tensors, a range of elements at a time.

By plain reads: the pages of a mapped file count as the process's memory, and a merge has several
files of many GB at hand. The format is https://github.com/huggingface/safetensors#format: eight
bytes of length, a JSON header of that length, and the tensors' bytes without holes.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from middleware_api.container.errors import CheckpointUnreadable

Values = Callable[[int, int], Tensor]
"""Elements `start` to `stop` of a tensor whose dimensions are flattened."""

METADATA = "__metadata__"
_LENGTH_BYTES = 8
# A full checkpoint's has some 300 KB; parsed, a header takes many times its length.
_HEADER_MAX_BYTES = 16 * 1024 * 1024

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is read, or reckoned, when it is asked for."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    values: Values

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def n_bytes(self) -> int:
        return self.n_elements * self.dtype.itemsize


@dataclass(frozen=True)
class TensorFile:
    """An open file: its tensors in the file's order, and its metadata."""

    tensors: dict[str, LazyTensor]
    metadata: dict[str, str]


@contextmanager
def open_tensor_file(path: Path, name: str) -> Iterator[TensorFile]:
    """Raises CheckpointUnreadable in words about `name`, also while a tensor is read."""
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError as error:
        raise CheckpointUnreadable(
            f"{name} is not in the object store. Upload it again, or pick another checkpoint."
        ) from error
    with file:
        yield _Parser(file, name).parse()


def header_of(tensors: Mapping[str, LazyTensor], metadata: Mapping[str, str]) -> bytes:
    """The beginning of a file whose tensors follow in the order of `tensors`.

    Its length is a multiple of 8, so that every tensor is aligned when wide ones come first.
    """
    entries: dict[str, object] = {METADATA: dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.n_bytes
        entries[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


@dataclass(frozen=True)
class _Place:
    """What a header says of a tensor; its bytes lie from `start` to `end` behind the header."""

    start: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bounds(self) -> tuple[int, int]:
        return self.start, self.end


class _Parser:
    """Reads and checks a header. Nothing that it says is believed before it fits the file."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name

    def parse(self) -> TensorFile:
        size = self._file.seek(0, os.SEEK_END)
        length = int.from_bytes(self._read(0, min(_LENGTH_BYTES, size)), "little")
        first = _LENGTH_BYTES + length
        if size < _LENGTH_BYTES or first > size:
            raise self._unreadable("it is cut short, or no .safetensors file")
        if length > _HEADER_MAX_BYTES:
            raise self._unreadable(f"its header has {length} bytes")
        entries = self._header(self._read(_LENGTH_BYTES, length))
        metadata = self._metadata(entries.pop(METADATA, {}))
        described = {name: self._described(name, entry) for name, entry in entries.items()}
        at = 0
        for name, place in sorted(described.items(), key=lambda item: item[1].bounds):
            if place.start != at:
                raise self._unreadable(f"tensor {name} does not begin where the one before ends")
            at = place.end
        if first + at != size:
            raise self._unreadable(
                f"its tensors take {at} bytes and the file has {size - first} for them"
            )
        tensors = {
            name: LazyTensor(
                place.dtype, place.shape, self._values(name, place.dtype, first + place.start)
            )
            for name, place in described.items()
        }
        return TensorFile(tensors, metadata)

    def _header(self, content: bytes) -> dict[str, Any]:
        try:
            entries = json.loads(content, object_pairs_hook=_without_doubles)
            json.dumps(entries, ensure_ascii=False).encode()  # half a character fails here
        except (ValueError, RecursionError) as error:
            raise self._unreadable(f"its header is no JSON ({error})") from error
        if not isinstance(entries, dict):
            raise self._unreadable("its header is no JSON object")
        return entries

    def _metadata(self, raw: object) -> dict[str, str]:
        if not isinstance(raw, dict) or not all(isinstance(v, str) for v in raw.values()):
            raise self._unreadable("its metadata are not texts")
        return raw

    def _described(self, name: str, raw: object) -> _Place:
        fault = self._unreadable(f"tensor {name} is not described as it must be")
        if not isinstance(raw, dict) or raw.keys() != {"dtype", "shape", "data_offsets"}:
            raise fault
        shape, offsets = raw["shape"], raw["data_offsets"]
        if not (_are_counts(shape) and _are_counts(offsets) and len(offsets) == 2):
            raise fault
        dtype = _DTYPES.get(raw["dtype"]) if isinstance(raw["dtype"], str) else None
        if dtype is None:
            raise self._unreadable(f"tensor {name} is of the unknown type {raw['dtype']!r:.20}")
        place = _Place(offsets[0], offsets[1], dtype, tuple(shape))
        needed = math.prod(shape) * dtype.itemsize
        if place.end - place.start != needed:
            raise self._unreadable(
                f"tensor {name} takes {place.end - place.start} bytes where its shape needs "
                f"{needed}"
            )
        return place

    def _values(self, name: str, dtype: torch.dtype, place: int) -> Values:
        item = dtype.itemsize

        def values(start: int, stop: int) -> Tensor:
            raw = torch.empty((stop - start) * item, dtype=torch.uint8)
            self._file.seek(place + start * item)
            into = raw.numpy().data
            while into:
                count = self._file.readinto(into)  # type: ignore[attr-defined]  # FileIO has it
                if not count:
                    raise self._unreadable(f"it ended within tensor {name} while it was read")
                into = into[count:]
            return raw.view(dtype)

        return values

    def _read(self, place: int, length: int) -> bytes:
        self._file.seek(place)
        content = b""
        while len(content) < length:
            more = self._file.read(length - len(content))
            if not more:
                raise self._unreadable("it ended while it was read")
            content += more
        return content

    def _unreadable(self, reason: str) -> CheckpointUnreadable:
        return CheckpointUnreadable(
            f"{self._name} is not a readable .safetensors file: {reason}. Upload it again, or "
            "pick another file."
        )


def _are_counts(raw: object) -> bool:
    return isinstance(raw, list) and all(type(n) is int and 0 <= n < 1 << 63 for n in raw)


def _without_doubles(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found
