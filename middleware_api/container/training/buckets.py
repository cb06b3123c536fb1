"""Shapes that pictures are brought to: of about one area, each picture's the nearest to its own."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

Size = tuple[int, int]
"""Width and height in pixels."""

_LONGEST = 3  # sides' ratio beyond which a picture is cut
_SIDE_STEP = 64  # of sizes that all checkpoints are trained in


def bucket_sizes(resolution: int, latent_factor: int) -> list[Size]:
    """The square first, then ever longer ones, lying and standing."""
    unit = latent_factor
    step = min(_SIDE_STEP, max(unit, resolution // 8 // unit * unit))
    side = max(unit, resolution // unit * unit)
    sizes = [(side, side)]
    for width in range(side + step, int(side * math.sqrt(_LONGEST)) + 1, step):
        height = side * side // width // step * step
        if height >= step:
            sizes += [(width, height), (height, width)]
    return sizes


def nearest_size(picture: Size, sizes: list[Size]) -> Size:
    """The one whose sides' ratio is the nearest to the picture's."""
    ratio = math.log(picture[0] / picture[1])
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1]) - ratio))


@dataclass(frozen=True)
class Cut:
    """How a picture is brought to a size: scaled to cover it, then cut at both ends alike."""

    scaled: Size
    left: int
    top: int


def cut_of(picture: Size, size: Size) -> Cut:
    """What has to be done to a picture of that size."""
    scale = max(size[0] / picture[0], size[1] / picture[1])
    width, height = (max(s, round(p * scale)) for s, p in zip(size, picture, strict=True))
    return Cut((width, height), (width - size[0]) // 2, (height - size[1]) // 2)


def fitted(picture: Image.Image, size: Size) -> Image.Image:
    """The picture at the size."""
    cut = cut_of(picture.size, size)
    large = picture.resize(cut.scaled, Image.Resampling.LANCZOS)
    return large.crop((cut.left, cut.top, cut.left + size[0], cut.top + size[1]))
