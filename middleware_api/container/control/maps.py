"""What ControlNets are shown: preprocessors, and their maps brought to a pass's size.

OpenCV does the work, as in the WebUI's ControlNet extension, with its numbers: maps and pictures
are uint8 arrays, (height, width, 3), with a fourth channel where an inpainting mask goes along.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from middleware_api.container.control.units import ControlUnit, Fit

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]

_SHUFFLE_GRAIN = 256


def detect(unit: ControlUnit, picture: Pixels, resolution: float, seed: int) -> Pixels:
    """What the unit's preprocessor makes of a picture, at a size of its own."""
    asked = _Asked(resolution, unit.first_threshold, unit.second_threshold, seed)
    return _DETECTORS[unit.module.name](picture, asked)


def fitted(detected: Pixels, fit: Fit, width: int, height: int) -> Pixels:
    """A map at exactly this size."""
    if fit is Fit.STRETCH:
        return _resized(detected, width, height)
    rows, columns = detected.shape[:2]
    scales = (height / rows, width / columns)
    scale = max(scales) if fit is Fit.CROP else min(scales)
    inner = _resized(detected, round(columns * scale), round(rows * scale))
    rows, columns = inner.shape[:2]
    if fit is Fit.CROP:
        top, left = max(0, (rows - height) // 2), max(0, (columns - width) // 2)
        return inner[top : top + height, left : left + width]
    top, left = max(0, (height - rows) // 2), max(0, (width - columns) // 2)
    outer = np.empty((height, width, detected.shape[2]), np.uint8)
    outer[:] = _edge_colour(detected)
    outer[top : top + rows, left : left + columns] = inner
    return outer


def resolution_for(picture: Pixels, fit: Fit, width: int, height: int) -> int:
    """The preprocessor's resolution at which no map is enlarged: "pixel perfect"."""
    rows, columns = picture.shape[:2]
    scales = (height / rows, width / columns)
    scale = min(scales) if fit is Fit.FILL else max(scales)
    return round(scale * min(rows, columns))


def _edge_colour(detected: Pixels) -> Pixels:
    """The usual colour along the edges; what lies outside of an inpainting picture is masked."""
    edges = [detected[0], detected[-1], detected[:, 0], detected[:, -1]]
    colour: Pixels = np.median(np.concatenate(edges), axis=0).astype(np.uint8)
    if len(colour) == 4:
        colour[3] = 255
    return colour


def _resized(detected: Pixels, width: int, height: int) -> Pixels:
    """By the method that suits the map: flat colours stay flat, thin lines stay thin."""
    if detected.shape[:2] == (height, width):
        return detected
    colours, mask = detected[:, :, :3], detected[:, :, 3:]
    grows = width * height > detected.shape[0] * detected.shape[1]
    shrinks = width * height < detected.shape[0] * detected.shape[1]
    count = _colours(colours)
    if 2 < count < 200:
        method = cv2.INTER_NEAREST
    else:
        method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    resized: Pixels = _cv(cv2.resize(colours, (width, height), interpolation=method))
    if count == 2 and colours.min() < 16 and colours.max() > 240:
        resized = _two_levels(resized, _is_thin(colours), grows)
    if not mask.size:
        return resized
    shape = _cv(cv2.resize(mask, (width, height), interpolation=method))
    return np.dstack([resized, np.where(shape > 127, 255, 0).astype(np.uint8)])


def _colours(pixels: Pixels) -> int:
    """How many different ones there are."""
    red, green, blue = (pixels[:, :, i].astype(np.uint32) for i in range(3))
    return len(np.unique((red << 16) + (green << 8) + blue))


def _is_thin(black_and_white: Pixels) -> bool:
    """Whether more than half of the white vanishes with its outermost pixels."""
    opened = _cv(cv2.morphologyEx(black_and_white, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)))
    return bool(2 * np.count_nonzero(opened < black_and_white) > np.sum(black_and_white > 127))


def _two_levels(resized: Pixels, is_thin: bool, grows: bool) -> Pixels:
    grey = resized.mean(axis=2).astype(np.uint8)
    if is_thin:
        grey = _ridges(grey)
    _, levels = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    sharp = _cv(levels)
    if is_thin:
        sharp = _thinned(sharp, grows)
    return np.dstack([sharp] * 3)


# Lines through a pixel: across, down, and both diagonals.
_LINES = [
    np.array([[0, 0, 0], [1, 1, 1], [0, 0, 0]], np.uint8),
    np.array([[0, 1, 0], [0, 1, 0], [0, 1, 0]], np.uint8),
    np.eye(3, dtype=np.uint8),
    np.eye(3, dtype=np.uint8)[::-1],
]
# Thinning's structuring elements: 1 is white, -1 black, 0 either; each in four directions. See
# Gonzalez and Woods, Digital Image Processing, 9.5.
_EDGES = [
    np.array([[-1, -1, -1], [0, 1, 0], [1, 1, 1]]),
    np.array([[0, -1, -1], [1, 1, -1], [0, 1, 0]]),
]
_ENDS = [
    np.array([[-1, -1, -1], [-1, 1, -1], [0, 0, -1]]),
    np.array([[-1, -1, -1], [-1, 1, -1], [-1, 0, 0]]),
]
_THINNING_ROUNDS = 32


def _ridges(grey: Pixels) -> Pixels:
    """What is the brightest of its neighbours along some line."""
    kept = np.zeros_like(grey)
    for line in _LINES:
        brightest = _cv(cv2.dilate(grey, line))
        kept[brightest == grey] = grey[brightest == grey]
    return kept


def _thinned(white: Pixels, without_ends: bool) -> Pixels:
    """Lines one pixel wide; `without_ends` also takes the stubs that enlarging leaves."""
    for _ in range(_THINNING_ROUNDS):
        before = white
        white = _without(white, _EDGES)
        if np.array_equal(white, before):
            break
    return _without(white, _ENDS) if without_ends else white


def _without(white: Pixels, shapes: list[NDArray[Any]]) -> Pixels:
    white = white.copy()
    for turns in range(4):
        for shape in shapes:
            turned = np.ascontiguousarray(np.rot90(shape, turns), dtype=np.int32)
            white[_cv(cv2.morphologyEx(white, cv2.MORPH_HITMISS, turned)) > 0] = 0
    return white


@dataclass(frozen=True)
class _Asked:
    """A preprocessor's settings."""

    resolution: float
    first: float
    second: float
    seed: int


def _scaled(picture: Pixels, resolution: float) -> Pixels:
    """With its shorter side of that length."""
    rows, columns = picture.shape[:2]
    scale = resolution / min(rows, columns)
    size = (round(columns * scale), round(rows * scale))
    method = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    return _cv(cv2.resize(picture, size, interpolation=method))


def _on_padded(
    work: Callable[[Pixels, _Asked], Pixels],
) -> Callable[[Pixels, _Asked], Pixels]:
    """At the asked resolution, the edges drawn out to multiples of 64 while it works."""

    def detector(picture: Pixels, asked: _Asked) -> Pixels:
        scaled = _scaled(picture, asked.resolution)
        rows, columns = scaled.shape[:2]
        padded = np.pad(scaled, [(0, -rows % 64), (0, -columns % 64), (0, 0)], mode="edge")
        return work(padded, asked)[:rows, :columns]

    return detector


def _grey(levels: NDArray[Any]) -> Pixels:
    """(height, width), 0 to 255, as a map."""
    return np.dstack([levels.clip(0, 255).astype(np.uint8)] * 3)


def _canny(picture: Pixels, asked: _Asked) -> Pixels:
    return _grey(_cv(cv2.Canny(picture, int(asked.first), int(asked.second))))


def _blurred(pixels: NDArray[Any], sigma: float) -> Floats:
    return np.asarray(cv2.GaussianBlur(pixels.astype(np.float32), (0, 0), sigma), np.float32)


def _lineart_standard(picture: Pixels, asked: _Asked) -> Pixels:
    darker = (_blurred(picture, 6.0) - picture).min(axis=2).clip(0, 255)
    lines = darker[darker > 8]
    usual = float(np.median(lines)) if lines.size else 0.0
    return _grey(darker / max(16.0, usual) * 127)


def _scribble_xdog(picture: Pixels, asked: _Asked) -> Pixels:
    difference = (_blurred(picture, 5.0) - _blurred(picture, 0.5)).min(axis=2)
    level = 255 - (255 - difference).clip(0, 255).astype(np.uint8)
    twice = level * np.uint8(2)  # in bytes as there, which the hardest edges overflow
    return _grey(np.where(twice > asked.first, 255, 0))


def _threshold(picture: Pixels, asked: _Asked) -> Pixels:
    return _grey(np.where(picture.min(axis=2) > asked.first, 255, 0))


def _tile_resample(picture: Pixels, asked: _Asked) -> Pixels:
    if asked.first < 1.1:
        return picture
    rows, columns = picture.shape[:2]
    size = (max(1, int(columns / asked.first)), max(1, int(rows / asked.first)))
    return _cv(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def _blur_gaussian(picture: Pixels, asked: _Asked) -> Pixels:
    return _cv(cv2.GaussianBlur(_scaled(picture, asked.resolution), (0, 0), asked.first))


def _shuffle(picture: Pixels, asked: _Asked) -> Pixels:
    """The picture's colours flowing along smooth noise."""
    scaled = _scaled(picture, asked.resolution)
    rows, columns = scaled.shape[:2]
    draw = np.random.RandomState(asked.seed)

    def flow(reach: float) -> Floats:
        grain = _SHUFFLE_GRAIN
        coarse = draw.uniform(size=(rows // grain + 2, columns // grain + 2, 1))
        size = (columns + 2 * grain, rows + 2 * grain)
        smooth = np.asarray(cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC))
        smooth = smooth[grain : grain + rows, grain : grain + columns]
        smooth = smooth - smooth.min()
        return np.asarray(smooth / smooth.max() * reach, np.float32)

    across, down = flow(columns - 1.0), flow(rows - 1.0)
    return _cv(cv2.remap(scaled, across, down, cv2.INTER_LINEAR))


def _recolor(space: int, channel: int) -> Callable[[Pixels, _Asked], Pixels]:
    """One channel of the picture, with gamma. The extension takes red for blue here."""

    def detector(picture: Pixels, asked: _Asked) -> Pixels:
        level = _cv(cv2.cvtColor(picture, space))[:, :, channel].astype(np.float32) / 255
        return _grey(level**asked.first * 255)

    return detector


def _same(picture: Pixels, asked: _Asked) -> Pixels:
    return picture


_DETECTORS: dict[str, Callable[[Pixels, _Asked], Pixels]] = {
    "none": _same,
    "invert": lambda picture, asked: 255 - picture,
    "canny": _on_padded(_canny),
    "lineart_standard": _on_padded(_lineart_standard),
    "scribble_xdog": _on_padded(_scribble_xdog),
    "threshold": _on_padded(_threshold),
    "tile_resample": _tile_resample,
    "tile_colorfix": _same,
    "tile_colorfix+sharp": _same,
    "blur_gaussian": _blur_gaussian,
    "shuffle": _shuffle,
    "recolor_luminance": _recolor(cv2.COLOR_BGR2LAB, 0),
    "recolor_intensity": _recolor(cv2.COLOR_BGR2HSV, 2),
    "inpaint": _same,
    "inpaint_only": _same,
}


def _cv(result: Any) -> Pixels:
    """OpenCV's arrays are of any kind to the type checker."""
    return np.asarray(result)
