"""Noise levels: SD 1.x's thousand, and the few of them that a sampler visits.

Levels are k-diffusion's sigmas (Karras et al. 2022, https://arxiv.org/abs/2206.00364): the
standard deviation of the noise added to a latent of unit scale. Computed in double precision,
since a schedule is small and decides every step after it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from middleware_api.container.errors import BadRequest

Levels = npt.NDArray[np.float64]

TRAIN_STEPS = 1000
ALPHAS_CUMPROD: Levels = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, TRAIN_STEPS) ** 2)
SIGMAS: Levels = np.sqrt((1 - ALPHAS_CUMPROD) / ALPHAS_CUMPROD)
SIGMA_MIN, SIGMA_MAX = float(SIGMAS[0]), float(SIGMAS[-1])
_LOG_SIGMAS: Levels = np.log(SIGMAS)


def sigma_of(timestep: npt.ArrayLike) -> Levels:
    """Noise level of a timestep 0..999; between two, interpolated in the logarithm."""
    return np.asarray(
        np.exp(
            np.interp(np.asarray(timestep, dtype=np.float64), np.arange(TRAIN_STEPS), _LOG_SIGMAS)
        )
    )


def timestep_of(sigma: float) -> float:
    """The timestep, fractional, at which the model was trained on this noise level."""
    return float(np.interp(math.log(sigma), _LOG_SIGMAS, np.arange(TRAIN_STEPS)))


def share_done(sigma: float) -> float:
    """How much of the model's thousand levels lies behind this one, 0..1 (the WebUI's rule)."""
    return float(TRAIN_STEPS - 1 - np.argmin(np.abs(SIGMAS - sigma))) / TRAIN_STEPS


def _uniform(steps: int) -> Levels:
    return sigma_of(np.linspace(TRAIN_STEPS - 1, 0, steps))


def _karras(steps: int, rho: float = 7.0) -> Levels:
    ramp = np.linspace(0, 1, steps)
    low, high = SIGMA_MIN ** (1 / rho), SIGMA_MAX ** (1 / rho)
    return np.asarray((high + ramp * (low - high)) ** rho)


def _exponential(steps: int) -> Levels:
    return np.asarray(np.exp(np.linspace(math.log(SIGMA_MAX), math.log(SIGMA_MIN), steps)))


def _sgm_uniform(steps: int) -> Levels:
    return sigma_of(np.linspace(TRAIN_STEPS - 1, 0, steps + 1)[:-1])


def _simple(steps: int) -> Levels:
    stride = TRAIN_STEPS / steps
    return SIGMAS[[-(1 + int(i * stride)) for i in range(steps)]]


# Each gives `steps` falling levels; the closing zero is added where a schedule is chosen.
SCHEDULES: dict[str, Callable[[int], Levels]] = {
    "Uniform": _uniform,
    "Karras": _karras,
    "Exponential": _exponential,
    "Polyexponential": _exponential,  # with the WebUI's default rho of 1 they are the same
    "SGM Uniform": _sgm_uniform,
    "Simple": _simple,
    "Normal": _uniform,  # SD 1.x's levels are the model's own, so the two coincide
}


@dataclass(frozen=True)
class Plan:
    """The levels a job visits, and how its first latent is mixed.

    The sampler starts at `image * image_scale + noise * noise_scale`, walks `sigmas` (n + 1
    levels, n steps), and its result is multiplied by `final_scale`.
    """

    sigmas: tuple[float, ...]
    noise_scale: float
    image_scale: float = 1.0
    final_scale: float = 1.0

    @property
    def steps(self) -> int:
        return len(self.sigmas) - 1


STILL = Plan((0.0,), noise_scale=0.0)
"""No step at all: the latent stays as it is."""


def encode_steps(steps: int, denoising_strength: float) -> int:
    """How many of the steps an img2img job runs through (the WebUI's rule)."""
    return int(min(denoising_strength, 0.999) * steps)


def stretched_steps(steps: int, denoising_strength: float) -> int:
    """The schedule's length of which a hires pass takes the last `steps` (the WebUI's rule).

    `denoising_strength` is above 0.
    """
    return int(steps / min(denoising_strength, 0.999))


def sigma_plan(schedule: str, steps: int, discard_penultimate: bool, encode: int | None) -> Plan:
    """For k-diffusion's samplers; `encode` is None when there is no picture to start from.

    Of `steps`, the last `encode` + 1 are taken.
    """
    # One more level, the last but one left out again: what DPM2 and DPM++ 3M SDE need.
    levels = SCHEDULES[schedule](steps + discard_penultimate)
    if discard_penultimate:
        levels = levels[:-1]
    sigmas = [*map(float, levels), 0.0]
    if encode is not None:
        sigmas = sigmas[steps - encode - 1 :]
    return Plan(tuple(sigmas), noise_scale=sigmas[0])


def ddim_plan(steps: int, encode: int | None) -> Plan:
    """For DDIM and PLMS: from LDM's timesteps down to the first of them (1, 1 + stride, ...).

    The WebUI walks between these, one step fewer than there are, and leaves the rest of the noise.
    """
    timesteps = _ldm_timesteps(steps)
    if encode is None:
        return _variance_preserving(timesteps[::-1], None)
    start = min(encode, len(timesteps) - 1)
    return _variance_preserving(timesteps[:start][::-1] or timesteps[:1], timesteps[start])


def unipc_plan(steps: int, encode: int | None) -> Plan:
    """For UniPC: evenly spaced in time down to timestep 0."""
    if encode is None:
        return _variance_preserving([*np.linspace(TRAIN_STEPS - 1, 0, steps + 1)], None)
    timesteps = _ldm_timesteps(steps)
    start = min(max(1, encode), len(timesteps) - 1)
    path = np.linspace(max(1, timesteps[start - 1] - 1), 0, start + 1)
    return _variance_preserving([*path], timesteps[start])


def _ldm_timesteps(steps: int) -> list[int]:
    return [
        min(t + 1, TRAIN_STEPS - 1) for t in range(0, TRAIN_STEPS, max(1, TRAIN_STEPS // steps))
    ]


def _variance_preserving(timesteps: list[int] | list[float], noised_at: int | None) -> Plan:
    """A plan for samplers defined on x*sqrt(a) + noise*sqrt(1-a), in k-diffusion's scale.

    Dividing by sqrt(a) turns one into the other. `noised_at` is the timestep to whose level an
    img2img latent is noised: LDM noises one step further than it starts from.
    """
    sigmas = [*map(float, sigma_of(np.asarray(timesteps, dtype=np.float64)))]
    start_alpha = 1 / (1 + sigmas[0] ** 2)
    final = math.sqrt(1 / (1 + sigmas[-1] ** 2))
    if noised_at is None:
        return Plan(tuple(sigmas), 1 / math.sqrt(start_alpha), final_scale=final)
    alpha = float(ALPHAS_CUMPROD[noised_at])
    return Plan(
        tuple(sigmas),
        noise_scale=math.sqrt((1 - alpha) / start_alpha),
        image_scale=math.sqrt(alpha / start_alpha),
        final_scale=final,
    )


def resolve_schedule(name: str) -> str:
    """The WebUI's spelling of a schedule type; raises BadRequest for one the engine lacks."""
    for known in ("Automatic", *SCHEDULES):
        if known.casefold().replace(" ", "_") == name.strip().casefold().replace(" ", "_"):
            return known
    raise BadRequest(
        f"Schedule type {name!r} is not available. Choose one of: Automatic, "
        f"{', '.join(SCHEDULES)}.",
        "unknown_scheduler",
    )
