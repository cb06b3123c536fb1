"""Single-file Stable Diffusion checkpoints: what is in the file, and the modules it makes.

The architecture is read from the tensors' names and shapes, so any size of a family loads without a
config (`families`, `checkpoint_shapes`); the betas of all of them are scaled-linear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from torch import Tensor, nn
from transformers import CLIPTextModel

from middleware_api.container.engine.checkpoint_shapes import (
    INPAINT_CHANNELS,
    LATENT_CHANNELS,
    NORM_GROUPS,
    NUMBER_WIDTH,
    UNET,
    VAE,
    VOCABULARY,
    Shapes,
    TextShape,
    UNetShape,
    VaeShape,
    text_of,
    unet_shape_of,
    vae_shape_of,
)
from middleware_api.container.engine.families import (
    NAMES,
    Family,
    TextSource,
    family_of,
    other_kind_of,
    vae_family_of,
)
from middleware_api.container.engine.lean_attention import make_lean
from middleware_api.container.engine.packed import pack
from middleware_api.container.errors import CheckpointUnreadable
from middleware_api.container.prompts.text_encoders import (
    TextEncoder,
    taken_projection,
    text_tensors,
)
from middleware_api.container.samplers.prediction import (
    MARKS,
    ZERO_SNR_KEY,
    Prediction,
    prediction_of,
)
from middleware_api.container.weights.opened import opened

Weights = dict[str, Tensor]
_Conversion = Callable[[Weights, dict[str, object]], Weights]

_to_unet: _Conversion = convert_ldm_unet_checkpoint
_to_vae: _Conversion = convert_ldm_vae_checkpoint


@dataclass(frozen=True)
class StableDiffusion:
    """A loaded checkpoint, ready to sample.

    `zero_snr`: trained so that nothing of the picture is left at the highest noise level.
    `is_inpainting`: the UNet is also shown a mask and what it leaves of the picture. `doubt` is a
    sentence on whether its VAE is the right one.
    """

    name: str
    sha256: str
    unet: nn.Module
    vae: Any  # AutoencoderKL: diffusers' types hide its methods
    text_encoders: tuple[TextEncoder, ...]
    latent_factor: int
    family: Family
    prediction: Prediction = Prediction.NOISE
    zero_snr: bool = False
    is_inpainting: bool = False
    doubt: str = ""

    def with_autoencoder(self, other: Autoencoder) -> StableDiffusion:
        """The same with another VAE; raises CheckpointUnreadable when the two do not fit."""
        if other.latent_factor != self.latent_factor:
            raise CheckpointUnreadable(
                f"VAE {other.name} makes latents of 1/{other.latent_factor} and {self.name} reads "
                f"those of 1/{self.latent_factor}. Choose another VAE."
            )
        doubt = ""
        if other.seems_for is not None and other.seems_for.vae_scale != self.vae_scale:
            doubt = (
                f"VAE {other.name} seems to be one of {other.seems_for.name}, and {self.name} is "
                f"of {self.family.name}: the pictures' colours and details will be off."
            )
        return replace(self, vae=other.module, doubt=doubt)

    @property
    def vae_scale(self) -> float:
        return self.family.vae_scale

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return (self.unet, self.vae, *(part for text in self.text_encoders for part in text.parts))

    @property
    def n_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for m in self.modules for p in m.parameters())


@dataclass(frozen=True)
class Autoencoder:
    """A loaded VAE file, to take the place of a checkpoint's own.

    No tensor's shape tells which family `seems_for`; its metadata or its name may.
    """

    name: str
    sha256: str
    module: Any  # AutoencoderKL
    latent_factor: int
    seems_for: Family | None = None

    @property
    def n_bytes(self) -> int:
        return sum(p.numel() * p.element_size() for p in self.module.parameters())


@dataclass(frozen=True)
class _File:
    """The tensors of a file that the engine uses (no EMA copies, no optimiser states)."""

    name: str
    family: Family
    weights: Weights
    metadata: Mapping[str, str]


def load_checkpoint(
    path: Path, name: str, sha256: str, device: torch.device, dtype: torch.dtype
) -> StableDiffusion:
    """Reads a `.safetensors` file in LDM layout; raises CheckpointUnreadable with one reason.

    `name` is the file's own name, for messages and for the pictures' `Model:` entry.
    """
    file = _read(path, name, lambda family: (UNET, VAE, *MARKS, *family.text_prefixes))
    _check_parts(file)
    weights, family = file.weights, file.family
    shapes = _shapes(weights)
    try:
        unet_shape, vae_shape = unet_shape_of(shapes), vae_shape_of(shapes)
        text_shapes = [text_of(shapes, source) for source in family.texts]
    except (KeyError, IndexError, ValueError) as error:
        raise _incomplete(file, str(error)) from error
    _check_sizes(file, unet_shape, vae_shape, text_shapes)

    with torch.device("meta"):
        unet = _build(UNet2DConditionModel, unet_shape.config())
        vae = _build(AutoencoderKL, vae_shape.config())
    place = partial(_assign, file=file, device=device, dtype=dtype)
    place(unet, _to_unet(weights, unet_shape.config()))
    _fit_odd_sizes(unet)
    make_lean(unet)
    place(vae, _to_vae(weights, vae_shape.config()))
    encoders = [
        _text_encoder(file, source, shape, device, dtype)
        for source, shape in zip(family.texts, text_shapes, strict=True)
    ]
    return StableDiffusion(
        name,
        sha256,
        unet,
        vae,
        tuple(encoders),
        vae_shape.latent_factor,
        family,
        prediction_of(weights, file.metadata, family, unet, unet_shape),
        ZERO_SNR_KEY in weights,
        unet_shape.in_channels == INPAINT_CHANNELS,
    )


def _text_encoder(
    file: _File, source: TextSource, shape: TextShape, device: torch.device, dtype: torch.dtype
) -> TextEncoder:
    tensors = text_tensors(file.weights, source)
    positions = tensors.pop("embeddings.position_ids", torch.arange(shape.positions))
    projection = taken_projection(tensors).to(device, dtype) if source.is_pooled else None
    with torch.device("meta"):
        module = CLIPTextModel(shape.config())
    _assign(module, tensors, file, device, dtype)
    # Not a parameter, so it is still on the meta device. Some merges store it as rounded floats.
    module.embeddings.register_buffer(
        "position_ids", positions.reshape(1, -1).round().long().to(device), persistent=False
    )
    return TextEncoder(source, module, projection)


def load_autoencoder(
    path: Path, name: str, sha256: str, device: torch.device, dtype: torch.dtype
) -> Autoencoder:
    """Reads a VAE's `.safetensors` file in LDM layout; raises CheckpointUnreadable."""
    # Most VAE files have their tensors without the prefix they have inside a checkpoint.
    names = (VAE, "encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
    file = _read(path, name, lambda family: names)
    weights = {VAE + key.removeprefix(VAE): tensor for key, tensor in file.weights.items()}
    try:
        shape = vae_shape_of(_shapes(weights))
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointUnreadable(
            f"{name} is not a complete VAE of {NAMES}: {error}. "
            "Upload the whole file again, or pick another VAE."
        ) from error
    if shape.latent_channels != LATENT_CHANNELS or any(
        c % NORM_GROUPS for c in shape.block_channels
    ):
        raise CheckpointUnreadable(
            f"{name} cannot be loaded: it is not the VAE of a {NAMES} model (its latents have "
            f"{shape.latent_channels} channels). Pick another VAE."
        )
    with torch.device("meta"):
        vae = _build(AutoencoderKL, shape.config())
    _assign(vae, _to_vae(weights, shape.config()), file, device, dtype)
    seems_for = vae_family_of(name, file.metadata)
    return Autoencoder(name, sha256, vae, shape.latent_factor, seems_for)


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


def _read(path: Path, name: str, wanted: Callable[[Family], tuple[str, ...]]) -> _File:
    """The tensors whose names begin as is wanted of their family."""
    if path.suffix.lower() != ".safetensors":
        raise CheckpointUnreadable(
            f"{name} is a {path.suffix or 'file without extension'}; this engine loads "
            ".safetensors files only. Convert the checkpoint and upload it again."
        )
    with opened(path, name, "checkpoint") as content:
        keys: list[str] = list(content.keys())
        _check_kind(keys, name)
        family = family_of(keys)
        prefixes = wanted(family)
        weights = {key: content.get_tensor(key) for key in keys if key.startswith(prefixes)}
        return _File(name, family, weights, content.metadata() or {})


def _check_kind(keys: list[str], name: str) -> None:
    """Names the kind of file when it is a known other one."""
    kind = other_kind_of(keys)
    if kind is not None:
        raise CheckpointUnreadable(
            f"{name} is {kind}; this engine loads {NAMES} checkpoints. Pick another file."
        )


def _incomplete(file: _File, reason: str) -> CheckpointUnreadable:
    return CheckpointUnreadable(
        f"{file.name} is not a complete {file.family.name} checkpoint: {reason}. "
        "Upload the whole file again, or pick another checkpoint."
    )


def _check_parts(file: _File) -> None:
    texts = [(prefix, "text encoder") for prefix in file.family.text_prefixes]
    for prefix, part in ((UNET, "UNet"), (VAE, "VAE"), *texts):
        if not any(key.startswith(prefix) for key in file.weights):
            raise _incomplete(file, f"it has no {part} (tensors named {prefix}*)")


def _check_sizes(file: _File, unet: UNetShape, vae: VaeShape, texts: list[TextShape]) -> None:
    problem = None
    width = sum(text.width for text in texts)
    if unet.in_channels == 2 * LATENT_CHANNELS:
        problem = "it is an instruct-pix2pix model (8 input channels), which is not supported"
    elif unet.in_channels not in (LATENT_CHANNELS, INPAINT_CHANNELS):
        problem = f"its UNet takes {unet.in_channels} channels where 4 or 9 are expected"
    elif {unet.out_channels, vae.latent_channels} != {LATENT_CHANNELS}:
        problem = f"its UNet makes {unet.out_channels} channels where 4 are expected"
    elif any(c % NORM_GROUPS for c in unet.block_channels + vae.block_channels):
        problem = "its channels are not multiples of 32"
    elif unet.context_dim != width:
        problem = (
            f"its UNet reads {unet.context_dim} text channels and its text encoder writes {width}"
        )
    elif unet.added != sum(text.pooled for text in texts) + NUMBER_WIDTH * file.family.numbers:
        problem = f"its UNet reads {unet.added} channels beside the text"
    else:
        problem = next(filter(None, map(_problem_of, texts)), None)
    if problem:
        raise CheckpointUnreadable(f"{file.name} cannot be loaded: {problem}. Pick another file.")


def _problem_of(text: TextShape) -> str | None:
    if text.vocabulary < VOCABULARY:
        return f"its text encoder knows {text.vocabulary} of CLIP's {VOCABULARY} tokens"
    if text.width % max(1, text.width // 64):
        return f"its text width {text.width} does not divide into heads of 64"
    return None


def _assign(
    module: nn.Module, weights: Weights, file: _File, device: torch.device, dtype: torch.dtype
) -> None:
    """Makes the file's tensors the module's own; raises CheckpointUnreadable."""
    placed = {key: tensor.to(device, dtype) for key, tensor in weights.items()}
    try:
        missing, _ = module.load_state_dict(placed, strict=False, assign=True)
    except RuntimeError as error:  # torch names every tensor of the wrong size
        raise CheckpointUnreadable(
            f"{file.name} has tensors of unexpected sizes: {' '.join(str(error).split())[:400]}"
        ) from error
    if missing:
        raise _incomplete(
            file,
            f"{len(missing)} tensors of its {type(module).__name__} are missing, {missing[0]} "
            "among them",
        )
    module.eval().requires_grad_(False)
    pack(module)
