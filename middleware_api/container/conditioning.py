"""What the UNet reads at each call: a prompt's subprompts with their weights, and its negative."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from middleware_api.container.prompt_schedule import Clock, schedule_of

_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"\s*:\s*([-+]?(?:\d+\.?|\d*\.\d+))$")

Encode = Callable[[Sequence[str]], list[Tensor]]
"""A schedule's texts to one (tokens, width) each."""


@dataclass(frozen=True)
class Conditioning:
    """One subprompt over a pass: each (tokens, width) holds up to its call, counted from 0."""

    until: tuple[int, ...]
    states: tuple[Tensor, ...]

    def at(self, call: int) -> Tensor:
        """A call behind the last one reads what the first one read, as in the WebUI."""
        reached = zip(self.until, self.states, strict=True)
        return next((state for until, state in reached if call <= until), self.states[0])

    @property
    def n_bytes(self) -> int:
        distinct = {id(state): state for state in self.states}
        return sum(s.numel() * s.element_size() for s in distinct.values())


@dataclass(frozen=True)
class Guidance:
    """Towards each subprompt by its weight, away from the negative prompt.

    `filler` is an empty chunk, to make the shorter side as long as the other; None leaves both as
    they are.
    """

    towards: tuple[tuple[Conditioning, float], ...]
    away: Conditioning
    filler: Tensor | None = None

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(weight for _, weight in self.towards)

    def at(self, call: int) -> tuple[Tensor, Tensor]:
        """(subprompts, tokens, width) and the negative prompt's (1, tokens, width)."""
        states = [conditioning.at(call) for conditioning, _ in self.towards]
        longest = max(map(len, states))
        towards = torch.stack([_lengthened(state, longest, state[-1:]) for state in states])
        away = self.away.at(call)[None]
        if self.filler is None:
            return towards, away
        length = max(longest, away.shape[1])
        padded = (
            torch.stack([_lengthened(state, length, self.filler) for state in side])
            for side in (towards, away)
        )
        return next(padded), next(padded)

    def is_padded_at(self, call: int) -> bool:
        """Whether one side is made longer then."""
        longest = max(len(conditioning.at(call)) for conditioning, _ in self.towards)
        return self.filler is not None and longest != len(self.away.at(call))


def subprompts_of(prompt: str) -> list[tuple[str, float]]:
    """The parts between the keyword AND, each with the weight behind its last colon, or 1."""
    found = []
    for part in _AND.split(prompt):
        text = part.rstrip()
        weight = _WEIGHT.search(text)
        found.append((text[: weight.start()], float(weight[1])) if weight else (text, 1.0))
    return found


def conditioning_of(text: str, clock: Clock, encode: Encode) -> Conditioning:
    """One subprompt, or a negative prompt as it stands."""
    words = schedule_of(text, clock)
    states = encode([each.text for each in words])
    return Conditioning(tuple(each.until for each in words), tuple(states))


def _lengthened(state: Tensor, length: int, filler: Tensor) -> Tensor:
    missing = length - len(state)
    return state if not missing else torch.cat([state, filler.repeat(missing // len(filler), 1)])
