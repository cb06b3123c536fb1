"""Hypernetworks: small networks that change what attention reads, as the WebUI trains them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor, nn

from middleware_api.container.errors import CheckpointUnreadable
from middleware_api.container.networks.network_files import read_network_file

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "linear": nn.Identity,
    "swish": nn.Hardswish,  # the WebUI's meaning of the word
    **{
        kind.__name__.lower(): kind
        for kind in (
            *(nn.CELU, nn.ELU, nn.GELU, nn.Hardshrink, nn.Hardsigmoid, nn.Hardswish, nn.Hardtanh),
            *(nn.LeakyReLU, nn.LogSigmoid, nn.Mish, nn.ReLU, nn.ReLU6, nn.SELU, nn.SiLU),
            *(nn.Sigmoid, nn.Softplus, nn.Softshrink, nn.Softsign, nn.Tanh, nn.Tanhshrink),
        )
    },
}
# Before a hypernetwork could have any number of layers, it had two of these names.
_OLD_NAMES = {
    f"linear{i + 1}.{leaf}": f"linear.{i}.{leaf}" for i in (0, 1) for leaf in ("weight", "bias")
}


@dataclass(frozen=True)
class Hypernetwork:
    """For each width of what attention reads, what is added to it for the keys and the values."""

    name: str
    modules: Mapping[int, tuple[nn.Module, nn.Module]]

    @property
    def n_bytes(self) -> int:
        parameters = [p for pair in self.modules.values() for m in pair for p in m.parameters()]
        return sum(p.numel() * p.element_size() for p in parameters)


def load_hypernetwork(path: Path, file_name: str) -> Hypernetwork:
    """Raises CheckpointUnreadable."""
    tensors, metadata = read_network_file(path, file_name)
    try:
        settings = _settings(metadata)
        weights = _weights(tensors)
        modules = {
            width: (
                _module(width, weights[width, 0], settings),
                _module(width, weights[width, 1], settings),
            )
            for width, _ in weights
        }
    except (LookupError, TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise CheckpointUnreadable(
            f"{file_name} is not a hypernetwork that this engine reads "
            f"({' '.join(str(error).split())[:200]}). Pick another file, or take it out of the "
            "prompt."
        ) from error
    if not modules:
        raise CheckpointUnreadable(
            f"{file_name} is no hypernetwork. Pick another file, or take it out of the prompt."
        )
    return Hypernetwork(PurePath(file_name).stem, modules)


def trained_form(path: Path, file_name: str) -> dict[object, object]:
    """A hypernetwork as the WebUI's training saves it, before an upload converts it.

    Raises CheckpointUnreadable.
    """
    tensors, metadata = read_network_file(path, file_name)
    load_hypernetwork(path, file_name)  # whoever gets it may not check so much
    weights = _weights(tensors)
    pairs: dict[object, object] = {w: (weights[w, 0], weights[w, 1]) for w, _ in weights}
    settings = asdict(_settings(metadata))
    if not settings["dropout_structure"]:  # an empty one is not the same as none
        del settings["dropout_structure"]
    return {**pairs, **{k: [*v] if isinstance(v, tuple) else v for k, v in settings.items()}}


@dataclass(frozen=True)
class _Settings:
    """How the WebUI's training was told to build it, in the words of its files."""

    layer_structure: tuple[float, ...] = (1, 2, 1)
    activation_func: str = "linear"
    is_layer_norm: bool = False
    activate_output: bool = True
    use_dropout: bool = False
    last_layer_dropout: bool = False
    dropout_structure: tuple[float, ...] = ()

    @property
    def dropout(self) -> tuple[bool, ...]:
        """Behind which layers, counted from the input, training dropped some."""
        if self.dropout_structure:
            return tuple(map(bool, self.dropout_structure))
        if not self.use_dropout:
            return (False,) * len(self.layer_structure)
        inner = (True,) * (len(self.layer_structure) - 3)
        return (False, *inner, self.last_layer_dropout, False)


def _settings(metadata: Mapping[str, str]) -> _Settings:
    """From what the conversion keeps: JSON, and a list's items by their places."""
    known = {each.name for each in fields(_Settings)}
    found: dict[str, Any] = {}
    lists: dict[str, dict[int, float]] = {}
    for name, text in metadata.items():
        stem, _, place = name.partition(".")
        if stem in known and place:
            lists.setdefault(stem, {})[int(place)] = float(json.loads(text))
        elif name in known:
            found[name] = json.loads(text)
    for name, items in lists.items():
        found[name] = tuple(items[place] for place in sorted(items))
    return _Settings(**found)


def _weights(tensors: Mapping[str, Tensor]) -> dict[tuple[int, int], dict[str, Tensor]]:
    """By width, and 0 for the keys' network or 1 for the values'."""
    found: dict[tuple[int, int], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        width, side, rest = name.split(".", 2)
        found.setdefault((int(width), int(side)), {})[rest] = tensor
    return found


def _module(width: int, weights: Mapping[str, Tensor], settings: _Settings) -> nn.Module:
    """Its layers in the order of the WebUI's training, whose numbers are the tensors' names."""
    structure = settings.layer_structure
    activation = _ACTIVATIONS[settings.activation_func]
    layers: list[nn.Module] = []
    # On no device: the file says how large its layers are, and its tensors are what is believed.
    with torch.device("meta"):
        for i in range(len(structure) - 1):
            sides = int(width * structure[i]), int(width * structure[i + 1])
            layers.append(nn.Linear(*sides))
            is_last = i == len(structure) - 2
            if activation is not nn.Identity and (not is_last or settings.activate_output):
                layers.append(activation())
            if settings.is_layer_norm:
                layers.append(nn.LayerNorm(sides[1]))
            if settings.dropout[i + 1]:
                layers.append(nn.Identity())  # drops nothing outside of training, and has a number
    module = nn.Sequential(*layers)
    named = {_OLD_NAMES.get(key, key).removeprefix("linear."): w for key, w in weights.items()}
    module.load_state_dict(named, assign=True)
    return module.float().eval().requires_grad_(False)


def read_through(modules: list[tuple[nn.Module, float]], seen: Tensor) -> Tensor:
    """What attention reads once each network, in its turn, has added its part."""
    changed = seen.to(torch.float32)
    for module, weight in modules:
        changed = changed + module(changed) * weight
    return changed.to(seen.dtype)
