"""A Stable Diffusion 1.x of the demo's size with random weights: real to load, quick to run."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from middleware_api.container.engine.ldm_layout import full_checkpoint
from middleware_api.demo.architecture import build_autoencoder, build_text_encoder, build_unet


def write_random_checkpoint(path: Path, seed: int = 0) -> None:
    """Write a single-file checkpoint in half precision; the same seed, the same file."""
    torch.manual_seed(seed)
    tensors = full_checkpoint(
        build_unet().state_dict(),
        build_autoencoder().state_dict(),
        build_text_encoder().state_dict(),
    )
    save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, path)
