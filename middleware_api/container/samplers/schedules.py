"""The few of a model's noise levels that a sampler visits.

Levels are k-diffusion's sigmas (Karras et al. 2022, https://arxiv.org/abs/2206.00364): the
standard deviation of the noise added to a latent of unit scale. Computed in double precision,
since a schedule is small and decides every step after it. Sources of the schedules: Karras et al.
2022 (Karras), Sabour et al. 2024 (2404.14507, Align Your Steps), Lee et al. 2024 (2407.12173,
Beta), the arctangents of KL Optimal from the same Align Your Steps paper, and the WebUI 1.10.1
for the ends of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import special  # type: ignore[import-untyped]

from middleware_api.container.errors import BadRequest
from middleware_api.container.samplers.noise_levels import (
    STANDARD,
    TRAIN_STEPS,
    ZERO_SNR,
    Ladder,
    Levels,
    ModelLevels,
)
from middleware_api.container.samplers.sampling_settings import (
    SamplingSettings,
    ScheduleSettings,
    UniPCSettings,
)

FULL, FIFTY = STANDARD.full, STANDARD.fifty
SIGMAS = FULL.sigmas
SIGMA_MIN, SIGMA_MAX = FULL.lowest, FULL.highest

sigma_of = FULL.sigma_of
timestep_of = FULL.timestep_of


def share_done(sigma: float, ladder: Ladder = FULL) -> float:
    """How much of the model's thousand levels lies behind this one, 0..1 (the WebUI's rule)."""
    return float(TRAIN_STEPS - 1 - np.argmin(np.abs(ladder.sigmas - sigma))) / TRAIN_STEPS


def levels_of(settings: ScheduleSettings) -> ModelLevels:
    """All that a model knows which was trained like this."""
    return ZERO_SNR if settings.zero_snr else STANDARD


@dataclass(frozen=True)
class _Ends:
    """What a schedule is drawn from: the model's levels, and the two it is to run between."""

    ladder: Ladder
    low: float
    high: float
    settings: ScheduleSettings


def karras_levels(steps: int, low: float, high: float, rho: float = 7.0) -> list[float]:
    """`steps` levels from `high` down to `low`, and the closing zero."""
    ramp = np.linspace(0, 1, steps)
    start, end = high ** (1 / rho), low ** (1 / rho)
    return _closed((start + ramp * (end - start)) ** rho)


def _closed(levels: Levels) -> list[float]:
    return [*map(float, levels), 0.0]


def _uniform(steps: int, ends: _Ends) -> list[float]:
    times = ends.ladder.timesteps
    return _closed(ends.ladder.sigma_of(np.linspace(times[-1], times[0], steps)))


def _karras(steps: int, ends: _Ends) -> list[float]:
    return karras_levels(steps, ends.low, ends.high, ends.settings.rho or 7.0)


def _exponential(steps: int, ends: _Ends) -> list[float]:
    return _closed(np.exp(np.linspace(math.log(ends.high), math.log(ends.low), steps)))


def _polyexponential(steps: int, ends: _Ends) -> list[float]:
    ramp = np.linspace(1, 0, steps) ** (ends.settings.rho or 1.0)
    return _closed(np.exp(ramp * math.log(ends.high / ends.low) + math.log(ends.low)))


def _times_between(ends: _Ends, count: int) -> Levels:
    ladder = ends.ladder
    times = np.linspace(ladder.timestep_of(ends.high), ladder.timestep_of(ends.low), count)
    return np.asarray(times, dtype=np.float64)


def _sgm_uniform(steps: int, ends: _Ends) -> list[float]:
    return _closed(ends.ladder.sigma_of(_times_between(ends, steps + 1)[:-1]))


def _normal(steps: int, ends: _Ends) -> list[float]:
    return _closed(ends.ladder.sigma_of(_times_between(ends, steps)))


def _kl_optimal(steps: int, ends: _Ends) -> list[float]:
    """Ends at the lowest level, not at zero: the WebUI's pictures keep that little noise."""
    angles = np.linspace(math.atan(ends.high), math.atan(ends.low), steps + 1)
    return [*map(float, np.tan(angles))]


# The paper's tables for SD 1.5 and for SDXL.
_ALIGNED = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
_ALIGNED_XL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)


def _align_your_steps(steps: int, ends: _Ends) -> list[float]:
    rising = np.log((_ALIGNED_XL if ends.settings.for_xl else _ALIGNED)[::-1])
    places = np.interp(np.linspace(0, 1, steps), np.linspace(0, 1, len(rising)), rising)
    return _closed(np.exp(places)[::-1])


def _simple(steps: int, ends: _Ends) -> list[float]:
    levels = ends.ladder.sigmas
    return _closed(levels[[-(1 + int(i * len(levels) / steps)) for i in range(steps)]])


