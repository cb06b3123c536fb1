"""What other always-on scripts were set to, as JSON."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

from PIL import Image

from aws_extension.pictures import encode_picture

DEPTH_MAX = 8
# Marks of the browser's side that an engine has no use for.
_DROPPED = ("is_ui",)


def arguments(args: Sequence[Any]) -> list[Any]:
    """A script's arguments as JSON; of a unit that is off no more than that, in its place."""
    return [{"enabled": False} if _enabled(arg) is False else to_json(arg) for arg in args]


def to_json(value: Any, depth: int = 0) -> Any:
    """A JSON value for an argument, by its type; what has no meaning elsewhere becomes None."""
    if value is None or (
        isinstance(value, (bool, int, float, str)) and not isinstance(value, Enum)
    ):
        return value
    if depth >= DEPTH_MAX:
        return None
    if isinstance(value, Enum):
        return to_json(value.value, depth + 1)
    if isinstance(value, Image.Image):
        return encode_picture(value)
    if _is_array(value):
        return _encode_array(value)
    if isinstance(value, Mapping):
        return {str(k): to_json(v, depth + 1) for k, v in value.items() if k not in _DROPPED}
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (bytes, bytearray)):
        return [to_json(item, depth + 1) for item in value]
    fields = _fields_of(value)
    return None if fields is None else to_json(fields, depth)


def is_set(args: Sequence[Any], defaults: Sequence[Any]) -> bool:
    """Whether the user has asked a script for something.

    By custom a script's first control, when it is a checkbox, turns it on; units with an
    `enabled` field say so themselves; else any value that is not the control's first one counts.
    """
    if not args:
        return False
    if isinstance(args[0], bool):
        return args[0]
    enabled = [_enabled(arg) for arg in args]
    if any(flag is not None for flag in enabled):
        return any(enabled)
    return any(
        to_json(arg) != to_json(default)
        for arg, default in zip(args, defaults)  # noqa: B905
    )


def _enabled(arg: Any) -> bool | None:
    flag = arg.get("enabled") if isinstance(arg, Mapping) else getattr(arg, "enabled", None)
    return flag if isinstance(flag, bool) else None


def _fields_of(value: Any) -> Mapping[str, Any] | None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    # pydantic models of either generation, and the plain classes that units are in some versions
    kind = type(value)
    if names := getattr(kind, "model_fields", None) or getattr(kind, "__fields__", None):
        return {name: getattr(value, name) for name in names}
    if hasattr(value, "__dict__") and not callable(value):
        # Nothing to tell: a tensor, for one.
        return {k: v for k, v in vars(value).items() if not k.startswith("_")} or None
    return None


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array_interface__")


def _encode_array(value: Any) -> Any:
    """A picture's pixels as PNG; other arrays have no JSON form that an engine would know."""
    if value.ndim == 0:
        return value.item()
    if str(value.dtype) != "uint8" or value.ndim not in (2, 3):
        return None
    target = io.BytesIO()
    Image.fromarray(value).save(target, "PNG")
    return base64.b64encode(target.getvalue()).decode()
