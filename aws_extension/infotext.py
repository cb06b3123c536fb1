"""Reading infotexts: the last line's `Name: value` pairs, as the WebUI writes them."""

from __future__ import annotations

import json
from collections.abc import Iterator


def parameters_of(infotext: str) -> dict[str, str]:
    """The generation parameters of an infotext, in order; empty where its last line has none.

    A value with a comma, a colon or a line break stands in double quotes, as a JSON string.
    """
    line = infotext.rstrip("\n").rpartition("\n")[2]
    found = {}
    for pair in _split(line):
        name, colon, value = pair.partition(": ")
        if colon and name:
            found[name.strip()] = _unquoted(value)
    return found


def _split(line: str) -> Iterator[str]:
    """The parts between commas that stand outside of quotes."""
    start = at = 0
    quoted = False
    while at < len(line):
        if line[at] == "\\" and quoted:
            at += 1
        elif line[at] == '"':
            quoted = not quoted
        elif line[at] == "," and not quoted:
            yield line[start:at].strip()
            start = at + 1
        at += 1
    yield line[start:].strip()


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value  # a quote that belongs to the value itself