def _ddim(steps: int, ends: _Ends) -> list[float]:
    """LDM's spacing from the second level up, which often takes a level more than asked."""
    levels = ends.ladder.sigmas
    return _closed(levels[1 :: max(1, len(levels) // steps)][::-1])


def _beta(steps: int, ends: _Ends) -> list[float]:
    alpha, beta = ends.settings.beta_alpha, ends.settings.beta_beta
    places = special.betaincinv(alpha, beta, 1 - np.linspace(0, 1, steps))
    return _closed(ends.low + places * (ends.high - ends.low))


# Each gives the falling levels for a number of steps, the closing one included.
SCHEDULES: dict[str, Callable[[int, _Ends], list[float]]] = {
    "Uniform": _uniform,
    "Karras": _karras,
    "Exponential": _exponential,
    "Polyexponential": _polyexponential,
    "SGM Uniform": _sgm_uniform,
    "KL Optimal": _kl_optimal,
    "Align Your Steps": _align_your_steps,
    "Simple": _simple,
    "Normal": _normal,
    "DDIM": _ddim,
    "Beta": _beta,
}
ALIASES = {"SGMUniform": "SGM Uniform"}


@dataclass(frozen=True)
class Plan:
    """The levels a job visits, and how its first latent is mixed.

    The sampler starts at `image * image_scale + noise * noise_scale`, walks `sigmas` (n + 1
    levels, n steps), and its result is multiplied by `final_scale`. `asked_steps` are those the
    caller wanted, from which the levels may differ. `span` are the lowest and highest level that
    a Brownian path is drawn between, `solver_span` those of the solvers that place their own.
    `ladder` are all the levels that the model knows.
    """

    sigmas: tuple[float, ...]
    noise_scale: float
    asked_steps: int
    image_scale: float = 1.0
    final_scale: float = 1.0
    span: tuple[float, float] = (SIGMA_MIN, SIGMA_MAX)
    solver_span: tuple[float, float] = (SIGMA_MIN, SIGMA_MAX)
    ladder: Ladder = FULL

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


STILL = Plan((0.0,), noise_scale=0.0, asked_steps=0)
"""No step at all: the latent stays as it is."""


def encode_steps(steps: int, denoising_strength: float) -> int:
    """How many of the steps an img2img job runs through (the WebUI's rule)."""
    return int(min(denoising_strength, 0.999) * steps)


def stretched_steps(steps: int, denoising_strength: float) -> int:
    """The schedule's length of which a hires pass takes the last `steps` (the WebUI's rule).

    `denoising_strength` is above 0.
    """
    return int(steps / min(denoising_strength, 0.999))


def sigma_plan(
    schedule: str,
    steps: int,
    encode: int | None,
    settings: SamplingSettings,
    *,
    discard_penultimate: bool = False,
    ladder: Ladder = FULL,
) -> Plan:
    """For k-diffusion's samplers; `encode` is None when there is no picture to start from.

    Of `steps`, the last `encode` + 1 are taken.
    """
    sigmas = _levels(schedule, steps + discard_penultimate, settings.schedule, ladder)
    if discard_penultimate:  # one level more, left out again: what DPM2 and DPM++ 3M SDE need
        sigmas = [*sigmas[:-2], sigmas[-1]]
    span = (min(s for s in sigmas if s > 0), max(sigmas))
    if encode is None:
        start = sigmas[0]
        scale = math.sqrt(1 + start**2) if settings.sgm_noise else start
        whole = (ladder.lowest, ladder.highest)
        return Plan(tuple(sigmas), scale, steps, span=span, solver_span=whole, ladder=ladder)
    # Some schedules do not have as many levels as were asked for.
    sigmas = sigmas[min(steps - encode - 1, len(sigmas) - 2) :]
    return Plan(
        tuple(sigmas),
        noise_scale=sigmas[0],
        asked_steps=len(sigmas) - 1,
        span=span,
        solver_span=(sigmas[-2], sigmas[0]),
        ladder=ladder,
    )


def _levels(schedule: str, steps: int, settings: ScheduleSettings, ladder: Ladder) -> list[float]:
    low, high = (0.1, 10.0) if settings.old_karras else (ladder.lowest, ladder.highest)
    low, high = settings.sigma_min or low, settings.sigma_max or high
    if low >= high:
        raise BadRequest(
            f"override_settings.sigma_min ({low:g}) must be below sigma_max ({high:g}). "
            "Leave both at 0 for the model's own levels.",
            "bad_field",
        )
    levels = SCHEDULES[schedule](steps, _Ends(ladder, low, high, settings))
    # More steps than the model has levels would stand still at some.
    return [level for level, after in pairwise(levels) if level != after] + levels[-1:]


def ddim_plan(steps: int, encode: int | None, settings: SamplingSettings) -> Plan:
    """For DDIM and PLMS: from LDM's timesteps down to the first of them (1, 1 + stride, ...).

    The WebUI walks between these, one step fewer than there are, and leaves the rest of the noise.
    """
    timesteps, known = _ldm_timesteps(steps, settings), levels_of(settings.schedule)
    if encode is None:
        return _variance_preserving(known, known.full.sigma_of(timesteps[::-1]), steps, None)
    start = min(encode, len(timesteps) - 1)
    path = timesteps[:start][::-1] or timesteps[:1]
    levels = known.full.sigma_of(path)
    return _variance_preserving(known, levels, encode + 1, timesteps[start])


def unipc_plan(steps: int, encode: int | None, settings: SamplingSettings) -> Plan:
    """For UniPC: spaced as its settings say, down to timestep 0, as many as LDM's timesteps."""
    timesteps, known = _ldm_timesteps(steps, settings), levels_of(settings.schedule)
    if encode is None:
        levels = _unipc_levels(known, TRAIN_STEPS - 1, len(timesteps), settings.unipc)
        return _variance_preserving(known, levels, steps, None)
    start = min(max(1, encode), len(timesteps) - 1)
    levels = _unipc_levels(known, timesteps[start - 1], max(1, start), settings.unipc)
    return _variance_preserving(known, levels, encode + 1, timesteps[start])


def _unipc_levels(known: ModelLevels, first: float, steps: int, settings: UniPCSettings) -> Levels:
    """In UniPC's own time, where timestep t is (t + 1) / 1000, from timestep `first` to 0."""
    begin, end = (first + 1) / TRAIN_STEPS, 1 / TRAIN_STEPS
    if settings.skip_type == "logSNR":
        highest, lowest = (math.log(_unipc_sigma(known, time)) for time in (begin, end))
        return np.asarray(np.exp(np.linspace(highest, lowest, steps + 1)))
    if settings.skip_type == "time_quadratic":
        times = np.linspace(math.sqrt(begin), math.sqrt(end), steps + 1) ** 2
    else:
        times = np.linspace(begin, end, steps + 1)
    return np.array([_unipc_sigma(known, time) for time in times])


def _unipc_sigma(known: ModelLevels, time: float) -> float:
    """Between timesteps UniPC interpolates the logarithm of the latent's share, not the level's."""
    half_logs = 0.5 * np.log(known.alphas)
    half_log = np.interp(time * TRAIN_STEPS - 1, np.arange(TRAIN_STEPS), half_logs)
    return math.sqrt(math.expm1(-2 * float(half_log)))


def _ldm_timesteps(steps: int, settings: SamplingSettings) -> list[int]:
    """1, 1 + stride, ...: one more than asked where the stride does not divide the thousand."""
    stride = max(1, TRAIN_STEPS // (steps + settings.discard_penultimate))
    return [min(t + 1, TRAIN_STEPS - 1) for t in range(0, TRAIN_STEPS, stride)]


def _variance_preserving(
    known: ModelLevels, levels: Levels, asked_steps: int, noised_at: int | None
) -> Plan:
    """A plan for samplers defined on x*sqrt(a) + noise*sqrt(1-a), in k-diffusion's scale.

    Dividing by sqrt(a) turns one into the other. `noised_at` is the timestep to whose level an
    img2img latent is noised: LDM noises one step further than it starts from.
    """
    sigmas = tuple(map(float, levels))
    start_alpha = 1 / (1 + sigmas[0] ** 2)
    final = math.sqrt(1 / (1 + sigmas[-1] ** 2))
    if noised_at is None:
        scale = 1 / math.sqrt(start_alpha)
        return Plan(sigmas, scale, asked_steps, final_scale=final, ladder=known.full)
    alpha = float(known.alphas[noised_at])
    return Plan(
        sigmas,
        noise_scale=math.sqrt((1 - alpha) / start_alpha),
        asked_steps=asked_steps,
        image_scale=math.sqrt(alpha / start_alpha),
        final_scale=final,
        ladder=known.full,
    )


def resolve_schedule(name: str) -> str:
    """The WebUI's spelling of a schedule type; raises BadRequest for one the engine lacks."""
    spelled = _plain(name)
    for known in ("Automatic", *SCHEDULES):
        if _plain(known) == spelled:
            return known
    for alias, known in ALIASES.items():
        if _plain(alias) == spelled:
            return known
    raise BadRequest(
        f"Schedule type {name!r} is not available. Choose one of: Automatic, "
        f"{', '.join(SCHEDULES)}.",
        "unknown_scheduler",
    )


def _plain(name: str) -> str:
    return name.strip().casefold().replace(" ", "_")
