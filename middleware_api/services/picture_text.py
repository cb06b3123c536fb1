"""What a picture says of its making: the text that the WebUI writes into it, taken apart.

By the files' own formats, because the API's functions have no library for pictures: PNG (text
chunks, https://www.w3.org/TR/png-3/), and the Exif UserComment of JPEG and WebP (Exif 2.32, inside
TIFF 6.0's directories). Pictures are never decoded.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress

_PNG = b"\x89PNG\r\n\x1a\n"
_TEXT_MAX_BYTES = 1024 * 1024
_EXIF_DIRECTORY, _USER_COMMENT = 0x8769, 0x9286
_PARAMETERS = "parameters"

# `Name: value` or `Name: "value, with commas"`, as the last line of the text has them. A name has
# an end, or a long line without any would be searched from each of its letters.
_PAIR = re.compile(r'\s*(\w[\w /-]{1,80}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d+)x(\d+)")
_NEGATIVE = "Negative prompt:"
_PAIRS_LEAST = 3  # fewer, and the last line is prompt too

# What the WebUI says of a setting that the text leaves out.
_UNSAID: dict[str, str | int] = {
    "Clip skip": "1",
    "Hires resize-1": 0,
    "Hires resize-2": 0,
    "Hires sampler": "Use same sampler",
    "Hires schedule type": "Use same scheduler",
    "Hires checkpoint": "Use same checkpoint",
    "Hires prompt": "",
    "Hires negative prompt": "",
    "Mask mode": "Inpaint masked",
    "Masked content": "original",
    "Inpaint area": "Whole picture",
    "Masked area padding": 32,
    "RNG": "GPU",
    "Schedule type": "Automatic",
    "Schedule max sigma": 0,
    "Schedule min sigma": 0,
    "Schedule rho": 0,
    "VAE Encoder": "Full",
    "VAE Decoder": "Full",
    "FP8 weight": "Disable",
    "Emphasis": "Original",
    "Refiner switch by sampling steps": False,
}


class NoPicture(Exception):
    """Bytes that are no PNG, JPEG or WebP file."""


def read_texts(content: bytes) -> tuple[str, dict[str, str]]:
    """The text on how the picture was made ("" when it has none), and its other texts.

    A file that is cut off gives what is there. Raises NoPicture.
    """
    if content.startswith(_PNG):
        texts = dict(_png_texts(content))
        return texts.pop(_PARAMETERS, ""), texts
    if content.startswith(b"\xff\xd8"):
        return _user_comment(_jpeg_exif(content)), {}
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _user_comment(_webp_exif(content)), {}
    raise NoPicture


def parse_parameters(text: str) -> dict[str, str | int]:
    """The text's fields by the names that the WebUI reads them back by."""
    *lines, last = text.strip().split("\n")
    pairs = _PAIR.findall(last)
    if len(pairs) < _PAIRS_LEAST:
        lines, pairs = [*lines, last], []
    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in map(str.strip, lines):
        if line.startswith(_NEGATIVE):
            part = negative
            line = line.removeprefix(_NEGATIVE).strip()
        part.append(line)
    fields: dict[str, str | int] = {}
    for name, quoted in pairs:
        value = _unquoted(quoted)
        if size := _SIZE.fullmatch(value):
            fields |= {f"{name}-1": size[1], f"{name}-2": size[2]}
        else:
            fields[name] = value
    fields |= {"Prompt": "\n".join(prompt), "Negative prompt": "\n".join(negative)}
    return {**_UNSAID, **fields}


def _unquoted(value: str) -> str:
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    return re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), value[1:-1])


def _png_texts(content: bytes) -> Iterator[tuple[str, str]]:
    position = len(_PNG)
    while position + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, position)
        body = content[position + 8 : position + 8 + length]
        position += 12 + length
        name, _, rest = body.partition(b"\0")
        key = name.decode("latin-1")
        with suppress(zlib.error, ValueError):  # a text that cannot be read is left out
            if kind == b"tEXt":
                yield key, rest.decode("latin-1")
            elif kind == b"zTXt":
                yield key, _inflated(rest[1:]).decode("latin-1")
            elif kind == b"iTXt":
                _language, _translated, value = rest[2:].split(b"\0", 2)
                yield key, (_inflated(value) if rest[:1] == b"\1" else value).decode()


def _inflated(packed: bytes) -> bytes:
    return zlib.decompressobj().decompress(packed, _TEXT_MAX_BYTES)


def _jpeg_exif(content: bytes) -> bytes:
    position = 2
    while position + 4 <= len(content) and content[position] == 0xFF:
        marker, length = struct.unpack_from(">xBH", content, position)
        body = content[position + 4 : position + 2 + length]
        if marker == 0xE1 and body.startswith(b"Exif\0\0"):
            return body[6:]
        if marker == 0xDA:  # the picture itself
            break
        position += 2 + length
    return b""


def _webp_exif(content: bytes) -> bytes:
    position = 12
    while position + 8 <= len(content):
        kind, length = struct.unpack_from("<4sI", content, position)
        if kind == b"EXIF":
            return content[position + 8 : position + 8 + length].removeprefix(b"Exif\0\0")
        position += 8 + length + length % 2
    return b""


def _user_comment(tiff: bytes) -> str:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return ""
    with suppress(struct.error, ValueError):  # damaged: no text then
        (first,) = struct.unpack_from(order + "I", tiff, 4)
        exif = _entry(tiff, order, first, _EXIF_DIRECTORY)
        comment = None if exif is None else _entry(tiff, order, exif[1], _USER_COMMENT)
        if comment is None:
            return ""
        length, start = comment
        code, text = tiff[start : start + 8], tiff[start + 8 : start + length]
        if code == b"UNICODE\0":
            return text.decode("utf-16-be")
        return text.rstrip(b"\0").decode()
    return ""


def _entry(tiff: bytes, order: str, directory: int, wanted: int) -> tuple[int, int] | None:
    """Count and value of one tag of a directory; a long value is its place."""
    (count,) = struct.unpack_from(order + "H", tiff, directory)
    for number in range(count):
        place = directory + 2 + 12 * number
        tag, _, length, value = struct.unpack_from(order + "HHII", tiff, place)
        if tag == wanted:
            return length, value
    return None
