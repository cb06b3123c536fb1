"""Pixels around the sampler: resizing, masks, pasting back, and saving with the parameters."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFilter, ImageOps, PngImagePlugin
from scipy import ndimage  # type: ignore[import-untyped]
from torch import Tensor

from middleware_api.container.engine.request import ImageRequest, MaskFill, MaskRequest, ResizeMode
from middleware_api.container.extras.upscalers import Resize, exactly

Box = tuple[int, int, int, int]
# The WebUI's: radii in pixels, and how often each is laid over the ones before.
_BLURS = ((256, 1), (64, 1), (16, 2), (4, 4), (2, 2), (0, 1))


@dataclass(frozen=True)
class Overlay:
    """The original outside the mask, and where in it the new picture goes (None: all of it)."""

    picture: Image.Image
    paste_box: Box | None

    def apply(self, made: Image.Image) -> Image.Image:
        """Lays the original over the new picture, through the blurred mask."""
        if self.paste_box is not None:
            left, top, right, bottom = self.paste_box
            below = Image.new("RGBA", self.picture.size)
            patch = resize(made, right - left, bottom - top, ResizeMode.CROP)
            below.paste(patch, (left, top))
        else:
            below = made.convert("RGBA")
        below.alpha_composite(self.picture)
        return below.convert("RGB")


@dataclass(frozen=True)
class StartPicture:
    """A picture at the job's size; `mask` (white: make anew) is None for plain img2img.

    `shown_mask` is what an inpainting model is shown: the mask itself, whatever the latents' is.
    """

    picture: Image.Image
    mask: Image.Image | None
    overlay: Overlay | None
    shown_mask: Image.Image | None = None


def prepare_start(
    start: ImageRequest, width: int, height: int, to_size: Resize = exactly
) -> StartPicture:
    """Brings picture and mask to the job's size, cropped to the mask when it asks for that.

    ResizeMode.LATENT leaves a picture without a mask at its own size: its latents are resized.
    """
    picture = flatten(start.image, start.background)
    if start.mask is None and start.resize_mode is ResizeMode.LATENT:
        return StartPicture(picture, None, None)
    if start.mask is None:
        return StartPicture(resize(picture, width, height, start.resize_mode, to_size), None, None)
    if start.mask.image.size != picture.size:
        mask = read_mask(start.mask, picture.size)
    else:
        mask = read_mask(start.mask, None)
    paste_box = None
    if start.mask.only_masked:
        touched = mask.getbbox()
        if touched is None:  # nothing is masked: the WebUI falls back to plain img2img
            return StartPicture(
                resize(picture, width, height, start.resize_mode, to_size), None, None
            )
        paste_box = crop_box(touched, start.mask.padding, picture.size, width / height)
        over = ImageChops.invert(mask)
        overlay = _overlay(picture, over, paste_box)
        mask = resize(mask.crop(paste_box), width, height, ResizeMode.FILL)
        picture = resize(picture.crop(paste_box), width, height, ResizeMode.FILL, to_size)
    else:
        picture = resize(picture, width, height, start.resize_mode, to_size)
        mask = resize(mask, width, height, start.resize_mode)
        # Twice the mask: what is at least half new shows nothing of the original.
        over = ImageChops.invert(mask.point(lambda level: min(255, 2 * level)))
        overlay = _overlay(picture, over, None)
    shown_mask = mask
    if start.mask.latent is not None:
        mask = start.mask.latent.convert("L").resize((width, height), Image.Resampling.LANCZOS)
    if start.mask.fill is not MaskFill.ORIGINAL:
        picture = fill_masked(picture, mask)
    return StartPicture(picture, mask, overlay if start.mask.overlay else None, shown_mask)


def read_mask(mask: MaskRequest, size: tuple[int, int] | None) -> Image.Image:
    """The mask as grey levels, inverted and blurred as asked; alpha counts where there is any."""
    image = mask.image
    if image.mode == "RGBA" and image.getextrema()[-1] != (255, 255):
        grey = image.getchannel("A")
        if mask.rounded:
            grey = grey.point(lambda level: 255 if level > 128 else 0)
    else:
        grey = image.convert("L")
    if size is not None:
        grey = grey.resize(size, Image.Resampling.NEAREST)
    if mask.invert:
        grey = ImageOps.invert(grey)
    across, down = mask.blur
    if across > 0 or down > 0:
        # A kernel of 2.5 standard deviations to either side, mirrored at the edges.
        soft = ndimage.gaussian_filter(
            np.asarray(grey, dtype=np.float32), (down, across), mode="mirror", truncate=2.5
        )
        grey = Image.fromarray(np.rint(soft).astype(np.uint8))
    return grey


def crop_box(touched: Box, padding: int, size: tuple[int, int], aspect: float) -> Box:
    """The masked region, padded and widened to the job's proportions inside the picture."""
    left, top = max(touched[0] - padding, 0), max(touched[1] - padding, 0)
    right, bottom = min(touched[2] + padding, size[0]), min(touched[3] + padding, size[1])
    width, height = right - left, bottom - top
    if width / height < aspect:
        left, right = _widen(left, right, int(height * aspect), size[0])
    else:
        top, bottom = _widen(top, bottom, int(width / aspect), size[1])
    return left, top, right, bottom


