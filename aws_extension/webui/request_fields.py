"""From the WebUI's processing object to the fields of its own API."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from aws_extension.errors import Unsupported
from aws_extension.pictures import encode_picture, flatten_mask
from aws_extension.webui.batches import Piece

_COMMON = [
    "subseed_strength",     "seed_resize_from_h",     "seed_resize_from_w",
    "sampler_name",     "scheduler",     "steps",     "cfg_scale",     "width",
    "height",     "restore_faces",     "tiling",     "eta",     "s_min_uncond",
    "s_churn",     "s_tmax",     "s_tmin",     "s_noise",     "refiner_checkpoint",
    "refiner_switch_at",     "distilled_cfg_scale",
]  # fmt: skip
_HIRES = [
    "enable_hr",     "denoising_strength",     "hr_scale",     "hr_upscaler",
    "hr_second_pass_steps",     "hr_resize_x",     "hr_resize_y",     "hr_checkpoint_name",
    "hr_sampler_name",     "hr_scheduler",     "hr_prompt",     "hr_negative_prompt",
    "hr_cfg",
]  # fmt: skip
_IMG2IMG = [
    "denoising_strength", "resize_mode", "image_cfg_scale", "initial_noise_multiplier",
]  # fmt: skip
_OF_IMG2IMG = ("upscaler_for_img2img",)  # which names a model that nothing else needs
_MASK = [
    "mask_blur",     "mask_blur_x",     "mask_blur_y",     "inpainting_fill",
    "inpaint_full_res",     "inpaint_full_res_padding",     "inpainting_mask_invert",
]  # fmt: skip


def request_fields(
    p: Any, settings: Mapping[str, Any], other_scripts: Mapping[str, Any]
) -> dict[str, Any]:
    """The fields that all jobs of `p` share; `p` is a StableDiffusionProcessing of either kind.

    `settings` are those of the WebUI that the engine has to know; `piece_fields` has the other
    fields. Raises Unsupported for what cannot travel.
    """
    fields = _present(p, _COMMON)
    if is_img2img(p):
        fields.update(_img2img_fields(p))
    elif getattr(p, "enable_hr", False):
        fields.update(_present(p, _HIRES))
        if getattr(p, "firstpass_image", None) is not None:
            fields["firstpass_image"] = encode_picture(p.firstpass_image)
    if not is_img2img(p):
        settings = {name: settings[name] for name in settings if name not in _OF_IMG2IMG}
    if settings:
        fields["override_settings"] = dict(settings)
    if other_scripts:
        fields["alwayson_scripts"] = {name: {"args": args} for name, args in other_scripts.items()}
    return fields


def piece_fields(
    piece: Piece, shared_fields: Mapping[str, Any], in_cloud: Callable[[str], str]
) -> dict[str, Any]:
    """The fields of one job: those that are shared, and its own; `in_cloud` writes a prompt with
    the cloud's names of models."""
    fields = {
        **shared_fields,
        "prompt": in_cloud(piece.prompt),
        "negative_prompt": in_cloud(piece.negative_prompt),
        "seed": piece.seed,
        "subseed": piece.subseed,
        "batch_size": piece.count,
        "n_iter": 1,
    }
    if piece.init_image is not None:
        fields["init_images"] = [shared_fields["init_images"][piece.init_image]]
    return fields


def without_maps(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The same for a job that is not to answer with what ControlNet's units saw."""
    scripts = dict(fields.get("alwayson_scripts", {}))
    if "controlnet" not in scripts:
        return dict(fields)
    units = [
        {**unit, "save_detected_map": False} if isinstance(unit, dict) else unit
        for unit in scripts["controlnet"]["args"]
    ]
    scripts["controlnet"] = {**scripts["controlnet"], "args": units}
    return {**fields, "alwayson_scripts": scripts}


def is_img2img(p: Any) -> bool:
    """Whether `p` starts from pictures."""
    return hasattr(p, "init_images")


def _img2img_fields(p: Any) -> dict[str, Any]:
    images = [image for image in p.init_images or [] if image is not None]
    if not images:
        raise Unsupported("There is no picture to start from. Put one into img2img first.")
    fields = _present(p, _IMG2IMG)
    # The WebUI repeats one picture for a batch: it is sent once.
    different = list({id(image): image for image in images}.values())
    fields["init_images"] = [encode_picture(image) for image in different]
    if p.image_mask is not None:
        fields.update(_present(p, _MASK))
        fields["mask"] = encode_picture(flatten_mask(p.image_mask))
    if getattr(p, "latent_mask", None) is not None:
        fields["latent_mask"] = encode_picture(flatten_mask(p.latent_mask))
    return fields


def _present(p: Any, names: list[str]) -> dict[str, Any]:
    """The plain values that are set; the WebUI's infinities mean "no limit" and are left out."""
    found = {}
    for name in names:
        value = getattr(p, name, None)
        if isinstance(value, float) and not math.isfinite(value):
            continue
        if isinstance(value, (str, bool, int, float)):
            found[name] = value
    return found
