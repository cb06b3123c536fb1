"""Upscalers that are models: which files are read, and pictures in tiles."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from middleware_api.container.errors import BadRequest, CheckpointUnreadable, JobCancelled
from middleware_api.container.extras.picture_tiles import Tiles
from middleware_api.container.extras.upscaler_models import ModelUpscaler, load_upscaler
from tests.sample_upscalers import Tensors, esrgan, repeating, write_upscaler

CPU = torch.device("cpu")
WHOLE = Tiles(side=0)


def photo(width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def upscaler(
    folder: Path, tensors: Tensors, tiles: Tiles = WHOLE, wrapped: str = ""
) -> ModelUpscaler:
    path = write_upscaler(folder / "u.safetensors", tensors, wrapped)
    return ModelUpscaler(load_upscaler(path, "u.safetensors", CPU), tiles)


def repeated(image: Image.Image, times: int) -> Image.Image:
    return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)


@pytest.mark.parametrize("wrapped", ["", "params", "params_ema", "model_state_dict", "net"])
def test_weights_are_found_in_what_training_programs_wrap_around_them(
    tmp_path: Path, wrapped: str
) -> None:
    made = upscaler(tmp_path, repeating(2), wrapped=wrapped).enlarge(photo(16, 8), 2, lambda: None)
    assert made == repeated(photo(16, 8), 2)


def test_a_model_goes_over_a_picture_until_it_is_large_enough(tmp_path: Path) -> None:
    twice = upscaler(tmp_path, repeating(2)).enlarge(photo(16, 8), 4, lambda: None)
    assert twice == repeated(photo(16, 8), 4)
    back = upscaler(tmp_path, repeating(4)).enlarge(photo(16, 8), 2, lambda: None)
    assert back == repeated(photo(16, 8), 4).resize((32, 16), Image.Resampling.LANCZOS)


def test_transparency_is_no_part_of_what_a_model_sees(tmp_path: Path) -> None:
    made = upscaler(tmp_path, repeating(2)).enlarge(photo(8, 8).convert("RGBA"), 2, lambda: None)
    assert made.mode == "RGB"


@pytest.mark.parametrize(("side", "overlap"), [(16, 4), (16, 0), (12, 5)])
@pytest.mark.parametrize("size", [(40, 24), (9, 17)])
def test_tiles_of_a_model_that_sees_single_pixels_show_no_seam(
    tmp_path: Path, side: int, overlap: int, size: tuple[int, int]
) -> None:
    made = upscaler(tmp_path, repeating(2), Tiles(side, overlap)).enlarge(
        photo(*size), 2, lambda: None
    )
    wanted = repeated(photo(*size), 2)
    wanted = wanted.resize(made.size, Image.Resampling.LANCZOS)
    difference = np.abs(np.asarray(made, int) - np.asarray(wanted, int))
    assert difference.max() <= 1  # blending rounds


def test_tiles_cover_a_side_and_overlap_by_as_much_at_least() -> None:
    tiles = Tiles(16, 4)
    for length in range(16, 200):
        starts = tiles.starts(length)
        assert (starts[0], starts[-1] + tiles.side) == (0, length)
        steps = [b - a for a, b in pairwise(starts)]
        assert all(0 < step <= tiles.side - tiles.overlap + 1 for step in steps)


def test_a_job_is_looked_at_between_two_tiles(tmp_path: Path) -> None:
    looks = []

    def look() -> None:
        looks.append(1)
        if len(looks) == 3:
            raise JobCancelled

    with pytest.raises(JobCancelled):
        upscaler(tmp_path, repeating(2), Tiles(8, 0)).enlarge(photo(32, 32), 2, look)


def test_a_picture_that_would_be_too_large_on_its_way_is_refused(tmp_path: Path) -> None:
    model = upscaler(tmp_path, repeating(4))
    with pytest.raises(BadRequest, match=r"u makes pictures 4 times as large: this one .* 16400"):
        model.enlarge(Image.new("RGB", (4100, 8)), 1, lambda: None)


def grey() -> Tensors:
    first, last = torch.zeros(8, 1, 3, 3), torch.zeros(4, 8, 3, 3)
    return repeating(2) | {
        "body.0.weight": first,
        "body.2.weight": last,
        "body.2.bias": torch.zeros(4),
    }


def torn() -> Tensors:
    tensors = esrgan()
    tensors["model.1.sub.0.RDB2.conv1.0.weight"] = torch.zeros(3, 3, 3, 3)
    return tensors


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"a": torch.zeros(1)}, "is no upscaler of a kind that this engine knows"),
        (grey(), "is for pictures of 1 channels, not of 3"),
        (torn(), "is broken, or not the upscaler that it looks like"),
    ],
    ids=["unknown", "grey", "torn"],
)
def test_what_is_no_upscaler_is_refused_in_words(
    tmp_path: Path, tensors: dict[str, Tensor], words: str
) -> None:
    with pytest.raises(CheckpointUnreadable, match=f"u.safetensors {words}"):
        upscaler(tmp_path, tensors)


def test_torchvision_is_neither_needed_nor_pretended(tmp_path: Path) -> None:
    upscaler(tmp_path, repeating(2))
    assert "spandrel" in sys.modules
    assert not [name for name in sys.modules if name.startswith("torchvision")]
