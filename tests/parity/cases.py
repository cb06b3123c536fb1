"""What is asked of a real WebUI 1.10.1 and of the engine, to compare their pictures.

`python -m benchmarks.parity` asks all of it; the tests ask those whose pictures are in kept.json.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, field

from PIL import Image, ImageDraw

# By the WebUI's names, as its own lists give them: not the engine's, which is what is in question.
SAMPLERS = (
    *("DPM++ 2M", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 2S a"),
    *("DPM++ 3M SDE", "Euler a", "Euler", "LMS", "Heun", "DPM2", "DPM2 a", "DPM fast"),
    *("DPM adaptive", "Restart", "DDIM", "DDIM CFG++", "PLMS", "UniPC", "LCM"),
)
SCHEDULES = (
    *("Automatic", "Uniform", "Karras", "Exponential", "Polyexponential", "SGM Uniform"),
    *("KL Optimal", "Align Your Steps", "Simple", "Normal", "DDIM", "Beta"),
)
EVERY_SAMPLER_ON = ("Automatic", "Karras", "SGM Uniform", "Beta")
ANOTHER = {sampler: SCHEDULES[i % len(SCHEDULES)] for i, sampler in enumerate(SAMPLERS)}


@dataclass(frozen=True)
class Case:
    """One request in the WebUI API's fields; its picture is 64x64."""

    name: str
    fields: dict[str, object]
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def task(self) -> str:
        return "img2img" if "init_images" in self.fields else "txt2img"

    @property
    def body(self) -> dict[str, object]:
        small = {
            "prompt": "a large red circle on a blue background",
            "negative_prompt": "green",
            "seed": 1,
            "steps": 10,
            "width": 64,
            "height": 64,
        }
        return small | self.fields | {"override_settings": self.settings}


def drawn_scene(size: tuple[int, int] = (64, 64)) -> str:
    """A drawn picture, base64, to start from."""
    image = Image.new("RGB", size, (200, 180, 40))
    ImageDraw.Draw(image).ellipse((12, 20, 50, 58), fill=(30, 60, 200))
    return _encoded(image)


def drawn_mask(size: tuple[int, int] = (64, 64)) -> str:
    image = Image.new("L", size)
    ImageDraw.Draw(image).rectangle((16, 16, 47, 47), fill=255)
    return _encoded(image)


def _see_through() -> str:
    """More so to its left."""
    image = Image.new("RGB", (64, 64), (200, 60, 40))
    image.putalpha(Image.linear_gradient("L").rotate(90).resize((64, 64)))
    return _encoded(image)


