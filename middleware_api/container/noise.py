"""Each picture's own noise, so that it does not depend on the batch it is made in."""

from __future__ import annotations

import math
from bisect import bisect

import torch
from torch import Tensor


def generator_of(seed: int) -> torch.Generator:
    """On the CPU, so that a seed draws the same everywhere."""
    return torch.Generator("cpu").manual_seed(seed)


def _slerp(weight: float, low: Tensor, high: Tensor) -> Tensor:
    """Turns `low` towards `high`, line by line; nearly parallel ones are mixed linearly."""
    unit_low = low / low.norm(dim=1, keepdim=True)
    unit_high = high / high.norm(dim=1, keepdim=True)
    cosine = (unit_low * unit_high).sum(1, keepdim=True)
    if float(cosine.mean()) > 0.9995:
        return low * (1 - weight) + high * weight
    angle = torch.acos(cosine)
    mixed = torch.sin((1 - weight) * angle) * low + torch.sin(weight * angle) * high
    return mixed / torch.sin(angle)


class PictureNoise:
    """One picture's noise: a generator on the CPU, drawn first for the starting latent.

    `shape` is (channels, height, width) of a latent. Nothing is shared between pictures. With an
    `eta_delta` (the WebUI's ENSD) what follows the starting noise is that of another seed.
    """

    def __init__(
        self,
        seed: int,
        shape: tuple[int, int, int],
        subseed: int = 0,
        subseed_strength: float = 0,
        eta_delta: int = 0,
    ) -> None:
        self._shape = shape
        self._generator = generator_of(seed)
        self._seed, self._eta_delta = seed, eta_delta
        self._subseed, self._subseed_strength = subseed, subseed_strength
        self._path = BrownianPath(generator_of(seed), shape)

    def first(self) -> Tensor:
        """The starting noise; call it once, before `fresh`."""
        noise = self.fresh()
        if self._eta_delta:
            self._generator = generator_of(self._seed + self._eta_delta)
        if self._subseed_strength == 0:
            return noise
        other = torch.randn(self._shape, generator=generator_of(self._subseed))
        return _slerp(self._subseed_strength, noise, other)

    def fresh(self) -> Tensor:
        """The next independent noise of the same generator."""
        return torch.randn(self._shape, generator=self._generator)

    def along_path(self, level: float, level_next: float) -> Tensor:
        """The Brownian path's change between two levels, scaled to unit variance."""
        change = self._path.at(level_next) - self._path.at(level)
        return change / math.sqrt(abs(level_next - level))


class BrownianPath:
    """W(t) for t >= 0, drawn where it is asked for and consistent with what was asked before.

    A point between two known ones is drawn from the Brownian bridge between them.
    """

    def __init__(self, generator: torch.Generator, shape: tuple[int, ...]) -> None:
        self._generator = generator
        self._times = [0.0]
        self._values = [torch.zeros(shape)]

    def at(self, time: float) -> Tensor:
        place = bisect(self._times, time)
        if self._times[place - 1] == time:
            return self._values[place - 1]
        start, below = self._times[place - 1], self._values[place - 1]
        noise = torch.randn(below.shape, generator=self._generator)
        if place == len(self._times):
            value = below + noise * math.sqrt(time - start)
        else:
            end, above = self._times[place], self._values[place]
            share = (time - start) / (end - start)
            spread = math.sqrt((time - start) * (end - time) / (end - start))
            value = below + (above - below) * share + noise * spread
        self._times.insert(place, time)
        self._values.insert(place, value)
        return value
