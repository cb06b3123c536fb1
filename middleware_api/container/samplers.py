"""The samplers, in k-diffusion's terms: x is a clean latent plus noise of level sigma.

A sampler calls `walk.denoise(x, sigma)` for the model's guess of the clean latent, and
`walk.step(i, guess)` before each step, which may raise to stop it. Sources, by name:
Euler, Heun, ancestral: Karras et al. 2022 (arXiv 2206.00364) and Song et al. 2021
(2011.13456); DPM2 and DPM++: Lu et al. 2022 (2206.00927, 2211.01095); LMS and PLMS: Adams and
Bashforth's multistep rule, Liu et al. 2022 (2202.09778); UniPC: Zhao et al. 2023 (2302.04867).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from scipy import integrate  # type: ignore[import-untyped]
from torch import Tensor

from middleware_api.container import schedules
from middleware_api.container.errors import BadRequest
from middleware_api.container.schedules import Plan


@dataclass(frozen=True)
class Walk:
    """What a sampler needs on its way down the levels.

    `fresh_noise` continues each picture's own generator; `path_noise(a, b)` is the increment of
    each picture's Brownian path between two levels, scaled to unit variance.
    """

    sigmas: tuple[float, ...]
    denoise: Callable[[Tensor, float], Tensor]
    step: Callable[[int, Tensor | None], None]
    fresh_noise: Callable[[], Tensor]
    path_noise: Callable[[float, float], Tensor]


Run = Callable[[Walk, Tensor], Tensor]


def ancestral_levels(sigma: float, sigma_next: float) -> tuple[float, float]:
    """Splits a step into going down to the first level and adding noise of the second."""
    up = min(sigma_next, math.sqrt(sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2))
    return math.sqrt(sigma_next**2 - up**2), up


def _slope(x: Tensor, sigma: float, clean: Tensor) -> Tensor:
    return (x - clean) / sigma


def _towards(x: Tensor, clean: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """The exact step to `sigma_next` while the guess stays the same (DPM-Solver++ of order 1)."""
    ratio = sigma_next / sigma
    return ratio * x + (1 - ratio) * clean


def _euler(walk: Walk, x: Tensor) -> Tensor:
    clean = None
    for i, (sigma, after) in enumerate(pairwise(walk.sigmas)):
        walk.step(i, clean)
        clean = walk.denoise(x, sigma)
        x = x + _slope(x, sigma, clean) * (after - sigma)
    return x


def _euler_ancestral(walk: Walk, x: Tensor) -> Tensor:
    clean = None
    for i, (sigma, after) in enumerate(pairwise(walk.sigmas)):
        walk.step(i, clean)
        clean = walk.denoise(x, sigma)
        down, up = ancestral_levels(sigma, after)
        x = x + _slope(x, sigma, clean) * (down - sigma)
        if after > 0:
            x = x + walk.fresh_noise() * up
    return x


def _heun(walk: Walk, x: Tensor) -> Tensor:
    clean = None
    for i, (sigma, after) in enumerate(pairwise(walk.sigmas)):
        walk.step(i, clean)
        clean = walk.denoise(x, sigma)
        slope = _slope(x, sigma, clean)
        if after > 0:
            ahead = x + slope * (after - sigma)
            slope = (slope + _slope(ahead, after, walk.denoise(ahead, after))) / 2
        x = x + slope * (after - sigma)
    return x


def _dpm2(walk: Walk, x: Tensor, ancestral: bool) -> Tensor:
    clean = None
    for i, (sigma, after) in enumerate(pairwise(walk.sigmas)):
        walk.step(i, clean)
        clean = walk.denoise(x, sigma)
        slope = _slope(x, sigma, clean)
        down, up = ancestral_levels(sigma, after) if ancestral else (after, 0.0)
        if down > 0:
            middle = math.sqrt(sigma * down)
            halfway = x + slope * (middle - sigma)
            slope = _slope(halfway, middle, walk.denoise(halfway, middle))
        x = x + slope * (down - sigma)
        if up > 0:
            x = x + walk.fresh_noise() * up
    return x


def _lms_weight(order: int, levels: tuple[float, ...], i: int, j: int) -> float:
    """Integral over step i of the Lagrange polynomial of the slope j steps ago."""

    def polynomial(level: float) -> float:
        others = (levels[i - k] for k in range(order) if k != j)
        return math.prod((level - other) / (levels[i - j] - other) for other in others)

    return float(integrate.quad(polynomial, levels[i], levels[i + 1], epsrel=1e-4)[0])


def _lms(walk: Walk, x: Tensor, max_order: int = 4) -> Tensor:
    clean = None
    slopes: list[Tensor] = []
    for i, sigma in enumerate(walk.sigmas[:-1]):
        walk.step(i, clean)
        clean = walk.denoise(x, sigma)
        slopes = [_slope(x, sigma, clean), *slopes][:max_order]
        for j, slope in enumerate(slopes):
            x = x + _lms_weight(len(slopes), walk.sigmas, i, j) * slope
    return x


# Adams-Bashforth for equal steps, by how many slopes are known; the newest first.
_PLMS_WEIGHTS = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


def _plms(walk: Walk, x: Tensor) -> Tensor:
    clean = None
    slopes: list[Tensor] = []
    for i, (sigma, after) in enumerate(pairwise(walk.sigmas)):
        walk.step(i, clean)
        clean = walk.denoise(x, sigma)
        slopes = [_slope(x, sigma, clean), *slopes][:4]
        if i == 0:  # nothing to look back on: average with the slope one step ahead
            ahead = x + slopes[0] * (after - sigma)
            slope = (slopes[0] + _slope(ahead, after, walk.denoise(ahead, after))) / 2
        else:
            weighted = zip(_PLMS_WEIGHTS[len(slopes) - 1], slopes, strict=True)
            slope = sum((w * s for w, s in weighted), torch.zeros_like(x))
        x = x + slope * (after - sigma)
    return x


def _dpmpp_2s_ancestral(walk: Walk, x: Tensor) -> Tensor:
    clean = None
    for i, (sigma, after) in enumerate(pairwise(walk.sigmas)):
        walk.step(i, clean)
        clean = walk.denoise(x, sigma)
        down, up = ancestral_levels(sigma, after)
        if down > 0:
            middle = math.sqrt(sigma * down)
            halfway = _towards(x, clean, sigma, middle)
            x = _towards(x, walk.denoise(halfway, middle), sigma, down)
        else:
            x = _towards(x, clean, sigma, down)
        if after > 0:
            x = x + walk.fresh_noise() * up
    return x


def _dpmpp_sde(walk: Walk, x: Tensor) -> Tensor:
    clean = None
    for i, (sigma, after) in enumerate(pairwise(walk.sigmas)):
        walk.step(i, clean)
        clean = walk.denoise(x, sigma)
        if after == 0:
            x = clean
            continue
        middle = math.sqrt(sigma * after)
        down, up = ancestral_levels(sigma, middle)
        halfway = _towards(x, clean, sigma, down) + walk.path_noise(sigma, middle) * up
        guess = walk.denoise(halfway, middle)
        down, up = ancestral_levels(sigma, after)
        x = _towards(x, guess, sigma, down) + walk.path_noise(sigma, after) * up
    return x


def _dpmpp_2m(walk: Walk, x: Tensor) -> Tensor:
    clean, before, h_before = None, None, 0.0
    for i, (sigma, after) in enumerate(pairwise(walk.sigmas)):
        walk.step(i, clean)
        clean = walk.denoise(x, sigma)
        if after == 0:
            x = clean
            continue
        h = math.log(sigma / after)
        guess = clean if before is None else clean + (clean - before) * (h / h_before / 2)
        x = _towards(x, guess, sigma, after)
        before, h_before = clean, h
    return x


def _dpmpp_2m_sde(walk: Walk, x: Tensor, heun: bool = False) -> Tensor:
    clean, before, h_before = None, None, 0.0
    for i, (sigma, after) in enumerate(pairwise(walk.sigmas)):
        walk.step(i, clean)
        clean = walk.denoise(x, sigma)
        if after == 0:
            x = clean
            continue
        h = math.log(sigma / after)
        gain = -math.expm1(-2 * h)
        x = after / sigma * math.exp(-h) * x + gain * clean
        if before is not None:
            weight = 1 - gain / (2 * h) if heun else gain / 2
            x = x + weight * (h / h_before) * (clean - before)
        x = x + walk.path_noise(sigma, after) * (after * math.sqrt(gain))
        before, h_before = clean, h
    return x


def _dpmpp_3m_sde(walk: Walk, x: Tensor) -> Tensor:
    clean = None
    known: list[tuple[Tensor, float]] = []  # guesses and the length of the step each began
    for i, (sigma, after) in enumerate(pairwise(walk.sigmas)):
        walk.step(i, clean)
        clean = walk.denoise(x, sigma)
        if after == 0:
            x = clean
            continue
        h = math.log(sigma / after)
        gain = -math.expm1(-2 * h)
        x = math.exp(-2 * h) * x + gain * clean
        phi_2 = 1 - gain / (2 * h)
        if len(known) == 2:
            (last, h_1), (older, h_2) = known
            r0, r1 = h_1 / h, h_2 / h
            first, second = (clean - last) / r0, (last - older) / r1
            curve = (first - second) / (r0 + r1)
            x = x + phi_2 * (first + curve * r0) - (phi_2 / (2 * h) - 0.5) * curve
        elif known:
            last, h_1 = known[0]
            x = x + phi_2 * (clean - last) * (h / h_1)
        x = x + walk.path_noise(sigma, after) * (after * math.sqrt(gain))
        known = [(clean, h), *known][:2]
    return x


def _unipc(walk: Walk, x: Tensor) -> Tensor:
    """Predicts with up to order 3, and corrects each latent once its own guess is known."""
    last, order, steps = x, 1, len(walk.sigmas) - 1
    known: list[tuple[Tensor, float]] = []  # guesses and their levels, the newest first
    clean = None
    for i, (sigma, after) in enumerate(pairwise(walk.sigmas)):
        walk.step(i, clean)
        clean = walk.denoise(x, sigma)
        if known:
            x = _unipc_move(last, known[:order], sigma, clean)
        known = [(clean, sigma), *known][:3]
        order = min(3, i + 1, steps - i)  # low orders at the ends, where guesses are few or rough
        last, x = x, _unipc_move(x, known[:order], after, None)
    return x


def _unipc_move(
    x: Tensor, known: list[tuple[Tensor, float]], after: float, guess_after: Tensor | None
) -> Tensor:
    """One step of the paper's B1 form; with the guess at its end it is the corrector."""
    clean, sigma = known[0]
    h = math.log(sigma / after)
    differences = [guess - clean for guess, _ in known[1:]]
    ratios = [math.log(sigma / level) / h for _, level in known[1:]]
    if guess_after is not None:
        differences.append(guess_after - clean)
        ratios.append(1.0)
    move = _towards(x, clean, sigma, after)
    if not ratios:
        return move
    phi, factorial = math.expm1(-h) / -h - 1, 1
    rights = []
    for n in range(1, len(ratios) + 1):
        rights.append(phi * factorial / -h)
        factorial *= n + 1
        phi = phi / -h - 1 / factorial
    if len(ratios) == 1:
        weights = [0.5]  # the paper's fixed choice, in place of solving one equation
    else:
        matrix = torch.tensor(
            [[r**n for r in ratios] for n in range(len(ratios))], dtype=torch.float64
        )
        right = torch.tensor(rights, dtype=torch.float64)
        weights = torch.linalg.solve(matrix, right).tolist()
    for weight, ratio, difference in zip(weights, ratios, differences, strict=True):
        move = move + h * (weight / ratio) * difference
    return move


