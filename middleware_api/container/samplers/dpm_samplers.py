"""The DPM-Solver family: exact in the linear part of the path, by the logarithm of the level.

Sources: Lu et al. 2022 (arXiv 2206.00927: fast and adaptive; 2211.01095: DPM++ and its SDE forms).
The 3M form and the adaptive step's controller are those of k-diffusion (Crowson, MIT).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from middleware_api.container.samplers.walk import Walk, ancestral_levels, slope, towards


def dpmpp_2s_ancestral(walk: Walk, x: Tensor) -> Tensor:
    clean = None
    for i, sigma, after in walk.steps():
        walk.step(i, clean)
        clean = walk.denoise(x, sigma)
        down, up = ancestral_levels(sigma, after, walk.eta)
        guess = clean
        if down > 0:
            middle = math.sqrt(sigma * down)
            guess = walk.denoise(towards(x, clean, sigma, middle), middle)
        x = towards(x, guess, sigma, down)
        if up > 0:
            x = x + walk.fresh_noise() * (up * walk.noise)
    return x


def dpmpp_sde(walk: Walk, x: Tensor) -> Tensor:
    clean = None
    for i, sigma, after in walk.steps():
        walk.step(i, clean)
        clean = walk.denoise(x, sigma)
        if after == 0:
            x = clean
            continue
        middle = math.sqrt(sigma * after)
        down, up = ancestral_levels(sigma, middle, walk.eta)
        halfway = towards(x, clean, sigma, down)
        halfway = halfway + walk.path_noise(sigma, middle) * (up * walk.noise)
        guess = walk.denoise(halfway, middle)
        down, up = ancestral_levels(sigma, after, walk.eta)
        x = towards(x, guess, sigma, down)
        x = x + walk.path_noise(sigma, after) * (up * walk.noise)
    return x


def dpmpp_2m(walk: Walk, x: Tensor) -> Tensor:
    clean, before, h_before = None, None, 0.0
    for i, sigma, after in walk.steps():
        walk.step(i, clean)
        clean = walk.denoise(x, sigma)
        if after == 0:
            x = clean
            continue
        h = math.log(sigma / after)
        guess = clean if before is None else clean + (clean - before) * (h / h_before / 2)
        x = towards(x, guess, sigma, after)
        before, h_before = clean, h
    return x


def dpmpp_2m_sde(walk: Walk, x: Tensor, heun: bool = False) -> Tensor:
    clean, before, h_before = None, None, 0.0
    for i, sigma, after in walk.steps():
        walk.step(i, clean)
        clean = walk.denoise(x, sigma)
        if after == 0:
            x = clean
            continue
        h = math.log(sigma / after)
        whole = h * (1 + walk.eta)
        gain = -math.expm1(-whole)
        x = math.exp(-whole) * x + gain * clean
        if before is not None:
            weight = 1 - gain / whole if heun else gain / 2
            x = x + weight * (h / h_before) * (clean - before)
        x = x + _sde_noise(walk, sigma, after, h)
        before, h_before = clean, h
    return x


def dpmpp_3m_sde(walk: Walk, x: Tensor) -> Tensor:
    clean = None
    known: list[tuple[Tensor, float]] = []  # guesses and the length of the step each began
    for i, sigma, after in walk.steps():
        walk.step(i, clean)
        clean = walk.denoise(x, sigma)
        if after == 0:
            x = clean
            continue
        h = math.log(sigma / after)
        whole = h * (1 + walk.eta)
        gain = -math.expm1(-whole)
        x = math.exp(-whole) * x + gain * clean
        phi_2 = 1 - gain / whole
        if len(known) == 2:
            (last, h_1), (older, h_2) = known
            r0, r1 = h_1 / h, h_2 / h
            first, second = (clean - last) / r0, (last - older) / r1
            curve = (first - second) / (r0 + r1)
            x = x + phi_2 * (first + curve * r0) - (phi_2 / whole - 0.5) * curve
        elif known:
            last, h_1 = known[0]
            x = x + phi_2 * (clean - last) * (h / h_1)
        x = x + _sde_noise(walk, sigma, after, h)
        known = [(clean, h), *known][:2]
    return x


def _sde_noise(walk: Walk, sigma: float, after: float, h: float) -> Tensor:
    spread = after * math.sqrt(-math.expm1(-2 * h * walk.eta))
    return walk.path_noise(sigma, after) * (spread * walk.noise)


def dpm_fast(walk: Walk, x: Tensor) -> Tensor:
    """Steps of order 3 as long as the wished evaluations reach, on levels of its own."""
    low, high = walk.plan.solver_span
    if not low < high:  # img2img so faint that nothing is left to do
        return x
    orders = _fast_orders(walk.plan.asked_steps)
    length = math.log(high / low) / len(orders)
    clean, done = None, 0
    for i, order in enumerate(orders):
        walk.step(done, clean)
        sigma, after = high * math.exp(-length * i), high * math.exp(-length * (i + 1))
        down, up = _down_to(low, sigma, after, walk.eta)
        clean = walk.denoise(x, sigma)
        here = slope(x, sigma, clean)
        if order == 1:
            x = towards(x, clean, sigma, down)
        elif order == 2:
            x = _second(walk, x, here, sigma, down, 1 / 2)[0]
        else:
            x = _third(walk, x, here, sigma, down)[1]
        x = x + walk.fresh_noise() * (up * walk.noise)
        done += order
    return x


def _fast_orders(evaluations: int) -> list[int]:
    count = evaluations // 3 + 1
    if evaluations % 3 == 0:
        return [3] * (count - 2) + [2, 1]
    return [3] * (count - 1) + [evaluations % 3]


def _down_to(low: float, sigma: float, after: float, eta: float) -> tuple[float, float]:
    """An ancestral step that does not go below the span's end."""
    down = max(low, ancestral_levels(sigma, after, eta)[0])
    return down, math.sqrt(max(0.0, after**2 - down**2))


