"""Single-file Stable Diffusion 1.x checkpoints: what is in the file, and the modules it makes.

The architecture is read from the tensors' shapes, so any size of SD 1.x loads without a config:
what the shapes do not tell follows SD 1.x (8 heads and 32 norm groups in the UNet, text heads of
64, quick GELU, epsilon prediction, scaled-linear betas).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from middleware_api.container.errors import CheckpointUnreadable

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer."
VOCABULARY = 49408  # CLIP's; a smaller table could not hold every token id
VAE_SCALE = 0.18215
_LATENT_CHANNELS = 4
_NORM_GROUPS = 32
_UNET_HEADS = 8

Weights = dict[str, Tensor]
_Conversion = Callable[[Weights, dict[str, object]], Weights]
Shapes = Mapping[str, tuple[int, ...]]

_to_unet: _Conversion = convert_ldm_unet_checkpoint
_to_vae: _Conversion = convert_ldm_vae_checkpoint

# First match wins: a substring that only that kind of file has in its tensor names.
_OTHER_KINDS = (
    ("conditioner.embedders.", "a Stable Diffusion XL checkpoint"),
    ("cond_stage_model.model.", "a Stable Diffusion 2.x checkpoint"),
    ("joint_blocks.", "a Stable Diffusion 3 checkpoint"),
    ("double_blocks.", "a Flux checkpoint"),
    ("control_model.", "a ControlNet"),
    ("controlnet_cond_embedding.", "a ControlNet"),
    ("lora_", "a LoRA"),
    ("string_to_param", "a textual inversion embedding"),
    ("emb_params", "a textual inversion embedding"),
    ("down_blocks.", "one part of a diffusers folder"),
)


@dataclass(frozen=True)
class UNetShape:
    """What the UNet's tensors say of it."""

    in_channels: int
    out_channels: int
    block_channels: tuple[int, ...]
    layers_per_block: int
    attention: tuple[bool, ...]
    context_dim: int

    def config(self) -> dict[str, object]:
        """As diffusers' UNet2DConditionModel takes it (its `attention_head_dim` counts heads)."""
        down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in self.attention]
        up = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(self.attention)]
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "block_out_channels": self.block_channels,
            "layers_per_block": self.layers_per_block,
            "cross_attention_dim": self.context_dim,
            "down_block_types": tuple(down),
            "up_block_types": tuple(up),
            "attention_head_dim": _UNET_HEADS,
            "norm_num_groups": _NORM_GROUPS,
        }


@dataclass(frozen=True)
class VaeShape:
    """What the autoencoder's tensors say of it."""

    block_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int

    @property
    def latent_factor(self) -> int:
        """Pixels a side of one latent."""
        return int(2 ** (len(self.block_channels) - 1))

    def config(self) -> dict[str, object]:
        """As diffusers' AutoencoderKL takes it."""
        levels = len(self.block_channels)
        return {
            "block_out_channels": self.block_channels,
            "layers_per_block": self.layers_per_block,
            "latent_channels": self.latent_channels,
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
            "norm_num_groups": _NORM_GROUPS,
            "scaling_factor": VAE_SCALE,
        }


@dataclass(frozen=True)
class TextShape:
    """What the text encoder's tensors say of it."""

    vocabulary: int
    positions: int
    width: int
    intermediate: int
    layers: int

    def config(self) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=self.vocabulary,
            max_position_embeddings=self.positions,
            hidden_size=self.width,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=max(1, self.width // 64),
            hidden_act="quick_gelu",
            bos_token_id=VOCABULARY - 2,
            eos_token_id=VOCABULARY - 1,
            pad_token_id=VOCABULARY - 1,
        )


@dataclass(frozen=True)
class StableDiffusion:
    """A loaded checkpoint, ready to sample."""

    name: str
    sha256: str
    unet: nn.Module
    vae: Any  # AutoencoderKL: diffusers' types hide its methods
    text_encoder: CLIPTextModel
    latent_factor: int

    def with_autoencoder(self, other: Autoencoder) -> StableDiffusion:
        """The same with another VAE; raises CheckpointUnreadable when the two do not fit."""
        if other.latent_factor != self.latent_factor:
            raise CheckpointUnreadable(
                f"VAE {other.name} makes latents of 1/{other.latent_factor} and {self.name} reads "
                f"those of 1/{self.latent_factor}. Choose another VAE."
            )
        return replace(self, vae=other.module)

    @property
    def modules(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        return (self.unet, self.vae, self.text_encoder)

    @property
    def n_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for m in self.modules for p in m.parameters())


@dataclass(frozen=True)
class Autoencoder:
    """A loaded VAE file, to take the place of a checkpoint's own."""

    name: str
    sha256: str
    module: Any  # AutoencoderKL
    latent_factor: int

    @property
    def n_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.module.parameters())


