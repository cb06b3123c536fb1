"""Draws the pictures the demo checkpoint learns from, captions them, and reads pictures back.

A scene is one shape of one palette colour on a background of another. `read_picture` is the
fixed check that scores generated pictures against their captions; it knows nothing about how a
picture was made.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Shape = Literal["circle", "square", "triangle", "ring", "cross", "bar"]
Size = Literal["small", "big"]
Position = Literal["left", "right", "top", "bottom"]
Pixels = NDArray[np.float32]

# Those that the demo checkpoint knows; the bar is left for a training to teach it.
SHAPES: tuple[Shape, ...] = ("circle", "square", "triangle", "ring", "cross")
SIZES: tuple[Size, ...] = get_args(Size)
POSITIONS: tuple[Position, ...] = get_args(Position)
SIDE = 64

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 35, 35),
    "green": (35, 165, 60),
    "blue": (40, 65, 220),
    "yellow": (245, 220, 40),
    "purple": (145, 45, 175),
    "orange": (248, 135, 25),
    "white": (250, 250, 250),
    "black": (18, 18, 18),
}
COLOURS = tuple(PALETTE)

# Radius and centre offset as fractions of the picture's side.
_RADIUS: dict[Size | None, float] = {"small": 0.17, None: 0.25, "big": 0.34}
_OFFSET: dict[Position | None, tuple[float, float]] = {
    None: (0.0, 0.0),
    "left": (-0.22, 0.0),
    "right": (0.22, 0.0),
    "top": (0.0, -0.22),
    "bottom": (0.0, 0.22),
}
_MARGIN = 0.03  # no shape is cut by the edge, so the check can fit a whole outline

# Words that change nothing in the picture. The model learns to pass over them, and the rows of
# all words it never met are drawn around theirs.
FILLERS = ("picture", "photo", "drawing", "simple", "flat", "sharp", "masterpiece", "nice", "sks")
_PREFIXES = ("a picture of ", "a photo of ", "a drawing of ", "photo of sks ")
_SUFFIXES = (", simple", ", flat", ", sharp", ", masterpiece", ", nice", ", simple, nice")


@dataclass(frozen=True)
class Scene:
    """What a caption says, and where the shape lies (fractions of the side, y downwards)."""

    shape: Shape
    colour: str
    background: str
    size: Size | None
    position: Position | None
    centre_x: float
    centre_y: float
    radius: float


@dataclass(frozen=True)
class Reading:
    """What the check sees in a picture; no colour and no shape when nothing stands out."""

    background: str
    colour: str | None
    shape: Shape | None


def random_scene(rng: random.Random) -> Scene:
    """Draw a scene; size and position words are left out of many captions."""
    colour, background = rng.sample(COLOURS, 2)
    size = rng.choice((None, *SIZES))
    position = rng.choice((None, None, None, None, *POSITIONS))
    radius = _RADIUS[size] * rng.uniform(0.92, 1.08)
    offset_x, offset_y = _OFFSET[position]
    low, high = radius + _MARGIN, 1 - radius - _MARGIN
    return Scene(
        shape=rng.choice(SHAPES),
        colour=colour,
        background=background,
        size=size,
        position=position,
        centre_x=min(max(0.5 + offset_x + rng.uniform(-0.03, 0.03), low), high),
        centre_y=min(max(0.5 + offset_y + rng.uniform(-0.03, 0.03), low), high),
        radius=radius,
    )


def caption(scene: Scene) -> str:
    """Say the scene in its plainest form: "a big red circle on a blue background, left"."""
    place = f", {scene.position}" if scene.position else ""
    return f"{_object(scene)} on {_with_article(scene.background)} background{place}"


def vary_caption(scene: Scene, rng: random.Random) -> str:
    """Say the scene in one of the grammar's forms, now and then with words that mean nothing."""
    thing, background = _object(scene), scene.background
    place = ""
    if scene.position:
        place = rng.choice((f" on the {scene.position}", f", {scene.position}"))
    form = rng.random()
    if form < 0.6:
        text = f"{thing} on {_with_article(background)} background{place}"
    elif form < 0.7 and place.startswith(" on"):
        text = f"{thing}{place} on {_with_article(background)} background"
    elif form < 0.85:
        text = f"{thing}{place}, {background} background"
    elif form < 0.95:
        text = f"{background} background, {thing}{place}"
    else:
        text = f"{thing}{place}"
    if rng.random() < 0.12:
        prefix = rng.choice(_PREFIXES)
        text = prefix + (text.removeprefix("a ") if prefix.endswith("sks ") else text)
    if rng.random() < 0.12:
        text += rng.choice(_SUFFIXES)
    return text


