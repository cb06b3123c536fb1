"""A prompt's words over the steps: `[a:b:0.5]`, `[a:b:10]`, `[a::5]`, `[b:5]` and `[a|b]`.

As the WebUI 1.10.1 reads them. Brackets that are none of these stay as they are, for the emphasis
to read; so does every stray bracket or colon. A `|` that stands in no alternation, or a backslash
at the very end, makes the whole prompt plain.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

_TOKEN = re.compile(r"\\.|[\[\]():|]|[^\\\[\]():|]+")
_STEP = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*")
_PAIRS = {"[": "]", "(": ")"}


@dataclass(frozen=True)
class Clock:
    """How a pass counts: `steps` are calls of the model, which second-order samplers double.

    `before` is None in the first pass; in hires fix it is how many calls the first pass had, and
    shares of that pass run from 1 to 2.
    """

    steps: int
    before: int | None = None

    def call_of(self, when: str) -> int:
        """The last call before a switch that is written like this."""
        offset_share, offset_steps = (0.0, 0) if self.before is None else (1.0, self.before)
        if "." in when:
            return min(self.steps, int((float(when) - offset_share) * self.steps))
        # So large a number is never reached, and int() refuses an infinite one.
        return int(min(float(self.steps), float(when) - offset_steps))


@dataclass(frozen=True)
class Switch:
    """`[before:after:when]`."""

    before: _Items
    after: _Items
    when: str

    def at(self, call: int, clock: Clock) -> _Items:
        return self.before if call <= clock.call_of(self.when) else self.after

    def ends(self, clock: Clock) -> Iterable[int]:
        last = clock.call_of(self.when)
        return [last] if last >= 1 else []


@dataclass(frozen=True)
class Alternation:
    """`[one|two|...]`, one a call."""

    options: tuple[_Items, ...]

    def at(self, call: int, clock: Clock) -> _Items:
        return self.options[(call - 1) % len(self.options)]

    def ends(self, clock: Clock) -> Iterable[int]:
        return range(1, clock.steps + 1)


_Change = Switch | Alternation
_Items = tuple[str | Switch | Alternation, ...]


@dataclass(frozen=True)
class Words:
    """What the prompt says up to and including a call of the model, counted from 0."""

    until: int
    text: str


def schedule_of(prompt: str, clock: Clock) -> tuple[Words, ...]:
    """A prompt's words in their order; one entry when they never change.

    An entry for every call at which something might change, also where the words come out alike:
    the WebUI encodes them in one batch, whose mean its emphasis keeps.
    """
    parser = _Parser()
    items = parser.parse(prompt)
    if items is None:
        return (Words(clock.steps, prompt),)
    ends = {clock.steps}.union(*(change.ends(clock) for change in parser.changes))
    return tuple(Words(end, _render(items, end, clock)) for end in sorted(ends))


def _render(items: _Items, call: int, clock: Clock) -> str:
    """Without recursion: a prompt may nest deeper than Python's stack."""
    text, left = [], [iter(items)]
    while left:
        item = next(left[-1], None)
        if item is None:
            left.pop()
        elif isinstance(item, str):
            text.append(item)
        else:
            left.append(iter(item.at(call, clock)))
    return "".join(text)


@dataclass
class _Group:
    """An open bracket and what has come since, in parts between its colons and bars."""

    bracket: str
    parts: list[list[str | _Change]] = field(default_factory=lambda: [[]])
    marks: list[str] = field(default_factory=list)

    def add(self, items: Iterable[str | _Change]) -> None:
        self.parts[-1].extend(items)

    def divide(self, mark: str) -> None:
        self.marks.append(mark)
        self.parts.append([])

    def flat(self) -> Iterator[str | _Change]:
        """Everything but the opening bracket, as it was written."""
        for part, mark in zip(self.parts, [*self.marks, ""], strict=True):
            yield from part
            yield mark


class _Parser:
    """Reads a prompt once, left to right; `changes` are all that it found."""

    def __init__(self) -> None:
        self.changes: list[_Change] = []
        self._top: list[str | _Change] = []
        self._open: list[_Group] = []

    def parse(self, prompt: str) -> _Items | None:
        """None for a prompt that the WebUI takes as it stands."""
        at = 0
        while at < len(prompt):
            token = _TOKEN.match(prompt, at)
            if token is None:  # a backslash with nothing behind it
                return None
            at = token.end()
            self._read(token[0])
        self._give_up()
        return None if "|" in self._top else tuple(self._top)

    def _read(self, token: str) -> None:
        if token in _PAIRS:
            self._open.append(_Group(token))
        elif not self._open:
            self._top.append(token)
        elif token in (":", "|"):
            self._open[-1].divide(token)
        elif token in _PAIRS.values():
            self._close(token)
        else:
            self._open[-1].add([token])

    def _close(self, token: str) -> None:
        group = self._open[-1]
        items = self._closed(group) if _PAIRS[group.bracket] == token else None
        if items is None:
            self._give_up()
            self._top.append(token)
            return
        self._open.pop()
        if self._open:
            self._open[-1].add(items)
        else:
            self._top.extend(items)

    def _closed(self, group: _Group) -> list[str | _Change] | None:
        """What a bracket comes to with its partner; None if it is no bracket after all."""
        parts = [tuple(part) for part in group.parts]
        if not group.marks or (group.bracket == "(" and group.marks == [":"]):
            return [group.bracket, *group.flat(), _PAIRS[group.bracket]]
        if group.bracket == "(":
            return None
        if set(group.marks) == {"|"}:
            return [self._found(Alternation(tuple(parts)))]
        when = _STEP.fullmatch("".join(p for p in parts[-1] if isinstance(p, str)))
        is_plain = all(isinstance(p, str) for p in parts[-1])
        if set(group.marks) != {":"} or len(parts) > 3 or when is None or not is_plain:
            return None
        before = parts[0] if len(parts) == 3 else ()
        return [self._found(Switch(before, parts[-2], when[1]))]

    def _found(self, change: _Change) -> _Change:
        self.changes.append(change)
        return change

    def _give_up(self) -> None:
        """No bracket that is open now has a partner: what they hold belongs to nobody."""
        for group in self._open:
            self._top += [group.bracket, *group.flat()]
        self._open.clear()
