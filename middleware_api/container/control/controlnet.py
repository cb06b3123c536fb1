"""ControlNet files (arXiv 2302.05543), in LDM's layout and in diffusers'.

As with checkpoints the tensors' shapes tell the architecture; whether it goes with a checkpoint is
found out from the UNet itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from torch import Tensor, nn

from middleware_api.container.engine.checkpoint import StableDiffusion
from middleware_api.container.engine.checkpoint_shapes import NORM_GROUPS, NUMBER_WIDTH
from middleware_api.container.engine.lean_attention import make_lean
from middleware_api.container.engine.packed import pack
from middleware_api.container.errors import BadRequest, CheckpointUnreadable
from middleware_api.container.weights.opened import opened

HINT_FACTOR = 8
"""Pixels a side of the hint for one latent: the network's own three halvings."""

_LDM_PREFIX = "control_model."
_HEAD_WIDTH = 64  # of the later families; Stable Diffusion 1.x has a fixed number of heads
_HEADS = 8
# First match wins: a name, or the beginning of one, that only such a file has.
_OTHER_KINDS = (
    ("lora_controlnet", "a Control-LoRA"),
    ("task_embedding", "a ControlNet Union"),
    ("control_add_embedding.", "a ControlNet Union"),
    ("difference", "a ControlNet saved as a difference"),
    ("ip_adapter.", "an IP-Adapter"),
    ("image_proj.", "an IP-Adapter"),
    ("lllite_", "a ControlNet-LLLite"),
    ("adapter.", "a T2I-Adapter"),
    ("body.", "a T2I-Adapter"),
    ("style_embedding", "a T2I style adapter"),
    ("down_blocks.0.motion_modules.", "a SparseCtrl"),
    ("controlnet_blocks.", "a ControlNet for Stable Diffusion 3 or Flux"),
    ("model.diffusion_model.", "a checkpoint"),
    ("lora_", "a LoRA"),
)
_READS_TEXT = re.compile(r"(down_blocks\.\d+|mid_block)\.attentions\.0\..*\.attn2\.to_k\.weight")

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class ControlNet:
    """A loaded network. Its hint goes through `embed` once, and not at each step.

    `pools`: what it adds is one number a channel, and goes to the prompt's side alone, as the
    Shuffle network was trained.
    """

    name: str
    sha256: str
    module: nn.Module
    embed: nn.Module
    pools: bool

    @property
    def in_channels(self) -> int:
        """Of the latents that it sees."""
        own: Any = self.module
        return int(own.config.in_channels)

    @property
    def n_bytes(self) -> int:
        parameters = [*self.module.parameters(), *self.embed.parameters()]
        return sum(p.numel() * p.element_size() for p in parameters)

    def check_goes_with(self, model: StableDiffusion) -> None:
        """Raises BadRequest when it was made for another kind of model."""
        own: Any = self.module
        unet: Any = model.unet
        sides = ("block_out_channels", "layers_per_block", "addition_embed_type")
        reads = "cross_attention_dim"
        if any(getattr(own.config, name) != getattr(unet.config, name) for name in sides) or (
            getattr(own.config, reads) not in (None, getattr(unet.config, reads))
        ):
            raise BadRequest(
                f"ControlNet {self.name} was made for {_family(own.config)} and {model.name} is "
                f"{_family(unet.config)}. Choose a ControlNet of the checkpoint's family.",
                "unlike_checkpoints",
            )
        if model.latent_factor != HINT_FACTOR:
            raise BadRequest(
                f"ControlNet {self.name} cannot steer {model.name}: it works on latents of "
                f"1/{HINT_FACTOR}, and those of the checkpoint are of 1/{model.latent_factor}.",
                "unlike_checkpoints",
            )


def load_controlnet(
    path: Path, name: str, sha256: str, device: torch.device, dtype: torch.dtype
) -> ControlNet:
    """Reads a `.safetensors` file; raises CheckpointUnreadable with one reason."""
    weights = _in_diffusers_names(_read(path, name), name)
    try:
        config = config_of(weights)
    except (KeyError, IndexError, ValueError) as error:
        raise _incomplete(name, f"tensor {error} is missing") from error
    if any(channels % NORM_GROUPS for channels in config["block_out_channels"]):
        raise CheckpointUnreadable(
            f"{name} cannot be loaded: its channels are not multiples of {NORM_GROUPS}. Pick "
            "another file."
        )
    with torch.device("meta"):
        module = ControlNetModel(**config)
    try:
        placed = {key: tensor.to(device, dtype) for key, tensor in weights.items()}
        missing, _ = module.load_state_dict(placed, strict=False, assign=True)
    except RuntimeError as error:  # torch names every tensor of the wrong size
        raise CheckpointUnreadable(
            f"{name} has tensors of unexpected sizes: {' '.join(str(error).split())[:400]}"
        ) from error
    if missing:
        raise _incomplete(name, f"{len(missing)} tensors are missing, {missing[0]} among them")
    module.eval().requires_grad_(False)
    pack(module)
    make_lean(module)
    embed = module.controlnet_cond_embedding
    module.controlnet_cond_embedding = nn.Identity()
    return ControlNet(name, sha256, module, embed, pools="shuffle" in name.lower())


