"""ControlNets at work in one pass: what they add to the UNet, and what they hold its guesses to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from middleware_api.container.control.controlnet import HINT_FACTOR, ControlNet
from middleware_api.container.control.maps import Pixels
from middleware_api.container.control.pictures import ControlMap, hint_of
from middleware_api.container.control.units import ControlMode, ControlUnit, Passes
from middleware_api.container.errors import BadRequest

_SOFTENING = 0.825
_DEEPEST = 12  # the middle's place among what Stable Diffusion 1.x's ControlNets add
# Thin lines drawn at twice the size leave traces in a second pass unless they are softened.
_SOFTENED_IN_SECOND_PASS = "canny"

Beside = dict[str, Tensor] | None
"""What Stable Diffusion XL's UNet reads beside the texts' tokens, by diffusers' names."""

Encode = Callable[[Image.Image], Tensor]
"""A picture to its latent, (1, 4, height / 8, width / 8)."""


@dataclass
class UnitAtWork:
    """One unit in one pass. `is_second`: the larger one of hires fix."""

    unit: ControlUnit
    net: ControlNet
    map: ControlMap
    is_second: bool
    encode: Encode
    _sights: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    _latents: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def works_at(self, share_done: float) -> bool:
        """Whether it adds anything once that share of the steps is done."""
        unit = self.unit
        left_out = Passes.FIRST if self.is_second else Passes.SECOND
        has_weight = any(unit.layer_weights) if unit.layer_weights else unit.weight != 0
        return has_weight and unit.passes is not left_out and unit.start <= share_done <= unit.end

    @property
    def steers_prompt_alone(self) -> bool:
        """Whether what the negative prompt sees stays as it is without the unit."""
        return self.net.pools or self.unit.mode is ControlMode.CONTROL

    def added(self, latents: Tensor, times: Tensor, texts: Tensor, beside: Beside) -> list[Tensor]:
        """What goes to each level of the UNet and, last, to its middle."""
        sight = self._sight(latents)
        down, middle = self.net.module(
            latents[:, : self.net.in_channels],  # more of them see an inpainting model's picture
            times,
            encoder_hidden_states=texts,
            controlnet_cond=sight.expand(len(latents), -1, -1, -1),
            added_cond_kwargs=beside,
            return_dict=False,
        )
        layers: list[Tensor] = [*down, middle]
        weighted = [
            self._in_region(layer) * weight
            for layer, weight in zip(layers, self._weights(len(layers)), strict=True)
        ]
        if not self.net.pools:
            return weighted
        return [layer.mean(dim=(2, 3), keepdim=True) for layer in weighted]

    def corrected(self, clean: Tensor, is_prompts: bool) -> Tensor:
        """A clean latent held to the unit's picture: its unmasked part, or its colours.

        This counts in all passes and steps, as in the extension.
        """
        name = self.unit.module.name
        if name == "inpaint_only":
            held = self._kept(clean)
        elif name.startswith("tile_colorfix"):
            held = self._coloured(clean, is_prompts)
        else:
            return clean
        weight = min(1.0, self.unit.weight)
        return held * weight + clean * (1 - weight)

    def _weights(self, count: int) -> Sequence[float]:
        unit = self.unit
        if unit.layer_weights:
            if len(unit.layer_weights) != count:
                raise BadRequest(
                    f"ControlNet {self.net.name} has {count} layers and advanced_weighting "
                    f"{len(unit.layer_weights)} numbers. Send one for each layer.",
                    "bad_field",
                )
            return unit.layer_weights
        lines = self.is_second and _SOFTENED_IN_SECOND_PASS in unit.module.name
        if unit.mode is ControlMode.BALANCED and not lines:
            return [unit.weight] * count
        return [unit.weight * _SOFTENING ** (_DEEPEST - i) for i in range(count)]

    def _in_region(self, layer: Tensor) -> Tensor:
        if self.unit.region is None:
            return layer
        mask = torch.from_numpy(np.array(self.unit.region.convert("L"), np.float32))[None, None]
        sized = nn.functional.interpolate(mask / 255, layer.shape[2:], mode="bilinear")
        return layer * sized.to(layer)

    def _pixels(self, latents: Tensor) -> Pixels:
        height, width = (side * HINT_FACTOR for side in latents.shape[2:])
        return self.map.at(width, height)

    def _sight(self, latents: Tensor) -> Tensor:
        """The hint as the network's own encoder sees it; the same in every step."""
        size = (latents.shape[2], latents.shape[3])
        if size not in self._sights:
            hint = hint_of(self._pixels(latents))
            sight: Tensor = self.net.embed(hint.to(latents.device, latents.dtype))
            self._sights[size] = sight
        return self._sights[size]

    def _latent(self, clean: Tensor) -> Tensor:
        size = (clean.shape[2], clean.shape[3])
        if size not in self._latents:
            self._latents[size] = self.encode(Image.fromarray(self._pixels(clean)[:, :, :3]))
        return self._latents[size]

    def _kept(self, clean: Tensor) -> Tensor:
        levels = self._pixels(clean)[:, :, 3].astype(np.float32) / 255
        mask = torch.from_numpy(levels)[None, None].to(clean)
        mask = nn.functional.max_pool2d(mask, 10, stride=HINT_FACTOR, padding=1)
        return clean * mask + self._latent(clean) * (1 - mask)

    def _coloured(self, clean: Tensor, is_prompts: bool) -> Tensor:
        reach = int(self.unit.first_threshold) * (2 if self.is_second else 1)
        held = clean - _blurred(clean, reach) + _blurred(self._latent(clean), reach)
        if is_prompts or not self.unit.module.name.endswith("+sharp"):
            return held
        detail = self.unit.second_threshold * 0.01
        return detail * _blurred(held, reach) + (1 - detail) * held


