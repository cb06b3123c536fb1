"""ControlNet's preprocessors, and maps brought to sizes: against OpenCV and known results."""

from __future__ import annotations

import base64
import io
import json
import random
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from middleware_api.container.control.maps import fitted, resolution_for
from middleware_api.container.control.pictures import hint_of, map_of
from middleware_api.container.control.units import Fit
from middleware_api.container.engine.request import GenerationRequest, parse_request
from middleware_api.preprocessors import (
    PREPROCESSORS,
    find_preprocessor,
    needs_network,
)

Pixels = NDArray[np.uint8]


def encoded(pixels: Pixels) -> str:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def request(module: str, picture: Pixels, **fields: Any) -> GenerationRequest:
    """A job of 64x64 with one unit; `job` are fields of its own."""
    job = fields.pop("job", {})
    unit = {"module": module, "model": "m", "image": encoded(picture), **fields}
    body = {"seed": 7, "width": 64, "height": 64, "alwayson_scripts": {"controlnet": [unit]}}
    task = "img2img" if "init_images" in job else "txt2img"
    return parse_request(task, json.dumps(body | job).encode(), random.Random(0))


def detected(module: str, picture: Pixels, **fields: Any) -> Pixels:
    asked = request(module, picture, **fields)
    return map_of(asked.control.units[0], asked, 64, 64).detected


def photo(width: int = 96, height: int = 64) -> Pixels:
    """Smooth shapes: what lines can be found in."""
    image = Image.new("RGB", (width, height), (200, 180, 120))
    draw = ImageDraw.Draw(image)
    draw.ellipse((10, 8, 60, 50), fill=(40, 60, 150))
    draw.rectangle((50, 30, 90, 60), fill=(250, 250, 250))
    return np.array(image)


def test_pictures_go_through_untouched_or_inverted() -> None:
    assert np.array_equal(detected("none", photo()), photo())
    assert np.array_equal(detected("invert", photo()), 255 - photo())
    assert np.array_equal(detected("tile_resample", photo()), photo())
    smaller = cv2.resize(photo(), (48, 32), interpolation=cv2.INTER_AREA)
    assert np.array_equal(detected("tile_resample", photo(), threshold_a=2), smaller)


def test_canny_is_opencvs_at_the_asked_resolution() -> None:
    large = cv2.resize(photo(), (192, 128), interpolation=cv2.INTER_CUBIC)
    found = detected("canny", photo(), processor_res=128, threshold_a=80, threshold_b=160)
    assert np.array_equal(found[:, :, 0], cv2.Canny(large, 80, 160))
    # 128 is two times 64; else the picture's edges are drawn out meanwhile, and cut off again.
    assert detected("canny", photo(), processor_res=100).shape == (100, 150, 3)
    assert detected("canny", photo()).shape == (512, 768, 3)
    assert detected("canny", photo(), processor_res=9999).shape == (512, 768, 3)


def test_a_threshold_makes_black_and_white_by_the_darkest_channel() -> None:
    found = detected("threshold", photo(), processor_res=64, threshold_a=130)
    assert np.array_equal(found[:, :, 1] == 255, photo().min(axis=2) > 130)


def test_lines_are_found_where_a_picture_is_darker_than_its_surroundings() -> None:
    paper = np.full((64, 64, 3), 255, np.uint8)
    paper[30:33] = 0
    for module in ("lineart_standard", "scribble_xdog"):
        found = detected(module, paper, processor_res=64)
        assert (found[31] > 100).all()
        assert (found[:20] == 0).all()
    assert detected("lineart_standard", np.full((64, 64, 3), 9, np.uint8)).max() == 0


def test_blurs_and_lightness_are_opencvs() -> None:
    blurred = cv2.GaussianBlur(photo(), (0, 0), 3)
    found = detected("blur_gaussian", photo(), processor_res=64, threshold_a=3)
    assert np.array_equal(found, blurred)
    value = photo().max(axis=2)
    assert np.array_equal(detected("recolor_intensity", photo())[:, :, 2], value)
    darker = detected("recolor_intensity", photo(), threshold_a=2)[:, :, 0]
    assert np.abs(darker - (value / 255.0) ** 2 * 255).max() <= 1
    grey = np.full((8, 8, 3), 119, np.uint8)  # L* 50 of sRGB
    assert abs(int(detected("recolor_luminance", grey)[0, 0, 0]) - 128) <= 1


def test_shuffling_draws_from_the_jobs_seed() -> None:
    found = detected("shuffle", photo())
    assert found.shape == (512, 768, 3)
    assert np.array_equal(found, detected("shuffle", photo()))
    assert not np.array_equal(found, detected("shuffle", photo(), job={"seed": 8}))
    # numpy's global generator, seeded by seed + variation seed: an open one counts as the seed.
    assert np.array_equal(found, detected("shuffle", photo(), job={"seed": 4, "subseed": 10}))
    colours = {tuple(colour) for colour in photo().reshape(-1, 3)}
    assert colours & {tuple(colour) for colour in found.reshape(-1, 3)} == colours


