"""What of a request the engine does not act on: in words, so that nothing is silently dropped."""

from __future__ import annotations

from typing import Any

from middleware_api import contract
from middleware_api.container.control.units import NO_MAPS, control_warnings, is_controlnet
from middleware_api.container.errors import BadRequest
from middleware_api.container.fields import Fields
from middleware_api.container.networks.block_weights import TITLE as BLOCK_WEIGHTS
from middleware_api.container.networks.block_weights import is_understood
from middleware_api.container.prompts.text_settings import SETTINGS as TEXT_SETTINGS

NO_FACES = (
    "this engine restores no faces: GFPGAN and CodeFormer need a program that finds the faces, "
    "which is not part of it. Restore them in a WebUI of your own, in its Extras tab."
)

# Fields the engine does not act on: the values that ask for nothing. Anything else is warned of.
_IDLE: dict[str, tuple[Any, ...]] = {
    "styles": (None, []),
    "firstphase_width": (None, 0),
    "firstphase_height": (None, 0),
    "script_name": (None, ""),
    "script_args": (None, []),
    "image_cfg_scale": (None,),
    "comments": (None, {}),
    "infotext": (None, ""),
}

# The same for settings: what of the WebUI's settings changes its pictures, and nothing here.
_IDLE_SETTINGS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        (
            *("refiner_switch_by_sample_steps", "hires_fix_use_firstpass_conds"),
            *("use_old_emphasis_implementation", "use_old_scheduling", "pad_cond_uncond_v0"),
            *("use_downcasted_alpha_bar", "no_dpmpp_sde_batch_determinism"),
            *("img2img_color_correction", "return_mask", "return_mask_composite"),
            *("save_images_before_highres_fix", "return_grid"),
        ),
        (None, False),
    ),
    **dict.fromkeys(
        ("token_merging_ratio", "token_merging_ratio_img2img", "token_merging_ratio_hr"), (None, 0)
    ),
    **dict.fromkeys(("sd_vae_encode_method", "sd_vae_decode_method"), (None, "Full")),
    **dict.fromkeys(("sd_lora", "sd_hypernetwork"), (None, "", "None")),
    "hires_fix_refiner_pass": (None, "second pass"),
    "ddim_discretize": (None, "uniform"),
    "sd_unet": (None, "Automatic", "None"),
}
# Pictures that txt2img has no use for.
_STARTS = ("init_images", "mask", "latent_mask")

# Fields that change no picture here: they steer the WebUI's own folders and answers, or what
# only Forge's other architectures read.
_WITHOUT_EFFECT = {
    *("override_settings_restore_afterwards", "do_not_save_samples", "do_not_save_grid"),
    *("send_images", "save_images", "include_init_images", "force_task_id"),
    "distilled_cfg_scale",
}
_USED = {
    "restore_faces",
    *("prompt", "negative_prompt", "seed", "subseed", "subseed_strength", "sampler_name"),
    *("sampler_index", "scheduler", "steps", "cfg_scale", "width", "height", "batch_size"),
    *("n_iter", "denoising_strength", "init_images", "mask", "mask_blur", "mask_blur_x"),
    *("mask_blur_y", "mask_round", "inpainting_fill", "inpainting_mask_invert"),
    "latent_mask",
    *("inpaint_full_res", "inpaint_full_res_padding", "resize_mode", "override_settings"),
    *("enable_hr", "hr_scale", "hr_resize_x", "hr_resize_y", "hr_upscaler", "firstpass_image"),
    *("hr_second_pass_steps", "hr_checkpoint_name", "hr_sampler_name", "hr_scheduler"),
    *("hr_prompt", "hr_negative_prompt", "hr_cfg", "refiner_checkpoint", "refiner_switch_at"),
    *("clip_skip", "CLIP_stop_at_last_layers", "alwayson_scripts", "tiling", "eta"),
    *("seed_resize_from_h", "seed_resize_from_w", "s_churn", "s_tmin", "s_tmax", "s_noise"),
    *("s_min_uncond", "disable_extra_networks", "initial_noise_multiplier"),
    # the middleware's own, beside the WebUI's
    *("sagemaker_endpoint_name", "endpoint_name", "task_type", "models", "filters"),
}
_SETTINGS_USED = {
    NO_MAPS,
    *("samples_format", "sd_model_checkpoint", "sd_vae", "eta_noise_seed_delta", "randn_source"),
    *("face_restoration", "face_restoration_model", "code_former_weight"),
    *("tiling", "eta_ancestral", "eta_ddim", "s_churn", "s_tmin", "s_tmax", "s_noise"),
    *("sigma_min", "sigma_max", "rho", "use_old_karras_scheduler_sigmas", "beta_dist_alpha"),
    *("beta_dist_beta", "always_discard_next_to_last_sigma", "sgm_noise_multiplier"),
    *("s_min_uncond", "s_min_uncond_all", "skip_early_cond", "uni_pc_variant"),
    *("uni_pc_skip_type", "uni_pc_order", "uni_pc_lower_order_final"),
    *("initial_noise_multiplier", "img2img_extra_noise", "img2img_fix_steps"),
    *("enable_quantization", "inpainting_mask_weight", "sd_noise_schedule"),
    *("upscaler_for_img2img", "ESRGAN_tile", "ESRGAN_tile_overlap"),
    *("overlay_inpaint", "img2img_background_color"),
}


