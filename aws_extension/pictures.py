"""Pictures on their way to and from the API."""

from __future__ import annotations

import base64
import io

from PIL import Image


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
