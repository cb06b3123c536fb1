"""Training state on disk: replaced whole, so that a killed run leaves the last complete one."""

import os
from pathlib import Path
from typing import Any

import torch


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write the state beside its place, then move it there."""
    partial = path.with_suffix(".writing")
    torch.save(state, partial)
    os.replace(partial, path)


def load_state(path: Path) -> dict[str, Any]:
    """Read a state back; tensors, numbers and containers only."""
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state
