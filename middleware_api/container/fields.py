"""Typed reading of what a caller sent: a JSON object's fields, and the pictures in them."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Mapping
from typing import Any

from PIL import Image, UnidentifiedImageError

from middleware_api import contract
from middleware_api.container.errors import BadRequest

PICTURE_SIDE_MAX = 4 * contract.SIZE_MAX


def read_fields(content: bytes) -> Fields:
    """Raises BadRequest for anything but a JSON object."""
    try:
        raw = json.loads(content, parse_constant=_refuse_constant)
    except ValueError as error:
        raise BadRequest(f"The job's parameters are not JSON: {error}.") from error
    if not isinstance(raw, dict):
        raise BadRequest("The job's parameters are not a JSON object.")
    return Fields(raw)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


class Fields:
    """Typed reading of a JSON object; a null counts as absent. Every method raises BadRequest."""

    def __init__(self, raw: Mapping[str, Any], prefix: str = "") -> None:
        self.raw = raw
        self.prefix = prefix

    def _wrong(self, name: str, expected: str) -> BadRequest:
        return BadRequest(f"{self.prefix}{name} must be {expected}.", "bad_field")

    def text(self, name: str, default: str = "") -> str:
        value = self.raw.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._wrong(name, "a text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self._wrong(name, "text without lone surrogates") from error
        return value

    def prompt(self, name: str) -> str:
        """A text that is not longer than a prompt may be."""
        text = self.text(name)
        if len(text.encode()) > contract.PROMPT_MAX_BYTES:
            raise BadRequest(f"{name} is longer than {contract.PROMPT_MAX_BYTES} bytes.")
        return text

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.raw.get(name)
        if value is None:
            return default
        if not isinstance(value, (bool, int)):
            raise self._wrong(name, "true or false")
        return bool(value)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.raw.get(name)
        if value is None:
            return float(default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(name, "a number")
        if not low <= value <= high:
            raise self._wrong(name, f"between {low:g} and {high:g}, not {value:g}")
        return float(value)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        value = self.number(name, default, low, high)
        if value != int(value):
            raise self._wrong(name, f"a whole number, not {value:g}")
        return int(value)

    def items(self, name: str) -> list[Any]:
        value = self.raw.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._wrong(name, "a list")
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self.raw.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return value


def decode_image(value: object, field: str) -> Image.Image:
    """A base64 picture, with or without a `data:` prefix; raises BadRequest naming the field."""
    if not isinstance(value, str):
        raise BadRequest(f"{field} is not a base64 text.", "bad_image")
    encoded = value.partition(",")[2] if value.startswith("data:") else value
    try:
        image = Image.open(io.BytesIO(base64.b64decode(encoded, validate=False)))
        if max(image.size) > PICTURE_SIDE_MAX:
            raise BadRequest(f"{field} is {image.width}x{image.height}: too large.", "bad_image")
        image.load()
    except (
        binascii.Error,
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        SyntaxError,  # Pillow's answer to a broken PNG
        ValueError,
    ) as error:
        raise BadRequest(
            f"{field} is not a readable picture. Send a base64 PNG, JPEG or WebP.", "bad_image"
        ) from error
    return image
