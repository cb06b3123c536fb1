"""The WebUI's fields read once: defaults, refusals that name the field, and warnings."""

from __future__ import annotations

import base64
import io
import json
import math
import random

import numpy as np
import pytest
from PIL import Image

from middleware_api.container.engine import pictures
from middleware_api.container.engine.hires import Target
from middleware_api.container.engine.request import GenerationRequest, ResizeMode, parse_request
from middleware_api.container.errors import BadRequest

DOT = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)


def parsed(task: str = "txt2img", **fields: object) -> GenerationRequest:
    return parse_request(task, json.dumps(fields).encode(), random.Random(0))


def test_what_is_left_out_has_the_webuis_default() -> None:
    request = parsed()
    assert (request.sampler.name, request.schedule) == ("Euler", "Automatic")
    assert (request.steps, request.cfg_scale) == (50, 7)
    assert (request.width, request.height) == (512, 512)
    assert (request.batch_size, request.n_iter) == (1, 1)
    assert request.warnings == ()
    assert parsed(steps=None, sampler_name=None, scheduler=None) == request


def test_open_seeds_are_drawn_and_given_ones_kept() -> None:
    assert parsed(seed=-1).seed == parsed().seed >= 0
    assert parsed(seed=5).seed == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sampler_name": "Eular"}, "Sampler 'Eular' is not available"),
        ({"sampler_index": "DPM slow"}, "Sampler 'DPM slow' is not available"),
        ({"scheduler": "Beta2"}, "Schedule type 'Beta2' is not available"),
        ({"steps": 0}, "steps must be between 1 and 500, not 0"),
        ({"steps": 2.5}, "steps must be a whole number, not 2.5"),
        ({"steps": "20"}, "steps must be a number"),
        ({"width": 5000}, "width must be between 8 and 4096, not 5000"),
        ({"batch_size": 17}, "batch_size must be between 1 and 16"),
        ({"cfg_scale": True}, "cfg_scale must be a number"),
        ({"prompt": 7}, "prompt must be a text"),
        ({"prompt": "\ud800"}, "prompt must be text without lone surrogates"),
        ({"prompt": "x" * 40_000}, "prompt is longer than"),
        ({"enable_hr": True, "hr_scale": 8.5}, "hr_scale must be between 0 and 8"),
        ({"enable_hr": True, "hr_scale": 0}, "The hires pass would be 0x0"),
        ({"enable_hr": True, "width": 4096}, "The hires pass would be 8192x1024. Choose hr_scale"),
        ({"enable_hr": True, "hr_sampler_name": "Eular"}, "Sampler 'Eular' is not available"),
        ({"enable_hr": True, "firstpass_image": "x"}, "firstpass_image is not a readable picture"),
        ({"refiner_checkpoint": "b", "refiner_switch_at": 2}, "refiner_switch_at must be between"),
        ({"enable_hr": "yes"}, "enable_hr must be true or false"),
        ({"override_settings": []}, "override_settings must be an object"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 0}}, "override_settings.CLIP_stop"),
        ({"override_settings": {"emphasis": "Loud"}}, "override_settings.emphasis 'Loud'"),
        ({"override_settings": {"comma_padding_backtrack": 75}}, "comma_padding_backtrack"),
        ({"override_settings": {"samples_format": "bmp"}}, "'bmp' is not available"),
        ({"override_settings": {"randn_source": "QPU"}}, "'QPU' is not available.*GPU, CPU, NV"),
        ({"override_settings": {"uni_pc_variant": "bh3"}}, "'bh3' is not available.*bh1, bh2"),
        ({"override_settings": {"uni_pc_order": 0}}, "override_settings.uni_pc_order must be"),
        ({"override_settings": {"sigma_min": -1}}, "override_settings.sigma_min must be between"),
        ({"eta": -0.1}, "eta must be between 0 and 10"),
        ({"seed_resize_from_w": 4, "seed_resize_from_h": 64}, "must be at least 8, or 0 for none"),
        ({"alwayson_scripts": []}, "alwayson_scripts must be an object"),
        ({"styles": "x"}, "styles must be a list"),
        ({"restore_faces": True}, "restore_faces: this engine restores no faces"),
        (
            {"override_settings": {"face_restoration": True}},
            "override_settings.face_restoration: this engine restores no faces",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, object], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        parsed(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "img2img needs a picture in init_images"),
        ({"init_images": "x"}, "init_images must be a list"),
        ({"init_images": ["!"]}, r"init_images\[0\] is not a readable picture"),
        ({"init_images": ["aGVsbG8="]}, r"init_images\[0\] is not a readable picture"),
        ({"init_images": [7]}, r"init_images\[0\] is not a base64 text"),
        ({"init_images": [DOT], "mask": "aGVsbG8="}, "mask is not a readable picture"),
        ({"init_images": [DOT], "denoising_strength": 1.5}, "denoising_strength must be between"),
        ({"init_images": [DOT], "resize_mode": 3}, "is 1x1. resize_mode 3 .* between 8 and 4096"),
        ({"init_images": [DOT], "mask": DOT, "inpainting_fill": 4}, "inpainting_fill must be"),
    ],
    ids=str,
)
def test_img2img_fields_are_refused_by_name(fields: dict[str, object], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        parsed("img2img", **fields)


def test_the_hires_pass_takes_over_what_it_is_not_told() -> None:
    menus = {"hr_sampler_name": "Use same sampler", "hr_scheduler": "Use same scheduler"}
    request = parsed(
        enable_hr=True,
        prompt="a cat",
        negative_prompt="blurry",
        steps=12,
        sampler_name="DPM++ 2M",
        scheduler="Karras",
        hr_checkpoint_name="Use same checkpoint",
        **menus,
    )
    hires = request.hires
    assert hires is not None
    assert (hires.prompt, hires.negative_prompt) == ("a cat", "blurry")
    assert (hires.sampler.name, hires.schedule, hires.steps) == ("DPM++ 2M", "Karras", 12)
    assert (hires.upscaler.name, hires.checkpoint) == ("Latent", "")
    assert hires.denoising_strength == 0.75
    assert parsed(hr_scale=3).hires is None


@pytest.mark.parametrize(
    ("fields", "target"),
    [
        ({}, Target(1024, 768)),
        ({"hr_scale": 1.51}, Target(773, 579)),
        ({"hr_resize_x": 1000}, Target(1000, 750)),
        ({"hr_resize_y": 1000}, Target(1333, 1000)),
        # Both: covers what was asked for, and the rest is cut off.
        ({"hr_resize_x": 1000, "hr_resize_y": 1000}, Target(1333, 1000, 333, 0)),
        ({"hr_resize_x": 1000, "hr_resize_y": 500}, Target(1000, 750, 0, 250)),
    ],
    ids=str,
)
def test_the_hires_pass_has_the_webuis_size(fields: dict[str, object], target: Target) -> None:
    hires = parsed(enable_hr=True, width=512, height=384, **fields).hires
    assert hires is not None
    assert hires.target(512, 384) == target


@pytest.mark.parametrize(
    ("strength", "steps", "of"), [(0.5, 10, 20), (0.75, 20, 26), (1, 7, 7), (0.3, 5, 16)]
)
def test_the_hires_pass_takes_all_its_steps_at_the_end_of_a_longer_schedule(
    strength: float, steps: int, of: int
) -> None:
    fields = {"enable_hr": True, "denoising_strength": strength, "hr_second_pass_steps": steps}
    hires = parsed(**fields).hires
    assert hires is not None
    whole = hires.sampler.plan_for("Automatic", of, None, hires.sampling)
    assert hires.plan.sigmas == whole.sigmas[-steps - 1 :]
    assert hires.plan.noise_scale == hires.plan.sigmas[0]


def test_clip_skip_is_a_setting_or_a_field() -> None:
    name = "CLIP_stop_at_last_layers"
    assert parsed().text.clip_skip == 1
    assert parsed(**{name: 3}).text.clip_skip == parsed(clip_skip=3).text.clip_skip == 3
    assert parsed(clip_skip=3, override_settings={name: 2}).text.clip_skip == 2


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"steps": NaN}', b"\xff"])
def test_what_is_not_a_json_object_is_refused(content: bytes) -> None:
    with pytest.raises(BadRequest, match="parameters are not"):
        parse_request("txt2img", content, random.Random(0))


