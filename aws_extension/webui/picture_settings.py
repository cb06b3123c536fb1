"""The WebUI's settings, as far as a picture that is made elsewhere depends on them."""

from __future__ import annotations

from typing import Any

# What the engine has to know when it is not at its default; it says itself what it ignores. All
# else is the WebUI's own business: folders, formats, names, grids.
_OF_THE_ENGINE = (
    *("CLIP_stop_at_last_layers", "sd_vae", "sd_vae_encode_method", "sd_vae_decode_method"),
    *("emphasis", "use_old_emphasis_implementation", "use_old_scheduling"),
    *("comma_padding_backtrack", "pad_cond_uncond", "pad_cond_uncond_v0"),
    *("sdxl_crop_top", "sdxl_crop_left", "sdxl_clip_l_skip"),
    *("sdxl_refiner_low_aesthetic_score", "sdxl_refiner_high_aesthetic_score"),
    *("hires_fix_refiner_pass", "hires_fix_use_firstpass_conds", "refiner_switch_by_sample_steps"),
    *("img2img_extra_noise", "img2img_fix_steps", "inpainting_mask_weight", "overlay_inpaint"),
    *("token_merging_ratio", "token_merging_ratio_img2img", "token_merging_ratio_hr"),
    *("eta_noise_seed_delta", "randn_source", "enable_quantization", "ddim_discretize"),
    *("eta_ddim", "eta_ancestral", "s_min_uncond_all", "skip_early_cond"),
    *("sigma_min", "sigma_max", "rho", "beta_dist_alpha", "beta_dist_beta"),
    *("use_old_karras_scheduler_sigmas", "always_discard_next_to_last_sigma"),
    *("sgm_noise_multiplier", "no_dpmpp_sde_batch_determinism"),
    *("uni_pc_variant", "uni_pc_skip_type", "uni_pc_order", "uni_pc_lower_order_final"),
    *("sd_noise_schedule", "use_downcasted_alpha_bar"),
    *("upscaler_for_img2img", "ESRGAN_tile", "ESRGAN_tile_overlap"),
)
# Other values that ask for nothing more than the default does.
_IDLE: dict[str, tuple[Any, ...]] = {
    "CLIP_stop_at_last_layers": (None, 0, 1),
    "sd_vae": (None, "", "None", "Automatic"),
    "upscaler_for_img2img": (None, "", "None"),
}
# Pictures between two passes never come here; those of masks are made of them.
_NEEDS_MASK = ("return_mask", "save_mask", "return_mask_composite", "save_mask_composite")


def picture_settings(options: Any, vae: Any = None) -> dict[str, Any]:
    """What of the WebUI's settings, this request's own among them, the engine has to know.

    `vae` is the request's own: setting it in `options` would load it here.
    """
    found = {name: getattr(options, name, None) for name in _OF_THE_ENGINE}
    if vae is not None:
        found["sd_vae"] = vae
    return {
        name: value
        for name, value in found.items()
        if value not in (None, options.get_default(name), *_IDLE.get(name, ()))
    }


def settings_without_effect(options: Any, p: Any) -> list[str]:
    """A sentence for each setting of the WebUI that cannot be followed for `p`."""
    asked = []
    if getattr(p, "enable_hr", False):
        asked.append("save_images_before_highres_fix")
    if getattr(p, "image_mask", None) is not None:
        asked += _NEEDS_MASK
    return [
        f"The setting {name} has no effect in the cloud: only the finished picture comes back."
        for name in asked
        if getattr(options, name, False)
    ]
