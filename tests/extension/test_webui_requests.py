"""The host-free parts of the WebUI glue."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
import pytest
from PIL import Image

from aws_extension.pictures import flatten_mask
from aws_extension.webui.batches import Piece, cut_into_batches
from aws_extension.webui.script_args import is_set, to_json
from tests.extension.pretend_cloud import decode


def cut(prompts, seeds, batch_size, n_iter, strength=0.0, subseeds=None):
    subseeds = subseeds or list(range(len(prompts)))
    return cut_into_batches(
        prompts, [""] * len(prompts), seeds, subseeds, batch_size, n_iter, strength
    )


def test_a_usual_generation_is_one_piece_a_batch():
    first, second = cut(["a"] * 4, [5, 6, 7, 8], batch_size=2, n_iter=2)
    assert (first.start, first.pieces) == (0, (Piece("a", "", 5, 0, 2),))
    assert (second.start, second.pieces) == (2, (Piece("a", "", 7, 2, 2),))


def test_other_prompts_or_seeds_make_pieces_of_their_own():
    (batch,) = cut(["a", "a", "b", "b"], [5, 6, 7, 9], batch_size=4, n_iter=1)
    assert [(p.prompt, p.seed, p.count) for p in batch.pieces] == [
        ("a", 5, 2),
        ("b", 7, 1),
        ("b", 9, 1),
    ]
    assert batch.count == 4


def test_with_a_variation_the_seed_stays():
    (batch,) = cut(["a"] * 3, [5, 5, 5], 3, 1, strength=0.5)
    assert [piece.count for piece in batch.pieces] == [3]


class Mode(Enum):
    BALANCED = "Balanced"


@dataclass
class Unit:
    enabled: bool
    mode: Mode
    image: object


def test_arguments_become_json_by_their_type():
    pixels = np.full((4, 6, 3), 200, dtype=np.uint8)
    made = to_json([Unit(True, Mode.BALANCED, {"image": pixels, "mask": None}), lambda: None])
    assert made[0]["mode"] == "Balanced"
    assert decode(made[0]["image"]["image"]).size == (6, 4)
    assert made[1] is None


def test_an_argument_without_end_is_cut():
    endless: list[object] = []
    endless.append(endless)
    assert "None" in repr(to_json(endless))


@pytest.mark.parametrize(
    ("args", "defaults", "expected"),
    [
        ([], [], False),
        ([False, 5], [False, 1], False),
        ([True, 1], [False, 1], True),
        ([Unit(False, Mode.BALANCED, None)], [None], False),
        ([{"enabled": True}], [None], True),
        ([3, "x"], [3, "x"], False),
        ([4, "x"], [3, "x"], True),
    ],
)
def test_a_script_counts_when_it_was_asked_for_something(args, defaults, expected):
    assert is_set(args, defaults) is expected


def test_masks_of_both_kinds_end_as_white_where_to_paint():
    uploaded = Image.new("RGBA", (2, 1), (0, 0, 0, 255))
    uploaded.putpixel((1, 0), (0, 0, 0, 0))
    assert list(flatten_mask(uploaded).getdata()) == [255, 0]
    opaque = Image.new("RGBA", (1, 1), (255, 255, 255, 255))
    assert list(flatten_mask(opaque).getdata()) == [255]
    assert list(flatten_mask(Image.new("L", (1, 1), 7)).getdata()) == [7]
