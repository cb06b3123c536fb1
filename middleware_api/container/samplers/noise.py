"""Each picture's own noise, so that it does not depend on the batch it is made in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from middleware_api.container.samplers.sampling_settings import NoiseSource

Shape = tuple[int, ...]


class Generator(Protocol):
    """Draws normal noise, and goes on from where it was."""

    def randn(self, shape: Shape) -> Tensor: ...


class TorchGenerator:
    """PyTorch's on a device. On the CPU a seed draws the same on every machine."""

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.torch = torch.Generator(device).manual_seed(seed)

    def randn(self, shape: Shape) -> Tensor:
        return torch.randn(shape, generator=self.torch, device=self.torch.device)


_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_ROUNDS = 10
# As single precision has them: what CUDA multiplies with.
_TO_UNIT = float(np.float32(2.0**-32))
_TO_CIRCLE = float(np.float32(2.0**-32 * 2 * math.pi))


class PhiloxGenerator:
    """PyTorch's on an NVIDIA device, computed on the CPU.

    Philox 4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") with a
    counter of the draw and the place in it, and the sine half of Box and Muller's transform.
    """

    def __init__(self, seed: int) -> None:
        self._key = (np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32 & 0xFFFFFFFF))
        self._draws = 0

    def randn(self, shape: Shape) -> Tensor:
        count = math.prod(shape)
        zeros = np.zeros(count, np.uint64)
        counter = [zeros + np.uint64(self._draws), zeros, np.arange(count, dtype=np.uint64), zeros]
        self._draws += 1
        key = self._key
        for _ in range(_ROUNDS):
            first, second = counter[0] * _MULTIPLIERS[0], counter[2] * _MULTIPLIERS[1]
            counter = [
                (second >> _HALF) ^ counter[1] ^ key[0],
                second & _LOW,
                (first >> _HALF) ^ counter[3] ^ key[1],
                first & _LOW,
            ]
            key = ((key[0] + _KEY_STEPS[0]) & _LOW, (key[1] + _KEY_STEPS[1]) & _LOW)
        radius = np.sqrt(-2 * np.log(counter[0] * _TO_UNIT + _TO_UNIT / 2))
        normal = radius * np.sin(counter[1] * _TO_CIRCLE + _TO_CIRCLE / 2)
        return torch.from_numpy(normal.astype(np.float32).reshape(shape))


Source = Callable[[int], Generator]
"""From a seed to its generator."""


def source_of(chosen: NoiseSource, device: torch.device) -> Source:
    """What the WebUI means by each of its three sources."""
    if chosen is NoiseSource.NV:
        return PhiloxGenerator
    return partial(TorchGenerator, device="cpu" if chosen is NoiseSource.CPU else device)


def generator_of(seed: int) -> torch.Generator:
    """On the CPU, so that a seed draws the same everywhere."""
    return TorchGenerator(seed).torch


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


@dataclass(frozen=True)
class Variation:
    """Another seed, and how far the starting noise is turned towards its noise (0..1)."""

    seed: int
    strength: float


@dataclass(frozen=True)
class Seeding:
    """What one picture's noise is drawn from.

    With an `eta_delta` (the WebUI's ENSD) what follows the starting noise is that of another seed.
    `first_size`, (height, width) of a latent, draws the starting noise of a picture of that size,
    and sets it into the middle of this one's (the WebUI's seed resize).
    """

    seed: int
    source: Source = TorchGenerator
    variation: Variation | None = None
    eta_delta: int = 0
    first_size: tuple[int, int] | None = None


