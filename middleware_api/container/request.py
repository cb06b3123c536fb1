"""The WebUI API's txt2img and img2img fields, parsed once into a value the engine trusts."""

from __future__ import annotations

import base64
import binascii
import io
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from PIL import Image, UnidentifiedImageError

from middleware_api import contract
from middleware_api.container.errors import BadRequest
from middleware_api.container.samplers import Sampler, resolve_sampler
from middleware_api.container.schedules import resolve_schedule

SEED_MAX = 2**32 - 1
_FORMATS = {"png": "png", "jpg": "jpg", "jpeg": "jpg", "webp": "webp"}


class MaskFill(IntEnum):
    """What the masked part starts from (the WebUI's `inpainting_fill`)."""

    FILL = 0
    ORIGINAL = 1
    LATENT_NOISE = 2
    LATENT_NOTHING = 3


class ResizeMode(IntEnum):
    """How a picture of other proportions is brought to the job's size."""

    STRETCH = 0
    CROP = 1
    FILL = 2


@dataclass(frozen=True)
class MaskRequest:
    """An inpainting mask and how to use it; `blur` is a standard deviation in pixels."""

    image: Image.Image
    blur: float
    fill: MaskFill
    invert: bool
    only_masked: bool
    padding: int


@dataclass(frozen=True)
class ImageRequest:
    """What img2img adds: the picture to start from."""

    image: Image.Image
    denoising_strength: float
    resize_mode: ResizeMode
    mask: MaskRequest | None


@dataclass(frozen=True)
class GenerationRequest:
    """One job's pictures. `seed` and `subseed` are already drawn when the caller left them open."""

    prompt: str
    negative_prompt: str
    seed: int
    subseed: int
    subseed_strength: float
    sampler: Sampler
    schedule: str
    steps: int
    cfg_scale: float
    width: int
    height: int
    batch_size: int
    n_iter: int
    clip_skip: int
    image_format: str
    start: ImageRequest | None
    styles: tuple[str, ...]
    warnings: tuple[str, ...]


# Fields the engine does not act on: the values that ask for nothing. Anything else is warned of.
_IDLE: dict[str, tuple[Any, ...]] = {
    "restore_faces": (None, False),
    "tiling": (None, False),
    "styles": (None, []),
    "seed_resize_from_h": (None, -1, 0),
    "seed_resize_from_w": (None, -1, 0),
    "eta": (None,),
    "s_churn": (None, 0),
    "s_tmin": (None, 0),
    "s_tmax": (None, 0, 1),
    "s_noise": (None, 1),
    "s_min_uncond": (None, 0),
    "refiner_checkpoint": (None, ""),
    "refiner_switch_at": (None, 0, 1),
    "script_name": (None, ""),
    "script_args": (None, []),
    "image_cfg_scale": (None,),
    "initial_noise_multiplier": (None, 1),
    "latent_mask": (None,),
    "comments": (None, {}),
    "infotext": (None, ""),
}

# Fields that change no picture here: they steer the WebUI's own folders and answers, or belong
# to the second pass that `enable_hr` (refused when true) would switch on.
_WITHOUT_EFFECT = {
    *("override_settings_restore_afterwards", "do_not_save_samples", "do_not_save_grid"),
    *("send_images", "save_images", "include_init_images", "force_task_id"),
    *("disable_extra_networks", "enable_hr", "firstphase_width", "firstphase_height"),
    *("firstpass_image", "hr_scale", "hr_upscaler", "hr_second_pass_steps", "hr_resize_x"),
    *("hr_resize_y", "hr_checkpoint_name", "hr_sampler_name", "hr_scheduler", "hr_prompt"),
    "hr_negative_prompt",
}
_USED = {
    *("prompt", "negative_prompt", "seed", "subseed", "subseed_strength", "sampler_name"),
    *("sampler_index", "scheduler", "steps", "cfg_scale", "width", "height", "batch_size"),
    *("n_iter", "denoising_strength", "init_images", "mask", "mask_blur", "mask_blur_x"),
    *("mask_blur_y", "mask_round", "inpainting_fill", "inpainting_mask_invert"),
    *("inpaint_full_res", "inpaint_full_res_padding", "resize_mode", "override_settings"),
    "alwayson_scripts",
    # the middleware's own, beside the WebUI's
    *("sagemaker_endpoint_name", "endpoint_name", "task_type", "models", "filters"),
}
_SETTINGS_USED = frozenset(
    {"CLIP_stop_at_last_layers", "samples_format", "sd_model_checkpoint", "return_grid"}
)
_DEFAULT_VAE = (None, "", "None", "Automatic")


