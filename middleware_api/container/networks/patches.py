"""Networks put into a model while it is used, and taken out again without a trace.

Nothing is added to the model's own tensors: changed copies stand in their place, so that the
model afterwards is the model before, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from middleware_api.container.engine.checkpoint import StableDiffusion
from middleware_api.container.engine.ldm_layout import UNET_PREFIX, unet_to_ldm
from middleware_api.container.engine.packed import dense
from middleware_api.container.networks.adapters import Layer, Lora
from middleware_api.container.networks.block_weights import BLOCKS, BlockWeights, block_of
from middleware_api.container.networks.hypernetworks import Hypernetwork, read_through

_Hook = Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]


@dataclass(frozen=True)
class UsedLora:
    """A LoRA with its weights in the text encoder and the UNet; `rank` None takes all of it.

    `blocks` are what these are multiplied with in each block, None for 1 everywhere.
    """

    lora: Lora
    text: float
    unet: float
    rank: int | None = None
    blocks: BlockWeights | None = None

    def weight_of(self, layer: str, block: int | None) -> float:
        """Of a layer by its name in the file and its place among block_weights.BLOCKS."""
        weight = self.text if layer.startswith(_TEXT) else self.unet
        return weight if self.blocks is None or block is None else weight * self.blocks[block]


@dataclass(frozen=True)
class UsedHypernetwork:
    network: Hypernetwork
    weight: float


@dataclass(frozen=True)
class Patch:
    """What stands in for a model's parameters, and what its attention reads through.

    `unfit` counts for each LoRA's name the layers that the model has no place for.
    """

    parameters: Sequence[tuple[nn.Module, str, nn.Parameter]] = ()
    hooks: Sequence[tuple[nn.Module, _Hook]] = ()
    unfit: Mapping[str, int] = field(default_factory=dict)

    def and_also(self, other: Patch) -> Patch:
        """Both, for two models that work in turns."""
        return Patch((*self.parameters, *other.parameters), (*self.hooks, *other.hooks))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The models as they are with the networks, until the block ends."""
        own = [(module, name, getattr(module, name)) for module, name, _ in self.parameters]
        handles = [module.register_forward_pre_hook(hook) for module, hook in self.hooks]
        try:
            for module, name, parameter in self.parameters:
                setattr(module, name, parameter)
            yield
        finally:
            for module, name, parameter in own:
                setattr(module, name, parameter)
            for handle in handles:
                handle.remove()


def patch_of(
    model: StableDiffusion, loras: Sequence[UsedLora], hypernetworks: Sequence[UsedHypernetwork]
) -> Patch:
    """Everything that these networks change in this model, LoRAs one after the other."""
    if not loras and not hypernetworks:
        return Patch()
    targets = _targets(model)
    changed: dict[tuple[nn.Module, str], Tensor] = {}
    unfit: dict[str, int] = {}
    for used in loras:
        left_out = 0
        for name, layer in used.lora.layers.items():
            target = targets.get(name)
            if target is None:
                left_out += 1
                continue
            module, block = target
            weight = used.weight_of(name, block)
            left_out += not _add(changed, module, layer, weight, used.rank)
        if left_out:
            unfit[used.lora.name] = left_out
    parameters = [
        (module, name, nn.Parameter(value, requires_grad=False))
        for (module, name), value in changed.items()
    ]
    return Patch(parameters, _attention_hooks(model.unet, hypernetworks), unfit)


_TEXT = "lora_te"


def _targets(model: StableDiffusion) -> dict[str, tuple[nn.Module, int | None]]:
    """The model's layers, and the block of each, by the names that files know them by: diffusers'
    and LDM's."""
    unet = dict(model.unet.named_modules())
    keys = [key for key in model.unet.state_dict() if key.endswith(".weight")]
    renamed = unet_to_ldm({key: model.unet.state_dict()[key] for key in keys})
    targets: dict[str, tuple[nn.Module, int | None]] = {}
    for key, ldm_key in zip(keys, renamed, strict=True):
        module = unet[key.removesuffix(".weight")]
        ldm_name = ldm_key.removeprefix(UNET_PREFIX)
        # What checkpoint.py wraps around an upsampler has no place in files' names.
        for known in (key.replace(".doubling.", "."), ldm_name):
            name = "lora_unet_" + known.removesuffix(".weight").replace(".", "_")
            targets[name] = (module, block_of(ldm_name))
    for encoder in model.text_encoders:
        for name, module in encoder.module.named_modules():
            for prefix in encoder.source.lora:
                targets[prefix + name.replace(".", "_")] = (module, BLOCKS.index("BASE"))
    return targets


def _add(
    changed: dict[tuple[nn.Module, str], Tensor],
    module: nn.Module,
    layer: Layer,
    weight: float,
    rank: int | None,
) -> bool:
    """Adds a layer's part to what stands in for the module's own; False where it does not fit."""
    own = changed.get((module, "weight"), getattr(module, "weight", None))
    if own is None:
        return False
    own = dense(own)
    try:
        delta, bias = layer.change(own, rank)
    except RuntimeError:  # torch's word for tensors that do not go together
        return False
    changed[module, "weight"] = (own.float() + delta * weight).to(own.dtype)
    if bias is not None:
        bias = bias * weight
        before = changed.get((module, "bias"), getattr(module, "bias", None))
        changed[module, "bias"] = (bias if before is None else before.float() + bias).to(own.dtype)
    return True


def _attention_hooks(
    unet: nn.Module, hypernetworks: Sequence[UsedHypernetwork]
) -> list[tuple[nn.Module, _Hook]]:
    hooks: list[tuple[nn.Module, _Hook]] = []
    for name, module in unet.named_modules():
        side = {"to_k": 0, "to_v": 1}.get(name.rpartition(".")[2])
        if side is None or not isinstance(module, nn.Linear):
            continue
        steps = [
            (used.network.modules[module.in_features][side].to(module.weight.device), used.weight)
            for used in hypernetworks
            if module.in_features in used.network.modules
        ]
        if steps:
            hooks.append((module, partial(_read_instead, steps)))
    return hooks


def _read_instead(
    steps: list[tuple[nn.Module, float]], module: nn.Module, inputs: tuple[Any, ...]
) -> tuple[Any, ...]:
    return (read_through(steps, inputs[0]), *inputs[1:])
