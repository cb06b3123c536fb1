"""A LoRA's layers in a model while it is trained, and their names in kohya's files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

_ADAPTER = "default"

# The UNet's attention; with `extended` every linear layer and convolution of its blocks.
_ATTENTION = r".*\.attn\d\.(to_q|to_k|to_v|to_out\.0)"
_EXTENDED = (
    r".*\.(to_q|to_k|to_v|to_out\.0|proj_in|proj_out|net\.0\.proj|net\.2|conv1|conv2"
    r"|conv_shortcut|time_emb_proj|downsamplers\.0\.conv|upsamplers\.0(\.doubling)?\.conv)"
)
_TEXT = r".*\.(q_proj|k_proj|v_proj|out_proj|fc1|fc2)"


@dataclass(frozen=True)
class LoraShape:
    """`alpha` over `rank` is the strength of every layer."""

    rank: int
    alpha: float


def add_to_unet(unet: nn.Module, shape: LoraShape, extended: bool) -> None:
    """Layers that change nothing yet; everything else is frozen."""
    _inject(unet, shape, _EXTENDED if extended else _ATTENTION)


def add_to_text_encoder(encoder: nn.Module, shape: LoraShape) -> None:
    """Likewise."""
    _inject(encoder, shape, _TEXT)


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """The LoRA's own, by the names that they have in the module."""
    return {name: p for name, p in module.named_parameters() if ".lora_" in name}


def kohya_tensors(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """The layers' tensors by their names in kohya's files."""
    for name, found in module.named_modules():
        if not isinstance(found, LoraLayer):
            continue
        layer: Any = found
        # What checkpoint.py wraps around an upsampler has no place in files' names.
        stem = f"{prefix}{name.replace('.doubling.', '.').replace('.', '_')}"
        down, up = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
        yield f"{stem}.lora_down.weight", down.detach()
        yield f"{stem}.lora_up.weight", up.detach()
        yield f"{stem}.alpha", torch.tensor(float(layer.lora_alpha[_ADAPTER]))


def plain_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors by the names that they had before a LoRA was added."""
    return {
        re.sub(r"\.base_layer\b", "", name).replace(".doubling.", "."): tensor
        for name, tensor in module.state_dict().items()
        if ".lora_" not in name
    }


def _inject(module: nn.Module, shape: LoraShape, targets: str) -> None:
    config = LoraConfig(r=shape.rank, lora_alpha=shape.alpha, target_modules=targets)  # type: ignore[arg-type]  # alpha may be a fraction
    inject_adapter_in_model(config, module, adapter_name=_ADAPTER)
    for name, parameter in module.named_parameters():
        if ".lora_" in name:
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)
        else:
            parameter.requires_grad_(False)
