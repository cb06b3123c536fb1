"""The model's guess of a clean latent: guided by the prompts, and handed on to a refiner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from middleware_api.container.conditioning import Guidance
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
    guidance: Guidance
    cfg_scale: float
    dtype: torch.dtype

    def __call__(self, x: Tensor, at: Moment) -> Guess:
        scaled = (x / (at.sigma**2 + 1) ** 0.5).to(self.dtype)
        time = torch.tensor([at.timestep], device=x.device)
        towards, away = self.guidance.at(at.call)
        weights, scale = self.guidance.weights, self.cfg_scale * at.cfg_share
        if not at.guided or (scale == 1 and at.cfg_share == 1 and weights == (1.0,)):
            guesses = self._predict(scaled, time, towards)
            base, scale = guesses[0], 1.0
        elif towards.shape[1] == away.shape[1]:  # all in one call
            *guesses, base = self._predict(scaled, time, torch.cat([towards, away]))
        else:
            guesses = self._predict(scaled, time, towards)
            (base,) = self._predict(scaled, time, away)
        noise = base
        for guess, weight in zip(guesses, weights, strict=True):
            noise = noise + (guess - base) * (weight * scale)
        return Guess(x - noise * at.sigma, x - base * at.sigma)

    def _predict(self, scaled: Tensor, time: Tensor, states: Tensor) -> list[Tensor]:
        """The noise in each latent as each of the (n, tokens, width) sees it, in one call."""
        count = scaled.shape[0]
        latents = scaled.repeat(len(states), 1, 1, 1)
        texts = states.to(scaled).repeat_interleave(count, dim=0)
        times = time.expand(len(latents))
        predicted: Tensor = self.unet(latents, times, texts, return_dict=False)[0]
        return [*predicted.float().chunk(len(states))]


@dataclass(frozen=True)
class Refined:
    """One model's guesses, and another's once `switch_at` of the levels is done."""

    base: Denoise
    refiner: Denoise
    switch_at: float

    def __call__(self, x: Tensor, at: Moment) -> Guess:
        denoise = self.refiner if share_done(at.sigma) >= self.switch_at else self.base
        return denoise(x, at)