def _blurred(latent: Tensor, reach: int) -> Tensor:
    """The mean of each place's surroundings, that many places to either side."""
    padded = nn.functional.pad(latent, (reach,) * 4, mode="replicate")
    return nn.functional.avg_pool2d(padded, 2 * reach + 1, stride=1)


@dataclass(frozen=True)
class Control:
    """All units of a pass."""

    units: tuple[UnitAtWork, ...] = ()

    def added(
        self,
        latents: Tensor,
        times: Tensor,
        texts: Tensor,
        beside: Beside,
        prompts: int,
        share_done: float,
    ) -> dict[str, Any]:
        """Further arguments for the UNet's call with these; none where no unit works.

        The first `prompts` rows are the prompt's, the others the negative prompt's.
        """
        total: list[Tensor] = []
        for unit in self.units:
            if not unit.works_at(share_done):
                continue
            rows = prompts if unit.steers_prompt_alone else len(latents)
            if not rows:
                continue
            some = (latents, times, texts, beside)
            if rows < len(latents):  # else the very same texts: attention keeps what it reads
                beside_some = beside and {name: value[:rows] for name, value in beside.items()}
                some = (latents[:rows], times[:rows], texts[:rows], beside_some)
            layers = unit.added(*some)
            layers = [_with_rows(layer, len(latents)) for layer in layers]
            total = [a + b for a, b in zip(total, layers, strict=True)] if total else layers
        if not total:
            return {}
        return {
            "down_block_additional_residuals": tuple(total[:-1]),
            "mid_block_additional_residual": total[-1],
        }

    @property
    def holds(self) -> bool:
        """Whether any unit holds the guesses to its picture."""
        names = [unit.unit.module.name for unit in self.units]
        return any(name == "inpaint_only" or name.startswith("tile_colorfix") for name in names)

    def corrected(self, clean: Tensor, is_prompts: bool) -> Tensor:
        """A guess of a clean latent as all units hold it."""
        for unit in self.units:
            clean = unit.corrected(clean, is_prompts)
        return clean


WITHOUT_CONTROL: Control = Control()


def _with_rows(layer: Tensor, count: int) -> Tensor:
    """Nothing for the rows that are missing."""
    missing = count - len(layer)
    return layer if not missing else torch.cat([layer, layer.new_zeros(missing, *layer.shape[1:])])