@dataclass(frozen=True)
class Sampler:
    """A sampler as the WebUI offers it; `schedule` is what "Automatic" means for it.

    `plan` is set for those that choose their own levels, and then `schedule` plays no part.
    `uses_ensd` marks those whose pictures the WebUI's ENSD changes.
    """

    name: str
    run: Run
    aliases: tuple[str, ...] = ()
    schedule: str = "Uniform"
    discard_penultimate: bool = False
    plan: Callable[[int, int | None], Plan] | None = None
    uses_ensd: bool = False

    def plan_for(self, schedule: str, steps: int, encode: int | None) -> Plan:
        """The levels of one job; `encode` is None when there is no picture to start from.

        Otherwise about the last `encode` of `steps` are taken: the WebUI's families differ by one.
        """
        if self.plan is not None:
            return self.plan(steps, encode)
        chosen = self.schedule if schedule == "Automatic" else schedule
        return schedules.sigma_plan(chosen, steps, self.discard_penultimate, encode)

    def named_schedule(self, schedule: str) -> str:
        """As the WebUI writes it: "Automatic" by what it means, where this sampler has its own."""
        own = self.plan is None and self.schedule != Sampler.schedule
        return self.schedule if own and schedule == "Automatic" else schedule


SAMPLERS = (
    Sampler("DPM++ 2M", _dpmpp_2m, ("k_dpmpp_2m",), "Karras"),
    Sampler("DPM++ SDE", _dpmpp_sde, ("k_dpmpp_sde",), "Karras"),
    Sampler("DPM++ 2M SDE", _dpmpp_2m_sde, ("k_dpmpp_2m_sde",), "Exponential"),
    Sampler("DPM++ 2M SDE Heun", partial(_dpmpp_2m_sde, heun=True), (), "Exponential"),
    Sampler("DPM++ 2S a", _dpmpp_2s_ancestral, ("k_dpmpp_2s_a",), "Karras", uses_ensd=True),
    Sampler("DPM++ 3M SDE", _dpmpp_3m_sde, ("k_dpmpp_3m_sde",), "Exponential", True),
    Sampler("Euler a", _euler_ancestral, ("k_euler_a", "k_euler_ancestral"), uses_ensd=True),
    Sampler("Euler", _euler, ("k_euler",)),
    Sampler("LMS", _lms, ("k_lms",)),
    Sampler("Heun", _heun, ("k_heun",)),
    Sampler("DPM2", partial(_dpm2, ancestral=False), ("k_dpm_2",), "Karras", True),
    Sampler(
        "DPM2 a", partial(_dpm2, ancestral=True), ("k_dpm_2_a",), "Karras", True, uses_ensd=True
    ),
    # DDIM without added noise is Euler's rule on its own timesteps.
    Sampler("DDIM", _euler, plan=schedules.ddim_plan),
    Sampler("PLMS", _plms, plan=schedules.ddim_plan),
    Sampler("UniPC", _unipc, plan=schedules.unipc_plan),
)


def resolve_sampler(name: str, schedule: str) -> tuple[Sampler, str]:
    """Finds a sampler by any of its names; "DPM++ 2M Karras" of older WebUIs names both.

    Raises BadRequest with the list of names.
    """
    wanted = name.strip().casefold()
    for sampler in SAMPLERS:
        names = [n.casefold() for n in (sampler.name, *sampler.aliases)]
        if wanted in names:
            return sampler, schedule
        for known in schedules.SCHEDULES:
            if schedule == "Automatic" and wanted in [f"{n} {known.casefold()}" for n in names]:
                return sampler, known
    raise BadRequest(
        f"Sampler {name!r} is not available. Choose one of: "
        f"{', '.join(sampler.name for sampler in SAMPLERS)}.",
        "unknown_sampler",
    )
