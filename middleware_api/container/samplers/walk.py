"""What a sampler has on its way down the noise levels, and the formulas that samplers share.

In k-diffusion's terms: x is a clean latent plus noise of level sigma.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from middleware_api.container.samplers.sampling_settings import SamplingSettings
from middleware_api.container.samplers.schedules import Plan


@dataclass(frozen=True)
class Walk:
    """What a sampler needs on its way down the levels of its plan.

    `denoise(x, sigma)` is the model's guess of the clean latent. `denoise_apart(x, sigma, share)`
    guides by that share of the CFG scale, and tells what the negative prompt alone would give.
    `step(i, guess)` comes before each step and may raise to stop it. `fresh_noise` continues each
    picture's own generator; `path_noise(a, b)` is the increment of each picture's Brownian path
    between two levels, scaled to unit variance. `eta` is how much of an ancestral step is noise.
    """

    plan: Plan
    denoise: Callable[[Tensor, float], Tensor]
    denoise_apart: Callable[[Tensor, float, float], tuple[Tensor, Tensor]]
    step: Callable[[int, Tensor | None], None]
    fresh_noise: Callable[[], Tensor]
    path_noise: Callable[[float, float], Tensor]
    eta: float
    settings: SamplingSettings

    @property
    def sigmas(self) -> tuple[float, ...]:
        return self.plan.sigmas

    @property
    def noise(self) -> float:
        """By how much fresh noise is stronger than its step's formula has it."""
        return self.settings.noise

    def steps(self) -> Iterator[tuple[int, float, float]]:
        """Each step's number, its level and the next."""
        for i, (sigma, after) in enumerate(pairwise(self.sigmas)):
            yield i, sigma, after

    def churned(self, x: Tensor, sigma: float) -> tuple[Tensor, float]:
        """Goes up to a higher level before a step, where the settings ask for it."""
        churn = self.settings.churn
        if churn.amount == 0:
            return x, sigma
        noise = self.fresh_noise()  # k-diffusion draws it at each step, used or not
        if not churn.low <= sigma <= churn.high:
            return x, sigma
        higher = sigma * (1 + min(churn.amount / self.plan.steps, math.sqrt(2) - 1))
        return x + noise * (self.noise * math.sqrt(higher**2 - sigma**2)), higher


Run = Callable[[Walk, Tensor], Tensor]


def ancestral_levels(sigma: float, after: float, eta: float) -> tuple[float, float]:
    """Splits a step into going down to the first level and adding noise of the second."""
    up = min(after, eta * math.sqrt(after**2 * (sigma**2 - after**2) / sigma**2))
    return math.sqrt(after**2 - up**2), up


def slope(x: Tensor, sigma: float, clean: Tensor) -> Tensor:
    """The direction of the path at x: the noise in it."""
    return (x - clean) / sigma


def towards(x: Tensor, clean: Tensor, sigma: float, after: float) -> Tensor:
    """The exact step to `after` while the guess stays the same (DPM-Solver++ of order 1)."""
    ratio = after / sigma
    return ratio * x + (1 - ratio) * clean
