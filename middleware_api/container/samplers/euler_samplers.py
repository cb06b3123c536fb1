"""Samplers that follow the path's slope: Euler and what refines, repeats or randomizes its steps.

Sources: Karras et al. 2022 (arXiv 2206.00364: Euler, Heun, churn), Song et al. 2021 (2011.13456:
ancestral steps; 2010.02502: DDIM), Lu et al. 2022 (2206.00927: DPM2), Adams and Bashforth's
multistep rule (LMS; PLMS after Liu et al. 2022, 2202.09778), Xu et al. 2023 (2306.14878:
Restart), Luo et al. 2023 (2310.04378: LCM), Chung et al. 2024 (2406.08070: CFG++).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import torch
from scipy import integrate  # type: ignore[import-untyped]
from torch import Tensor

from middleware_api.container.samplers.schedules import FIFTY, karras_levels
from middleware_api.container.samplers.walk import Walk, ancestral_levels, slope


def euler(walk: Walk, x: Tensor) -> Tensor:
    clean = None
    for i, sigma, after in walk.steps():
        walk.step(i, clean)
        x, sigma = walk.churned(x, sigma)
        clean = walk.denoise(x, sigma)
        x = x + slope(x, sigma, clean) * (after - sigma)
    return x


def euler_ancestral(walk: Walk, x: Tensor) -> Tensor:
    clean = None
    for i, sigma, after in walk.steps():
        walk.step(i, clean)
        clean = walk.denoise(x, sigma)
        down, up = ancestral_levels(sigma, after, walk.eta)
        x = x + slope(x, sigma, clean) * (down - sigma)
        if up > 0:
            x = x + walk.fresh_noise() * up
    return x


def ddim_cfgpp(walk: Walk, x: Tensor) -> Tensor:
    """Steps along the negative prompt's slope towards the guided guess.

    A CFG scale of 12.5 stands for the paper's guidance of 1.
    """
    clean = None
    for i, sigma, after in walk.steps():
        walk.step(i, clean)
        clean, unguided = walk.denoise_apart(x, sigma, 1 / 12.5)
        down, up = ancestral_levels(sigma, after, walk.eta)
        x = clean + slope(x, sigma, unguided) * down
        if up > 0:
            x = x + walk.fresh_noise() * up
    return x


def heun(walk: Walk, x: Tensor) -> Tensor:
    clean = None
    for i, sigma, after in walk.steps():
        walk.step(i, clean)
        x, sigma = walk.churned(x, sigma)
        clean = walk.denoise(x, sigma)
        x = _heun_step(walk, x, clean, sigma, after)
    return x


def _heun_step(walk: Walk, x: Tensor, clean: Tensor, sigma: float, after: float) -> Tensor:
    here = slope(x, sigma, clean)
    if after > 0:
        ahead = x + here * (after - sigma)
        here = (here + slope(ahead, after, walk.denoise(ahead, after))) / 2
    return x + here * (after - sigma)


def restart(walk: Walk, x: Tensor) -> Tensor:
    """Heun's steps; with 20 and more, some of the way is gone back up with noise and down again."""
    clean, below = None, walk.sigmas[0]
    for i, (sigma, after) in enumerate(_with_restarts(walk.sigmas)):
        walk.step(min(i, walk.plan.steps - 1), clean)
        if sigma > below:
            x = x + walk.fresh_noise() * math.sqrt(sigma**2 - below**2)
        clean = walk.denoise(x, sigma)
        x, below = _heun_step(walk, x, clean, sigma, after), after
    return x


_RESTART_FROM, _RESTART_TO = 0.1, 2.0


