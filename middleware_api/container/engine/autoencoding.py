"""Pictures to latents and back by a checkpoint's VAE, and what inpainting models are shown."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from middleware_api.container.engine.checkpoint import StableDiffusion
from middleware_api.container.engine.pictures import pixel_mask
from middleware_api.container.errors import BadRequest
from middleware_api.container.samplers.noise import generator_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """What a VAE makes of a picture, both (1, 4, height, width): latents spread around one.

    `scale` brings them to unit spread.
    """

    middle: Tensor
    spread: Tensor
    scale: float

    @property
    def mean(self) -> Tensor:
        """(1, 4, height, width)."""
        return self.middle * self.scale

    def draw(self, seeds: Sequence[int]) -> Tensor:
        """(seeds, 4, height, width), one for each."""
        noise = [torch.randn(self.middle.shape, generator=generator_of(seed)) for seed in seeds]
        return (self.middle + self.spread * torch.cat(noise).to(self.middle.device)) * self.scale


def see(model: StableDiffusion, pixels: Tensor) -> Seen:
    """Of (1, 3, height, width) in -1..1."""
    seen = model.vae.encode(_as_read_by(model.vae, pixels)).latent_dist
    if not _is_number(seen.mean):
        seen = _in_singles(model).encode(pixels.float()).latent_dist
    mean, spread = (each.float().contiguous() for each in (seen.mode(), seen.std))
    return Seen(mean, spread, model.vae_scale)


def decode(model: StableDiffusion, latent: Tensor) -> Tensor:
    """(channels, height, width) to (3, height, width) in about -1..1."""
    scaled = latent[None] / model.vae_scale
    made: Tensor = model.vae.decode(_as_read_by(model.vae, scaled)).sample[0]
    return made if _is_number(made) else _in_singles(model).decode(scaled.float()).sample[0]


def shown_beside(
    model: StableDiffusion,
    pixels: Tensor,
    mask: Image.Image | None,
    strength: float,
    shape: tuple[int, ...],
) -> Tensor | None:
    """What an inpainting model is shown beside its latents of this shape: the mask, and the latent
    of what it leaves of the picture, (1, 5, height, width). None for every other model.

    `pixels` are (1, 3, height, width) in -1..1. Without a mask all of them are to be made anew.
    `strength` is how much is taken away from under the mask.
    """
    if not model.is_inpainting:
        return None
    hidden = torch.ones(1, 1, *pixels.shape[2:]) if mask is None else pixel_mask(mask)
    hidden, size = hidden.to(pixels), shape[-2:]
    left = see(model, pixels * (1 - hidden * strength)).mean
    if left.shape[2:] != size:
        left = nn.functional.interpolate(left, size=size, mode="bilinear")
    return torch.cat([nn.functional.interpolate(hidden, size=size), left], dim=1)


def _as_read_by(vae: nn.Module, tensor: Tensor) -> Tensor:
    return tensor.to(next(vae.parameters()))


def _is_number(tensor: Tensor) -> bool:
    return not bool(tensor.isnan().any())


def _in_singles(model: StableDiffusion) -> Any:
    """The model's VAE with numbers of 32 bits, which it keeps: SDXL's own overflows in 16.

    Raises BadRequest when it has them already.
    """
    if next(model.vae.parameters()).dtype is torch.float32:
        raise BadRequest(
            f"{model.name} came to no picture: its numbers are not finite. Choose another VAE, "
            "another checkpoint, or a lower CFG scale.",
            "not_a_number",
        )
    logger.warning("The VAE of %s overflows in half precision; it goes on in singles.", model.name)
    return model.vae.float()