def refuse_faces(fields: Fields, settings: Fields) -> None:
    """Raises BadRequest when faces are to be restored."""
    if fields.flag("restore_faces"):
        raise BadRequest(f"restore_faces: {NO_FACES} Set it to false.", "unsupported_field")
    if fields.raw.get("restore_faces") is None and settings.flag("face_restoration"):
        raise BadRequest(
            f"override_settings.face_restoration: {NO_FACES} Set it to false.", "unsupported_field"
        )


def warnings_of(fields: Fields, task: str) -> list[str]:
    """One sentence for each field that asks for something the engine does not do."""
    found = []
    for name, value in fields.raw.items():
        if name in _IDLE:
            if value not in _IDLE[name]:
                found.append(f"{name} is not supported yet and was ignored.")
        elif name not in _USED | _WITHOUT_EFFECT:
            found.append(f"{name} is not a field of this engine and was ignored.")
    for name, value in fields.mapping("override_settings").items():
        if name not in _SETTINGS_USED | TEXT_SETTINGS and value not in _IDLE_SETTINGS.get(name, ()):
            found.append(f"override_settings.{name} is not supported yet and was ignored.")
    for name, script in fields.mapping("alwayson_scripts").items():
        if not _is_acted_on(name, script) and _asks_for_something(name, script):
            found.append(f"alwayson_scripts.{name} is not supported yet and was ignored.")
    found += control_warnings(fields)
    if task == contract.TaskType.IMG2IMG.value:
        if len(fields.items("init_images")) > 1:
            found.append("init_images: only the first picture was used.")
        if fields.flag("enable_hr"):
            found.append("enable_hr has no meaning for img2img and was ignored.")
    else:
        starts = [name for name in _STARTS if fields.raw.get(name)]
        found += [f"{name} has no meaning for txt2img and was ignored." for name in starts]
    return found


# Scripts of the WebUI's own whose first argument switches them on.
_SWITCHED = ("soft inpainting", "refiner")


def _is_acted_on(title: str, script: object) -> bool:
    if title.casefold() == BLOCK_WEIGHTS:
        return isinstance(script, dict) and is_understood(script.get("args"))
    return is_controlnet(title)


def _asks_for_something(title: str, script: object) -> bool:
    args = script.get("args") if isinstance(script, dict) else script
    if not isinstance(args, list):
        return bool(args)
    if title.casefold() in _SWITCHED and not (args and args[0]):
        return False
    return any(not isinstance(a, dict) or a.get("enabled", True) for a in args if a)