def _with_restarts(sigmas: tuple[float, ...]) -> Iterator[tuple[float, float]]:
    """The steps of a schedule of that many, part of them spent between levels 0.1 and 2."""
    steps = len(sigmas) - 1
    if steps < 20:
        yield from pairwise(sigmas)
        return
    length, times = (9, 1) if steps < 36 else (steps // 4, 2)
    levels = karras_levels(steps - length * times, sigmas[-2], sigmas[0])
    bottom = min(range(len(levels)), key=lambda i: abs(levels[i] - _RESTART_FROM))
    top = min(range(len(levels)), key=lambda i: abs(levels[i] - _RESTART_TO))
    for i, (sigma, after) in enumerate(pairwise(levels)):
        yield sigma, after
        if i + 1 == bottom and top < bottom:
            again = karras_levels(length + 1, levels[bottom], levels[top])[:-1]
            for _ in range(times):
                yield from pairwise(again)


def dpm2(walk: Walk, x: Tensor) -> Tensor:
    clean = None
    for i, sigma, after in walk.steps():
        walk.step(i, clean)
        x, sigma = walk.churned(x, sigma)
        clean = walk.denoise(x, sigma)
        x = _halfway_step(walk, x, clean, sigma, after)
    return x


def dpm2_ancestral(walk: Walk, x: Tensor) -> Tensor:
    clean = None
    for i, sigma, after in walk.steps():
        walk.step(i, clean)
        clean = walk.denoise(x, sigma)
        down, up = ancestral_levels(sigma, after, walk.eta)
        x = _halfway_step(walk, x, clean, sigma, down)
        if up > 0:
            x = x + walk.fresh_noise() * (up * walk.noise)
    return x


def _halfway_step(walk: Walk, x: Tensor, clean: Tensor, sigma: float, after: float) -> Tensor:
    """By the slope at the level halfway down, in the logarithm."""
    here = slope(x, sigma, clean)
    if after > 0:
        middle = math.sqrt(sigma * after)
        halfway = x + here * (middle - sigma)
        here = slope(halfway, middle, walk.denoise(halfway, middle))
    return x + here * (after - sigma)


def _lms_weight(order: int, levels: tuple[float, ...], i: int, j: int) -> float:
    """Integral over step i of the Lagrange polynomial of the slope j steps ago."""

    def polynomial(level: float) -> float:
        others = (levels[i - k] for k in range(order) if k != j)
        return math.prod((level - other) / (levels[i - j] - other) for other in others)

    return float(integrate.quad(polynomial, levels[i], levels[i + 1], epsrel=1e-4)[0])


def lms(walk: Walk, x: Tensor, max_order: int = 4) -> Tensor:
    clean = None
    slopes: list[Tensor] = []
    for i, sigma, _ in walk.steps():
        walk.step(i, clean)
        clean = walk.denoise(x, sigma)
        slopes = [slope(x, sigma, clean), *slopes][:max_order]
        for j, known in enumerate(slopes):
            x = x + _lms_weight(len(slopes), walk.sigmas, i, j) * known
    return x


# Adams-Bashforth for equal steps, by how many slopes are known; the newest first.
_PLMS_WEIGHTS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def plms(walk: Walk, x: Tensor) -> Tensor:
    clean = None
    slopes: list[Tensor] = []
    for i, sigma, after in walk.steps():
        walk.step(i, clean)
        clean = walk.denoise(x, sigma)
        slopes = [slope(x, sigma, clean), *slopes][:4]
        if i == 0:  # nothing to look back on: average with the slope one step ahead
            ahead = x + slopes[0] * (after - sigma)
            mean = (slopes[0] + slope(ahead, after, walk.denoise(ahead, after))) / 2
        else:
            weighted = zip(_PLMS_WEIGHTS[len(slopes) - 1], slopes, strict=True)
            mean = sum((w * s for w, s in weighted), torch.zeros_like(x))
        x = x + mean * (after - sigma)
    return x


_LCM_DATA_SPREAD = 0.5
_LCM_TIME_SCALE = 10.0


def lcm(walk: Walk, x: Tensor) -> Tensor:
    """Jumps to the model's guess and noises it anew, for models distilled to be asked so."""
    clean = None
    for i, sigma, after in walk.steps():
        walk.step(i, clean)
        time = FIFTY.timestep_of(sigma) * _LCM_TIME_SCALE
        kept = _LCM_DATA_SPREAD**2 / (time**2 + _LCM_DATA_SPREAD**2)
        taken = time / math.sqrt(time**2 + _LCM_DATA_SPREAD**2)
        clean = taken * walk.denoise(x, sigma) + kept * x
        x = clean
        if after > 0:
            x = x + walk.fresh_noise() * after
    return x
