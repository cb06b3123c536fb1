"""Pictures that are still being made, and reading infotexts."""

from __future__ import annotations

import copy

import pytest
from PIL import Image, ImageChops

from aws_extension.errors import JobFailed
from aws_extension.infotext import parameters_of
from aws_extension.lazy_picture import LazyPicture


def arriving(colour="red", size=(4, 2)):
    """A lazy picture, and how often it was waited for."""
    waits = []

    def wait():
        waits.append(1)
        made = Image.new("RGB", size, colour)
        made.info["parameters"] = "text"
        return made

    return LazyPicture(wait), waits


@pytest.mark.parametrize(
    "look",
    [
        lambda picture: picture.size == (4, 2),
        lambda picture: picture.width == 4,
        lambda picture: picture.mode == "RGB",
        lambda picture: picture.getpixel((0, 0)) == (255, 0, 0),
        lambda picture: picture.copy().getpixel((0, 0)) == (255, 0, 0),
        lambda picture: copy.copy(picture).getpixel((3, 1)) == (255, 0, 0),
        lambda picture: picture.resize((2, 1)).size == (2, 1),
        lambda picture: picture.convert("L").mode == "L",
        lambda picture: picture.crop((0, 0, 1, 1)).size == (1, 1),
        lambda picture: len(picture.tobytes()) == 24,
        lambda picture: ImageChops.invert(picture).getpixel((0, 0)) == (0, 255, 255),
    ],
)
def test_whoever_looks_waits_for_it_once(look):
    picture, waits = arriving()
    assert waits == []
    look(picture)
    assert waits == [1]
    assert picture.getpixel((0, 0)) == (255, 0, 0)
    assert picture.info["parameters"] == "text"
    assert waits == [1]


def test_what_was_written_on_it_while_it_came_stays():
    waits = []

    def wait():
        waits.append(1)
        if len(waits) == 1:  # whoever brings it looks at it too, to save it
            picture.load()
            picture.info["parameters"] = "of the WebUI"
        made = Image.new("RGB", (4, 2), "red")
        made.info["parameters"] = "of the engine"
        return made

    picture = LazyPicture(wait)
    assert picture.size == (4, 2)
    assert picture.info["parameters"] == "of the WebUI"


def test_it_is_pasted_like_any_other():
    picture, _ = arriving("blue")
    sheet = Image.new("RGB", (8, 8))
    sheet.paste(picture, (4, 4))
    assert sheet.getpixel((5, 5)) == (0, 0, 255)


def test_its_failure_reaches_whoever_looks():
    def wait():
        raise JobFailed("job-1", "out of memory")

    with pytest.raises(JobFailed, match="out of memory"):
        LazyPicture(wait).convert("L")


def test_the_last_line_of_an_infotext_is_its_parameters():
    text = (
        "a, b: c\nNegative prompt: d\n"
        'Steps: 20, Lora hashes: "one: 12, two: 34", Size: 64x64, Note: say "hi", Version: v1'
    )
    assert parameters_of(text) == {
        "Steps": "20",
        "Lora hashes": "one: 12, two: 34",
        "Size": "64x64",
        "Note": 'say "hi"',
        "Version": "v1",
    }


@pytest.mark.parametrize("text", ["", "only a prompt", "\n", 'Broken: "a'])
def test_what_has_no_parameters_has_none_or_says_them_as_they_are(text):
    assert set(parameters_of(text).values()) <= {'"a'}
