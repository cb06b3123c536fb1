"""The thousand noise levels that models are trained on: those of SD 1.x, which all families share,
and the same stretched until nothing of the picture is left at the highest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Levels = npt.NDArray[np.float64]

TRAIN_STEPS = 1000
# What is left of the picture at the end of a stretched schedule: the WebUI's, for it may not be 0.
_NEXT_TO_NOTHING = 4.8973451890853435e-08


@dataclass(frozen=True, eq=False)
class Ladder:
    """Rising noise levels that a sampler's model knows, and the timesteps they stand for."""

    sigmas: Levels
    timesteps: Levels
    only_whole: bool = False

    @property
    def lowest(self) -> float:
        return float(self.sigmas[0])

    @property
    def highest(self) -> float:
        return float(self.sigmas[-1])

    def sigma_of(self, timestep: npt.ArrayLike) -> Levels:
        """Noise level of a timestep; between two, interpolated in the logarithm."""
        wanted = np.asarray(timestep, dtype=np.float64)
        return np.asarray(np.exp(np.interp(wanted, self.timesteps, np.log(self.sigmas))))

    def timestep_of(self, sigma: float) -> float:
        """The timestep, fractional unless `only_whole`, at which the model takes this level."""
        if self.only_whole:
            return self.nearest_timestep(sigma)
        return float(np.interp(math.log(sigma), np.log(self.sigmas), self.timesteps))

    def nearest_timestep(self, sigma: float) -> float:
        """The whole timestep whose level is the nearest in the logarithm."""
        distances = np.abs(np.log(self.sigmas) - math.log(sigma))
        return float(self.timesteps[np.argmin(distances)])


@dataclass(frozen=True, eq=False)
class ModelLevels:
    """A model's levels: `alphas` are the latent's share of the variance at each timestep.

    Latent consistency models are distilled at fifty of the timesteps: 19, 39, ... 999.
    """

    alphas: Levels
    full: Ladder
    fifty: Ladder


def _model_levels(alphas: Levels) -> ModelLevels:
    sigmas, times = np.sqrt((1 - alphas) / alphas), np.arange(TRAIN_STEPS, dtype=np.float64)
    fifty = Ladder(sigmas[19::20], times[19::20], only_whole=True)
    return ModelLevels(alphas, Ladder(sigmas, times), fifty)


def _stretched(alphas: Levels) -> Levels:
    """Lin et al. 2023, https://arxiv.org/abs/2305.08891, algorithm 1."""
    roots = np.sqrt(alphas)
    first, last = roots[0], roots[-1]
    stretched = ((roots - last) * first / (first - last)) ** 2
    stretched[-1] = _NEXT_TO_NOTHING
    return np.asarray(stretched)


_ALPHAS: Levels = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, TRAIN_STEPS) ** 2)
STANDARD = _model_levels(_ALPHAS)
ZERO_SNR = _model_levels(_stretched(_ALPHAS))
