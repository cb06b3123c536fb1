"""Names of tensors in LDM single files, from those of diffusers and transformers.

The reverse of diffusers' `convert_ldm_unet_checkpoint` and `convert_ldm_vae_checkpoint`. The
architecture's depth is read from the keys, so miniatures are written as well as SD 1.5 itself.
"""

import re
from collections.abc import Mapping

import torch

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer.text_model."

Tensors = dict[str, torch.Tensor]

_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def full_checkpoint(
    unet: Mapping[str, torch.Tensor],
    vae: Mapping[str, torch.Tensor],
    text: Mapping[str, torch.Tensor],
) -> Tensors:
    """All three networks' tensors under their LDM names."""
    return unet_to_ldm(unet) | vae_to_ldm(vae) | text_to_ldm(text)


def unet_to_ldm(state: Mapping[str, torch.Tensor]) -> Tensors:
    """`UNet2DConditionModel` tensors under `model.diffusion_model.`."""
    depth = 1 + _highest(state, r"down_blocks\.0\.resnets\.(\d+)\.")
    return {UNET_PREFIX + _unet_name(key, depth, state): value for key, value in state.items()}


def vae_to_ldm(state: Mapping[str, torch.Tensor]) -> Tensors:
    """`AutoencoderKL` tensors under `first_stage_model.`; attention matrices become 1x1 convs."""
    levels = 1 + _highest(state, r"decoder\.up_blocks\.(\d+)\.")
    renamed: Tensors = {}
    for key, value in state.items():
        is_matrix = ".attentions." in key and value.ndim == 2
        renamed[VAE_PREFIX + _vae_name(key, levels)] = (
            value[..., None, None] if is_matrix else value
        )
    return renamed


def text_to_ldm(state: Mapping[str, torch.Tensor]) -> Tensors:
    """`CLIPTextModel` tensors under `cond_stage_model.`; transformers 5 drops `text_model.`."""
    return {TEXT_PREFIX + key.removeprefix("text_model."): value for key, value in state.items()}


def _highest(state: Mapping[str, torch.Tensor], pattern: str) -> int:
    return max(int(match[1]) for key in state if (match := re.match(pattern, key)))


def _unet_name(key: str, depth: int, state: Mapping[str, torch.Tensor]) -> str:
    stem, leaf = key.rsplit(".", 1)
    if stem in _UNET_ENDS:
        return f"{_UNET_ENDS[stem]}.{leaf}"
    side, *parts = key.split(".")
    if side == "mid_block":
        kind, index, *rest = parts
        return f"middle_block.{2 * int(index) if kind == 'resnets' else 1}.{_unet_part(kind, rest)}"
    block, kind, index, *rest = parts
    if side == "down_blocks":
        first = 1 + int(block) * (depth + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + depth}.0.op.{leaf}"
        place = f"input_blocks.{first + int(index)}"
    else:
        first = int(block) * (depth + 1)
        if kind == "upsamplers":
            attends = any(name.startswith(f"up_blocks.{block}.attentions.") for name in state)
            return f"output_blocks.{first + depth}.{2 if attends else 1}.conv.{leaf}"
        place = f"output_blocks.{first + int(index)}"
    return f"{place}.{0 if kind == 'resnets' else 1}.{_unet_part(kind, rest)}"


def _unet_part(kind: str, rest: list[str]) -> str:
    if kind == "resnets":
        return ".".join([_UNET_RESNET[rest[0]], *rest[1:]])
    return ".".join(rest)


def _vae_name(key: str, levels: int) -> str:
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    if ".mid_block.attentions.0." in key:
        side, part = key.split(".mid_block.attentions.0.")
        stem, leaf = part.rsplit(".", 1)
        return f"{side}.mid.attn_1.{_VAE_ATTENTION[stem]}.{leaf}"
    key = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)

    def up(match: re.Match[str]) -> str:
        part = "block" if match[2] == "resnets" else "upsample"
        return f"up.{levels - 1 - int(match[1])}.{part}"

    return re.sub(r"up_blocks\.(\d+)\.(resnets|upsamplers\.0)", up, key)
