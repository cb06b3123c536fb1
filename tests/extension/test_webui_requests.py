"""The host-free parts of the WebUI glue."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Optional

import numpy as np
import pydantic
import pytest
from PIL import Image

from aws_extension.pictures import flatten_mask
from aws_extension.webui.batches import Piece, cut_into_batches
from aws_extension.webui.script_args import arguments, is_set, to_json
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


class InternalUnit(pydantic.BaseModel):
    """With the fields of the ControlNet extension's `internal_controlnet.args.ControlNetUnit`."""

    class Config:
        arbitrary_types_allowed = True

    cls_match_model: ClassVar[object] = print
    is_ui: bool = True
    enabled: bool = True
    module: str = "canny"
    model: str = "control_v11p_sd15_canny [d14c016b]"
    weight: float = 0.8
    image: Any = None
    control_mode: Mode = Mode.BALANCED
    advanced_weighting: Optional[list[float]] = None  # noqa: UP045  # Python 3.10's pydantic 1
    effective_region_mask: Optional[np.ndarray] = None  # noqa: UP045
    ipadapter_input: Any = None


@dataclass
class ForgeUnit:
    """With the fields of Forge's `lib_controlnet.external_code.ControlNetUnit`."""

    enabled: bool = True
    module: str = "canny"
    model: str = "control_v11p_sd15_canny [d14c016b]"
    image: Any = None
    image_fg: Any = None
    mask_image: Any = None
    mask_image_fg: Any = None
    processor_res: Any = -1


def pixels(channels, value=200):
    return np.full((4, 6, channels), value, dtype=np.uint8)


class Tensor:
    """Has nothing that JSON could tell."""


def test_a_controlnet_unit_travels_by_field_with_its_pictures():
    unit = InternalUnit(
        image={"image": pixels(3), "mask": pixels(3, 0)},
        effective_region_mask=pixels(3, 255),
        advanced_weighting=[0.5, 1.0],
        ipadapter_input=[Tensor()],
    )
    (made,) = arguments([unit])
    assert decode(made["image"]["image"]).getpixel((0, 0)) == (200, 200, 200)
    assert decode(made["image"]["mask"]).getpixel((0, 0)) == (0, 0, 0)
    assert decode(made["effective_region_mask"]).size == (6, 4)
    assert made["ipadapter_input"] == [None]
    rest = {k: v for k, v in made.items() if isinstance(v, (str, float, bool)) and "mask" not in k}
    assert rest == {
        "enabled": True, "module": "canny", "weight": 0.8, "control_mode": "Balanced",
        "model": "control_v11p_sd15_canny [d14c016b]",
    }  # fmt: skip


def test_forges_unit_travels_by_its_own_fields():
    unit = ForgeUnit(image=pixels(3), image_fg=pixels(4), mask_image_fg=pixels(4))
    unit.processor_res = np.int64(512)
    (made,) = arguments([unit])
    assert decode(made["image"]).mode == "RGB"
    assert decode(made["image_fg"]).mode == decode(made["mask_image_fg"]).mode == "RGBA"
    assert (made["mask_image"], made["processor_res"]) == (None, 512)


def test_a_unit_that_is_off_keeps_its_place_and_its_pictures_here():
    off = InternalUnit(enabled=False, image={"image": pixels(3), "mask": None})
    on = InternalUnit()
    assert is_set([off, on], [None, None])
    made = arguments([off, on])
    assert made[0] == {"enabled": False}
    assert made[1]["enabled"]


def test_adetailers_arguments_travel_as_they_are():
    args = [True, False, {"ad_model": "face_yolov8n.pt", "ad_confidence": 0.3, "is_api": ()}]
    assert is_set(args, [False, False, None])
    assert arguments(args) == [True, False, {**args[2], "is_api": []}]


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
