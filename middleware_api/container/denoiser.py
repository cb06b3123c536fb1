"""The model's guess of a clean latent: guided by the prompts, and handed on to a refiner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from middleware_api.container.schedules import share_done


@dataclass(frozen=True)
class Moment:
    """Where in a pass a guess is asked for, and how it is to be guided.

    `call` counts the guesses of the pass from 0; samplers of second order make two a step.
    `cfg_share` is the part of the CFG scale that is meant. Not `guided`: by the prompt alone.
    """

    sigma: float
    timestep: float
    call: int
    cfg_share: float = 1.0
    guided: bool = True


@dataclass(frozen=True)
class Guess:
    """Clean latents, (batch, 4, height, width): as guided, and as the negative prompt has them.

    Both are the same where the negative prompt was not asked.
    """

    clean: Tensor
    unguided: Tensor


Denoise = Callable[[Tensor, Moment], Guess]
"""From a noisy latent, (batch, 4, height, width), to the guess."""


@dataclass(frozen=True)
class Guided:
    """A UNet's guess, guided away from the negative prompt."""

    unet: nn.Module
    positive: Tensor
    negative: Tensor
    cfg_scale: float
    dtype: torch.dtype

    def __call__(self, x: Tensor, at: Moment) -> Guess:
        scaled = (x / (at.sigma**2 + 1) ** 0.5).to(self.dtype)
        time = torch.tensor([at.timestep], device=x.device)
        count = x.shape[0]
        scale = self.cfg_scale * at.cfg_share
        if not at.guided or (scale == 1 and at.cfg_share == 1):
            towards = self._predict(scaled, time, [self.positive] * count)
            clean = x - towards * at.sigma
            return Guess(clean, clean)
        # Both halves in one call.
        texts = [self.positive] * count + [self.negative] * count
        towards, away = self._predict(torch.cat([scaled, scaled]), time, texts).chunk(2)
        noise = away + (towards - away) * scale
        return Guess(x - noise * at.sigma, x - away * at.sigma)

    def _predict(self, scaled: Tensor, time: Tensor, texts: Sequence[Tensor]) -> Tensor:
        times = time.expand(scaled.shape[0])
        predicted: Tensor = self.unet(scaled, times, torch.cat([*texts]), return_dict=False)[0]
        return predicted.float()


@dataclass(frozen=True)
class Refined:
    """One model's guesses, and another's once `switch_at` of the levels is done."""

    base: Denoise
    refiner: Denoise
    switch_at: float

    def __call__(self, x: Tensor, at: Moment) -> Guess:
        denoise = self.refiner if share_done(at.sigma) >= self.switch_at else self.base
        return denoise(x, at)
