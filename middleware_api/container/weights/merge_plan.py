"""What each tensor of a merged checkpoint is made of.

The formulas, the tensors that they touch and the roundings are those of AUTOMATIC1111 1.10.1's
Checkpoint Merger (modules/extras.py, run_modelmerger): each operation in the tensors' own
precision, so that the result is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from middleware_api.container.errors import BadRequest
from middleware_api.container.weights.tensor_file import LazyTensor
from middleware_api.contract import MergedKind, MergeMethod

# Not weights: to interpolate them is what breaks old merges.
_POSITION_IDS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
# What old checkpoints call their text encoder's tensors, and SD 2.1 Turbo all of it.
_RENAMED = {
    f"cond_stage_model.transformer.{part}.": f"cond_stage_model.transformer.text_model.{part}."
    for part in ("embeddings", "encoder", "final_layer_norm")
}
_RENAMED_TURBO = {"conditioner.embedders.0.": "cond_stage_model."}
_TURBO_MARK, _TURBO_WIDTH = "conditioner.embedders.0.model.ln_final.weight", 1024
_VAE = "first_stage_model."
_NOT_OF_A_VAE = frozenset({"model_ema.decay", "model_ema.num_updates"})
# Types that torch does not reckon in.
_STORED_ONLY = frozenset({torch.bool, torch.float8_e4m3fn, torch.float8_e5m2})
# Channels that the UNet reads: a latent; with a picture's latent; with that and a mask.
_LATENT_CHANNELS = 4
_KIND_BY_CHANNELS = {8: MergedKind.INSTRUCT_PIX2PIX, 9: MergedKind.INPAINTING}

Formula = Callable[..., Tensor]


@dataclass(frozen=True)
class Source:
    """A file to merge: its name, for people, and its tensors by the names that the WebUI reads."""

    name: str
    tensors: Mapping[str, LazyTensor]

    @staticmethod
    def of(name: str, tensors: Mapping[str, LazyTensor]) -> Source:
        """Gives each tensor the name that it has in a model."""
        mark = tensors.get(_TURBO_MARK)
        is_turbo = mark is not None and mark.shape[:1] == (_TURBO_WIDTH,)
        names = _RENAMED_TURBO if is_turbo else _RENAMED
        return Source(name, {_renamed(key, names): value for key, value in tensors.items()})


@dataclass(frozen=True)
class MergePlan:
    """The result's tensors, and which kind of model it is."""

    tensors: dict[str, LazyTensor]
    kind: MergedKind


@dataclass(frozen=True)
class Ingredients:
    """What a merge is made of; `multiplier` is the part of B, or of what B has over C."""

    method: MergeMethod
    multiplier: float
    as_half: bool
    a: Source
    b: Source | None
    c: Source | None
    vae: Source | None


def plan_merge(what: Ingredients) -> MergePlan:
    """Raises BadRequest naming the first tensor that cannot be merged."""
    if what.method is MergeMethod.NO_INTERPOLATION:
        merged = {
            name: _halved(tensor) if what.as_half else tensor
            for name, tensor in what.a.tensors.items()
        }
        kind = MergedKind.PLAIN
    else:
        merged, kind = _interpolated(what)
    if what.vae is not None:
        merged |= _baked(what.vae, merged, what.as_half)
    return MergePlan(merged, kind)


def weighted_sum(a: Tensor, b: Tensor, multiplier: float) -> Tensor:
    """A and B, `multiplier` of the sum being B."""
    return (1 - multiplier) * a + multiplier * b


def add_difference(a: Tensor, difference: Tensor, multiplier: float) -> Tensor:
    """A and a part of what another model has over its own base."""
    return a + multiplier * difference


def _interpolated(what: Ingredients) -> tuple[dict[str, LazyTensor], MergedKind]:
    """All tensors of A; its kind shows where it has more input channels than B."""
    assert what.b is not None
    merged: dict[str, LazyTensor] = {}
    kind = MergedKind.PLAIN
    for name, a in what.a.tensors.items():
        if "model" not in name or name not in what.b.tensors or name == _POSITION_IDS:
            merged[name] = a  # not even halved
            continue
        formula, other = _step(what, name)
        _require_numbers(name, a, what.a)
        if a.shape == other.shape:
            made = _reckoned(formula, a, other)
        else:
            kind = _kind_by_input(name, what, a, other)
            made = _in_first_channels(formula, a, other)
        merged[name] = _halved(made) if what.as_half else made
    return merged, kind


