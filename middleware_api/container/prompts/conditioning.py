"""What the UNet reads at each call: a prompt's subprompts with their weights, and its negative."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from middleware_api.container.prompts.schedule import Clock, schedule_of

_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"\s*:\s*([-+]?(?:\d+\.?|\d*\.\d+))$")


@dataclass(frozen=True)
class Reading:
    """A text as the text encoders read it: (tokens, width), and its whole meaning, (width,), for
    families whose UNet is told that too."""

    tokens: Tensor
    pooled: Tensor | None = None


Encode = Callable[[Sequence[str]], list[Reading]]
"""A schedule's texts to one reading each."""


@dataclass(frozen=True)
class Conditioning:
    """One subprompt over a pass: each reading holds up to its call, counted from 0."""

    until: tuple[int, ...]
    states: tuple[Reading, ...]

    def at(self, call: int) -> Reading:
        """A call behind the last one reads what the first one read, as in the WebUI."""
        reached = zip(self.until, self.states, strict=True)
        return next((state for until, state in reached if call <= until), self.states[0])

    @property
    def n_bytes(self) -> int:
        tensors = [t for s in self.states for t in (s.tokens, s.pooled) if t is not None]
        distinct = {id(tensor): tensor for tensor in tensors}
        return sum(t.numel() * t.element_size() for t in distinct.values())


@dataclass(frozen=True)
class Texts:
    """What the UNet is told at once: (texts, tokens, width), and beside it what SDXL's also read.

    `beside` are the pooled texts, (texts, width), and the numbers of sizes or score for each.
    """

    tokens: Tensor
    beside: tuple[Tensor, Tensor] | None = None

    def and_also(self, other: Texts) -> Texts:
        """Both; they must be of one length."""
        tokens = torch.cat([self.tokens, other.tokens])
        if self.beside is None or other.beside is None:
            return Texts(tokens)
        pooled, numbers = map(torch.cat, zip(self.beside, other.beside, strict=True))
        return Texts(tokens, (pooled, numbers))

    def repeated(self, count: int) -> Texts:
        """Each as often as there are pictures in a batch, one text after the other."""
        if self.beside is None:
            return Texts(self.tokens.repeat_interleave(count, dim=0))
        pooled, numbers = (each.repeat_interleave(count, dim=0) for each in self.beside)
        return Texts(self.tokens.repeat_interleave(count, dim=0), (pooled, numbers))


@dataclass(frozen=True)
class Guidance:
    """Towards each subprompt by its weight, away from the negative prompt.

    `filler` is an empty chunk, to make the shorter side as long as the other; None leaves both as
    they are. `numbers` are told beside each subprompt, `away_numbers` beside the negative prompt.
    """

    towards: tuple[tuple[Conditioning, float], ...]
    away: Conditioning
    filler: Tensor | None = None
    numbers: Tensor | None = None
    away_numbers: Tensor | None = None
    _made: dict[tuple[int, ...], tuple[Texts, Texts]] = field(
        default_factory=dict, init=False, repr=False
    )

    @property
    def weights(self) -> tuple[float, ...]:
        return tuple(weight for _, weight in self.towards)

    def at(self, call: int) -> tuple[Texts, Texts]:
        """The subprompts, and the negative prompt: the very same as at the call before, where they
        say the same."""
        towards = [conditioning.at(call) for conditioning, _ in self.towards]
        away = self.away.at(call)
        key = tuple(map(id, (*towards, away)))
        if key not in self._made:
            self._made[key] = self._sides(towards, away)
        return self._made[key]

    def _sides(self, towards: Sequence[Reading], away: Reading) -> tuple[Texts, Texts]:
        length = max(len(reading.tokens) for reading in towards)
        side = _side(towards, length, None, self.numbers)
        if self.filler is None:
            return side, _side([away], len(away.tokens), None, self.away_numbers)
        # First as long as each other, then as long as the negative prompt.
        padded = [Reading(tokens) for tokens in side.tokens]
        length = max(length, len(away.tokens))
        longer = _side(padded, length, self.filler, None)
        return (
            Texts(longer.tokens, side.beside),
            _side([away], length, self.filler, self.away_numbers),
        )

    def is_padded_at(self, call: int) -> bool:
        """Whether one side is made longer then."""
        longest = max(len(conditioning.at(call).tokens) for conditioning, _ in self.towards)
        return self.filler is not None and longest != len(self.away.at(call).tokens)


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


def _side(
    readings: Sequence[Reading], length: int, filler: Tensor | None, numbers: Tensor | None
) -> Texts:
    """All of one length: without a filler the last token goes on."""
    tokens = torch.stack([_lengthened(each.tokens, length, filler) for each in readings])
    pooled = [each.pooled for each in readings if each.pooled is not None]
    if numbers is None:
        return Texts(tokens)
    return Texts(tokens, (torch.stack(pooled), numbers.expand(len(pooled), -1)))


def _lengthened(state: Tensor, length: int, filler: Tensor | None) -> Tensor:
    missing = length - len(state)
    if not missing:
        return state
    more = state[-1:] if filler is None else filler
    return torch.cat([state, more.repeat(missing // len(more), 1)])
