"""LoRA and LyCORIS files: what each of their layers adds to one of the model's.

The formats are kohya's (https://github.com/kohya-ss/sd-scripts) and LyCORIS's
(https://github.com/KohakuBlueleaf/LyCORIS, arXiv 2309.14859): LoRA (2106.09685) with an optional
core (CP), LoHa (2108.06098), LoKr (2309.14859), DoRA (2402.09353), IA3 (2205.05638), GLoRA
(2306.07967), whole differences, norms, OFT (2306.07280) and BOFT (2311.06243). A layer's strength
is alpha / rank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import torch
from torch import Tensor

from middleware_api.container.errors import CheckpointUnreadable
from middleware_api.container.networks.lora_family import made_for
from middleware_api.container.networks.network_files import hash_without_header, read_network_file

Parts = Mapping[str, Tensor]


@dataclass(frozen=True)
class Lora:
    """A file's layers by kohya's names; `alias` is the name it was trained under.

    `family` is the name of the kind of model that it was made for, "" where nothing tells. `unread`
    are the layers whose parts are of no kind that is read here.
    """

    name: str
    alias: str
    hash: str
    layers: Mapping[str, Layer]
    family: str = ""
    unread: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def short_hash(self) -> str:
        """As the WebUI writes it in "Lora hashes"."""
        return self.hash[:12]

    @property
    def n_bytes(self) -> int:
        tensors = [part for layer in self.layers.values() for part in layer.parts.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def load_lora(path: Path, file_name: str) -> Lora:
    """Raises CheckpointUnreadable."""
    content, metadata = read_network_file(path, file_name)
    grouped: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in content.items():
        layer, _, part = key.partition(".")
        grouped[layer][part] = value
    layers = {name: Layer(parts) for name, parts in grouped.items() if _method_of(parts)}
    if not layers:
        raise CheckpointUnreadable(
            f"{file_name} is no LoRA that this engine reads (LoRA, LoHa, LoKr, DoRA, IA3, GLoRA, "
            "OFT, BOFT or differences, in kohya's names). Pick another file, or take it out of the "
            "prompt."
        )
    unread = {name: tuple(sorted(p)) for name, p in grouped.items() if name not in layers}
    digest = metadata.get("sshs_model_hash") or hash_without_header(path)
    stem = PurePath(file_name).stem
    alias = metadata.get("ss_output_name", stem)
    return Lora(stem, alias, digest, layers, made_for(content, metadata), unread)


@dataclass(frozen=True)
class Layer:
    """The tensors of one layer."""

    parts: Parts

    def change(self, weight: Tensor, rank: int | None) -> tuple[Tensor, Tensor | None]:
        """What is added to a weight of this layer, and to its bias, at weight 1.

        `rank` cuts LoRA's. Raises RuntimeError where the layer is not of the weight's shape.
        """
        method = _method_of(self.parts)
        assert method is not None  # load_lora kept no other
        parts = {
            name: tensor.to(weight.device, torch.float32) for name, tensor in self.parts.items()
        }
        base = weight.float()
        delta = method.delta(parts, base, rank).reshape(base.shape) * self._strength(method)
        if "dora_scale" in parts:
            delta = _decomposed(base + delta, parts["dora_scale"]) - base
        return delta, parts.get(method.bias)

    def _strength(self, method: _Method) -> float:
        if "scale" in self.parts:
            return float(self.parts["scale"])
        ranked = next((self.parts[name] for name in method.ranked if name in self.parts), None)
        if ranked is None or "alpha" not in self.parts:
            return 1.0
        return float(self.parts["alpha"]) / ranked.shape[0]


def _decomposed(changed: Tensor, lengths: Tensor) -> Tensor:
    """Each input's column brought to the length that the file has for it."""
    columns = changed.transpose(0, 1).reshape(changed.shape[1], -1).norm(dim=1)
    shape = (1, -1, *[1] * (changed.ndim - 2))
    factor: Tensor = lengths.reshape(shape) / columns.reshape(shape)
    return changed * factor


@dataclass(frozen=True)
class _Method:
    """A kind of layer: the parts that tell it, its formula, and whose first side is its rank."""

    needs: tuple[str, ...]
    delta: Callable[[Parts, Tensor, int | None], Tensor]
    ranked: tuple[str, ...] = ()
    bias: str = ""


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.reshape(len(tensor), -1)


def _lora(parts: Parts, base: Tensor, rank: int | None) -> Tensor:
    up, down = _matrix(parts["lora_up.weight"]), _matrix(parts["lora_down.weight"])
    core = parts.get("lora_mid.weight")
    if core is not None:
        return torch.einsum("nmkl,in,mj->ijkl", core, up, down)
    return up[:, :rank] @ down[:rank]