def parse_request(task: str, content: bytes, rng: random.Random) -> GenerationRequest:
    """Raises BadRequest naming the field; `rng` draws the seeds that are left open."""
    try:
        raw = json.loads(content, parse_constant=_refuse_constant)
    except ValueError as error:
        raise BadRequest(f"The job's parameters are not JSON: {error}.") from error
    if not isinstance(raw, dict):
        raise BadRequest("The job's parameters are not a JSON object.")
    fields = _Fields(raw)
    if fields.flag("enable_hr"):
        raise BadRequest(
            "enable_hr (hires fix) is not supported yet. Turn it off, or run img2img on "
            "the result.",
            "unsupported_field",
        )
    schedule = resolve_schedule(fields.text("scheduler") or "Automatic")
    name = fields.text("sampler_name") or fields.text("sampler_index") or "Euler"
    sampler, schedule = resolve_sampler(name, schedule)
    settings = _Fields(fields.mapping("override_settings"), "override_settings.")
    image_format = settings.text("samples_format", "png").lower()
    if image_format not in _FORMATS:
        raise BadRequest(
            f"override_settings.samples_format {image_format!r} is not available. "
            "Choose png, jpg or webp."
        )
    return GenerationRequest(
        prompt=_prompt(fields, "prompt"),
        negative_prompt=_prompt(fields, "negative_prompt"),
        seed=_seed(fields, "seed", rng),
        subseed=_seed(fields, "subseed", rng),
        subseed_strength=fields.number("subseed_strength", 0, 0, 1),
        sampler=sampler,
        schedule=schedule,
        steps=fields.integer("steps", 50, 1, contract.STEPS_MAX),
        cfg_scale=fields.number("cfg_scale", 7, 0, contract.CFG_SCALE_MAX),
        width=fields.integer("width", 512, contract.SIZE_MIN, contract.SIZE_MAX),
        height=fields.integer("height", 512, contract.SIZE_MIN, contract.SIZE_MAX),
        batch_size=fields.integer("batch_size", 1, 1, contract.BATCH_SIZE_MAX),
        n_iter=fields.integer("n_iter", 1, 1, contract.N_ITER_MAX),
        clip_skip=settings.integer("CLIP_stop_at_last_layers", 1, 1, 12),
        image_format=_FORMATS[image_format],
        start=_start(fields) if task == contract.TaskType.IMG2IMG.value else None,
        styles=tuple(map(str, fields.items("styles"))),
        warnings=tuple(_warnings(fields, task)),
    )


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _start(fields: _Fields) -> ImageRequest:
    images = fields.items("init_images")
    if not images:
        raise BadRequest("img2img needs a picture in init_images (base64).", "missing_image")
    mask = None
    if fields.raw.get("mask"):
        blur = fields.number("mask_blur", fields.number("mask_blur_x", 4, 0, 512), 0, 512)
        mask = MaskRequest(
            image=decode_image(fields.raw["mask"], "mask"),
            blur=blur,
            fill=MaskFill(fields.integer("inpainting_fill", 0, 0, 3)),
            invert=fields.flag("inpainting_mask_invert"),
            only_masked=fields.flag("inpaint_full_res", True),
            padding=fields.integer("inpaint_full_res_padding", 0, 0, contract.SIZE_MAX),
        )
    resize_mode = fields.integer("resize_mode", 0, 0, 3)
    if resize_mode == 3:
        raise BadRequest(
            "resize_mode 3 (latent upscale) is not supported yet. Use 0, 1 or 2.",
            "unsupported_field",
        )
    return ImageRequest(
        image=decode_image(images[0], "init_images[0]"),
        denoising_strength=fields.number("denoising_strength", 0.75, 0, 1),
        resize_mode=ResizeMode(resize_mode),
        mask=mask,
    )


