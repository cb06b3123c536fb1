"""The model's guess of a clean latent: guided by the prompts, and handed on to a refiner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from middleware_api.container.schedules import share_done, timestep_of

Denoise = Callable[[Tensor, float], Tensor]
"""From a noisy latent and its level to the guess, both (batch, 4, height, width)."""


@dataclass(frozen=True)
class Guided:
    """A UNet's guess, guided away from the negative prompt."""

    unet: nn.Module
    positive: Tensor
    negative: Tensor
    cfg_scale: float
    dtype: torch.dtype

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        scaled = (x / (sigma**2 + 1) ** 0.5).to(self.dtype)
        time = torch.tensor([timestep_of(sigma)], device=x.device)
        count = x.shape[0]
        if self.cfg_scale == 1:
            noise = self._predict(scaled, time, [self.positive] * count)
        else:
            # Both halves in one call.
            texts = [self.positive] * count + [self.negative] * count
            towards, away = self._predict(torch.cat([scaled, scaled]), time, texts).chunk(2)
            noise = away + (towards - away) * self.cfg_scale
        return x - noise * sigma

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

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        denoise = self.refiner if share_done(sigma) >= self.switch_at else self.base
        return denoise(x, sigma)
