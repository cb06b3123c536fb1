"""How learning rates change over a training: a share of the rate for each step, and no state."""

from __future__ import annotations

import math
from collections.abc import Callable

from middleware_api.training_fields import TrainSettings

DEFAULT_WARMUP = 500
DEFAULT_WARMUP_SHARE = 0.1
_POLYNOMIAL_END = 1e-7
_REX = 0.9

Share = Callable[[int], float]
"""From the number of steps that are done to what the rate is multiplied by in the next one."""


def rate_share(settings: TrainSettings, rate: float, steps: int, pictures_a_step: int) -> Share:
    """The extension's schedules; it counts pictures where this counts steps."""
    warmup = warmup_steps(settings, steps, pictures_a_step)
    turn = max(1.0, steps * settings.lr_scale_pos)
    lowest = min(1.0, settings.learning_rate_min / rate) if rate else 0.0

    def warmed(after: Share) -> Share:
        def share(step: int) -> float:
            return (step + 1) / (warmup + 1) if step < warmup else after(step)

        return share

    def done(step: int) -> float:
        return min(1.0, (step - warmup) / max(1, steps - warmup))

    def rising(step: int) -> float:
        return settings.lr_factor + (1 - settings.lr_factor) * min(1.0, step / turn)

    def annealed(place: float) -> float:
        return lowest + (1 - lowest) * (1 + math.cos(math.pi * place)) / 2

    def polynomial(step: int) -> float:
        end = min(1.0, _POLYNOMIAL_END / rate) if rate else 0.0
        return float((1 - end) * (1 - done(step)) ** settings.lr_power + end)

    def rex(step: int) -> float:
        left = 1 - step / max(1, steps)
        return left / (1 - _REX + _REX * left)

    shares: dict[str, Share] = {
        "constant": lambda step: settings.lr_factor if step < turn else 1.0,
        "linear": rising,
        "cosine_annealing": lambda step: annealed(min(1.0, step / turn)),
        "cosine_annealing_with_restarts": lambda step: annealed((step / max(1.0, turn / 2)) % 1.0),
        "constant_with_warmup": warmed(lambda step: 1.0),
        "linear_with_warmup": warmed(lambda step: 1 - done(step)),
        "cosine": warmed(
            lambda step: (1 + math.cos(math.pi * settings.lr_cycles * done(step))) / 2
        ),
        "cosine_with_restarts": warmed(
            lambda step: (1 + math.cos(math.pi * ((settings.lr_cycles * done(step)) % 1.0))) / 2
        ),
        "polynomial": warmed(polynomial),
        "rex": rex,
    }
    return shares[settings.lr_scheduler]


def warmup_steps(settings: TrainSettings, steps: int, pictures_a_step: int) -> int:
    """Over how many steps the rates rise."""
    if settings.lr_warmup_steps < 0:
        return min(DEFAULT_WARMUP // pictures_a_step, int(steps * DEFAULT_WARMUP_SHARE))
    return settings.lr_warmup_steps // pictures_a_step
