"""Weights files for tests that do not look into them."""

from __future__ import annotations

import json

HEADER_BYTES = 128


def safetensors(content: bytes = b"weights") -> bytes:
    """A whole file of one tensor that has these bytes."""
    return safetensors_beginning(HEADER_BYTES + len(content)) + content


def safetensors_beginning(size: int) -> bytes:
    """The first `HEADER_BYTES` of a whole file of that size."""
    count = size - HEADER_BYTES
    tensor = {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}
    header = json.dumps({"bytes": tensor}).encode().ljust(HEADER_BYTES - 8)
    return len(header).to_bytes(8, "little") + header