def _step(what: Ingredients, name: str) -> tuple[Formula, LazyTensor]:
    """The formula of one tensor, and what it is to join with A's."""
    assert what.b is not None
    b = what.b.tensors[name]
    _require_numbers(name, b, what.b)
    if what.c is None:
        return lambda a, b: weighted_sum(a, b, what.multiplier), b
    c = what.c.tensors.get(name)
    if c is None:
        difference = LazyTensor(
            b.dtype, b.shape, lambda start, stop: torch.zeros(stop - start, dtype=b.dtype)
        )
    else:
        _require_numbers(name, c, what.c)
        if b.shape != c.shape:
            raise _mismatch(name, what.b, b, what.c, c)
        difference = _reckoned(torch.sub, b, c)
    return lambda a, difference: add_difference(a, difference, what.multiplier), difference


def _reckoned(formula: Formula, *parts: LazyTensor) -> LazyTensor:
    """What a formula makes of tensors of one shape."""
    dtype = formula(*(torch.empty(0, dtype=part.dtype) for part in parts)).dtype

    def values(start: int, stop: int) -> Tensor:
        return formula(*(part.values(start, stop) for part in parts))

    return LazyTensor(dtype, parts[0].shape, values)


def _in_first_channels(formula: Formula, a: LazyTensor, other: LazyTensor) -> LazyTensor:
    """A convolution with more input channels than the other: those that both have are merged."""
    kernel = a.shape[2] * a.shape[3]
    row, common = a.shape[1] * kernel, other.shape[1] * kernel

    def values(start: int, stop: int) -> Tensor:
        made = a.values(start, stop)
        places = torch.arange(start, stop)
        is_common = places % row < common
        others = (places // row * common + places % row)[is_common]
        if len(others):  # they follow each other without a gap
            part = other.values(int(others[0]), int(others[-1]) + 1)
            made[is_common] = formula(made[is_common], part).to(made.dtype)
        return made

    return LazyTensor(a.dtype, a.shape, values)


def _halved(tensor: LazyTensor) -> LazyTensor:
    """Single precision becomes half; any other stays."""
    if tensor.dtype is not torch.float32:
        return tensor
    return LazyTensor(
        torch.float16, tensor.shape, lambda start, stop: tensor.values(start, stop).half()
    )


def _baked(vae: Source, merged: Mapping[str, LazyTensor], as_half: bool) -> dict[str, LazyTensor]:
    """The VAE's tensors that take the place of the model's own."""
    baked = {}
    for name, tensor in vae.tensors.items():
        own = merged.get(_VAE + name)
        if own is None or name.startswith("loss") or name in _NOT_OF_A_VAE:
            continue
        if own.shape != tensor.shape:
            raise BadRequest(
                f"{vae.name} does not fit: its tensor {name} has the shape {_words(tensor)} where "
                f"the checkpoint's has {_words(own)}. Pick a VAE for this kind of model.",
                "shapes_differ",
            )
        baked[_VAE + name] = _halved(tensor) if as_half else tensor
    if not baked:
        raise BadRequest(
            f"{vae.name} has no tensor that the checkpoint's VAE has. Pick a file that holds a "
            "VAE alone.",
            "not_a_vae",
        )
    return baked


def _require_numbers(name: str, tensor: LazyTensor, source: Source) -> None:
    if tensor.dtype in _STORED_ONLY:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise BadRequest(
            f"Tensor {name} of {source.name} is stored as {kind}, which cannot be merged. Convert "
            "the checkpoint to half precision first.",
            "cannot_be_merged",
        )


def _kind_by_input(name: str, what: Ingredients, a: LazyTensor, other: LazyTensor) -> MergedKind:
    """Nothing but the input of an inpainting or instruct-pix2pix model may differ."""
    assert what.b is not None
    if len(a.shape) == len(other.shape) == 4 and (
        a.shape[0] == other.shape[0] and a.shape[2:] == other.shape[2:]
    ):
        if other.shape[1] == _LATENT_CHANNELS and a.shape[1] in _KIND_BY_CHANNELS:
            return _KIND_BY_CHANNELS[a.shape[1]]
        if a.shape[1] == _LATENT_CHANNELS and other.shape[1] in _KIND_BY_CHANNELS:
            kind = _KIND_BY_CHANNELS[other.shape[1]].value.removeprefix(".")
            raise BadRequest(
                f"{what.b.name} is an {kind} model and {what.a.name} is not (tensor {name}). Take "
                f"{what.b.name} as the primary model.",
                "shapes_differ",
            )
    raise _mismatch(name, what.a, a, what.b, other)


def _mismatch(
    name: str, one: Source, ones: LazyTensor, other: Source, others: LazyTensor
) -> BadRequest:
    return BadRequest(
        f"{one.name} and {other.name} are different kinds of models: tensor {name} has the shapes "
        f"{_words(ones)} and {_words(others)}. Pick checkpoints of one kind.",
        "shapes_differ",
    )


def _words(tensor: LazyTensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a single number"


def _renamed(name: str, names: Mapping[str, str]) -> str:
    for old, new in names.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name
