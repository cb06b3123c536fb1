"""Which pictures each step of a training shows: drawn from its seed alone, so never remembered."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from middleware_api.container.training.buckets import Size


@dataclass(frozen=True)
class Batch:
    """Numbers of pictures of one bucket; `epoch` counts from 0, `number` over all batches."""

    pictures: tuple[int, ...]
    epoch: int
    number: int

    def rng(self, seed: int) -> random.Random:
        """All chance of this batch, whatever was drawn before it."""
        return random.Random(f"{seed} batch {self.number}")


class Plan:
    """The batches of all steps. `sizes` are the pictures' buckets."""

    def __init__(
        self, sizes: Sequence[Size], epochs: int, batch_size: int, accumulation: int, seed: int
    ) -> None:
        self._buckets: dict[Size, list[int]] = defaultdict(list)
        for number, size in enumerate(sizes):
            self._buckets[size].append(number)
        self._epochs, self._batch_size = epochs, batch_size
        self._accumulation, self._seed = accumulation, seed
        self._an_epoch = sum(-(-len(found) // batch_size) for found in self._buckets.values())
        self.steps = -(-epochs * self._an_epoch // accumulation)
        self.pictures_a_step = batch_size * accumulation

    def steps_of(self, epochs: int) -> int:
        """At least 1."""
        return max(1, epochs * self._an_epoch // self._accumulation)

    def batches(self, step: int) -> list[Batch]:
        """Of the step that follows after `step` steps."""
        first = step * self._accumulation
        last = min(first + self._accumulation, self._epochs * self._an_epoch)
        return [self._batch(number) for number in range(first, last)]

    def _batch(self, number: int) -> Batch:
        epoch, place = divmod(number, self._an_epoch)
        return Batch(self._order(epoch)[place], epoch, number)

    @lru_cache(maxsize=2)  # noqa: B019  # a plan lives as long as its process
    def _order(self, epoch: int) -> list[tuple[int, ...]]:
        rng = random.Random(f"{self._seed} epoch {epoch}")
        batches = []
        for pictures in self._buckets.values():
            mixed = rng.sample(pictures, len(pictures))
            batches += [
                tuple(mixed[start : start + self._batch_size])
                for start in range(0, len(mixed), self._batch_size)
            ]
        rng.shuffle(batches)
        return batches
