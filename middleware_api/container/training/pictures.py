"""A training's pictures: found in data sets, read, brought to a bucket's size, and encoded."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from middleware_api.container.engine.pictures import flatten
from middleware_api.container.errors import BadRequest
from middleware_api.container.storage import Storage
from middleware_api.container.training.buckets import Size, fitted
from middleware_api.container.training.captions import words_of_name
from middleware_api.contract import CAPTION_ENDING, PICTURE_ENDINGS

_ENCODED_AT_ONCE = 4


class UnreadablePicture(Exception):
    """The message says why, and not which one."""


@dataclass(frozen=True)
class PictureFile:
    """A picture in the object store; `own_words` are its caption file's, or its name's."""

    key: str
    own_words: str

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name


def pictures_of(storage: Storage, prefix: str) -> list[PictureFile]:
    """The pictures of a data set in the order of their keys, with their captions."""
    keys = storage.sizes(prefix)
    found = []
    for key in sorted(keys):
        path = PurePosixPath(key)
        if path.suffix.lower() not in PICTURE_ENDINGS:
            continue
        caption = str(path.with_suffix(CAPTION_ENDING))
        words = words_of_name(path.name)
        if caption in keys:
            words = storage.read(caption).decode(errors="replace").strip()
        found.append(PictureFile(key, words))
    return found


def read_picture(content: bytes) -> Image.Image:
    """Upright, in RGB; raises UnreadablePicture."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            upright = ImageOps.exif_transpose(opened)
            return flatten(upright)
    except UnidentifiedImageError as error:
        raise UnreadablePicture("it is no picture that can be read") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadablePicture(str(error).rstrip(".")) from error


def pixels_of(picture: Image.Image, size: Size) -> Tensor:
    """(3, height, width) of bytes, at the bucket's size."""
    return torch.from_numpy(np.array(fitted(picture, size))).permute(2, 0, 1)


@dataclass(frozen=True)
class Seen:
    """What the VAE makes of a picture: mean and spread, each (4, height, width), not yet scaled."""

    mean: Tensor
    spread: Tensor

    def drawn(self, generator: torch.Generator) -> Tensor:
        return self.mean + self.spread * torch.randn(self.mean.shape, generator=generator)


class LatentStore:
    """Pictures' pixels or, with `caches`, what the VAE makes of them, in memory.

    Each picture is known by a key; its mirror image is another. `vae` is diffusers' AutoencoderKL.
    """

    def __init__(self, vae: object, device: torch.device, scale: float, caches: bool) -> None:
        self._vae, self._device, self._scale, self._caches = vae, device, scale, caches
        self._pixels: dict[str, Tensor] = {}
        self._seen: dict[tuple[str, bool], Seen] = {}

    def add(self, key: str, pixels: Tensor, mirrors: bool) -> None:
        """Bytes, (3, height, width)."""
        if not self._caches:
            self._pixels[key] = pixels
            return
        for mirrored in (False, True) if mirrors else (False,):
            (self._seen[key, mirrored],) = self._encode([_turned(pixels, mirrored)])

    def __contains__(self, key: str) -> bool:
        return key in self._pixels or (key, False) in self._seen

    def latents(self, wanted: Sequence[tuple[str, bool]], generator: torch.Generator) -> Tensor:
        """(wanted, 4, height, width): a draw of each picture, or of its mirror image."""
        if self._caches:
            seen = [self._seen[key, mirrored] for key, mirrored in wanted]
        else:
            seen = self._encode([_turned(self._pixels[key], m) for key, m in wanted])
        drawn = torch.stack([each.drawn(generator) for each in seen])
        return (drawn * self._scale).to(self._device)

    @torch.no_grad()
    def _encode(self, pictures: Sequence[Tensor]) -> list[Seen]:
        seen: list[Seen] = []
        for start in range(0, len(pictures), _ENCODED_AT_ONCE):
            batch = torch.stack([*pictures[start : start + _ENCODED_AT_ONCE]]).to(self._device)
            found = self._vae.encode(batch.float() / 127.5 - 1).latent_dist  # type: ignore[attr-defined]
            means, spreads = found.mean.float().cpu(), found.std.float().cpu()
            seen += [Seen(*both) for both in zip(means, spreads, strict=True)]
        return seen


def _turned(pixels: Tensor, mirrored: bool) -> Tensor:
    return pixels.flip(-1) if mirrored else pixels


def require_some(pictures: Sequence[object], place: str, tried: int) -> None:
    """Raises BadRequest where a concept has nothing to learn from."""
    if pictures:
        return
    why = f"has no picture that can be read ({tried} were tried)" if tried else "has no pictures"
    endings = ", ".join(ending[1:] for ending in PICTURE_ENDINGS[:4])
    raise BadRequest(
        f"{place} {why}. Put some into it ({endings}), and start a new training.", "no_pictures"
    )
