"""A job's ControlNet units: their networks and maps, and what they do before and after sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image

from middleware_api.container.control.control import Control, Encode, UnitAtWork
from middleware_api.container.control.controlnet import ControlNet
from middleware_api.container.control.maps import Pixels
from middleware_api.container.control.pictures import ControlMap, map_of, shown
from middleware_api.container.control.units import ControlUnit
from middleware_api.container.engine.request import GenerationRequest

_SEAM = 7
"""Pixels over which an inpainted part goes over into the rest: the extension's default."""

Size = tuple[int, int]


@dataclass(frozen=True)
class JobControl:
    """Every unit with its network and map. `sizes` are the (width, height) of the passes."""

    units: Sequence[tuple[ControlUnit, ControlNet, ControlMap]]
    sizes: Sequence[Size]

    @staticmethod
    def of(
        nets: Sequence[ControlNet], request: GenerationRequest, sizes: Sequence[Size]
    ) -> JobControl:
        """Raises BadRequest when a unit has no picture."""
        paired = zip(request.control.units, nets, strict=True)
        return JobControl(
            [(unit, net, map_of(unit, request, *sizes[0])) for unit, net in paired], sizes
        )

    def at_work(self, encode: Encode, is_second: bool) -> Control:
        """For one pass; `encode` is that of the checkpoint that samples in it."""
        return Control(
            tuple(UnitAtWork(unit, net, seen, is_second, encode) for unit, net, seen in self.units)
        )

    def finished(self, picture: Image.Image) -> Image.Image:
        """A picture as its units' preprocessors leave it."""
        for unit, _, seen in self.units:
            finish = _FINISHES.get(unit.module.name)
            if finish is not None:
                made = finish(np.array(picture), seen.at(*picture.size))
                picture = Image.fromarray(made)
        return picture

    def shown_maps(self) -> list[Image.Image]:
        """What the extension answers after the pictures, the largest of each unit first."""
        return [
            shown(seen.at(*size))
            for unit, _, seen in self.units
            if unit.shows_map
            for size in reversed(self.sizes)
        ]


def _inpainted(picture: Pixels, seen: Pixels) -> Pixels:
    """The unit's own picture where its mask is black, with a soft seam."""
    mask = seen[:, :, 3].astype(np.float32) / 255
    wider = cv2.dilate(mask, np.ones((_SEAM, _SEAM), np.uint8))
    new = np.asarray(cv2.blur(wider, (_SEAM, _SEAM)))[:, :, None]
    mixed = new * picture + (1 - new) * seen[:, :, :3]
    return np.asarray(mixed).clip(0, 255).astype(np.uint8)


def _recoloured(to: int, back: int, channel: int) -> Callable[[Pixels, Pixels], Pixels]:
    """The colours of the picture, and the lightness of the map."""

    def finish(picture: Pixels, seen: Pixels) -> Pixels:
        parts = np.array(cv2.cvtColor(picture, to))
        parts[:, :, channel] = seen[:, :, 0]
        return np.asarray(cv2.cvtColor(parts, back))

    return finish


_FINISHES = {
    "inpaint_only": _inpainted,
    "recolor_luminance": _recoloured(cv2.COLOR_RGB2LAB, cv2.COLOR_LAB2RGB, 0),
    "recolor_intensity": _recoloured(cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB, 2),
}
