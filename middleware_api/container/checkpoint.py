"""Single-file Stable Diffusion 1.x checkpoints: what is in the file, and the modules it makes.

The architecture is read from the tensors' shapes, so any size of SD 1.x loads without a config
(`checkpoint_shapes`); epsilon prediction and scaled-linear betas are SD 1.x's.
"""

from __future__ import annotations

from collections.abc import Callable
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
from transformers import CLIPTextModel

from middleware_api.container.checkpoint_shapes import (
    LATENT_CHANNELS,
    NORM_GROUPS,
    TEXT,
    UNET,
    VAE,
    VOCABULARY,
    Shapes,
    TextShape,
    UNetShape,
    VaeShape,
    text_key,
    text_of,
    unet_shape_of,
    vae_shape_of,
)
from middleware_api.container.errors import CheckpointUnreadable

Weights = dict[str, Tensor]
_Conversion = Callable[[Weights, dict[str, object]], Weights]

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
    _fit_odd_sizes(unet)
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
    if shape.latent_channels != LATENT_CHANNELS or any(
        c % NORM_GROUPS for c in shape.block_channels
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


class _FittedUpsample(nn.Module):
    """Doubles first and fits the result to a level that had an odd size, as the WebUI does.

    Diffusers fits first: other pictures where a side in latents does not halve at each level.
    """

    def __init__(self, doubling: nn.Module) -> None:
        super().__init__()
        self.doubling = doubling

    def forward(self, hidden: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        doubled: Tensor = self.doubling(hidden)
        return doubled if size is None else nn.functional.interpolate(doubled, size=size)


def _fit_odd_sizes(unet: nn.Module) -> None:
    for module in [*unet.modules()]:
        upsamplers = getattr(module, "upsamplers", None)
        if upsamplers is not None:
            module.upsamplers = nn.ModuleList(map(_FittedUpsample, upsamplers))


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
    elif {unet.in_channels, unet.out_channels, vae.latent_channels} != {LATENT_CHANNELS}:
        problem = f"its UNet takes {unet.in_channels} channels where 4 are expected"
    elif any(c % NORM_GROUPS for c in unet.block_channels + vae.block_channels):
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


def _text_weights(weights: Weights) -> Weights:
    return {text_key(key): value for key, value in weights.items() if key.startswith(TEXT)}


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
