"""The optimizers that a training may ask for, and what takes the place of one that is not there."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

Groups = list[dict[str, Any]]
PLAIN = "Torch AdamW"

# bitsandbytes' classes; all of them compute on a GPU alone.
_BITSANDBYTES = {
    "8bit AdamW": "AdamW8bit",
    "Paged 8bit AdamW": "PagedAdamW8bit",
    "Lion": "Lion",
    "8bit Lion": "Lion8bit",
    "Paged 8bit Lion": "PagedLion8bit",
}


def make_optimizer(
    name: str, groups: Groups, device: torch.device, warn: Callable[[str], None]
) -> torch.optim.Optimizer:
    """Of parameter groups with their own `lr` and `weight_decay`; an empty name takes the best."""
    has_bitsandbytes = device.type == "cuda" and importlib.util.find_spec("bitsandbytes")
    if not name:
        name = "8bit AdamW" if has_bitsandbytes else PLAIN
    if name == PLAIN:
        return torch.optim.AdamW(groups, fused=True)
    if name == "Adafactor":
        from transformers import Adafactor  # only where it is asked for

        made: torch.optim.Optimizer = Adafactor(
            groups, scale_parameter=True, relative_step=False, warmup_init=False
        )
        return made
    if name not in _BITSANDBYTES:
        known = ", ".join((PLAIN, "Adafactor", *_BITSANDBYTES))
        warn(f"Optimizer {name!r} is not there: {PLAIN} was used. Others that are: {known}.")
        return torch.optim.AdamW(groups, fused=True)
    if not has_bitsandbytes:
        why = "needs a GPU" if device.type != "cuda" else "needs the package bitsandbytes"
        warn(f"Optimizer {name!r} {why}: {PLAIN} was used, which learns the same.")
        return torch.optim.AdamW(groups, fused=True)
    kind = getattr(importlib.import_module("bitsandbytes").optim, _BITSANDBYTES[name])
    eight_bit: torch.optim.Optimizer = kind(groups)
    return eight_bit


def clip(parameters: list[nn.Parameter], most: float) -> None:
    """Bounds the norm of the gradients together."""
    nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], most)
