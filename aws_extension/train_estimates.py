"""How long a training will take and what it will cost, before it begins.

A step is timed by an earlier job on the same type of machine where there was one: its time is
taken to grow with the pixels of a step. Without one, a rule of thumb stands in: so many seconds
for each picture of 512 × 512 by graphics card, set down from what users of such cards report and
not measured by this project. Both are told apart to whoever reads the estimate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from middleware_api import prices

# Seconds for one picture of 512 × 512, forwards and backwards, LoRA, by the machine's family.
_RULE = {"ml.g4dn": 1.0, "ml.g6": 0.5, "ml.g5": 0.4, "ml.p3": 0.45, "ml.p4d": 0.15}
_RULE_PIXELS = 512 * 512
# A full checkpoint's step has all weights to change.
_FULL = 1.4
# A class picture is some dozens of forward passes.
_CLASS_PICTURE = 10
# A rented machine, its image and the weights.
_START_SECONDS = 420.0
LOCAL = "local"


@dataclass(frozen=True)
class TrainSize:
    """How much work a training is. `pictures` are the instance pictures; `class_pictures` those
    that have to be made, `with_classes` whether each step learns from one beside each picture."""

    pictures: int
    epochs: int
    batch: int
    accumulation: int
    resolution: int
    is_full: bool
    with_classes: bool
    class_pictures: int

    @property
    def steps(self) -> int:
        """Of the optimizer."""
        calls = math.ceil(self.pictures / self.batch) * self.epochs
        return math.ceil(calls / self.accumulation)

    @property
    def pixels_a_step(self) -> float:
        """What a step looks at, in pixels."""
        factor = (2 if self.with_classes else 1) * (_FULL if self.is_full else 1)
        return self.batch * self.accumulation * self.resolution**2 * factor


@dataclass(frozen=True)
class Measured:
    """What a step took in an earlier job on some type of machine."""

    instance_type: str
    step_seconds: float
    size: TrainSize


@dataclass(frozen=True)
class Estimate:
    """`seconds` and `cost` (US dollars) are None where nothing is known of the machine."""

    steps: int
    seconds: float | None
    cost: float | None
    is_measured: bool


def size_of(config: Mapping[str, Any], pictures: int) -> TrainSize:
    """Of the settings in `db_config.json`'s words; what they leave out is the program's default."""
    concepts = [one for one in config.get("concepts_list") or [] if isinstance(one, dict)]
    classes = max([_number(one, "num_class_images_per", 0) for one in concepts], default=0)
    own = any(one.get("class_data_dir") for one in concepts)
    return TrainSize(
        pictures=max(1, pictures),
        epochs=_number(config, "num_train_epochs", 100),
        batch=max(1, _number(config, "train_batch_size", 1)),
        accumulation=max(1, _number(config, "gradient_accumulation_steps", 1)),
        resolution=_number(config, "resolution", 512),
        is_full=not config.get("use_lora"),
        with_classes=classes > 0 or own,
        class_pictures=0 if own else classes * max(1, pictures),
    )


def estimate(size: TrainSize, instance_type: str, measured: Measured | None) -> Estimate:
    """`measured` is of an earlier job on the same type of machine, if there was one."""
    if measured is not None:
        pixel_seconds = measured.step_seconds / measured.size.pixels_a_step
    else:
        family = instance_type.rpartition(".")[0]
        if family not in _RULE:
            return Estimate(size.steps, None, None, is_measured=False)
        pixel_seconds = _RULE[family] / _RULE_PIXELS
    seconds = size.steps * size.pixels_a_step * pixel_seconds
    seconds += size.class_pictures * _CLASS_PICTURE * size.resolution**2 * pixel_seconds
    if instance_type != LOCAL:
        seconds += _START_SECONDS
    cost = prices.cost(instance_type, seconds)
    return Estimate(size.steps, seconds, cost, measured is not None)


def _number(config: Mapping[str, Any], name: str, default: int) -> int:
    """The program itself refuses what is no number."""
    try:
        return int(float(config[name]))
    except (KeyError, TypeError, ValueError):
        return default