def decode_image(value: object, field: str) -> Image.Image:
    """A base64 picture, with or without a `data:` prefix; raises BadRequest naming the field."""
    if not isinstance(value, str):
        raise BadRequest(f"{field} is not a base64 text.", "bad_image")
    encoded = value.partition(",")[2] if value.startswith("data:") else value
    try:
        image = Image.open(io.BytesIO(base64.b64decode(encoded, validate=False)))
        if max(image.size) > 4 * contract.SIZE_MAX:
            raise BadRequest(f"{field} is {image.width}x{image.height}: too large.", "bad_image")
        image.load()
    except (
        binascii.Error,
        UnidentifiedImageError,
        Image.DecompressionBombError,
        OSError,
        SyntaxError,  # Pillow's answer to a broken PNG
        ValueError,
    ) as error:
        raise BadRequest(
            f"{field} is not a readable picture. Send a base64 PNG, JPEG or WebP.", "bad_image"
        ) from error
    return image


def _prompt(fields: _Fields, name: str) -> str:
    text = fields.text(name)
    if len(text.encode()) > contract.PROMPT_MAX_BYTES:
        raise BadRequest(f"{name} is longer than {contract.PROMPT_MAX_BYTES} bytes.")
    return text


def _seed(fields: _Fields, name: str, rng: random.Random) -> int:
    seed = fields.integer(name, -1, -1, SEED_MAX)
    return rng.randrange(SEED_MAX) if seed == -1 else seed


def _warnings(fields: _Fields, task: str) -> list[str]:
    """One sentence for each field that asks for something the engine does not do yet."""
    found = []
    for name, value in fields.raw.items():
        if name in _IDLE:
            if value not in _IDLE[name]:
                found.append(f"{name} is not supported yet and was ignored.")
        elif name not in _USED | _WITHOUT_EFFECT:
            found.append(f"{name} is not a field of this engine and was ignored.")
    for name, value in fields.mapping("override_settings").items():
        if name == "sd_vae":
            if value not in _DEFAULT_VAE:
                found.append("override_settings.sd_vae is not supported yet: own VAE used.")
        elif name not in _SETTINGS_USED:
            found.append(f"override_settings.{name} is not supported yet and was ignored.")
    for name, script in fields.mapping("alwayson_scripts").items():
        if _asks_for_something(script):
            found.append(f"alwayson_scripts.{name} is not supported yet and was ignored.")
    if task == contract.TaskType.IMG2IMG.value and len(fields.items("init_images")) > 1:
        found.append("init_images: only the first picture was used.")
    return found


def _asks_for_something(script: object) -> bool:
    args = script.get("args") if isinstance(script, dict) else script
    if not isinstance(args, list):
        return bool(args)
    return any(not isinstance(a, dict) or a.get("enabled", True) for a in args if a)


class _Fields:
    """Typed reading of a JSON object; a null counts as absent. Every method raises BadRequest."""

    def __init__(self, raw: Mapping[str, Any], prefix: str = "") -> None:
        self.raw = raw
        self._prefix = prefix

    def _wrong(self, name: str, expected: str) -> BadRequest:
        return BadRequest(f"{self._prefix}{name} must be {expected}.", "bad_field")

    def text(self, name: str, default: str = "") -> str:
        value = self.raw.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._wrong(name, "a text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise self._wrong(name, "text without lone surrogates") from error
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.raw.get(name)
        if value is None:
            return default
        if not isinstance(value, (bool, int)):
            raise self._wrong(name, "true or false")
        return bool(value)

    def number(self, name: str, default: float, low: float, high: float) -> float:
        value = self.raw.get(name)
        if value is None:
            return float(default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong(name, "a number")
        if not low <= value <= high:
            raise self._wrong(name, f"between {low:g} and {high:g}, not {value:g}")
        return float(value)

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        value = self.number(name, default, low, high)
        if value != int(value):
            raise self._wrong(name, f"a whole number, not {value:g}")
        return int(value)

    def items(self, name: str) -> list[Any]:
        value = self.raw.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._wrong(name, "a list")
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        value = self.raw.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return value