def test_a_setting_of_the_churn_beats_the_field_unless_it_is_the_usual_one() -> None:
    """So the WebUI reads them, which sends its settings beside its fields."""
    assert parsed(s_churn=3).sampling.churn.amount == 3
    assert parsed(s_churn=3, override_settings={"s_churn": 5}).sampling.churn.amount == 5
    assert parsed(s_noise=1.1, override_settings={"s_noise": 1}).sampling.noise == 1.1
    assert parsed(s_tmax=0).sampling.churn.high == math.inf


def test_levels_that_do_not_fall_are_refused() -> None:
    request = parsed(scheduler="Karras", override_settings={"sigma_min": 20})
    with pytest.raises(BadRequest, match=r"sigma_min \(20\) must be below sigma_max"):
        _ = request.plan


def test_tiling_and_eta_are_settings_or_fields() -> None:
    assert parsed(override_settings={"tiling": True}).tiling
    assert not parsed(tiling=False, override_settings={"tiling": True}).tiling
    for fields, eta in (
        ({}, 1.0),
        ({"override_settings": {"eta_ancestral": 0.4, "eta_ddim": 0.2}}, 0.4),
        ({"eta": 0.7, "override_settings": {"eta_ancestral": 0.4}}, 0.7),
    ):
        request = parsed(sampler_name="Euler a", **fields)
        assert request.sampler.eta_of(request.sampling) == eta
    request = parsed(sampler_name="DDIM", override_settings={"eta_ddim": 0.2})
    assert request.sampler.eta_of(request.sampling) == 0.2


