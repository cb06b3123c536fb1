"""What of a model is trained: its parameters in groups with rates of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from middleware_api.container.engine.checkpoint import StableDiffusion
from middleware_api.container.engine.lean_attention import make_trainable
from middleware_api.container.engine.packed import unpack
from middleware_api.container.errors import BadRequest
from middleware_api.container.prompts.text_encoders import TextEncoder
from middleware_api.container.training import lora as train_lora
from middleware_api.container.training.lora import LoraShape
from middleware_api.training_fields import TrainSettings

_EMA_MOST = 0.9999


@dataclass(frozen=True)
class Part:
    """A network and those of its parameters that are trained, by their names in it."""

    module: nn.Module
    prefix: str
    parameters: dict[str, nn.Parameter]
    rate: float
    weight_decay: float

    @property
    def listed(self) -> list[nn.Parameter]:
        return [*self.parameters.values()]


class Trainee:
    """A model being trained. `unet` is None, or `texts` empty, where it stays as it is."""

    def __init__(self, model: StableDiffusion, settings: TrainSettings) -> None:
        self.model, self._settings = model, settings
        unpack(model.unet)
        make_trainable(model.unet)
        for module in model.modules:
            module.requires_grad_(False)
        trains_text = settings.stop_text_encoder > 0
        if not settings.train_unet and not trains_text:
            raise BadRequest(
                "Nothing is left to train: train_unet is false and stop_text_encoder is 0.",
                "nothing_to_train",
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.unet = self._unet() if settings.train_unet else None
            self.texts = [self._text(each) for each in model.text_encoders] if trains_text else []
        self.average = _Average(self.unet) if self._has_average else None
        if settings.gradient_checkpointing:
            unet: Any = model.unet
            unet.enable_gradient_checkpointing()
            for encoder in model.text_encoders if trains_text else ():
                encoder.module.gradient_checkpointing_enable({"use_reentrant": False})
                encoder.module.train()  # transformers checkpoints in training alone

    @property
    def parts(self) -> list[Part]:
        return [*([] if self.unet is None else [self.unet]), *self.texts]

    def stop_texts(self) -> None:
        """From now on the text encoders stay as they are."""
        for part in self.texts:
            for parameter in part.listed:
                parameter.requires_grad_(False)
                parameter.grad = None

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All that are trained, by names that stay the same from process to process."""
        for part in self.parts:
            for name, parameter in part.parameters.items():
                yield f"{part.prefix}.{name}", parameter

    @property
    def _has_average(self) -> bool:
        settings = self._settings
        return settings.use_ema and not settings.use_lora and self.unet is not None

    def _unet(self) -> Part:
        settings, unet = self._settings, self.model.unet
        if settings.use_lora:
            rank = settings.lora_unet_rank
            shape = LoraShape(rank, settings.lora_alpha or rank)
            train_lora.add_to_unet(unet, shape, settings.use_lora_extended)
            parameters, rate = train_lora.trained_parameters(unet), settings.lora_learning_rate
        else:
            parameters, rate = _all_of(unet), settings.learning_rate
        return Part(unet, "lora_unet_", parameters, rate, settings.weight_decay)

    def _text(self, encoder: TextEncoder) -> Part:
        settings, text = self._settings, encoder.module
        if settings.use_lora:
            rank = settings.lora_txt_rank
            train_lora.add_to_text_encoder(text, LoraShape(rank, settings.lora_alpha or rank))
            parameters, rate = train_lora.trained_parameters(text), settings.lora_txt_learning_rate
        else:
            parameters, rate = _all_of(text), settings.txt_learning_rate
            if settings.freeze_clip_normalization:
                norms = [n for n, m in text.named_modules() if isinstance(m, nn.LayerNorm)]
                for name in [n for n in parameters if n.rpartition(".")[0] in norms]:
                    parameters.pop(name).requires_grad_(False)
        prefix = encoder.source.lora[0]
        return Part(text, prefix, parameters, rate, settings.tenc_weight_decay)


def _all_of(module: nn.Module) -> dict[str, nn.Parameter]:
    module.requires_grad_(True)
    return dict(module.named_parameters())


class _Average:
    """The moving average of a part's parameters."""

    def __init__(self, part: Part | None) -> None:
        assert part is not None
        self._parameters = part.parameters
        self.tensors = {name: p.detach().clone() for name, p in part.parameters.items()}
        self.updates = 0

    @torch.no_grad()
    def follow(self) -> None:
        """The younger the average, the sooner it forgets what it began with."""
        self.updates += 1
        keep = min(_EMA_MOST, (1 + self.updates) / (10 + self.updates))
        now = [self._parameters[name].detach() for name in self.tensors]
        torch._foreach_lerp_([*self.tensors.values()], now, 1 - keep)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model is the average until the block ends."""
        own = {name: p.data for name, p in self._parameters.items()}
        try:
            for name, parameter in self._parameters.items():
                parameter.data = self.tensors[name]
            yield
        finally:
            for name, parameter in self._parameters.items():
                parameter.data = own[name]


def mapped_average(average: dict[str, Tensor], plain: dict[str, Tensor]) -> dict[str, Tensor]:
    """A network's tensors with the average's in the place of its own."""
    return {name: average.get(name, tensor) for name, tensor in plain.items()}
