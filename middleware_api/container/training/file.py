"""Files of tensors written to the object store as they come, and what is told of them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from middleware_api.container.storage import Storage
from middleware_api.container.weights.tensor_file import LazyTensor, header_of


@dataclass(frozen=True)
class Written:
    """A file in the object store."""

    key: str
    size: int
    sha256: str


def write_tensors(
    storage: Storage, key: str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Written:
    """One tensor at a time leaves the GPU; raises DiskFull and StorageUnreachable."""
    # Wide ones first, so that each is aligned.
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))
    header = header_of({name: _described(tensor) for name, tensor in ordered.items()}, metadata)
    size = len(header) + sum(t.numel() * t.element_size() for t in ordered.values())
    digest = hashlib.sha256(header)
    with storage.writing(key, size) as sink:
        sink.write(memoryview(header))
        for tensor in ordered.values():
            content = bytes_of(tensor)
            digest.update(content)
            sink.write(content)
    return Written(key, size, digest.hexdigest())


def hash_of(tensors: Mapping[str, Tensor]) -> str:
    """kohya's hash of a file: the sha256 of what follows its header."""
    digest = hashlib.sha256()
    for _, tensor in sorted(tensors.items(), key=lambda item: -item[1].element_size()):
        digest.update(bytes_of(tensor))
    return digest.hexdigest()


def bytes_of(tensor: Tensor) -> memoryview:
    """A tensor's bytes as files have them."""
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy().data


def _described(tensor: Tensor) -> LazyTensor:
    return LazyTensor(tensor.dtype, tuple(tensor.shape), _never)


def _never(start: int, stop: int) -> Tensor:
    raise AssertionError("its bytes are written beside its header")
