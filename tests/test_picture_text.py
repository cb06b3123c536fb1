"""What a picture says of its making is read back, from pictures as the engine writes them."""

from __future__ import annotations

import io
import time

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from middleware_api.container.engine import pictures
from middleware_api.services.picture_text import NoPicture, parse_parameters, read_texts

TEXT = (
    "a red circle, ünïcode 漢字\nsecond line\nNegative prompt: blur\nmore blur\n"
    'Steps: 20, Sampler: DPM++ 2M, Size: 64x96, Model: "a, \\"b\\"", Seed: 7'
)
PICTURE = Image.new("RGB", (8, 8), "red")


@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_what_the_engine_wrote_is_read_back(extension: str) -> None:
    content = pictures.encode(PICTURE, extension, TEXT)
    assert read_texts(content) == (TEXT, {})
    for length in range(0, len(content), 7):  # cut off anywhere: no fault
        try:
            info, _ = read_texts(content[:length])
        except NoPicture:
            continue
        assert TEXT.startswith(info)


def test_every_kind_of_text_in_a_png_is_read() -> None:
    stream, texts = io.BytesIO(), PngInfo()
    texts.add_text("plain", "value")
    texts.add_text("packed", "value" * 100, zip=True)
    texts.add_itxt("parameters", "é 漢", zip=True)
    PICTURE.save(stream, "PNG", pnginfo=texts)
    info, items = read_texts(stream.getvalue())
    assert (info, items) == ("é 漢", {"plain": "value", "packed": "value" * 100})


def test_a_text_that_would_fill_the_memory_is_cut() -> None:
    stream, texts = io.BytesIO(), PngInfo()
    texts.add_text("bomb", "0" * 50_000_000, zip=True)
    PICTURE.save(stream, "PNG", pnginfo=texts)
    _, items = read_texts(stream.getvalue())
    assert len(items["bomb"]) == 1024 * 1024


@pytest.mark.parametrize("extension", ["PNG", "JPEG", "WEBP"])
def test_a_picture_without_a_text_has_none(extension: str) -> None:
    stream = io.BytesIO()
    PICTURE.save(stream, extension)
    assert read_texts(stream.getvalue()) == ("", {})


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(NoPicture):
        read_texts(b"GIF89a")


def test_the_fields_bear_the_webuis_names() -> None:
    fields = parse_parameters(TEXT)
    expected = {
        "Prompt": "a red circle, ünïcode 漢字\nsecond line",
        "Negative prompt": "blur\nmore blur",
        "Steps": "20",
        "Sampler": "DPM++ 2M",
        "Size-1": "64",
        "Size-2": "96",
        "Model": 'a, "b"',
        "Seed": "7",
        "Clip skip": "1",
    }
    assert {name: fields[name] for name in expected} == expected


def test_a_long_text_is_taken_apart_in_a_moment() -> None:
    for line in ("a" * 500_000, "a b:" * 100_000, 'a b:"' * 100_000, "a, " * 100_000):
        began = time.monotonic()
        parse_parameters(line)
        assert time.monotonic() - began < 5, line[:10]


def test_a_text_without_fields_is_all_prompt() -> None:
    fields = parse_parameters("only words: here")
    assert (fields["Prompt"], fields["Negative prompt"]) == ("only words: here", "")
