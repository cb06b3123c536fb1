"""CRC-32 by the processor's own instructions where the library for it is installed: the checksum
of each part of an upload, a quarter of zlib's work."""

from __future__ import annotations

try:
    from zlib_ng.zlib_ng import crc32
except ImportError:  # a WebUI without network at its start: the same number, more slowly
    from zlib import crc32

__all__ = ["crc32"]
