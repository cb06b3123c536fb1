"""Random checkpoints in LDM layout, of any size and family, for the engine's tests."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel

from middleware_api.container.engine.checkpoint_shapes import TextShape, UNetShape, VaeShape
from middleware_api.container.engine.families import SD1, SD2, SDXL, SDXL_REFINER, Family, Layout
from middleware_api.container.engine.ldm_layout import unet_to_ldm, vae_to_ldm

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Size:
    """The numbers that tell one model of a family from another."""

    unet: UNetShape
    vae: VaeShape
    texts: tuple[TextShape, ...]
    family: Family = SD1


_VAE = VaeShape((32, 32, 32, 32), 1, 4)
_OPEN = TextShape(49408, 77, 64, 256, 4, Layout.OPEN_CLIP)
_POOLED = TextShape(49408, 77, 128, 256, 4, Layout.OPEN_CLIP, pooled=128)
TINY = Size(UNetShape(4, 4, (32, 64), 1, (1, 0), 64), _VAE, (TextShape(49408, 77, 64, 256, 2),))
TINY_2 = Size(UNetShape(4, 4, (64, 64), 1, (1, 0), 64, is_linear=True), _VAE, (_OPEN,), SD2)
TINY_XL = Size(
    UNetShape(4, 4, (32, 128), 1, (0, 2), 192, 2, is_linear=True, added=128 + 6 * 256),
    _VAE,
    (TextShape(49408, 77, 64, 256, 3), _POOLED),
    SDXL,
)
TINY_REFINER = Size(
    UNetShape(4, 4, (32, 64, 64), 1, (0, 2, 0), 128, 2, is_linear=True, added=128 + 5 * 256),
    _VAE,
    (_POOLED,),
    SDXL_REFINER,
)
SD15 = Size(
    UNetShape(4, 4, (320, 640, 1280, 1280), 2, (1, 1, 1, 0), 768),
    VaeShape((128, 256, 512, 512), 2, 4),
    (TextShape(49408, 77, 768, 3072, 12),),
)
SD21 = Size(
    UNetShape(4, 4, (320, 640, 1280, 1280), 2, (1, 1, 1, 0), 1024, is_linear=True),
    SD15.vae,
    (TextShape(49408, 77, 1024, 4096, 24, Layout.OPEN_CLIP),),
    SD2,
)
XL_BASE = Size(
    UNetShape(4, 4, (320, 640, 1280), 2, (0, 2, 10), 2048, 10, is_linear=True, added=2816),
    SD15.vae,
    (*SD15.texts, TextShape(49408, 77, 1280, 5120, 32, Layout.OPEN_CLIP, pooled=1280)),
    SDXL,
)
XL_REFINER = Size(
    UNetShape(4, 4, (384, 768, 1536, 1536), 2, (0, 4, 4, 0), 1280, 4, is_linear=True, added=2560),
    SD15.vae,
    XL_BASE.texts[1:],
    SDXL_REFINER,
)


def empty_tensors(size: Size) -> Tensors:
    """Names and shapes alone, on the meta device."""
    with torch.device("meta"):
        tensors = unet_to_ldm(UNet2DConditionModel(**size.unet.config()).state_dict())
        tensors |= vae_to_ldm(AutoencoderKL(**size.vae.config()).state_dict())
        for shape, source in zip(size.texts, size.family.texts, strict=True):
            state = CLIPTextModel(shape.config()).state_dict()
            if source.layout is Layout.CLIP:
                named = {f"text_model.{key}": value for key, value in state.items()}
            else:
                named = open_clip_of(state)
                named["text_projection"] = torch.empty(shape.width, shape.pooled or shape.width)
            tensors |= {source.prefix + key: value for key, value in named.items()}
    return tensors


_OPEN_CLIP = (
    (r"embeddings\.token_embedding", "token_embedding"),
    (r"embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"final_layer_norm", "ln_final"),
    (r"encoder\.layers", "transformer.resblocks"),
    (r"layer_norm(\d)", r"ln_\1"),
    (r"self_attn\.q_proj\.", "attn.in_proj_"),
    (r"self_attn\.out_proj", "attn.out_proj"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
)


def open_clip_of(state: Mapping[str, torch.Tensor]) -> Tensors:
    """A `CLIPTextModel`'s tensors as OpenCLIP has them."""
    tensors: Tensors = {}
    for key, value in state.items():
        if re.search(r"[kv]_proj", key):
            continue
        if "q_proj" in key:
            value = torch.cat([state[key.replace("q_proj", f"{s}_proj")] for s in "qkv"])
        for ours, theirs in _OPEN_CLIP:
            key = re.sub(ours, theirs, key)
        tensors[key] = value
    return tensors


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


def write_checkpoint(
    path: Path, size: Size = TINY, seed: int = 0, metadata: dict[str, str] | None = None
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(random_tensors(size, seed), path, metadata)
    return path