def test_each_field_that_is_not_acted_on_is_warned_of_once() -> None:
    idle = {
        "restore_faces": False,
        "s_churn": 0.0,
        "styles": [],
        "save_images": True,
        "hr_scale": 2,
    }
    scripts = {"controlnet": {"args": [{"enabled": False}]}, "extra options": {"args": []}}
    assert parsed(**idle, alwayson_scripts=scripts).warnings == ()
    request = parsed(
        image_cfg_scale=1.5,
        styles=["film"],
        colour="blue",
        override_settings={"sd_vae": "other.pt", "ddim_discretize": "quad"},
        alwayson_scripts={
            "controlnet": {"args": [{"model": "canny", "low_vram": True, "loopback": True}]},
            "wild": {"args": [1]},
        },
    )
    assert [warning.split()[0].rstrip(":") for warning in request.warnings] == [
        "image_cfg_scale",
        "styles",
        "colour",
        "override_settings.ddim_discretize",
        "alwayson_scripts.wild",
        "alwayson_scripts.controlnet.args[0].loopback",
        "alwayson_scripts.controlnet.args[0].low_vram",
    ]


@pytest.mark.parametrize("extension", ["png", "jpg", "webp"])
def test_pictures_carry_their_parameters(extension: str) -> None:
    content = pictures.encode(Image.new("RGB", (8, 8)), extension, "a café\nSteps: 4")
    image = Image.open(io.BytesIO(content))
    if extension == "png":
        assert image.info["parameters"] == "a café\nSteps: 4"
    else:
        comment = image.getexif().get_ifd(0x8769)[0x9286]
        assert comment == b"UNICODE\0" + "a café\nSteps: 4".encode("utf-16-be")


def test_resizing_stretches_crops_or_draws_the_edges_out() -> None:
    halves = Image.new("RGB", (40, 20), "red")
    halves.paste("blue", (20, 0, 40, 20))
    filled = np.asarray(pictures.resize(halves, 20, 20, ResizeMode.FILL))
    assert filled.shape == (20, 20, 3)
    assert filled[0, 0].tolist() == [255, 0, 0]
    assert filled[19, 19].tolist() == [0, 0, 255]
    assert pictures.resize(halves, 20, 20, ResizeMode.CROP).size == (20, 20)
    assert pictures.resize(halves, 30, 10, ResizeMode.STRETCH).size == (30, 10)


def test_the_masked_region_grows_to_the_jobs_proportions_inside_the_picture() -> None:
    assert pictures.crop_box((10, 10, 20, 20), 0, (100, 100), 1) == (10, 10, 20, 20)
    assert pictures.crop_box((10, 10, 20, 20), 4, (100, 100), 1) == (6, 6, 24, 24)
    assert pictures.crop_box((0, 0, 10, 10), 0, (100, 100), 2) == (0, 0, 20, 10)
    assert pictures.crop_box((0, 90, 30, 100), 0, (100, 100), 1) == (0, 70, 30, 100)
    assert pictures.crop_box((0, 0, 100, 50), 0, (100, 60), 1) == (0, 0, 100, 60)


def test_a_transparent_picture_masks_by_its_alpha_and_starts_on_white() -> None:
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    clear.paste((0, 0, 0, 255), (0, 0, 4, 8))
    stream = io.BytesIO()
    clear.save(stream, "PNG")
    picture = base64.b64encode(stream.getvalue()).decode()
    request = parsed("img2img", init_images=[picture], mask=picture, mask_blur=0)
    assert request.start is not None
    assert request.start.mask is not None
    mask = np.asarray(pictures.read_mask(request.start.mask, None))
    assert mask[0].tolist() == [255] * 4 + [0] * 4
    start = pictures.prepare_start(request.start, 8, 8)
    assert start.overlay is not None
    assert start.overlay.picture.getpixel((7, 0)) == (255, 255, 255, 255)


def test_a_filled_mask_takes_the_colours_around_it() -> None:
    red = Image.new("RGB", (32, 32), (200, 10, 10))
    red.paste("blue", (12, 12, 20, 20))
    mask = Image.new("L", (32, 32))
    mask.paste(255, (12, 12, 20, 20))
    filled = np.asarray(pictures.fill_masked(red, mask))
    assert np.abs(filled.astype(int) - [200, 10, 10]).max() <= 2
    everything = Image.new("L", (32, 32), 255)
    assert pictures.fill_masked(red, everything) == Image.new("RGB", (32, 32))
