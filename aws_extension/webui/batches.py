"""Cutting one generation into jobs: one a batch, more where the prompts of a batch differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Piece:
    """Neighbouring pictures that one request can make: the same prompt, seeds that count up.

    `init_image` is the index of the one picture to start from where a batch has several.
    """

    prompt: str
    negative_prompt: str
    seed: int
    subseed: int
    count: int
    init_image: int | None = None


@dataclass(frozen=True)
class CutBatch:
    """One of the WebUI's batches; `start` is its first picture's index in the generation."""

    start: int
    pieces: tuple[Piece, ...]

    @property
    def count(self) -> int:
        """Pictures in it."""
        return sum(piece.count for piece in self.pieces)


def cut_into_batches(
    prompts: Sequence[str],
    negative_prompts: Sequence[str],
    seeds: Sequence[int],
    subseeds: Sequence[int],
    batch_size: int,
    n_iter: int,
    subseed_strength: float,
    init_images: int = 0,
) -> list[CutBatch]:
    """The WebUI's batches; like it, what is beyond `batch_size * n_iter` is not made.

    With several `init_images` each picture of a batch has its own.
    """
    # With a variation strength the WebUI holds the seed and counts the variation seed up.
    seed_step = 0 if subseed_strength else 1
    batches = []
    for start in range(0, min(len(prompts), batch_size * n_iter), batch_size):
        pieces: list[Piece] = []
        for i in range(start, min(start + batch_size, len(prompts))):
            last = pieces[-1] if pieces and init_images < 2 else None
            if last and (
                (prompts[i], negative_prompts[i]) == (last.prompt, last.negative_prompt)
                and seeds[i] == last.seed + seed_step * last.count
                and subseeds[i] == last.subseed + last.count
            ):
                pieces[-1] = Piece(
                    last.prompt, last.negative_prompt, last.seed, last.subseed, last.count + 1
                )
            else:
                own = (i - start) % init_images if init_images > 1 else None
                pieces.append(Piece(prompts[i], negative_prompts[i], seeds[i], subseeds[i], 1, own))
        batches.append(CutBatch(start, tuple(pieces)))
    return batches
