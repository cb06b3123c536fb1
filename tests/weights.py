"""A Stable Diffusion 1.x of the demo's size with random weights: real to load, quick to run."""

from __future__ import annotations

import torch
from safetensors.torch import save

from middleware_api.container.ldm_layout import full_checkpoint
from middleware_api.demo.architecture import build_autoencoder, build_text_encoder, build_unet


def random_checkpoint(seed: int = 0) -> bytes:
    """The bytes of a single-file checkpoint in half precision."""
    torch.manual_seed(seed)
    tensors = full_checkpoint(
        build_unet().state_dict(),
        build_autoencoder().state_dict(),
        build_text_encoder().state_dict(),
    )
    return save({name: tensor.half().contiguous() for name, tensor in tensors.items()})