def _widen(start: int, end: int, wanted: int, limit: int) -> tuple[int, int]:
    wanted = min(wanted, limit)
    start = max(0, min(start - (wanted - (end - start)) // 2, limit - wanted))
    return start, start + wanted


def _overlay(picture: Image.Image, opacity: Image.Image, paste_box: Box | None) -> Overlay:
    # By way of premultiplied colours, whose rounding shows where the mask is soft.
    return Overlay(_faded(picture, opacity).convert("RGBa").convert("RGBA"), paste_box)


def _faded(picture: Image.Image, opacity: Image.Image) -> Image.Image:
    above = picture.convert("RGBA")
    above.putalpha(opacity)
    return above


def flatten(image: Image.Image, background: str = "white") -> Image.Image:
    """Without transparency, on one colour."""
    if image.mode in ("RGBA", "LA", "P"):
        image = image.convert("RGBA")
        below = Image.new("RGBA", image.size, background)
        below.alpha_composite(image)
        image = below
    return image.convert("RGB")


def resize(
    image: Image.Image, width: int, height: int, mode: ResizeMode, to_size: Resize = exactly
) -> Image.Image:
    """To the exact size: stretched, covering and cropped, or contained with its edges drawn out."""
    if mode in (ResizeMode.STRETCH, ResizeMode.LATENT):
        return to_size(image, width, height)
    wider = width / height > image.width / image.height
    by_width = wider if mode is ResizeMode.CROP else not wider
    inner = (
        to_size(image, width, max(1, image.height * width // image.width))
        if by_width
        else to_size(image, max(1, image.width * height // image.height), height)
    )
    left, top = width // 2 - inner.width // 2, height // 2 - inner.height // 2
    whole = Image.new(image.mode, (width, height))
    whole.paste(inner, (left, top))
    if mode is ResizeMode.FILL:
        _draw_out(whole, inner, left, top)
    return whole


def _draw_out(whole: Image.Image, inner: Image.Image, left: int, top: int) -> None:
    """Fills what is beside `inner` with its outermost pixels."""
    if top > 0:
        for row, at in ((0, 0), (inner.height, top + inner.height)):
            line = inner.resize((whole.width, top), box=(0, row, inner.width, row))
            whole.paste(line, (0, at))
    if left > 0:
        for column, at in ((0, 0), (inner.width, left + inner.width)):
            line = inner.resize((left, whole.height), box=(column, 0, column, inner.height))
            whole.paste(line, (at, 0))


def fill_masked(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """Fills the masked part with the colours around it: blurs of what is left, wide to narrow."""
    left = _faded(picture, ImageChops.invert(mask)).convert("RGBa")
    filled = Image.new("RGBA", picture.size)
    for radius, times in _BLURS:
        blurred = left.filter(ImageFilter.GaussianBlur(radius)).convert("RGBA")
        for _ in range(times):
            filled.alpha_composite(blurred)
    return filled.convert("RGB")


def latent_mask(mask: Image.Image, width: int, height: int, rounded: bool) -> Tensor:
    """1 where a latent is made anew, 0 where it is kept; shape (1, 1, height, width). Between
    the two, unless `rounded`, where the mask is soft."""
    small = np.asarray(mask.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32)
    return torch.from_numpy(np.around(small / 255) if rounded else small / 255)[None, None]


def pixel_mask(mask: Image.Image) -> Tensor:
    """1 where a pixel is made anew, 0 where it is kept; shape (1, 1, height, width)."""
    levels = np.asarray(mask.convert("L"), dtype=np.float32)
    return torch.from_numpy(np.around(levels / 255))[None, None]


def to_tensor(picture: Image.Image) -> Tensor:
    """RGB to (1, 3, height, width) in -1..1."""
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32))
    return (pixels / 127.5 - 1).permute(2, 0, 1)[None]


def to_picture(decoded: Tensor) -> Image.Image:
    """(3, height, width) in -1..1 to RGB, truncated to whole levels as the WebUI does."""
    pixels = ((decoded.float() + 1) / 2).clamp(0, 1) * 255
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy().astype(np.uint8))


def encode(picture: Image.Image, extension: str, infotext: str) -> bytes:
    """A file's bytes with the generation parameters where the WebUI puts them."""
    if extension == "png":
        return encode_png(picture, {"parameters": infotext} if infotext else {})
    stream = io.BytesIO()
    exif = Image.Exif()
    # UserComment of the Exif directory, with its eight-byte character code.
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + infotext.encode("utf-16-be")
    picture.convert("RGB").save(
        stream, {"jpg": "JPEG", "webp": "WEBP"}[extension], quality=80, exif=exif
    )
    return stream.getvalue()


def encode_png(picture: Image.Image, texts: Mapping[str, str]) -> bytes:
    """A PNG with text chunks."""
    stream = io.BytesIO()
    chunks = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        chunks.add_text(name, text)
    picture.save(stream, "PNG", pnginfo=chunks)
    return stream.getvalue()


def encode_preview(picture: Image.Image) -> bytes:
    """A small JPEG."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=75)
    return stream.getvalue()
