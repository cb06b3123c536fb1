"""A checkpoint's text encoders, made from its tensors, read from the layer that its family has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel

from middleware_api.container.engine.checkpoint_shapes import text_key
from middleware_api.container.engine.families import Layout, TextSource
from middleware_api.container.prompts.open_clip import PROJECTION, separated
from middleware_api.container.prompts.text_settings import TextSettings

_BEFORE_THE_LAST = 2  # as CLIP skip counts


@dataclass(frozen=True)
class TextEncoder:
    """CLIP's or OpenCLIP's; `projection` makes the pooled text of SDXL, and is None elsewhere."""

    source: TextSource
    module: CLIPTextModel
    projection: nn.Linear | None = None

    @property
    def width(self) -> int:
        return int(self.module.config.hidden_size)

    @property
    def parts(self) -> tuple[nn.Module, ...]:
        return (self.module,) if self.projection is None else (self.module, self.projection)

    def read(self, ids: Tensor, settings: TextSettings) -> tuple[Tensor, Tensor | None]:
        """(texts, 77, width), and the pooled (texts, width) where this encoder has one."""
        found = self.module(input_ids=ids, output_hidden_states=True)
        layers = found.hidden_states
        states = layers[-min(self._skip(settings), len(layers))]
        if self.source.is_normed:
            states = self.module.final_layer_norm(states)
        if self.projection is None:
            return states, None
        # CLIP's end token has the highest number; its place holds the whole text's meaning.
        ends = found.last_hidden_state[torch.arange(len(ids), device=ids.device), ids.argmax(-1)]
        return states, self.projection(ends)

    def _skip(self, settings: TextSettings) -> int:
        source = self.source
        if source.has_skip or (source.embedding == "clip_l" and settings.skips_in_xl):
            return settings.clip_skip
        # Some files of SD 2.x leave out the layer that nothing reads: theirs are uneven.
        is_cut = source.is_normed and self.module.config.num_hidden_layers % 2
        return 1 if is_cut else _BEFORE_THE_LAST


def text_tensors(weights: Mapping[str, Tensor], source: TextSource) -> dict[str, Tensor]:
    """An encoder's tensors from a checkpoint's, under transformers' names."""
    own = {
        text_key(key, source): tensor
        for key, tensor in weights.items()
        if key.startswith(source.prefix)
    }
    return separated(own) if source.layout is Layout.OPEN_CLIP else own


def taken_projection(tensors: dict[str, Tensor]) -> nn.Linear:
    """Takes the pooled text's projection out of an encoder's tensors."""
    matrix = tensors.pop(PROJECTION)
    with torch.device("meta"):
        projection = nn.Linear(matrix.shape[0], matrix.shape[1], bias=False)
    projection.weight = nn.Parameter(matrix.T.contiguous(), requires_grad=False)
    return projection