@pytest.mark.parametrize(
    ("fit", "kept"),
    [(Fit.STRETCH, (0, 96)), (Fit.CROP, (16, 80)), (Fit.FILL, (0, 96))],
    ids=lambda value: getattr(value, "value", ""),
)
def test_maps_are_brought_to_the_jobs_proportions(fit: Fit, kept: tuple[int, int]) -> None:
    ramp = np.dstack([np.tile(np.arange(96, dtype=np.uint8) * 2, (64, 1))] * 3)
    ramp = np.concatenate([ramp, ramp[:, :1]], axis=1)[:, :96]
    made = fitted(ramp, fit, 64, 64)
    assert made.shape == (64, 64, 3)
    middle = made[32, :, 0].astype(int)
    assert abs(middle[0] - 2 * kept[0]) <= 3
    assert abs(middle[-1] - 2 * (kept[1] - 1)) <= 3
    if fit is Fit.FILL:  # 43 rows of picture, the rest in the usual colour of its edges
        border = np.median(np.concatenate([ramp[0], ramp[-1], ramp[:, 0], ramp[:, -1]]), axis=0)
        assert (made[:10] == border).all()
        assert (made[-10:] == border).all()
        assert len(np.unique(made[11:53, :, 0])) > 30


def test_pixel_perfect_takes_the_resolution_that_fills_the_job() -> None:
    assert resolution_for(photo(96, 64), Fit.CROP, 512, 512) == 512
    assert resolution_for(photo(96, 64), Fit.FILL, 512, 512) == round(512 * 64 / 96)
    assert resolution_for(photo(96, 64), Fit.STRETCH, 960, 320) == 640
    found = detected("canny", photo(), pixel_perfect=True, processor_res=999)
    assert found.shape == (64, 96, 3)


def test_flat_colours_stay_flat_and_thin_lines_stay_thin() -> None:
    flat = np.zeros((10, 10, 3), np.uint8)
    flat[:, 3:], flat[:, 6:] = (200, 0, 0), (0, 90, 0)
    colours = {tuple(colour) for colour in flat.reshape(-1, 3)}
    assert {tuple(c) for c in fitted(flat, Fit.STRETCH, 33, 33).reshape(-1, 3)} == colours
    line = np.zeros((32, 32, 3), np.uint8)
    line[:, 15] = 255
    for size in (16, 64, 96):
        made = fitted(line, Fit.STRETCH, size, size)
        assert set(np.unique(made)) == {0, 255}
        inner = made[2:-2, :, 0]
        assert (np.count_nonzero(inner, axis=1) == 1).all(), size
    block = np.zeros((32, 32, 3), np.uint8)
    block[8:24, 8:24] = 255
    made = fitted(block, Fit.STRETCH, 64, 64)  # what is no line keeps its breadth
    assert set(np.unique(made)) == {0, 255}
    assert abs(np.count_nonzero(made[:, :, 0]) - 32 * 32) < 140


def test_inpainting_maps_go_with_their_mask() -> None:
    mask = np.zeros((64, 96), np.uint8)
    mask[:, :40] = 255
    pair = {"image": encoded(photo()), "mask": encoded(mask)}
    found = detected("inpaint_global_harmonious", photo(), image=pair)
    assert np.array_equal(found, np.dstack([photo(), mask]))
    hint = hint_of(fitted(found, Fit.STRETCH, 96, 64))
    assert (hint[:, :, :, :40] == -1).all()
    assert np.allclose(hint[0, :, :, 40:].numpy(), photo()[:, 40:].transpose(2, 0, 1) / 255)
    assert (fitted(found, Fit.FILL, 64, 64)[:10, :, 3] == 255).all()  # nothing was there


def test_for_other_preprocessors_a_mask_is_a_scribble() -> None:
    scribble = np.zeros((64, 96), np.uint8)
    scribble[10:20] = 200
    drawn = detected("none", photo(), mask=encoded(scribble))
    assert np.array_equal(drawn, np.dstack([scribble] * 3))
    for nothing in (0, 255):
        empty = np.full((64, 96), nothing, np.uint8)
        assert np.array_equal(detected("none", photo(), mask=encoded(empty)), photo())


def test_inpainting_only_the_masked_part_shows_the_unit_that_part() -> None:
    mask = np.zeros((64, 96), np.uint8)
    mask[16:48, 32:64] = 255
    job = {
        "init_images": [encoded(photo())],
        "mask": encoded(mask),
        "mask_blur": 0,
        "inpaint_full_res": True,
    }
    part = Image.fromarray(photo()[16:48, 32:64]).resize((64, 64), Image.Resampling.LANCZOS)
    found = detected("none", photo(), image=None, job=job)
    assert np.abs(found.astype(int) - np.asarray(part)).max() <= 1
    whole = detected("none", photo(), image=None, inpaint_crop_input_image=False, job=job)
    assert np.array_equal(whole, photo())
    # The job's own mask is that of an inpainting unit.
    both = detected("inpaint", photo(), image=None, inpaint_crop_input_image=False, job=job)
    assert np.array_equal(both[:, :, 3], mask)


def test_every_preprocessor_answers_by_name_and_label() -> None:
    for each in PREPROCESSORS:
        assert find_preprocessor(each.name) is find_preprocessor(each.title) is each
        assert detected(each.name, photo()).dtype == np.uint8
    for name in ("openpose_full", "depth_midas", "softedge_hed", "lineart_anime"):
        assert needs_network(name)
