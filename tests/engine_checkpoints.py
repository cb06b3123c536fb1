"""Random checkpoints in LDM layout, of any SD 1.x-like size, for the engine's tests."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel

from middleware_api.container.checkpoint_shapes import TextShape, UNetShape, VaeShape
from middleware_api.container.ldm_layout import full_checkpoint

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Size:
    """The numbers that tell one SD 1.x-like model from another."""

    unet: UNetShape
    vae: VaeShape
    text: TextShape


TINY = Size(
    UNetShape(4, 4, (32, 64), 1, (True, False), 64),
    VaeShape((32, 32, 32, 32), 1, 4),
    TextShape(49408, 77, 64, 256, 2),
)
SD15 = Size(
    UNetShape(4, 4, (320, 640, 1280, 1280), 2, (True, True, True, False), 768),
    VaeShape((128, 256, 512, 512), 2, 4),
    TextShape(49408, 77, 768, 3072, 12),
)


def empty_tensors(size: Size) -> Tensors:
    """Names and shapes alone, on the meta device."""
    with torch.device("meta"):
        return full_checkpoint(
            UNet2DConditionModel(**size.unet.config()).state_dict(),
            AutoencoderKL(**size.vae.config()).state_dict(),
            CLIPTextModel(size.text.config()).state_dict(),
        )


def random_tensors(size: Size = TINY, seed: int = 0) -> Tensors:
    """Weights that keep the spread of what passes through; norms and biases change nothing."""
    return dict(_drawn(size, seed))


@cache
def _drawn(size: Size, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, empty in empty_tensors(size).items():
        if empty.ndim == 1:
            filled = torch.full(empty.shape, 0.0 if name.endswith("bias") else 1.0)
        else:
            spread = 1 / math.sqrt(math.prod(empty.shape[1:]))
            filled = torch.randn(empty.shape, generator=generator) * spread
        tensors[name] = filled.half()
    return tensors


def write_checkpoint(path: Path, size: Size = TINY, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(random_tensors(size, seed), path)
    return path
