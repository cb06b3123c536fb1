"""One walk of the sampler over a batch: what it starts from, its noise, and what it must keep."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from middleware_api.container.engine import pictures
from middleware_api.container.engine.checkpoint_shapes import LATENT_CHANNELS
from middleware_api.container.engine.infotext import seed_of
from middleware_api.container.engine.request import GenerationRequest, MaskFill
from middleware_api.container.networks.patches import Patch
from middleware_api.container.samplers.denoiser import Denoise, Guess, Moment
from middleware_api.container.samplers.noise import PictureNoise, Seeding, Variation, source_of
from middleware_api.container.samplers.samplers import Sampler
from middleware_api.container.samplers.sampling_settings import SamplingSettings
from middleware_api.container.samplers.schedules import Plan
from middleware_api.container.samplers.walk import Walk


@dataclass(frozen=True)
class Start:
    """The latents that a pass starts from and must keep.

    `shape` is that of one latent, (channels, height, width). `latent` is (1 or batch, *shape),
    None for a pass that starts from noise alone. `picture` is what inpainting models are shown
    beside the latents, (1 or batch, 5, height, width), None where no such model is at work.
    """

    shape: tuple[int, int, int]
    latent: Tensor | None = None
    mask: Tensor | None = None
    overlay: pictures.Overlay | None = None
    fill: MaskFill = MaskFill.ORIGINAL
    picture: Tensor | None = None

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

    def shown(self, x: Tensor, sigma: float) -> Tensor:
        """A noisy latent with the original, free of noise, where the mask is black."""
        if self.mask is None or self.latent is None:
            return x
        spread = math.sqrt(1 + sigma**2)
        return self.latent * (spread * (1 - self.mask)) + x * self.mask


_SEED_RESIZE_FACTOR = 8  # pixels a latent; the WebUI has no other


def _seeding(request: GenerationRequest, index: int, device: torch.device) -> Seeding:
    """What the noise of the job's picture `index` is drawn from."""
    variation = None
    if request.subseed_strength:
        variation = Variation(request.subseed + index, request.subseed_strength)
    size = None
    if request.seed_resize_from is not None:
        width, height = request.seed_resize_from
        size = (height // _SEED_RESIZE_FACTOR, width // _SEED_RESIZE_FACTOR)
    return Seeding(
        seed_of(request, index),
        source_of(request.noise_source, device),
        variation,
        request.sampling.eta_delta,
        size,
    )


@dataclass
class _Asked:
    """Asks for one guess after the other of a pass, and counts them."""

    each: Pass
    start: Start
    settings: SamplingSettings
    calls: int = 0
    step: int = 0
    counted: int = 0

    def guess(self, x: Tensor, sigma: float, cfg_share: float = 1.0) -> Guess:
        sampler = self.each.sampler
        ladder = self.each.plan.ladder
        timestep = ladder.timestep_of(sigma)
        if self.settings.whole_timesteps and not sampler.is_on_timesteps:
            timestep = ladder.nearest_timestep(sigma)
        level = timestep if sampler.is_on_timesteps else sigma  # so the WebUI compares them
        share_done = self.counted / max(1, self.each.plan.steps)
        self.counted = self.step  # the WebUI counts a step once its first guess is there
        moment = Moment(
            *(sigma, timestep, self.calls, share_done, cfg_share),
            self._is_guided(level),
            self.start.picture,
        )
        self.calls += 1
        if not sampler.is_on_timesteps:
            guess = self.each.denoise(x, moment)
            return Guess(self.start.keep(guess.clean), guess.unguided)
        # LDM's samplers show the model the picture where it is kept, and trust its noise.
        shown = self.start.shown(x, sigma)
        guess = self.each.denoise(shown, moment)
        moved = x - shown
        return Guess(guess.clean + moved, guess.unguided + moved)

    def _is_guided(self, level: float) -> bool:
        guidance, sampler = self.settings.guidance, self.each.sampler
        total = sampler.calls(self.each.plan.asked_steps)
        if guidance.skip_early and self.calls / total <= guidance.skip_early:
            return False
        is_skipped_one = self.calls % 2 == 1 or guidance.skip_all
        return not (is_skipped_one and level < guidance.skip_below)


@dataclass(frozen=True)
class Pass:
    """A sampler, the levels it visits, whose guesses it follows, and with which networks."""

    sampler: Sampler
    plan: Plan
    denoise: Denoise
    patch: Patch

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
            PictureNoise(_seeding(request, i, device), start.shape, self.plan.span) for i in indices
        ]

        def stack(parts: list[Tensor]) -> Tensor:
            return torch.stack(parts).to(device)

        first = stack([noise.first() for noise in noises])
        settings = request.sampling
        noise = first * (1 if request.start is None else settings.initial_noise)
        x = noise * self.plan.noise_scale
        initial = start.filled(first)
        if initial is not None:
            x = x + (initial + noise * settings.extra_noise) * self.plan.image_scale
        asked = _Asked(self, start, settings)

        def announced(i: int, clean: Tensor | None) -> None:
            asked.step = i
            step(i, clean)

        def apart(x: Tensor, sigma: float, cfg_share: float) -> tuple[Tensor, Tensor]:
            guess = asked.guess(x, sigma, cfg_share)
            return guess.clean, guess.unguided

        walk = Walk(
            self.plan,
            lambda x, sigma: asked.guess(x, sigma).clean,
            apart,
            announced,
            fresh_noise=lambda: stack([noise.fresh() for noise in noises]),
            path_noise=lambda a, b: stack([noise.along_path(a, b) for noise in noises]),
            eta=self.sampler.eta_of(settings),
            settings=settings,
        )
        with self.patch.applied():
            return start.keep(self.sampler.run(walk, x) * self.plan.final_scale)
