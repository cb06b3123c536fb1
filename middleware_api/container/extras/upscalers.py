"""The upscalers of latents and of pictures, under the WebUI's names; those that are models go by
their files' names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image
from torch import Tensor, nn

_LANCZOS = Image.Resampling.LANCZOS
_GRID = 8  # the WebUI's upscalers answer sizes in multiples of this
_PASSES_MAX = 3

Look = Callable[[], None]
"""Called between two pieces of work; may raise to stop."""

Resize = Callable[[Image.Image, int, int], Image.Image]
"""To the exact width and height."""


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


class PictureUpscaler(ABC):
    """Makes pictures larger, in one pass or in several."""

    name: str

    @abstractmethod
    def _grown(self, image: Image.Image, scale: float, look: Look) -> Image.Image:
        """One pass: larger by `scale`, or by whatever it makes of any picture."""

    def enlarge(self, image: Image.Image, scale: float, look: Look) -> Image.Image:
        """By a factor, to a multiple of 8 pixels; also makes smaller, always by Lanczos then."""
        width = max(_GRID, int(image.width * scale) // _GRID * _GRID)
        height = max(_GRID, int(image.height * scale) // _GRID * _GRID)
        for number in range(_PASSES_MAX):
            reached = image.width >= width and image.height >= height
            if reached and (number > 0 or scale != 1):
                break
            before = image.size
            image = self._grown(image, scale, look)
            if image.size == before:
                break
        return exactly(image, width, height)

    def resize(self, image: Image.Image, width: int, height: int, look: Look) -> Image.Image:
        """To the exact size, its proportions given up."""
        scale = max(width / image.width, height / image.height)
        if scale > 1:
            image = self.enlarge(image, scale, look)
        return exactly(image, width, height)


@dataclass(frozen=True)
class Resampler(PictureUpscaler):
    """Resamples pixels."""

    name: str
    filter: Image.Resampling

    def _grown(self, image: Image.Image, scale: float, look: Look) -> Image.Image:
        size = (max(1, int(image.width * scale)), max(1, int(image.height * scale)))
        return image.resize(size, self.filter)


@dataclass(frozen=True)
class NoUpscaler(PictureUpscaler):
    """Leaves it to the last resize, whose size need be no multiple of anything."""

    name: str = "None"

    def _grown(self, image: Image.Image, scale: float, look: Look) -> Image.Image:
        return image

    def resize(self, image: Image.Image, width: int, height: int, look: Look) -> Image.Image:
        """See PictureUpscaler."""
        return exactly(image, width, height)


@dataclass(frozen=True)
class UpscalerFile:
    """An upscaler that is a model: the file that `field` names, with or without its ending."""

    name: str
    field: str


AnyPictureUpscaler = PictureUpscaler | UpscalerFile
Upscaler = LatentUpscaler | AnyPictureUpscaler

LATENT_UPSCALERS = (
    LatentUpscaler("Latent", "bilinear"),
    LatentUpscaler("Latent (antialiased)", "bilinear", antialias=True),
    LatentUpscaler("Latent (bicubic)", "bicubic"),
    LatentUpscaler("Latent (bicubic antialiased)", "bicubic", antialias=True),
    LatentUpscaler("Latent (nearest)", "nearest"),
    LatentUpscaler("Latent (nearest-exact)", "nearest-exact"),
)
NO_UPSCALER = NoUpscaler()
PICTURE_UPSCALERS: tuple[PictureUpscaler, ...] = (
    NO_UPSCALER,
    Resampler("Lanczos", _LANCZOS),
    Resampler("Nearest", Image.Resampling.NEAREST),
)


def resolve_upscaler(name: str, field: str) -> Upscaler:
    """Of latents or of pictures; what is none of those that are always there is a file."""
    for upscaler in LATENT_UPSCALERS:
        if _means(name, upscaler.name):
            return upscaler
    return resolve_picture_upscaler(name, field)


def resolve_picture_upscaler(name: str, field: str) -> AnyPictureUpscaler:
    """The same, without those of latents."""
    for upscaler in PICTURE_UPSCALERS:
        if _means(name, upscaler.name):
            return upscaler
    return UpscalerFile(name.strip(), field)


def _means(name: str, known: str) -> bool:
    return name.strip().casefold() == known.casefold()


def exactly(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resized unless it has that size."""
    if image.size == (width, height):
        return image
    return image.resize((width, height), _LANCZOS)