def _read(path: Path, name: str) -> Weights:
    with opened(path, name, "ControlNet") as file:
        keys: list[str] = list(file.keys())
        _check_kind(keys, name)
        return {key.removeprefix(_LDM_PREFIX): file.get_tensor(key) for key in keys}


def _check_kind(keys: list[str], name: str) -> None:
    plain = [key.removeprefix(_LDM_PREFIX) for key in keys]
    for mark, kind in _OTHER_KINDS:
        if any(key.startswith(mark) for key in plain):
            raise CheckpointUnreadable(
                f"{name} is {kind}, which this engine does not load. Pick a ControlNet in "
                "lllyasviel's or diffusers' layout."
            )
    marks = ("input_hint_block.0.weight", "controlnet_cond_embedding.conv_in.weight")
    if not any(mark in plain for mark in marks):
        raise CheckpointUnreadable(
            f"{name} is no ControlNet: it has no tensor named {' or '.join(marks)}. Pick another "
            "file."
        )


def _in_diffusers_names(weights: Weights, name: str) -> Weights:
    if "controlnet_cond_embedding.conv_in.weight" in weights:
        return weights
    places = (re.match(r"input_blocks\.(\d+)\.0\.op\.weight", key) for key in weights)
    halvings = [int(found[1]) for found in places if found]
    try:
        config = {"layers_per_block": min(halvings) - 1}
        renamed: dict[str, Tensor | None] = convert_controlnet_checkpoint(dict(weights), config)
    except (KeyError, ValueError, IndexError) as error:
        raise _incomplete(name, f"its blocks do not follow each other ({error})") from error
    for ours, theirs in (("linear_1", "0.0"), ("linear_2", "0.2")):
        for leaf in ("weight", "bias"):
            if f"label_emb.{theirs}.{leaf}" in weights:
                renamed[f"add_embedding.{ours}.{leaf}"] = weights[f"label_emb.{theirs}.{leaf}"]
    return {key: tensor for key, tensor in renamed.items() if tensor is not None}


def config_of(weights: Weights) -> dict[str, Any]:
    """As diffusers' ControlNetModel takes it; raises KeyError naming a tensor."""

    def count(pattern: str) -> int:
        found = (re.match(pattern, key) for key in weights)
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    blocks = count(r"down_blocks\.(\d+)\.")
    channels = [weights[f"down_blocks.{i}.resnets.0.conv1.weight"].shape[0] for i in range(blocks)]
    attends = [f"down_blocks.{i}.attentions.0.proj_in.weight" in weights for i in range(blocks)]
    depths = [
        max(1, count(rf"down_blocks\.{i}\.attentions\.0\.transformer_blocks\.(\d+)\."))
        for i in range(blocks)
    ]
    reads = next((weights[key].shape[1] for key in weights if _READS_TEXT.match(key)), None)
    middle = weights.get("mid_block.attentions.0.proj_in.weight")
    inner = (
        middle if middle is not None else weights.get("down_blocks.1.attentions.0.proj_in.weight")
    )
    is_linear = inner is not None and inner.ndim == 2
    told = weights.get("add_embedding.linear_1.weight")
    hints = count(r"controlnet_cond_embedding\.blocks\.(\d+)\.")
    hint = "controlnet_cond_embedding"
    config: dict[str, Any] = {
        "in_channels": weights["conv_in.weight"].shape[1],
        "conditioning_channels": weights[f"{hint}.conv_in.weight"].shape[1],
        "conditioning_embedding_out_channels": (
            weights[f"{hint}.conv_in.weight"].shape[0],
            *(weights[f"{hint}.blocks.{i}.weight"].shape[0] for i in range(1, hints, 2)),
        ),
        "block_out_channels": tuple(channels),
        "layers_per_block": count(r"down_blocks\.0\.resnets\.(\d+)\."),
        "down_block_types": tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        "mid_block_type": "UNetMidBlock2D" if middle is None else "UNetMidBlock2DCrossAttn",
        "transformer_layers_per_block": tuple(depths),
        "cross_attention_dim": reads,
        # diffusers' name for the number of heads
        "attention_head_dim": tuple(max(1, c // _HEAD_WIDTH) for c in channels)
        if is_linear
        else _HEADS,
        "use_linear_projection": is_linear,
        "norm_num_groups": NORM_GROUPS,
    }
    if told is not None:
        config |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": NUMBER_WIDTH,
            "projection_class_embeddings_input_dim": told.shape[1],
        }
    return config


def _family(config: Any) -> str:
    """Which Stable Diffusion a network belongs to, and where that does not tell, its sizes."""
    if config.addition_embed_type:
        return "Stable Diffusion XL"
    reads, channels = config.cross_attention_dim, tuple(config.block_out_channels)
    if channels == (320, 640, 1280, 1280) and reads in (768, 1024):
        return "Stable Diffusion 1.x" if reads == 768 else "Stable Diffusion 2.x"
    return f"a model of {channels} channels that reads {reads} of a text"


def _incomplete(name: str, why: str) -> CheckpointUnreadable:
    return CheckpointUnreadable(
        f"{name} is not a complete ControlNet: {why}. Upload the whole file again, or pick another."
    )
