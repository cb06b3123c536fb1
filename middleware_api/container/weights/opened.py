"""A weights file of a model, opened to read its tensors one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from middleware_api.container.errors import CheckpointUnreadable


@contextmanager
def opened(path: Path, name: str, kind: str) -> Iterator[Any]:
    """Lends safetensors' own handle, which is not typed.

    Raises CheckpointUnreadable in words about `name`, also while a tensor is read.

    `kind` is what a user may choose in its place: "checkpoint" or "ControlNet".
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except FileNotFoundError as error:
        raise CheckpointUnreadable(
            f"{name} is not in the object store. Upload it again, or pick another {kind}."
        ) from error
    except (SafetensorError, OSError) as error:
        raise CheckpointUnreadable(
            f"{name} is not a readable .safetensors file ({error}). Upload it again."
        ) from error
