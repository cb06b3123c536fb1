"""Pictures on their way to and from the API."""

from __future__ import annotations

import base64
import io

from PIL import Image, ImageOps, UnidentifiedImageError

from aws_extension.errors import UnexpectedAnswer

THUMBNAIL_PIXELS = 256


def encode_picture(image: Image.Image) -> str:
    """Base64 PNG, without the metadata that the picture may carry."""
    target = io.BytesIO()
    bare = image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")
    bare.save(target, "PNG", compress_level=1)
    return base64.b64encode(target.getvalue()).decode()


def flatten_mask(mask: Image.Image) -> Image.Image:
    """A mask as the API takes it, white where to paint: canvas and API send L, uploads RGBA."""
    if mask.mode == "RGBA":
        alpha = mask.getchannel("A")
        if alpha.getextrema() != (255, 255):
            return alpha.point(lambda value: 255 if value > 127 else 0)
    return mask.convert("L")


def open_picture(content: bytes) -> Image.Image:
    """A downloaded picture, decoded. Raises UnexpectedAnswer."""
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError) as fault:
        raise UnexpectedAnswer("The cloud's picture cannot be read. Generate it again.") from fault
    return image


def shrunk(content: bytes) -> bytes:
    """A picture as a small JPEG, upright. Raises UnexpectedAnswer."""
    image = ImageOps.exif_transpose(open_picture(content)).convert("RGB")
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    target = io.BytesIO()
    image.save(target, "JPEG", quality=85)
    return target.getvalue()
