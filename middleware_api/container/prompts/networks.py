"""The networks that a prompt names: `<lora:name:text:unet:rank>` and `<hypernet:name:weight>`.

Parts of a LoRA's tag may also go by name: `te=`, `unet=` and `dyn=` as in the WebUI, `lbw=` (or
`w=`) and `x=` as in its LoRA Block Weight extension.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from middleware_api.container.networks.block_weights import (
    PRESETS,
    BlockWeights,
    block_weights,
    is_wording,
)
from middleware_api.contract import CheckpointType
from middleware_api.prompt_tags import Tag, tags_in

_NAMED = {"te", "unet", "dyn", "lbw", "w", "x"}


@dataclass(frozen=True)
class LoraAsk:
    """Its weights in the text encoder and the UNet; `rank` None takes all that the file has.

    `blocks` are what both are multiplied with in each block, None for 1 everywhere.
    """

    name: str
    text: float
    unet: float
    rank: int | None = None
    blocks: BlockWeights | None = None


@dataclass(frozen=True)
class HypernetworkAsk:
    name: str
    weight: float


@dataclass(frozen=True)
class Networks:
    """What a prompt asks for, in its order, and a sentence for each tag that says nothing."""

    loras: tuple[LoraAsk, ...] = ()
    hypernetworks: tuple[HypernetworkAsk, ...] = ()
    problems: tuple[str, ...] = ()


def misplaced_in(negative_prompt: str) -> list[str]:
    """A sentence for each network in a negative prompt, where the WebUI takes it for words."""
    return [
        f"{tag.text} does nothing in a negative prompt: it was read as words."
        for tag in tags_in(negative_prompt)
        if tag.kind is not None
    ]


def networks_of(prompt: str, presets: Mapping[str, str] | None = PRESETS) -> Networks:
    """Everything that a prompt's tags name, whether or not there are such files.

    `presets` are those of block weights; None where these count for nothing.
    """
    loras, hypernetworks, problems = [], [], []
    for tag in tags_in(prompt):
        try:
            if tag.kind is CheckpointType.LORA:
                ask, amiss = _lora(tag, presets)
                loras.append(ask)
                problems += amiss
            elif tag.kind is CheckpointType.HYPERNETWORKS:
                weight = float(tag.parts[1]) if len(tag.parts) > 1 else 1.0
                hypernetworks.append(HypernetworkAsk(tag.name, weight))
            else:
                problems.append(f"{tag.text} is no kind of network that there is; it was left out.")
        except ValueError:
            problems.append(f"{tag.text} has a weight that is no number; it was left out.")
    return Networks(_repeated(loras), tuple(hypernetworks), tuple(problems))


def _lora(tag: Tag, presets: Mapping[str, str] | None) -> tuple[LoraAsk, list[str]]:
    """By place or by name; also a sentence for each part that means nothing here."""
    named = dict(part.split("=", 1) for part in tag.parts if part.count("=") == 1)
    placed = [part for part in tag.parts if part.count("=") != 1]
    if not placed:
        raise ValueError("no name")
    blocks, amiss = _blocks(tag, named, placed, {} if presets is None else presets)
    name, text, unet, rank = (*placed, None, None, None, None)[:4]
    weight = float(named.get("te", text or 1.0))
    rank = named.get("dyn", rank)
    ask = LoraAsk(
        str(name),
        text=weight,
        unet=float(named.get("unet", unet or weight)),
        rank=None if rank is None else int(rank),
        blocks=blocks if presets is not None else None,
    )
    unknown = sorted(named.keys() - _NAMED)
    amiss += [f"{tag.text}: {name}= is not supported yet." for name in unknown]
    return ask, amiss if presets is not None else []


def _blocks(
    tag: Tag, named: Mapping[str, str], placed: list[str], presets: Mapping[str, str]
) -> tuple[BlockWeights | None, list[str]]:
    """The weights of blocks; by place they are the third part, and then gone from `placed`."""
    wording = named.get("lbw", named.get("w"))
    if wording is None and len(placed) > 2 and is_wording(placed[2], presets):
        wording = placed[2]
        dynamic: Sequence[str] = placed[3:4]
        del placed[2:]
    else:
        dynamic = ()
    if wording is None:
        return None, []
    try:
        by_place = dynamic[0] if dynamic else "1"
        return block_weights(wording, float(named.get("x", by_place)), presets), []
    except ValueError as error:
        return None, [f"{tag.text}: the weights of its blocks were ignored: {error}."]


def _repeated(loras: list[LoraAsk]) -> tuple[LoraAsk, ...]:
    """A name that comes twice counts twice, each time with its last weights: the WebUI's way."""
    last = {ask.name: ask for ask in loras}
    return tuple(last[ask.name] for ask in loras)
