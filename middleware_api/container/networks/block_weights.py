"""Weights of a LoRA's blocks: what stands behind `lbw=` in its tag, and its presets.

By the rules of the WebUI's LoRA Block Weight extension
(https://github.com/hako-mikan/sd-webui-lora-block-weight).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from middleware_api.container.fields import Fields

TITLE = "lora block weight"
"""The extension's name among `alwayson_scripts`."""

BlockWeights = tuple[float, ...]
"""One for each of `BLOCKS`."""

_IN, _OUT = ([f"{side}{i:02}" for i in range(12)] for side in ("IN", "OUT"))
BLOCKS = ("BASE", *_IN, "M00", *_OUT)
"""The text encoder, and the UNet's blocks as LDM counts them."""

# What a list of so many numbers is about; the blocks that it leaves out get 0.
_LISTS = {
    12: ("BASE", *(_IN[i] for i in (4, 5, 7, 8)), "M00", *_OUT[:6]),
    17: ("BASE", *(_IN[i] for i in (1, 2, 4, 5, 7, 8)), "M00", *_OUT[3:]),
    20: ("BASE", *_IN[:9], "M00", *_OUT[:9]),
    26: BLOCKS,
}
PRESETS: Mapping[str, str] = MappingProxyType(
    {
        "NONE": "0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0",
        "ALL": "1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1",
        "INS": "1,1,1,1,0,0,0,0,0,0,0,0,0,0,0,0,0",
        "IND": "1,0,0,0,1,1,1,0,0,0,0,0,0,0,0,0,0",
        "INALL": "1,1,1,1,1,1,1,0,0,0,0,0,0,0,0,0,0",
        "MIDD": "1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0",
        "OUTD": "1,0,0,0,0,0,0,0,1,1,1,1,0,0,0,0,0",
        "OUTS": "1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1",
        "OUTALL": "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1",
        "ALL0.5": ",".join(["0.5"] * 17),
    }
)
"""The extension's own; a user's stand in its script's arguments."""

_DYNAMIC = re.compile(r"X(?:([+-])([\d.]+))?")
_PLACE = re.compile(r"(input|output)_blocks\.(\d+)\.|(middle_block)\.")


def is_wording(text: str, presets: Mapping[str, str]) -> bool:
    """Whether a tag's part is about blocks: a preset's name, or a list of one of the lengths."""
    return text in presets or text.count(",") + 1 in _LISTS


def block_weights(text: str, dynamic: float, presets: Mapping[str, str]) -> BlockWeights:
    """A preset's or a list's weights, `dynamic` in place of each X.

    Raises ValueError, in words, for anything else.
    """
    words = [word.strip() for word in presets.get(text, text).split(",")]
    blocks = _LISTS.get(len(words))
    if blocks is None:
        raise ValueError(
            f"{text!r} is no preset ({', '.join(presets)}) and no list of "
            f"{', '.join(map(str, _LISTS))} numbers"
        )
    given = dict(zip(blocks, (_number(word, dynamic) for word in words), strict=True))
    return tuple(given.get(block, 0.0) for block in BLOCKS)


def block_of(ldm_name: str) -> int | None:
    """The place among `BLOCKS` of a UNet's layer; None for what belongs to none of them."""
    found = _PLACE.match(ldm_name)
    if found is None:
        return None
    sides = {"input": _IN, "output": _OUT}
    name = "M00" if found[3] else sides[found[1]][int(found[2])]
    return BLOCKS.index(name)


def read_presets(fields: Fields) -> Mapping[str, str] | None:
    """The user's, where the request has the extension's arguments; None when it is switched off."""
    for title, script in fields.mapping("alwayson_scripts").items():
        args = script.get("args") if isinstance(script, dict) else None
        if title.lower() == TITLE and isinstance(args, list) and is_understood(args):
            text, active, *_ = args
            return _presets(text) if active else None
    return PRESETS


def is_understood(args: object) -> bool:
    """Whether a script's arguments begin with the extension's presets and its switch."""
    known = (str, bool)
    return (
        isinstance(args, list)
        and len(args) > 1
        and all(isinstance(arg, kind) for arg, kind in zip(args, known, strict=False))
    )


def _presets(text: str) -> dict[str, str]:
    """`name:numbers`, one a line; a line with a # is none."""
    found = {}
    for line in text.splitlines():
        name, colon, numbers = line.partition(":")
        if colon and "#" not in line and numbers.count(",") + 1 in _LISTS:
            found[name.strip()] = numbers
    return found


def _number(word: str, dynamic: float) -> float:
    found = _DYNAMIC.fullmatch(word)
    if found is not None:
        return dynamic + (float(found[1] + found[2]) if found[1] else 0.0)
    if word in ("R", "U"):
        raise ValueError("random weights (R, U) are not drawn here: write numbers")
    try:
        return float(word)
    except ValueError as error:
        raise ValueError(f"{word!r} is no number") from error
