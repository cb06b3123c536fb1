"""Weights files for tests that do not look into them."""

from __future__ import annotations

import json

HEADER_BYTES = 128


def safetensors(content: bytes = b"weights", tensor: str = "bytes") -> bytes:
    """A whole file of one tensor that has these bytes."""
    return safetensors_beginning(HEADER_BYTES + len(content), tensor) + content


def safetensors_beginning(size: int, tensor: str = "bytes") -> bytes:
    """The first `HEADER_BYTES` of a whole file of that size."""
    count = size - HEADER_BYTES
    place = {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}
    header = json.dumps({tensor: place}).encode().ljust(HEADER_BYTES - 8)
    return len(header).to_bytes(8, "little") + header