class PictureNoise:
    """One picture's noise, drawn first for the starting latent. Nothing is shared between pictures.

    `shape` is (channels, height, width) of a latent; a Brownian path runs over `span`.
    """

    def __init__(self, seeding: Seeding, shape: Shape, span: tuple[float, float]) -> None:
        self._shape, self._seeding = shape, seeding
        self._generator = seeding.source(seeding.seed)
        self._path = BrownianTree(seeding.source, seeding.seed, shape, span)

    def first(self) -> Tensor:
        """The starting noise; call it once, before `fresh`."""
        seeding = self._seeding
        size = seeding.first_size or self._shape[1:]
        shape = (self._shape[0], *size)
        own = seeding.source(seeding.seed) if shape != self._shape else self._generator
        noise = own.randn(shape)
        if seeding.variation is not None:
            other = seeding.source(seeding.variation.seed).randn(shape)
            noise = _slerp(seeding.variation.strength, noise, other)
        if shape != self._shape:
            noise = _set_into(self.fresh(), noise)
        if seeding.eta_delta:
            self._generator = seeding.source(seeding.seed + seeding.eta_delta)
        return noise

    def fresh(self) -> Tensor:
        """The next independent noise of the same generator."""
        return self._generator.randn(self._shape)

    def along_path(self, level: float, level_next: float) -> Tensor:
        """The Brownian path's change between two levels, scaled to unit variance."""
        change = self._path.at(level_next) - self._path.at(level)
        return change / math.sqrt(abs(level_next - level))


def _set_into(large: Tensor, small: Tensor) -> Tensor:
    """The middle of `small`, as much as fits, in the middle of `large`."""
    for axis in (1, 2):
        surplus = (large.shape[axis] - small.shape[axis]) // 2  # rounded down, as the WebUI does
        if surplus < 0:
            small = small.narrow(axis, -surplus, small.shape[axis] + 2 * surplus)
    top, left = ((large.shape[axis] - small.shape[axis]) // 2 for axis in (1, 2))
    merged = large.clone()
    merged[:, top : top + small.shape[1], left : left + small.shape[2]] = small
    return merged


_TREE_DIGITS = 6
_TREE_POOL = 24


class BrownianTree:
    """A Brownian path over a span of levels, the same for a seed wherever it is asked for.

    The span is halved until the level asked for is met, each half's noise seeded by its place in
    the tree. Levels are rounded to six digits and the seeds are numpy's SeedSequence's, as in
    torchsde 0.2.6 (Li et al. 2020, arXiv 2001.01328), which the WebUI draws its paths with.
    """

    def __init__(self, source: Source, seed: int, shape: Shape, span: tuple[float, float]) -> None:
        self._source, self._entropy, self._shape = source, seed, shape
        start, end = map(_single, span)
        self._start, self._end = round(start, _TREE_DIGITS), round(end, _TREE_DIGITS)
        self._spread = math.sqrt(end - start)
        self._known: dict[float, Tensor] = {}

    def at(self, level: float) -> Tensor:
        """The path's value, 0 at the span's low end; levels outside count as its ends."""
        place = round(min(max(_single(level), self._start), self._end), _TREE_DIGITS)
        if place not in self._known:
            self._known[place] = self._drawn(place)
        return self._known[place]

    def _drawn(self, place: float) -> Tensor:
        start, end = self._start, self._end
        change = self._noise() * self._spread
        value = torch.zeros_like(change)
        if place == start:
            return value
        key = depth = 0
        while place != end:
            middle = round(0.5 * (end + start), _TREE_DIGITS)
            noise = self._noise(key, depth)
            share = 1 / (end - start)
            left = (middle - start) * change * share
            left = left + math.sqrt((middle - start) * (end - middle) * share) * noise
            if place >= middle:
                value, change, start, key = value + left, change - left, middle, 2 * key + 1
            else:
                change, end, key = left, middle, 2 * key
            depth += 1
            if place == start:
                return value
        return value + change

    def _noise(self, *place: int) -> Tensor:
        sequence = np.random.SeedSequence(self._entropy, spawn_key=place, pool_size=_TREE_POOL)
        return self._source(int(sequence.generate_state(1)[0])).randn(self._shape)


def _single(level: float) -> float:
    """Rounded as the WebUI's levels are, which decide where its path is asked for."""
    return float(np.float32(level))