def load_checkpoint(
    path: Path, name: str, sha256: str, device: torch.device, dtype: torch.dtype
) -> StableDiffusion:
    """Reads a `.safetensors` file in LDM layout; raises CheckpointUnreadable with one reason.

    `name` is the file's own name, for messages and for the pictures' `Model:` entry.
    """
    weights = _read(path, name, (UNET, VAE, TEXT))
    _check_parts(weights, name)
    shapes = _shapes(weights)
    try:
        unet_shape, vae_shape, text_shape = (
            unet_shape_of(shapes),
            vae_shape_of(shapes),
            text_of(shapes),
        )
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointUnreadable(
            f"{name} is not a complete Stable Diffusion 1.x checkpoint: {error}. "
            "Upload the whole file again, or pick another checkpoint."
        ) from error
    _check_sizes(unet_shape, vae_shape, text_shape, name)

    with torch.device("meta"):
        unet = _build(UNet2DConditionModel, unet_shape.config())
        vae = _build(AutoencoderKL, vae_shape.config())
        text = CLIPTextModel(text_shape.config())
    place = partial(_assign, name=name, device=device, dtype=dtype)
    place(unet, _to_unet(weights, unet_shape.config()))
    place(vae, _to_vae(weights, vae_shape.config()))
    text_weights = _text_weights(weights)
    positions = text_weights.pop("embeddings.position_ids", torch.arange(text_shape.positions))
    place(text, text_weights)
    # Not a parameter, so it is still on the meta device. Some merges store it as rounded floats.
    text.embeddings.register_buffer(
        "position_ids", positions.reshape(1, -1).round().long().to(device), persistent=False
    )
    return StableDiffusion(name, sha256, unet, vae, text, vae_shape.latent_factor)


def load_autoencoder(
    path: Path, name: str, sha256: str, device: torch.device, dtype: torch.dtype
) -> Autoencoder:
    """Reads a VAE's `.safetensors` file in LDM layout; raises CheckpointUnreadable."""
    # Most VAE files have their tensors without the prefix they have inside a checkpoint.
    found = _read(path, name, (VAE, "encoder.", "decoder.", "quant_conv.", "post_quant_conv."))
    weights = {VAE + key.removeprefix(VAE): tensor for key, tensor in found.items()}
    try:
        shape = vae_shape_of(_shapes(weights))
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointUnreadable(
            f"{name} is not a complete VAE of Stable Diffusion 1.x: {error}. "
            "Upload the whole file again, or pick another VAE."
        ) from error
    if shape.latent_channels != _LATENT_CHANNELS or any(
        c % _NORM_GROUPS for c in shape.block_channels
    ):
        raise CheckpointUnreadable(
            f"{name} cannot be loaded: it is not the VAE of a Stable Diffusion 1.x model. "
            "Pick another VAE."
        )
    with torch.device("meta"):
        vae = _build(AutoencoderKL, shape.config())
    _assign(vae, _to_vae(weights, shape.config()), name=name, device=device, dtype=dtype)
    return Autoencoder(name, sha256, vae, shape.latent_factor)


def _build(kind: Callable[..., nn.Module], config: dict[str, object]) -> nn.Module:
    return kind(**config)


def _shapes(weights: Weights) -> Shapes:
    return {key: tuple(tensor.shape) for key, tensor in weights.items()}


def _read(path: Path, name: str, prefixes: tuple[str, ...]) -> Weights:
    """The tensors that the engine uses (no EMA copies, no optimiser states)."""
    if path.suffix.lower() != ".safetensors":
        raise CheckpointUnreadable(
            f"{name} is a {path.suffix or 'file without extension'}; this engine loads "
            ".safetensors files only. Convert the checkpoint and upload it again."
        )
    try:
        with safe_open(path, framework="pt") as file:
            keys: list[str] = list(file.keys())
            _check_kind(keys, name)
            return {key: file.get_tensor(key) for key in keys if key.startswith(prefixes)}
    except FileNotFoundError as error:
        raise CheckpointUnreadable(
            f"{name} is not in the object store. Upload it again, or pick another checkpoint."
        ) from error
    except (SafetensorError, OSError) as error:
        raise CheckpointUnreadable(
            f"{name} is not a readable .safetensors file ({error}). Upload it again."
        ) from error


def _check_kind(keys: list[str], name: str) -> None:
    """Names the kind of file when it is a known other one."""
    for mark, kind in _OTHER_KINDS:
        if any(mark in key for key in keys):
            raise CheckpointUnreadable(
                f"{name} is {kind}; this engine loads Stable Diffusion 1.x checkpoints. "
                "Pick another file."
            )


def _check_parts(weights: Weights, name: str) -> None:
    for prefix, part in ((UNET, "UNet"), (VAE, "VAE"), (TEXT, "text encoder")):
        if not any(key.startswith(prefix) for key in weights):
            raise CheckpointUnreadable(
                f"{name} is not a complete Stable Diffusion 1.x checkpoint: it has no {part} "
                f"(tensors named {prefix}*). Pick another file."
            )


