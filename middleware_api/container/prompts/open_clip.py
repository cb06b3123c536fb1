"""OpenCLIP's text encoder under transformers' names: the same network, differently cut.

OpenCLIP keeps queries, keys and values of a layer in one tensor, and the projection of the pooled
text as the transpose of a linear layer's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

PROJECTION = "text_projection"
_TOGETHER = re.compile(r"(.*self_attn\.)in_proj_(weight|bias)")
_LAYER = "transformer.resblocks."
_PARTS = {
    "token_embedding.": "embeddings.token_embedding.",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.": "final_layer_norm.",
    _LAYER: "encoder.layers.",
}
_LAYER_PARTS = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "attn.": "self_attn.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}


def from_open_clip(name: str) -> str:
    """A tensor's name in transformers; three of them share one with `in_proj_` in it."""
    for theirs, ours in _PARTS.items():
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
    if name.startswith("encoder.layers."):
        *place, part = name.split(".", 3)
        for theirs, ours in _LAYER_PARTS.items():
            if part.startswith(theirs):
                return ".".join([*place, ours + part.removeprefix(theirs)])
    return name


def separated(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values in tensors of their own; names are already transformers'."""
    apart: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        together = _TOGETHER.fullmatch(name)
        if together is None:
            apart[name] = tensor
            continue
        for side, part in zip("qkv", tensor.chunk(3), strict=True):
            apart[f"{together[1]}{side}_proj.{together[2]}"] = part
    return apart


def to_open_clip(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Transformers' tensors under OpenCLIP's names; the projection is not among them."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".k_proj." in name or ".v_proj." in name:
            continue
        if ".q_proj." in name:
            sides = [tensors[name.replace(".q_proj.", f".{side}_proj.")] for side in "qkv"]
            name, tensor = name.replace(".q_proj.", ".in_proj_"), torch.cat(sides)
        for parts in (_LAYER_PARTS, _PARTS):
            for theirs, ours in parts.items():
                name = name.replace(ours, theirs)
        found[name] = tensor
    return found
