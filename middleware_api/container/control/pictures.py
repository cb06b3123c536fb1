"""The pictures of ControlNet's units: where each comes from, and the maps that are shown of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from middleware_api.container.control.maps import Pixels, detect, fitted, resolution_for
from middleware_api.container.control.units import ControlUnit, Fit
from middleware_api.container.engine import pictures
from middleware_api.container.engine.request import GenerationRequest, ImageRequest, ResizeMode
from middleware_api.container.errors import BadRequest

_FITS = {ResizeMode.CROP: Fit.CROP, ResizeMode.FILL: Fit.FILL}
_RESIZE_MODES = {
    Fit.STRETCH: ResizeMode.STRETCH,
    Fit.CROP: ResizeMode.CROP,
    Fit.FILL: ResizeMode.FILL,
}
# Levels of a mask that say nothing: all of it is black, or all of it is white.
_BLACK, _WHITE = 5, 250


@dataclass(frozen=True)
class ControlMap:
    """What a unit's preprocessor has made, at its own size, and how it is brought to others."""

    detected: Pixels
    fit: Fit

    def at(self, width: int, height: int) -> Pixels:
        """For pictures of this size."""
        return fitted(self.detected, self.fit, width, height)


def map_of(unit: ControlUnit, request: GenerationRequest, width: int, height: int) -> ControlMap:
    """Raises BadRequest when there is no picture; the size is that of the job's first pass."""
    if unit.image is not None:
        picture, fit = _own_picture(unit, unit.image), unit.fit
    elif request.start is not None:
        picture, fit = _start_picture(unit, request.start)
    else:
        raise BadRequest(
            f"ControlNet {request.control.units.index(unit)} ({unit.model}) has no picture. Send "
            "one in its image, or switch the unit off.",
            "missing_image",
        )
    if request.start is not None and unit.crops_with_mask:
        picture = _cropped(picture, fit, request.start, width, height)
    resolution = unit.resolution
    if unit.pixel_perfect:
        resolution = resolution_for(picture, fit, width, height)
    return ControlMap(detect(unit, picture, resolution, request.control.seed), fit)


def shown(pixels: Pixels) -> Image.Image:
    """A map as a picture; what an inpainting map masks is half transparent."""
    if pixels.shape[2] == 3:
        return Image.fromarray(pixels)
    return Image.fromarray(np.dstack([pixels[:, :, :3], 255 - pixels[:, :, 3] // 2]))


def hint_of(pixels: Pixels) -> Tensor:
    """What the network sees, (1, 3, height, width) in 0..1; -1 where an inpainting map masks."""
    hint = torch.from_numpy(np.array(pixels, np.float32)).permute(2, 0, 1)[None] / 255
    if hint.shape[1] == 3:
        return hint
    masked = (hint[:, 3:] > 0.5).float()
    return hint[:, :3] * (1 - masked) - masked


def _own_picture(unit: ControlUnit, image: Image.Image) -> Pixels:
    colours = np.array(pictures.flatten(image))
    if unit.module.is_inpaint:
        return _masked(colours, unit.mask)
    if unit.mask is not None:
        levels = _levels(unit.mask)
        if not (levels <= _BLACK).all() and not (levels >= _WHITE).all():
            return np.dstack([levels] * 3)  # a scribble drawn over the picture
    return colours


def _start_picture(unit: ControlUnit, start: ImageRequest) -> tuple[Pixels, Fit]:
    colours = np.array(pictures.flatten(start.image))
    fit = _FITS.get(start.resize_mode, Fit.STRETCH)
    if not unit.module.is_inpaint:
        return colours, fit
    if start.mask is None:
        return _masked(colours, None), fit
    return _masked(colours, pictures.read_mask(start.mask, start.image.size)), fit


def _masked(colours: Pixels, mask: Image.Image | None) -> Pixels:
    levels = np.zeros(colours.shape[:2], np.uint8) if mask is None else _levels(mask)
    return np.dstack([colours, levels])


def _levels(mask: Image.Image) -> Pixels:
    return np.array(pictures.flatten(mask))[:, :, 0]


def _cropped(picture: Pixels, fit: Fit, start: ImageRequest, width: int, height: int) -> Pixels:
    """The part that an inpainting job of "only masked" works on."""
    if start.mask is None or not start.mask.only_masked:
        return picture
    mask = pictures.read_mask(start.mask, start.image.size)
    touched = mask.getbbox()
    if touched is None:
        return picture
    box = pictures.crop_box(touched, start.mask.padding, mask.size, width / height)

    def part(channel: Pixels) -> Pixels:
        large = pictures.resize(Image.fromarray(channel), *mask.size, _RESIZE_MODES[fit])
        return np.array(pictures.resize(large.crop(box), width, height, ResizeMode.FILL))

    return np.dstack([part(picture[:, :, i]) for i in range(picture.shape[2])])