def _check_sizes(unet: UNetShape, vae: VaeShape, text: TextShape, name: str) -> None:
    problem = None
    if unet.in_channels == 9:
        problem = "it is an inpainting model (9 input channels), which is not supported yet"
    elif {unet.in_channels, unet.out_channels, vae.latent_channels} != {_LATENT_CHANNELS}:
        problem = f"its UNet takes {unet.in_channels} channels where 4 are expected"
    elif any(c % _NORM_GROUPS for c in unet.block_channels + vae.block_channels):
        problem = "its channels are not multiples of 32"
    elif unet.context_dim != text.width:
        problem = (
            f"its UNet reads {unet.context_dim} text channels and its text encoder writes "
            f"{text.width}"
        )
    elif text.vocabulary < VOCABULARY:
        problem = f"its text encoder knows {text.vocabulary} of CLIP's {VOCABULARY} tokens"
    elif text.width % max(1, text.width // 64):
        problem = f"its text width {text.width} does not divide into heads of 64"
    if problem:
        raise CheckpointUnreadable(f"{name} cannot be loaded: {problem}. Pick another file.")


def unet_shape_of(shapes: Shapes) -> UNetShape:
    """Raises KeyError or ValueError when the tensors do not make an SD 1.x UNet."""
    entry = _shape(shapes, f"{UNET}input_blocks.0.0.weight")
    channels: list[int] = [entry[0]]
    resnets: list[int] = [0]
    attention: list[bool] = [False]
    for i in range(1, _count(shapes, rf"{re.escape(UNET)}input_blocks\.(\d+)\.")):
        block = f"{UNET}input_blocks.{i}"
        if f"{block}.0.op.weight" in shapes:
            channels.append(channels[-1])
            resnets.append(0)
            attention.append(False)
            continue
        channels[-1] = _shape(shapes, f"{block}.0.out_layers.3.weight")[0]
        resnets[-1] += 1
        attention[-1] = f"{block}.1.proj_in.weight" in shapes
    if len(set(resnets)) != 1:
        raise ValueError(f"its UNet levels have {resnets} layers where equal counts are expected")
    middle = f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    if len(_shape(shapes, f"{UNET}middle_block.1.proj_in.weight")) != 4:
        raise ValueError("its UNet has linear projections, as Stable Diffusion 2.x has")
    return UNetShape(
        in_channels=entry[1],
        out_channels=_shape(shapes, f"{UNET}out.2.weight")[0],
        block_channels=tuple(channels),
        layers_per_block=resnets[0],
        attention=tuple(attention),
        context_dim=_shape(shapes, middle)[1],
    )


def vae_shape_of(shapes: Shapes) -> VaeShape:
    """Raises KeyError or ValueError when the tensors do not make an SD 1.x autoencoder."""
    down = f"{VAE}encoder.down"
    levels = _count(shapes, rf"{re.escape(down)}\.(\d+)\.block\.")
    return VaeShape(
        block_channels=tuple(
            _shape(shapes, f"{down}.{i}.block.0.conv1.weight")[0] for i in range(levels)
        ),
        layers_per_block=_count(shapes, rf"{re.escape(down)}\.0\.block\.(\d+)\."),
        latent_channels=_shape(shapes, f"{VAE}post_quant_conv.weight")[0],
    )


def text_of(shapes: Shapes) -> TextShape:
    """Raises KeyError when the tensors do not make a CLIP text encoder."""
    ours = {_text_key(key): shape for key, shape in shapes.items() if key.startswith(TEXT)}
    vocabulary, width = _shape(ours, "embeddings.token_embedding.weight")
    return TextShape(
        vocabulary=vocabulary,
        positions=_shape(ours, "embeddings.position_embedding.weight")[0],
        width=width,
        intermediate=_shape(ours, "encoder.layers.0.mlp.fc1.weight")[0],
        layers=_count(ours, r"encoder\.layers\.(\d+)\."),
    )


def _text_key(key: str) -> str:
    return key.removeprefix(TEXT).removeprefix("text_model.")


def _text_weights(weights: Weights) -> Weights:
    return {_text_key(key): value for key, value in weights.items() if key.startswith(TEXT)}


def _shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    if key not in shapes:
        raise ValueError(f"tensor {key} is missing")
    return shapes[key]


def _count(keys: Iterable[str], pattern: str) -> int:
    """One more than the highest index that the pattern's group finds."""
    found = (re.match(pattern, key) for key in keys)
    return 1 + max((int(match[1]) for match in found if match), default=-1)


def _assign(
    module: nn.Module, weights: Weights, name: str, device: torch.device, dtype: torch.dtype
) -> None:
    """Makes the file's tensors the module's own; raises CheckpointUnreadable."""
    placed = {key: tensor.to(device, dtype) for key, tensor in weights.items()}
    try:
        missing, _ = module.load_state_dict(placed, strict=False, assign=True)
    except RuntimeError as error:  # torch names every tensor of the wrong size
        raise CheckpointUnreadable(
            f"{name} has tensors of unexpected sizes: {' '.join(str(error).split())[:400]}"
        ) from error
    if missing:
        raise CheckpointUnreadable(
            f"{name} is not a complete Stable Diffusion 1.x checkpoint: {len(missing)} tensors of "
            f"its {type(module).__name__} are missing, {missing[0]} among them. Upload it again."
        )
    module.eval().requires_grad_(False)