def _second(
    walk: Walk, x: Tensor, here: Tensor, sigma: float, after: float, place: float
) -> tuple[Tensor, Tensor]:
    """A step of order 2 by the slope at `place` (0..1) of the way, and that slope."""
    h = math.log(sigma / after)
    middle = sigma * math.exp(-place * h)
    there = _slope_at(walk, x - middle * math.expm1(place * h) * here, middle)
    gain = after * math.expm1(h)
    return x - gain * here - gain / (2 * place) * (there - here), there


def _third(
    walk: Walk, x: Tensor, here: Tensor, sigma: float, after: float
) -> tuple[Tensor, Tensor]:
    """Steps of order 2 and 3, which share the slope at a third of the way."""
    h = math.log(sigma / after)
    lower, first = _second(walk, x, here, sigma, after, 1 / 3)
    place = 2 / 3
    level = sigma * math.exp(-place * h)
    gain = math.expm1(place * h)
    ahead = x - level * gain * here - level * 2 * (gain / (place * h) - 1) * (first - here)
    second = _slope_at(walk, ahead, level)
    whole = math.expm1(h)
    return lower, x - after * whole * here - after / place * (whole / h - 1) * (second - here)


def _slope_at(walk: Walk, x: Tensor, sigma: float) -> Tensor:
    return slope(x, sigma, walk.denoise(x, sigma))


_ADAPTIVE_ABSOLUTE, _ADAPTIVE_RELATIVE = 0.0078, 0.05
_ADAPTIVE_FIRST_STEP = 0.05
_ADAPTIVE_ACCEPTED_FROM = 0.81


@dataclass
class _StepLength:
    """Makes steps longer while their error is small; in the logarithm of the level."""

    power: float
    h: float = _ADAPTIVE_FIRST_STEP

    def accepts(self, error: float) -> bool:
        factor = (1 / (error + 1e-8)) ** self.power
        factor = 1 + math.atan(factor - 1)
        self.h *= factor
        return factor >= _ADAPTIVE_ACCEPTED_FROM


def dpm_adaptive(walk: Walk, x: Tensor) -> Tensor:
    """Chooses its own steps by the difference between orders 2 and 3; their number is open.

    As in the WebUI the pictures of a batch share their steps, so a picture depends on its batch.
    """
    low, high = walk.plan.solver_span
    if not low < high:
        return x
    length = _StepLength(power=1 / (1.5 if walk.eta else 3))
    sigma, before, clean, done = high, x, None, 0
    while math.log(sigma / low) > 1e-5:
        walk.step(min(done, walk.plan.steps - 1), clean)
        done += 1
        after = max(low, sigma * math.exp(-length.h))
        down, up = _down_to(low, sigma, after, walk.eta)
        clean = walk.denoise(x, sigma)
        lower, higher = _third(walk, x, slope(x, sigma, clean), sigma, down)
        size = torch.maximum(lower.abs(), before.abs()) * _ADAPTIVE_RELATIVE
        error = float(
            ((lower - higher) / size.clamp(min=_ADAPTIVE_ABSOLUTE)).square().mean().sqrt()
        )
        # A guess that is not a number would never be accepted: the black picture is let out.
        if math.isnan(error) or length.accepts(error):
            before = lower
            x = higher + walk.fresh_noise() * up
            sigma = after
    return x
