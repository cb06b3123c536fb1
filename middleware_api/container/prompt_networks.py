"""The networks that a prompt names: `<lora:name:text:unet:rank>` and `<hypernet:name:weight>`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TAG = re.compile(r"<(\w+):([^>]+)>")
_LORA, _HYPERNETWORK = ("lora", "lyco"), ("hypernet",)


@dataclass(frozen=True)
class LoraAsk:
    """Its weights in the text encoder and the UNet; `rank` None takes all that the file has."""

    name: str
    text: float
    unet: float
    rank: int | None = None


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


def without_networks(prompt: str) -> str:
    """The words alone."""
    return _TAG.sub("", prompt)


def misplaced_in(negative_prompt: str) -> list[str]:
    """A sentence for each network in a negative prompt, where the WebUI takes it for words."""
    return [
        f"{tag[0]} does nothing in a negative prompt: it was read as words."
        for tag in _TAG.finditer(negative_prompt)
        if tag[1] in (*_LORA, *_HYPERNETWORK)
    ]


def networks_of(prompt: str) -> Networks:
    """Everything that a prompt's tags name, whether or not there are such files."""
    loras, hypernetworks, problems = [], [], []
    for tag in _TAG.finditer(prompt):
        kind, parts = tag[1], tag[2].split(":")
        try:
            if kind in _LORA:
                ask, unknown = _lora(parts)
                loras.append(ask)
                problems += [f"{tag[0]}: {name}= is not supported yet." for name in unknown]
            elif kind in _HYPERNETWORK:
                weight = float(parts[1]) if len(parts) > 1 else 1.0
                hypernetworks.append(HypernetworkAsk(parts[0], weight))
            else:
                problems.append(f"{tag[0]} is no kind of network that there is; it was left out.")
        except ValueError:
            problems.append(f"{tag[0]} has a weight that is no number; it was left out.")
    return Networks(_repeated(loras), tuple(hypernetworks), tuple(problems))


def _lora(parts: list[str]) -> tuple[LoraAsk, list[str]]:
    """By place or by name (`te=`, `unet=`, `dyn=`); also the names that mean nothing here."""
    named = dict(part.split("=", 1) for part in parts if part.count("=") == 1)
    placed = [part for part in parts if part.count("=") != 1]
    name, text, unet, rank = (*placed, None, None, None, None)[:4]
    if name is None:
        raise ValueError("no name")
    weight = float(named.get("te", text or 1.0))
    rank = named.get("dyn", rank)
    ask = LoraAsk(
        name,
        text=weight,
        unet=float(named.get("unet", unet or weight)),
        rank=None if rank is None else int(rank),
    )
    return ask, sorted(named.keys() - {"te", "unet", "dyn"})


def _repeated(loras: list[LoraAsk]) -> tuple[LoraAsk, ...]:
    """A name that comes twice counts twice, each time with its last weights: the WebUI's way."""
    last = {ask.name: ask for ask in loras}
    return tuple(last[ask.name] for ask in loras)
