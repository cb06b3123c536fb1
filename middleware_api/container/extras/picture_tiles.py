"""Pictures cut into tiles that overlap, each enlarged by itself, and blended together again.

As the WebUI cuts them and blends them, so that seams are where its are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from middleware_api.container.errors import BadRequest
from middleware_api.container.fields import Fields

_SIDE_MAX = 4096


@dataclass(frozen=True)
class Tiles:
    """Pixels of a tile's side, 0 for the whole picture at once, and of what two have in common."""

    side: int = 192
    overlap: int = 8

    def starts(self, length: int) -> list[int]:
        """Where tiles begin along a side. A single one may begin outside: before 0 it is black."""
        count = max(1, math.ceil((length - self.overlap) / (self.side - self.overlap)))
        step = (length - self.side) / (count - 1) if count > 1 else 0
        return [min(int(number * step), length - self.side) for number in range(count)]


def parse_tiles(settings: Fields) -> Tiles:
    """Raises BadRequest naming the setting."""
    usual = Tiles()
    tiles = Tiles(
        settings.integer("ESRGAN_tile", usual.side, 0, _SIDE_MAX),
        settings.integer("ESRGAN_tile_overlap", usual.overlap, 0, _SIDE_MAX),
    )
    if 0 < tiles.side <= tiles.overlap:
        raise BadRequest(
            f"override_settings.ESRGAN_tile_overlap must be below ESRGAN_tile, which is "
            f"{tiles.side}, not {tiles.overlap}.",
            "bad_field",
        )
    return tiles


def enlarge_by_tiles(
    image: Image.Image, tiles: Tiles, enlarge: Callable[[Image.Image], Image.Image], scale: int
) -> Image.Image:
    """`enlarge` makes each tile `scale` times as large."""
    if tiles.side == 0:
        return enlarge(image)
    side, overlap = tiles.side * scale, tiles.overlap * scale
    whole = Image.new("RGB", (image.width * scale, image.height * scale))
    for number, top in enumerate(tiles.starts(image.height)):
        row = Image.new("RGB", (whole.width, side))
        for place, left in enumerate(tiles.starts(image.width)):
            box = (left, top, left + tiles.side, top + tiles.side)
            fade = _ramp(overlap, side) if place and overlap else None
            _lay(row, enlarge(image.crop(box)), (left * scale, 0), fade)
        fade = _ramp(overlap, whole.width).T if number and overlap else None
        _lay(whole, row, (0, top * scale), fade)
    return whole


def _lay(
    below: Image.Image, tile: Image.Image, at: tuple[int, int], fade: NDArray[np.uint8] | None
) -> None:
    """A tile over what is there; `fade` tells how much of its upper left end hides that."""
    if fade is None:
        below.paste(tile, at)
        return
    shown = Image.new("L", tile.size, 255)
    shown.paste(Image.fromarray(np.ascontiguousarray(fade)), (0, 0))
    below.paste(tile, at, shown)


def _ramp(overlap: int, across: int) -> NDArray[np.uint8]:
    """(across, overlap), from nothing to nearly all."""
    levels = (np.arange(overlap, dtype=np.float32) * 255 / overlap).astype(np.uint8)
    return np.broadcast_to(levels, (across, overlap))
