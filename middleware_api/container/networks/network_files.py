"""The small files that prompts name. Those of torch were converted when they were uploaded."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from middleware_api.container.errors import CheckpointUnreadable

_HEADER_LENGTH_BYTES = 8
_PIECE = 1 << 20


def read_network_file(path: Path, name: str) -> tuple[Mapping[str, Tensor], Mapping[str, str]]:
    """A `.safetensors` file's tensors and metadata; raises CheckpointUnreadable."""
    try:
        with safe_open(path, framework="pt") as file:
            keys: list[str] = list(file.keys())
            return {key: file.get_tensor(key) for key in keys}, file.metadata() or {}
    except FileNotFoundError as error:
        raise CheckpointUnreadable(
            f"{name} is not in the object store. Upload it again, or take it out of the prompt."
        ) from error
    except (SafetensorError, OSError) as error:
        raise CheckpointUnreadable(
            f"{name} is not a readable .safetensors file ({error}). Upload it again, or take it "
            "out of the prompt."
        ) from error


def hash_without_header(path: Path) -> str:
    """A `.safetensors` file's sha256 from behind its header: kohya's, which metadata may carry."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_HEADER_LENGTH_BYTES), "little")
        file.seek(length, 1)
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()
