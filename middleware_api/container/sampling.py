"""One walk of the sampler over a batch: what it starts from, its noise, and what it must keep."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from middleware_api.container import pictures
from middleware_api.container.checkpoint_shapes import LATENT_CHANNELS
from middleware_api.container.denoiser import Denoise, Moment
from middleware_api.container.infotext import seed_of
from middleware_api.container.noise import PictureNoise
from middleware_api.container.request import GenerationRequest, MaskFill
from middleware_api.container.samplers import Sampler, Walk
from middleware_api.container.schedules import Plan, timestep_of


@dataclass(frozen=True)
class Start:
    """The latents that a pass starts from and must keep.

    `shape` is that of one latent, (channels, height, width). `latent` is (1 or batch, *shape),
    None for a pass that starts from noise alone.
    """

    shape: tuple[int, int, int]
    latent: Tensor | None = None
    mask: Tensor | None = None
    overlay: pictures.Overlay | None = None
    fill: MaskFill = MaskFill.ORIGINAL

    @staticmethod
    def of_latents(latents: Tensor) -> Start:
        """Without a mask, from (batch, channels, height, width)."""
        return Start((LATENT_CHANNELS, latents.shape[2], latents.shape[3]), latents)

    def filled(self, noise: Tensor) -> Tensor | None:
        """The starting latents of a batch, the masked part replaced as `fill` says."""
        if self.latent is None:
            return None
        latent = self.latent.expand_as(noise)
        if self.mask is None or self.fill in (MaskFill.FILL, MaskFill.ORIGINAL):
            return latent
        anew = noise if self.fill is MaskFill.LATENT_NOISE else torch.zeros_like(noise)
        return latent * (1 - self.mask) + anew * self.mask

    def keep(self, latent: Tensor) -> Tensor:
        """The original where the mask is black."""
        if self.mask is None or self.latent is None:
            return latent
        return self.latent * (1 - self.mask) + latent * self.mask


@dataclass(frozen=True)
class Pass:
    """A sampler, the levels it visits, and whose guesses it follows."""

    sampler: Sampler
    plan: Plan
    denoise: Denoise

    def run(
        self,
        request: GenerationRequest,
        start: Start,
        indices: range,
        step: Callable[[int, Tensor | None], None],
        device: torch.device,
    ) -> Tensor:
        """The finished latents of the job's pictures `indices`, (batch, 4, height, width).

        Every pass draws each picture's noise anew from its seed.
        """
        noises = [
            PictureNoise(
                seed_of(request, i),
                start.shape,
                request.subseed + i,
                request.subseed_strength,
                request.eta_delta,
            )
            for i in indices
        ]

        def stack(parts: list[Tensor]) -> Tensor:
            return torch.stack(parts).to(device)

        first = stack([noise.first() for noise in noises])
        x = first * self.plan.noise_scale
        initial = start.filled(first)
        if initial is not None:
            x = x + initial * self.plan.image_scale
        calls = itertools.count()

        def denoise(x: Tensor, sigma: float) -> Tensor:
            moment = Moment(sigma, timestep_of(sigma), next(calls))
            return start.keep(self.denoise(x, moment).clean)

        walk = Walk(
            self.plan.sigmas,
            denoise,
            step,
            fresh_noise=lambda: stack([noise.fresh() for noise in noises]),
            path_noise=lambda a, b: stack([noise.along_path(a, b) for noise in noises]),
        )
        return start.keep(self.sampler.run(walk, x) * self.plan.final_scale)