def _encoded(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _samplers() -> Iterator[Case]:
    for sampler in SAMPLERS:
        every = sampler in ("Euler", "DPM++ 2M SDE", "LCM")
        for schedule in SCHEDULES:
            if every or schedule in (*EVERY_SAMPLER_ON, ANOTHER[sampler]):
                fields: dict[str, object] = {"sampler_name": sampler, "scheduler": schedule}
                yield Case(f"{sampler}, {schedule}", fields)
    for sampler in ("UniPC", "DDIM", "PLMS", "DPM fast"):
        for steps in (7, 8, 20):
            yield Case(f"{sampler}, {steps} steps", {"sampler_name": sampler, "steps": steps})
    for steps in (20, 40):
        yield Case(f"Restart, {steps} steps", {"sampler_name": "Restart", "steps": steps})


def _img2img() -> Iterator[Case]:
    given: dict[str, object] = {"init_images": [drawn_scene()], "denoising_strength": 0.6}
    for sampler in SAMPLERS:
        yield Case(f"img2img {sampler}", given | {"sampler_name": sampler})
    mask: dict[str, object] = {"mask": drawn_mask(), "mask_blur": 0, "inpaint_full_res": False}
    for sampler in ("Euler", "DPM++ 2M SDE", "DDIM", "UniPC"):
        yield Case(
            f"inpaint {sampler}", given | mask | {"sampler_name": sampler, "inpainting_fill": 1}
        )


def _img2img_settings() -> Iterator[Case]:
    given: dict[str, object] = {"init_images": [drawn_scene()], "denoising_strength": 0.5}
    for sampler in ("Euler", "DDIM", "DPM fast"):
        yield Case(
            f"noisier, {sampler}",
            given | {"sampler_name": sampler, "initial_noise_multiplier": 1.05},
            {"img2img_extra_noise": 0.1},
        )
    for sampler in ("Euler", "DPM++ 2M SDE", "UniPC"):
        exact: dict[str, object] = {"img2img_fix_steps": True}
        yield Case(f"exact steps, {sampler}", given | {"sampler_name": sampler}, exact)
    yield Case(
        "noisier hires",
        {"enable_hr": True, "width": 32, "height": 32, "denoising_strength": 0.7},
        {"img2img_extra_noise": 0.1},
    )
    yield Case("quantized", {"sampler_name": "Heun"}, {"enable_quantization": True})


def _inpainting() -> Iterator[Case]:
    given: dict[str, object] = {"init_images": [drawn_scene()], "denoising_strength": 0.6}
    masked: dict[str, object] = given | {
        "mask": drawn_mask(),
        "mask_blur": 4,
        "inpaint_full_res": False,
    }
    original = masked | {"inpainting_fill": 1}
    for fill, name in enumerate(("fill", "original", "latent noise", "latent nothing")):
        yield Case(f"soft mask, {name}", masked | {"inpainting_fill": fill})
        only = {"inpaint_full_res": True, "inpaint_full_res_padding": 4, "inpainting_fill": fill}
        yield Case(f"only masked, {name}", masked | only)
    yield Case("inverted mask", original | {"inpainting_mask_invert": 1})
    yield Case("mask not rounded", original | {"mask_round": False})
    yield Case("mask without overlay", original, {"overlay_inpaint": False})
    clear: dict[str, object] = {"mask": _see_through(), "mask_blur": 0}
    yield Case("mask by alpha", original | clear)
    yield Case("mask by alpha, not rounded", original | clear | {"mask_round": False})


def _resizing() -> Iterator[Case]:
    wide: dict[str, object] = {"init_images": [drawn_scene((88, 40))], "denoising_strength": 0.4}
    tall: dict[str, object] = {"init_images": [drawn_scene((30, 51))], "denoising_strength": 0.4}
    for name, given in (("wide", wide), ("tall", tall)):
        for mode in range(4):
            yield Case(f"resize mode {mode}, {name}", given | {"resize_mode": mode})
        for mode in range(3):
            yield Case(
                f"resize mode {mode} by a model, {name}",
                given | {"resize_mode": mode},
                {"upscaler_for_img2img": "4x_tiny", "ESRGAN_tile": 0},
            )
    mask: dict[str, object] = {"mask": drawn_mask((88, 40)), "mask_blur": 2, "inpainting_fill": 1}
    for whole in (True, False):
        yield Case(f"resized mask, {whole}", wide | mask | {"inpaint_full_res": whole})
    yield Case(
        "on another background",
        {"init_images": [_see_through()], "denoising_strength": 0.4},
        {"img2img_background_color": "#30c060"},
    )


def _upscalers() -> Iterator[Case]:
    hires: dict[str, object] = {"enable_hr": True, "width": 32, "height": 32, "hr_scale": 2}
    hires["denoising_strength"] = 0.4
    for name in ("None", "Lanczos", "Nearest", "4x_tiny", "2x_same"):
        yield Case(f"hires by {name}", hires | {"hr_upscaler": name})
    for side, overlap in ((0, 8), (16, 8), (24, 5), (16, 1)):
        yield Case(
            f"hires by tiles of {side} and {overlap}",
            hires | {"hr_upscaler": "4x_tiny"},
            {"ESRGAN_tile": side, "ESRGAN_tile_overlap": overlap},
        )


def _hires() -> Iterator[Case]:
    given: dict[str, object] = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent"}
    small: dict[str, object] = {"width": 32, "height": 32, "denoising_strength": 0.7}
    for sampler in ("DPM++ SDE", "DPM fast", "UniPC", "Restart", "LCM"):
        yield Case(f"hires {sampler}", given | small | {"sampler_name": sampler})
    yield Case(
        "hires of a resized variation",
        given
        | small
        | {"seed_resize_from_w": 48, "seed_resize_from_h": 24, "sampler_name": "Euler a"}
        | {"subseed": 3, "subseed_strength": 0.5},
    )


def _noise() -> Iterator[Case]:
    euler_a: dict[str, object] = {"sampler_name": "Euler a"}
    for source in ("CPU", "NV"):
        for sampler in ("Euler a", "DPM++ SDE"):
            yield Case(
                f"{source} noise, {sampler}", {"sampler_name": sampler}, {"randn_source": source}
            )
    yield Case("variation", euler_a | {"subseed": 5, "subseed_strength": 0.3})
    yield Case(
        "variation of NV noise",
        euler_a | {"subseed": 5, "subseed_strength": 0.7},
        {"randn_source": "NV"},
    )
    yield Case("seed resize up", euler_a | {"seed_resize_from_w": 40, "seed_resize_from_h": 48})
    yield Case("seed resize down", euler_a | {"seed_resize_from_w": 96, "seed_resize_from_h": 80})
    yield Case(
        "seed resize of a variation",
        euler_a
        | {"seed_resize_from_w": 40, "seed_resize_from_h": 96}
        | {"subseed": 5, "subseed_strength": 0.3},
        {"randn_source": "NV"},
    )
    yield Case("ENSD", euler_a, {"eta_noise_seed_delta": 31337})
    yield Case("tiling", {"sampler_name": "Euler", "tiling": True})
    yield Case("tiling img2img", {"init_images": [drawn_scene()], "tiling": True})


def _settings() -> Iterator[Case]:
    for sampler in ("Euler a", "DPM++ SDE", "DPM++ 3M SDE", "DPM fast", "DDIM", "DDIM CFG++"):
        yield Case(f"eta 0.5, {sampler}", {"sampler_name": sampler, "eta": 0.5})
    yield Case("eta 0, DPM adaptive", {"sampler_name": "DPM adaptive", "eta": 0})
    yield Case("eta_ancestral", {"sampler_name": "DPM2 a"}, {"eta_ancestral": 0.3})
    yield Case("eta_ddim", {"sampler_name": "DDIM"}, {"eta_ddim": 0.8})
    churn: dict[str, object] = {"s_churn": 4, "s_tmin": 0.2, "s_tmax": 8, "s_noise": 1.02}
    for sampler in ("Euler", "Heun", "DPM2"):
        yield Case(f"churn, {sampler}", {"sampler_name": sampler} | churn)
    yield Case("churn by settings", {"sampler_name": "Euler"}, dict(churn))
    yield Case("s_noise, DPM++ 2M SDE", {"sampler_name": "DPM++ 2M SDE", "s_noise": 1.05})
    yield Case("s_min_uncond", {"sampler_name": "Euler", "s_min_uncond": 3})
    yield Case(
        "s_min_uncond_all",
        {"sampler_name": "Heun", "s_min_uncond": 3},
        {"s_min_uncond_all": True},
    )
    yield Case("s_min_uncond, DDIM", {"sampler_name": "DDIM", "s_min_uncond": 500})
    yield Case("skip_early_cond", {"sampler_name": "Euler"}, {"skip_early_cond": 0.3})
    yield Case("skip_early_cond, Heun", {"sampler_name": "Heun"}, {"skip_early_cond": 0.3})
    for sampler in ("Euler", "DPM2", "DDIM"):
        yield Case(
            f"discard penultimate, {sampler}",
            {"sampler_name": sampler},
            {"always_discard_next_to_last_sigma": True},
        )
    yield Case("SGM noise", {"sampler_name": "Euler"}, {"sgm_noise_multiplier": True})
    for schedule in ("Karras", "SGM Uniform", "KL Optimal", "Beta"):
        yield Case(
            f"sigma_min and sigma_max, {schedule}",
            {"sampler_name": "Euler", "scheduler": schedule},
            {"sigma_min": 0.1, "sigma_max": 12},
        )
    for schedule in ("Karras", "Polyexponential"):
        yield Case(f"rho, {schedule}", {"sampler_name": "Euler", "scheduler": schedule}, {"rho": 3})
    yield Case(
        "old Karras", {"sampler_name": "DPM++ 2M"}, {"use_old_karras_scheduler_sigmas": True}
    )
    yield Case(
        "beta distribution",
        {"sampler_name": "Euler", "scheduler": "Beta"},
        {"beta_dist_alpha": 0.4, "beta_dist_beta": 0.9},
    )
    for name, settings in {
        "bh2": {"uni_pc_variant": "bh2"},
        "vary_coeff": {"uni_pc_variant": "vary_coeff"},
        "time_quadratic": {"uni_pc_skip_type": "time_quadratic"},
        "logSNR": {"uni_pc_skip_type": "logSNR"},
        "order 2": {"uni_pc_order": 2},
        "order 4": {"uni_pc_order": 4},
        "high order to the end": {"uni_pc_lower_order_final": False},
    }.items():
        yield Case(f"UniPC {name}", {"sampler_name": "UniPC"}, dict(settings))


CASES = (
    *(*_samplers(), *_img2img(), *_img2img_settings(), *_inpainting(), *_resizing()),
    *(*_upscalers(), *_hires(), *_noise(), *_settings()),
)
