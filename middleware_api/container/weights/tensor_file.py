"""Files of tensors, a range of elements at a time.

By plain reads: the pages of a mapped file count as the process's memory, and a merge has several
files of many GB at hand. For the format see `tensor_header`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from middleware_api.container.errors import CheckpointUnreadable
from middleware_api.tensor_header import (
    LENGTH_BYTES,
    METADATA,
    BadHeader,
    Header,
    Place,
    read_header,
)

Values = Callable[[int, int], Tensor]
"""Elements `start` to `stop` of a tensor whose dimensions are flattened."""

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
DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


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
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % LENGTH_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


class _Parser:
    """Reads a file's header, and what is asked for of its tensors."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name

    def parse(self) -> TensorFile:
        try:
            header = read_header(self._read, self._file.seek(0, os.SEEK_END))
        except BadHeader as error:
            raise self._unreadable(str(error)) from error
        tensors = {
            name: self._tensor(name, place, header) for name, place in header.tensors.items()
        }
        return TensorFile(tensors, header.metadata)

    def _tensor(self, name: str, place: Place, header: Header) -> LazyTensor:
        dtype = _DTYPES.get(place.dtype)
        if dtype is None:
            raise self._unreadable(f"tensor {name} is of the unknown type {place.dtype!r}")
        return LazyTensor(dtype, place.shape, self._values(name, dtype, header.end + place.start))

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
        while len(content) < length and (more := self._file.read(length - len(content))):
            content += more
        return content

    def _unreadable(self, reason: str) -> CheckpointUnreadable:
        return CheckpointUnreadable(
            f"{self._name} is not a readable .safetensors file: {reason}. Upload it again, or "
            "pick another file."
        )
