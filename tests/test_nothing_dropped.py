"""Every field and setting of the WebUI 1.10.1 changes the request, or is named as a warning.

`webui_names.json` has the names of its API's two bodies, and of its settings, as a WebUI with only
its own extensions answered them.
"""

from __future__ import annotations

import base64
import io
import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from middleware_api.container.engine.request import GenerationRequest, parse_request
from middleware_api.container.prompts.text_settings import SETTINGS as TEXT_SETTINGS

NAMES: dict[str, list[str]] = json.loads(
    Path(__file__).with_name("webui_names.json").read_text(encoding="utf-8")
)


def picture(colour: str) -> str:
    stream = io.BytesIO()
    Image.new("RGB", (16, 16), colour).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


# What fields need beside them to have a meaning.
BESIDE: dict[str, dict[str, Any]] = {
    "txt2img": {"enable_hr": True, "refiner_checkpoint": "r.safetensors"},
    "img2img": {
        "init_images": [picture("red")],
        "mask": picture("white"),
        "refiner_checkpoint": "r.safetensors",
    },
}
# Another value than the usual one, where it does not follow from the name.
OTHER: dict[str, Any] = {
    **dict.fromkeys(("prompt", "negative_prompt", "hr_prompt", "hr_negative_prompt"), "a cat"),
    **dict.fromkeys(("sampler_name", "hr_sampler_name", "sampler_index"), "Heun"),
    **dict.fromkeys(("scheduler", "hr_scheduler"), "Karras"),
    **dict.fromkeys(("latent_mask", "mask", "firstpass_image"), picture("blue")),
    **dict.fromkeys(("enable_hr", "inpaint_full_res", "mask_round"), False),
    **dict.fromkeys(("hr_checkpoint_name", "refiner_checkpoint"), "other.safetensors"),
    **dict.fromkeys(("width", "height", "hr_resize_x", "hr_resize_y"), 256),
    **dict.fromkeys(("seed_resize_from_h", "seed_resize_from_w"), 64),
    **dict.fromkeys(("firstphase_width", "firstphase_height"), 256),
    **dict.fromkeys(("subseed_strength", "denoising_strength", "refiner_switch_at"), 0.4),
    **dict.fromkeys(("eta", "s_noise", "initial_noise_multiplier"), 0.7),
    **dict.fromkeys(("tiling", "disable_extra_networks"), True),
    "hr_upscaler": "Lanczos",
    "init_images": [picture("green")],
    "styles": ["film"],
    "comments": {"a": "b"},
    "infotext": "a cat",
    "script_name": "x",
    "script_args": [1],
    "alwayson_scripts": {"wild": {"args": [1]}},
    "override_settings": {"eta_ddim": 0.5},
    "override_settings_restore_afterwards": False,
    "resize_mode": 1,
    "inpainting_fill": 1,
}
TOGETHER = {"seed_resize_from_h": "seed_resize_from_w", "seed_resize_from_w": "seed_resize_from_h"}
# They steer the WebUI's own folders, options and answer. The API itself sees to send_images.
NO_PICTURE = {
    *("do_not_save_samples", "do_not_save_grid", "save_images", "send_images"),
    *("include_init_images", "force_task_id", "override_settings_restore_afterwards"),
}
REFUSED = {"restore_faces"}


def parsed(task: str, fields: dict[str, Any]) -> GenerationRequest:
    return parse_request(task, json.dumps(fields).encode(), random.Random(0))


def is_heeded(task: str, usual: dict[str, Any], other: dict[str, Any], name: str) -> bool:
    """Whether something becomes of the field, in the request or in words."""
    before, after = parsed(task, usual), parsed(task, other)
    new = [warning for warning in after.warnings if warning not in before.warnings]
    changed = replace(before, warnings=()) != replace(after, warnings=())
    return changed or any(name in warning for warning in new)


@pytest.mark.parametrize("task", ["txt2img", "img2img"])
def test_every_field_is_heeded_or_named(task: str) -> None:
    usual = BESIDE[task]

    def heeded(name: str) -> bool:
        other = usual | {name: OTHER.get(name, 3)}
        if name in TOGETHER:
            other[TOGETHER[name]] = 64
        if name == "firstpass_image" and task == "img2img":
            # The whole of hires fix has no meaning there, and is named by the field for that.
            return is_heeded(task, usual, other | {"enable_hr": True}, "enable_hr")
        return is_heeded(task, usual, other, name)

    names = [name for name in NAMES[task] if name not in NO_PICTURE | REFUSED]
    assert [name for name in names if not heeded(name)] == []


# Values that mean something, of the settings that are read.
SETTINGS: dict[str, Any] = {
    **dict.fromkeys(
        (
            *("always_discard_next_to_last_sigma", "enable_quantization", "img2img_fix_steps"),
            *("s_min_uncond_all", "sgm_noise_multiplier", "tiling", "pad_cond_uncond"),
            *("use_old_karras_scheduler_sigmas", "sdxl_clip_l_skip"),
        ),
        True,
    ),
    **dict.fromkeys(
        ("overlay_inpaint", "uni_pc_lower_order_final", "enable_prompt_comments"), False
    ),
    **dict.fromkeys(("sd_model_checkpoint", "sd_vae"), "other.safetensors"),
    **dict.fromkeys(("beta_dist_alpha", "beta_dist_beta", "skip_early_cond"), 0.5),
    "CLIP_stop_at_last_layers": 2,
    "ESRGAN_tile": 64,
    "ESRGAN_tile_overlap": 4,
    "emphasis": "No norm",
    "img2img_background_color": "#000000",
    "inpainting_mask_weight": 0.5,
    "randn_source": "NV",
    "samples_format": "webp",
    "sd_noise_schedule": "Zero Terminal SNR",
    "uni_pc_skip_type": "logSNR",
    "uni_pc_variant": "bh2",
    "uni_pc_order": 2,
    "upscaler_for_img2img": "Lanczos",
}
# The first restores faces, which is refused, and these say how.
OF_FACES = {"face_restoration", "face_restoration_model", "code_former_weight"}


def test_every_setting_is_heeded_or_named() -> None:
    usual = BESIDE["img2img"] | {"prompt": "a cat # black"}

    def heeded(name: str) -> bool:
        other = usual | {"override_settings": {name: SETTINGS.get(name, 7)}}
        return is_heeded("img2img", usual, other, f"override_settings.{name} ")

    names = [name for name in NAMES["settings"] if name not in OF_FACES]
    assert [name for name in names if not heeded(name)] == []


def test_the_settings_that_are_read_are_the_webuis() -> None:
    assert SETTINGS.keys() | TEXT_SETTINGS <= set(NAMES["settings"])