def _cored(core: Tensor, outer: Tensor, inner: Tensor) -> Tensor:
    """LyCORIS's order of the factors around a core: rank first in both."""
    return torch.einsum("ijkl,jr,ip->prkl", core, inner, outer)


def _hadamard(parts: Parts, base: Tensor, rank: int | None) -> Tensor:
    def half(i: int) -> Tensor:
        outer, inner, core = (parts.get(f"hada_{name}") for name in (f"w{i}_a", f"w{i}_b", f"t{i}"))
        assert outer is not None
        assert inner is not None
        return outer @ _matrix(inner) if core is None else _cored(core, outer, inner)

    return half(1) * half(2)


def _kronecker(parts: Parts, base: Tensor, rank: int | None) -> Tensor:
    def factor(i: int) -> Tensor:
        whole, core = parts.get(f"lokr_w{i}"), parts.get(f"lokr_t{i}")
        if whole is not None:
            return whole
        outer, inner = parts[f"lokr_w{i}_a"], parts[f"lokr_w{i}_b"]
        return outer @ inner if core is None else _cored(core, outer, inner)

    first, second = factor(1), factor(2).contiguous()  # torch.kron asks for it
    return torch.kron(first.reshape(*first.shape, *[1] * (second.ndim - 2)), second)


def _scaled(parts: Parts, base: Tensor, rank: int | None) -> Tensor:
    """IA3: rows, or columns, times what the file has for them."""
    sides = (1, -1) if bool(parts["on_input"]) else (-1, 1)
    return base * parts["weight"].reshape(*sides, *[1] * (base.ndim - 2))


def _glora(parts: Parts, base: Tensor, rank: int | None) -> Tensor:
    added = parts["b2.weight"] @ parts["b1.weight"]
    return added + base @ parts["a2.weight"] @ parts["a1.weight"]


def _orthogonal(parts: Parts, base: Tensor, rank: int | None) -> Tensor:
    """OFT and BOFT: rows turned among each other within blocks, and scaled."""
    if "oft_diag" in parts:  # the turns themselves, in LyCORIS's older files
        turns = parts["oft_diag"]
    else:
        turns = _turns(parts["oft_blocks"], parts.get("alpha"), len(base))
    turned = _butterfly(turns, base) if turns.ndim == 4 else _turned(turns.transpose(1, 2), base)
    if "rescale" in parts:
        turned = turned * parts["rescale"].reshape(-1, *[1] * (base.ndim - 1))
    return turned - base


def _turns(blocks: Tensor, bound: Tensor | None, rows: int) -> Tensor:
    """Cayley's transform of what is skew in the blocks, whose length is bounded (COFT)."""
    skew = blocks - blocks.transpose(-1, -2)
    longest = 0.0 if bound is None else float(bound) * rows
    if longest:
        length = skew.norm()
        skew = skew * ((length.clamp(max=longest) + 1e-8) / (length + 1e-8))
    eye = torch.eye(blocks.shape[-1], device=blocks.device)
    turns: Tensor = (eye + skew) @ (eye - skew).inverse()
    return turns


def _turned(turns: Tensor, base: Tensor) -> Tensor:
    """Each (size, size) of the turns at work on its own `size` rows."""
    size = turns.shape[-1]
    return (turns @ base.reshape(-1, size, base[0].numel())).reshape(base.shape)


def _butterfly(stages: Tensor, base: Tensor) -> Tensor:
    """One stage after the other, between them rows that lie ever farther apart."""
    half = stages.shape[-1] // 2
    for i, turns in enumerate(stages):
        apart = 2**i * half
        rows = base.reshape(-1, 2, apart, base[0].numel())
        mixed = _turned(turns, rows.transpose(1, 2).reshape(base.shape))
        back = mixed.reshape(len(rows), apart, 2, -1).transpose(1, 2)
        base = back.reshape(base.shape)
    return base


# The first whose parts are all there.
_METHODS = (
    _Method(("lora_up.weight", "lora_down.weight"), _lora, ("lora_down.weight",)),
    _Method(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), _hadamard, ("hada_w1_b",)),
    _Method(("weight", "on_input"), _scaled),
    *(
        _Method((*first, *second), _kronecker, ("lokr_w2_b", "lokr_w1_b"))
        for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
        for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
    ),
    _Method(("diff",), lambda parts, base, rank: parts["diff"], bias="diff_b"),
    _Method(("w_norm", "b_norm"), lambda parts, base, rank: parts["w_norm"], bias="b_norm"),
    _Method(("a1.weight", "a2.weight", "b1.weight", "b2.weight"), _glora),
    _Method(("oft_blocks",), _orthogonal),
    _Method(("oft_diag",), _orthogonal),
)


def _method_of(parts: Parts) -> _Method | None:
    return next((method for method in _METHODS if all(p in parts for p in method.needs)), None)
