"""Pictures whose edges meet: the models see each edge continued by the opposite one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def seamless(models: Iterable[nn.Module]) -> Iterator[None]:
    """Convolutions pad in a circle meanwhile, and as before when it ends, however it ends."""
    layers = [
        layer for model in models for layer in model.modules() if isinstance(layer, nn.Conv2d)
    ]
    before = [layer.padding_mode for layer in layers]
    try:
        for layer in layers:
            layer.padding_mode = "circular"
        yield
    finally:
        for layer, mode in zip(layers, before, strict=True):
            layer.padding_mode = mode
