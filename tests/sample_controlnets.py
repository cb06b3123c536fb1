"""Small random ControlNets for the tests' checkpoints, in both layouts of files."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from diffusers import ControlNetModel
from safetensors.torch import save_file

from middleware_api.container.engine.ldm_layout import UNET_PREFIX, unet_to_ldm
from tests.engine_checkpoints import TINY, Size, Tensors

HINTS = (16, 32, 96, 256)  # lllyasviel's widths of the hint's own encoder


def controlnet(seed: int = 0, size: Size = TINY, **changes: object) -> ControlNetModel:
    """What goes with `random_tensors(size)`; no layer of it is zero."""
    config = {
        name: value
        for name, value in size.unet.config().items()
        if name not in ("out_channels", "up_block_types")
    }
    config |= {"conditioning_embedding_out_channels": HINTS, **changes}
    network = ControlNetModel(**config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.named_parameters():
        if tensor.ndim == 1:
            tensor.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            spread = 1 / math.sqrt(math.prod(tensor.shape[1:]))
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * spread)
    return network


def ldm_names(state: Tensors) -> Tensors:
    """The same tensors as lllyasviel's files name them."""
    own = ("controlnet_", "add_embedding.")
    renamed = {
        "control_model." + key.removeprefix(UNET_PREFIX): tensor
        for key, tensor in unet_to_ldm(
            {key: tensor for key, tensor in state.items() if not key.startswith(own)}
        ).items()
    }
    for key, tensor in state.items():
        stem, _, leaf = key.rpartition(".")
        part, _, place = stem.rpartition(".")
        known = {
            "controlnet_mid_block": "middle_block_out.0",
            "controlnet_cond_embedding.conv_in": "input_hint_block.0",
            "controlnet_cond_embedding.conv_out": "input_hint_block.14",
        }.get(stem)
        if part == "controlnet_down_blocks":
            known = f"zero_convs.{place}.0"
        elif part == "controlnet_cond_embedding.blocks":
            known = f"input_hint_block.{2 + 2 * int(place)}"
        if known:
            renamed[f"control_model.{known}.{leaf}"] = tensor
    return renamed


def write_controlnet(path: Path, network: ControlNetModel, ldm: bool = True) -> Path:
    state = {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(ldm_names(state) if ldm else state, path)
    return path