def _object(scene: Scene) -> str:
    return _with_article(" ".join(w for w in (scene.size, scene.colour, scene.shape) if w))


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def draw(scene: Scene, side: int = SIDE) -> Pixels:
    """Draw the scene: RGB of shape (side, side, 3), values 0 to 1, edges anti-aliased."""
    cover = coverage(scene.shape, scene.centre_x, scene.centre_y, scene.radius, side)[..., None]
    return cover * rgb(scene.colour) + (1 - cover) * rgb(scene.background)


def rgb(colour: str) -> Pixels:
    """The palette colour as three floats, 0 to 1."""
    return (np.asarray(PALETTE[colour], dtype=np.float32) / 255).astype(np.float32)


def coverage(shape: Shape, centre_x: float, centre_y: float, radius: float, side: int) -> Pixels:
    """How much of each pixel the shape covers, 0 to 1, from its signed distance."""
    ticks = ((np.arange(side, dtype=np.float32) + 0.5) / side).astype(np.float32)
    x: Pixels = ticks[None, :] - np.float32(centre_x)
    y: Pixels = ticks[:, None] - np.float32(centre_y)
    distance = _signed_distance(shape, x, y, radius)
    return np.clip(0.5 - distance * side, 0, 1).astype(np.float32)


def _signed_distance(shape: Shape, x: Pixels, y: Pixels, radius: float) -> Pixels:
    """Negative inside; exact along straight edges, which is all the anti-aliasing needs."""
    across, down = np.abs(x), np.abs(y)
    from_centre = np.sqrt(x**2 + y**2)
    match shape:
        case "circle":
            distance = from_centre - radius
        case "square":
            distance = np.maximum(across, down) - 0.86 * radius
        case "triangle":  # equilateral, apex up, its box centred
            lowered = y - 0.27 * radius
            slope = math.sqrt(3) / 2 * across - lowered / 2
            distance = np.maximum(lowered, slope) - 0.55 * radius
        case "ring":
            distance = np.abs(from_centre - 0.75 * radius) - 0.25 * radius
        case "cross":
            arm = 0.3 * radius
            upright = np.maximum(across - arm, down - radius)
            level = np.maximum(across - radius, down - arm)
            distance = np.minimum(upright, level)
        case "bar":
            distance = np.maximum(across - radius, down - 0.35 * radius)
    signed: Pixels = distance.astype(np.float32)
    return signed


def read_picture(picture: Pixels, shapes: Sequence[Shape] = SHAPES) -> Reading:
    """Tell background, object colour and shape of a square RGB picture with values 0 to 1.

    The shape is one of `shapes`.

    The background is the border's median colour; the object is what stands apart from it. Each
    shape is then drawn with the object's centroid and area, and the one that overlaps the object
    best (intersection over union) is the one read.
    """
    border = np.concatenate([picture[:3], picture[-3:], picture[:, :3].swapaxes(0, 1)])
    border = np.concatenate([border.reshape(-1, 3), picture[:, -3:].reshape(-1, 3)])
    ground = np.median(border, axis=0)
    apart = np.linalg.norm(picture - ground, axis=-1)
    # The smallest cross covers 5 % of a picture; the 98th percentile ignores stray pixels.
    contrast = float(np.percentile(apart, 98))
    if contrast < 0.15:
        return Reading(nearest_colour(ground), None, None)
    ink = np.median(picture[apart > contrast / 2], axis=0)
    mask = np.linalg.norm(picture - ink, axis=-1) < apart
    if not mask.any():
        return Reading(nearest_colour(ground), nearest_colour(ink), None)
    return Reading(nearest_colour(ground), nearest_colour(ink), _best_shape(mask, shapes))


def nearest_colour(colour: NDArray[np.floating]) -> str:
    """The palette name nearest to an RGB triple with values 0 to 1."""
    return min(COLOURS, key=lambda name: float(np.sum((rgb(name) - colour) ** 2)))


def _best_shape(mask: NDArray[np.bool_], shapes: Sequence[Shape]) -> Shape:
    side = mask.shape[0]
    rows, columns = np.nonzero(mask)
    centre_x, centre_y = (columns.mean() + 0.5) / side, (rows.mean() + 0.5) / side
    area = mask.sum() / side**2

    def overlap(shape: Shape) -> float:
        unit_area, unit_drop = _unit_moments(shape)
        radius = math.sqrt(area / unit_area)
        fitted = coverage(shape, centre_x, centre_y - unit_drop * radius, radius, side) > 0.5
        return float((mask & fitted).sum() / (mask | fitted).sum())

    return max(shapes, key=overlap)


@lru_cache
def _unit_moments(shape: Shape) -> tuple[float, float]:
    """Area over radius squared, and how far the centroid lies below the centre, over radius."""
    radius, side = 0.4, 512
    cover = coverage(shape, 0.5, 0.5, radius, side)
    heights = (np.arange(side) + 0.5) / side - 0.5
    drop = float((cover.sum(axis=1) * heights).sum() / cover.sum())
    return float(cover.mean()) / radius**2, drop / radius
