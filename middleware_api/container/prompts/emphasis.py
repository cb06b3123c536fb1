"""Emphasis in a prompt, as the WebUI 1.10.1 reads it: `(x)`, `((x))`, `(x:1.3)`, `[x]`, `\\(`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

_STEP = 1.1
_TOKEN = re.compile(
    r"\\(?P<escaped>[()\[\]\\])|(?P<lone>\\)"
    r"|:\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
    r"|(?P<bracket>[()\[\]])|(?P<text>[^\\()\[\]:]+|:)"
)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


class Emphasis(Enum):
    """What brackets do: the WebUI's setting of this name. NONE leaves them in the text."""

    ORIGINAL = "Original"
    NO_NORM = "No norm"
    IGNORE = "Ignore"
    NONE = "None"


@dataclass
class Weighted:
    """A part of a prompt and how much its tokens count."""

    text: str
    weight: float

    @property
    def is_break(self) -> bool:
        """Whether a new chunk of tokens begins here.

        Marked as the WebUI marks it, by a weight that brackets around it change: there the
        keyword is a word like others, and one that counts against the picture.
        """
        return self.text == "BREAK" and self.weight == -1


def weighted_parts(prompt: str, emphasis: Emphasis) -> list[Weighted]:
    """At least one part; neighbours of one weight are one, so that words are not torn apart."""
    if emphasis is Emphasis.NONE:
        return [Weighted(prompt, 1.0)]
    return _joined(_read(prompt)) or [Weighted("", 1.0)]


def _read(prompt: str) -> list[Weighted]:
    parts: list[Weighted] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}  # where each open bracket began

    def weigh(bracket: str, factor: float) -> None:
        for part in parts[opened[bracket].pop() :]:
            part.weight *= factor

    for token in _TOKEN.finditer(prompt):
        kind, text = token.lastgroup, token[0]
        if kind == "escaped":
            parts.append(Weighted(token["escaped"], 1.0))
        elif kind == "lone":  # protects nothing, and is dropped
            parts.append(Weighted("", 1.0))
        elif kind == "weight" and opened["("]:
            weigh("(", float(token["weight"]))
        elif text in opened:
            opened[text].append(len(parts))
        elif text == ")" and opened["("]:
            weigh("(", _STEP)
        elif text == "]" and opened["["]:
            weigh("[", 1 / _STEP)
        else:
            first, *others = _BREAK.split(text)
            parts.append(Weighted(first, 1.0))
            for other in others:
                parts += [Weighted("BREAK", -1), Weighted(other, 1.0)]
    for bracket, factor in (("(", _STEP), ("[", 1 / _STEP)):
        while opened[bracket]:
            weigh(bracket, factor)
    return parts


def _joined(parts: list[Weighted]) -> list[Weighted]:
    joined: list[Weighted] = []
    for part in parts:
        if joined and joined[-1].weight == part.weight:
            joined[-1].text += part.text
        else:
            joined.append(part)
    return joined
