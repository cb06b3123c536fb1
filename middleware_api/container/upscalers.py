"""The upscalers that need no model, of latents and of pictures, under the WebUI's names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from PIL import Image
from torch import Tensor, nn

from middleware_api.container.errors import BadRequest

_LANCZOS = Image.Resampling.LANCZOS
_GRID = 8  # the WebUI's upscalers answer sizes in multiples of this


@dataclass(frozen=True)
class LatentUpscaler:
    """Interpolates latents: fast, and blurred until the sampler has been over it."""

    name: str
    mode: str
    antialias: bool = False

    def resize(self, latents: Tensor, height: int, width: int) -> Tensor:
        """(batch, channels, height, width), in latents' own units."""
        return nn.functional.interpolate(
            latents, size=(height, width), mode=self.mode, antialias=self.antialias
        )


@dataclass(frozen=True)
class PictureUpscaler:
    """Resamples pixels; `filter` is None for the one that only resizes."""

    name: str
    filter: Image.Resampling | None

    def enlarge(self, image: Image.Image, scale: float) -> Image.Image:
        """By a factor, to a multiple of 8 pixels; also makes smaller, always by Lanczos then."""
        width = max(_GRID, int(image.width * scale) // _GRID * _GRID)
        height = max(_GRID, int(image.height * scale) // _GRID * _GRID)
        smaller = image.width < width or image.height < height
        if self.filter is not None and (smaller or scale == 1):
            by_scale = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
            image = image.resize(by_scale, self.filter)
        return _exactly(image, width, height)

    def resize(self, image: Image.Image, width: int, height: int) -> Image.Image:
        """To the exact size, its proportions given up."""
        scale = max(width / image.width, height / image.height)
        if self.filter is not None and scale > 1:
            image = self.enlarge(image, scale)
        return _exactly(image, width, height)


Upscaler = LatentUpscaler | PictureUpscaler
_T = TypeVar("_T", Upscaler, PictureUpscaler)

LATENT_UPSCALERS = (
    LatentUpscaler("Latent", "bilinear"),
    LatentUpscaler("Latent (antialiased)", "bilinear", antialias=True),
    LatentUpscaler("Latent (bicubic)", "bicubic"),
    LatentUpscaler("Latent (bicubic antialiased)", "bicubic", antialias=True),
    LatentUpscaler("Latent (nearest)", "nearest"),
    LatentUpscaler("Latent (nearest-exact)", "nearest-exact"),
)
PICTURE_UPSCALERS = (
    PictureUpscaler("None", None),
    PictureUpscaler("Lanczos", _LANCZOS),
    PictureUpscaler("Nearest", Image.Resampling.NEAREST),
)
_ALL: tuple[Upscaler, ...] = (*LATENT_UPSCALERS, *PICTURE_UPSCALERS)


def resolve_upscaler(name: str, field: str) -> Upscaler:
    """Of latents or of pictures; raises BadRequest naming those there are."""
    return _named(name, field, _ALL)


def resolve_picture_upscaler(name: str, field: str) -> PictureUpscaler:
    """Raises BadRequest naming those there are."""
    return _named(name, field, PICTURE_UPSCALERS)


def _named(name: str, field: str, known: Sequence[_T]) -> _T:
    for upscaler in known:
        if upscaler.name.casefold() == name.strip().casefold():
            return upscaler
    raise BadRequest(
        f"{field} {name!r} is not available; upscalers that are models are not supported yet. "
        f"Choose one of: {', '.join(upscaler.name for upscaler in known)}.",
        "unknown_upscaler",
    )


def _exactly(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.size == (width, height):
        return image
    return image.resize((width, height), _LANCZOS)
