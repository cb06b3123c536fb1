"""The WebUI API's txt2img and img2img fields, parsed once into a value the engine trusts."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import IntEnum

from PIL import Image, ImageColor

from middleware_api import contract
from middleware_api.container.control.units import (
    ControlRequest,
    parse_control,
)
from middleware_api.container.engine.hires import FirstPass, HiresRequest, parse_hires
from middleware_api.container.engine.ignored import refuse_faces, warnings_of
from middleware_api.container.errors import BadRequest
from middleware_api.container.extras.picture_tiles import Tiles, parse_tiles
from middleware_api.container.extras.upscalers import (
    NO_UPSCALER,
    AnyPictureUpscaler,
    UpscalerFile,
    resolve_picture_upscaler,
)
from middleware_api.container.fields import Fields, decode_image, read_fields
from middleware_api.container.prompts.text_settings import (
    TextSettings,
    read_prompt,
    read_text_settings,
)
from middleware_api.container.samplers import schedules
from middleware_api.container.samplers.samplers import Sampler, resolve_sampler
from middleware_api.container.samplers.sampling_settings import (
    NoiseSource,
    SamplingSettings,
    parse_noise_source,
    parse_sampling,
)
from middleware_api.container.samplers.schedules import Plan, resolve_schedule

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
    LATENT = 3


@dataclass(frozen=True)
class MaskRequest:
    """An inpainting mask and how to use it; `blur` are standard deviations in pixels, across and
    down. `latent` says what is made anew where that differs from what is shown anew. `rounded` has
    each latent made anew or kept, nothing between; without `overlay` nothing of the original is
    laid over what was made."""

    image: Image.Image
    blur: tuple[float, float]
    latent: Image.Image | None
    fill: MaskFill
    invert: bool
    only_masked: bool
    padding: int
    rounded: bool = True
    overlay: bool = True


@dataclass(frozen=True)
class ImageRequest:
    """What img2img adds: the picture to start from."""

    image: Image.Image
    denoising_strength: float
    resize_mode: ResizeMode
    upscaler: AnyPictureUpscaler
    mask: MaskRequest | None
    background: str = "white"


@dataclass(frozen=True)
class RefinerRequest:
    """Another checkpoint for the end of the sampling, from `switch_at` (0..1) of the levels on."""

    checkpoint: str
    switch_at: float


@dataclass(frozen=True)
class GenerationRequest:
    """One job's pictures. `seed` and `subseed` are already drawn when the caller left them open.

    `checkpoint` and `vae` are the names that the settings ask for, "" for the job's first and for
    the checkpoint's own. `seed_resize_from` are the (width, height) of the picture whose noise
    this one's begins with.
    """

    prompt: str
    negative_prompt: str
    seed: int
    subseed: int
    subseed_strength: float
    seed_resize_from: tuple[int, int] | None
    noise_source: NoiseSource
    sampler: Sampler
    schedule: str
    steps: int
    cfg_scale: float
    width: int
    height: int
    batch_size: int
    n_iter: int
    text: TextSettings
    image_format: str
    start: ImageRequest | None
    hires: HiresRequest | None
    refiner: RefinerRequest | None
    control: ControlRequest
    checkpoint: str
    vae: str
    sampling: SamplingSettings
    tiles: Tiles
    tiling: bool
    styles: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def upscaler_file(self) -> UpscalerFile | None:
        """The upscaler whose model the job needs."""
        for part in (self.hires, self.start):
            if part is not None and isinstance(part.upscaler, UpscalerFile):
                return part.upscaler
        return None

    @property
    def prompts_with_networks(self) -> tuple[str, ...]:
        """Those whose `<lora:...>` and the like count: each pass's, and never the negative ones."""
        if not self.text.networks:
            return ()
        return (self.prompt, self.hires.prompt) if self.hires else (self.prompt,)

    @property
    def prompts(self) -> tuple[str, ...]:
        """Everything that the text encoder reads."""
        first = (self.prompt, self.negative_prompt)
        return (*first, self.hires.prompt, self.hires.negative_prompt) if self.hires else first

    @property
    def plan(self) -> Plan:
        """The levels of the first pass, which is the only one without hires fix."""
        settings = self.sampling
        if self.start is None:
            return self.sampler.plan_for(self.schedule, self.steps, None, settings)
        strength = self.start.denoising_strength
        if settings.exact_steps:
            return self.sampler.plan_to_the_end(self.schedule, self.steps, strength, settings)
        encode = schedules.encode_steps(self.steps, strength)
        return self.sampler.plan_for(self.schedule, self.steps, encode, settings)

    @property
    def is_refined(self) -> bool:
        """Whether the last pass goes far enough for the refiner to take over."""
        if self.refiner is None:
            return False
        plan = self.hires.plan if self.hires else self.plan
        switch_at = self.refiner.switch_at
        levels = schedules.levels_of((self.hires or self).sampling.schedule).full
        return any(schedules.share_done(s, levels) >= switch_at for s in plan.sigmas[:-1])


_IMG2IMG_UPSCALER = "override_settings.upscaler_for_img2img"
_NOBODY = ("", "None", "none")


def parse_request(task: str, content: bytes, rng: random.Random) -> GenerationRequest:
    """Raises BadRequest naming the field; `rng` draws the seeds that are left open."""
    fields = read_fields(content)
    schedule = resolve_schedule(fields.text("scheduler") or "Automatic")
    name = fields.text("sampler_name") or fields.text("sampler_index") or "Euler"
    sampler, schedule = resolve_sampler(name, schedule)
    settings = Fields(fields.mapping("override_settings"), "override_settings.")
    image_format = settings.text("samples_format", "png").lower()
    if image_format not in _FORMATS:
        raise BadRequest(
            f"override_settings.samples_format {image_format!r} is not available. "
            "Choose png, jpg or webp."
        )
    refuse_faces(fields, settings)
    sampling = parse_sampling(fields, settings)
    first = FirstPass(
        prompt=read_prompt(fields, "prompt"),
        negative_prompt=read_prompt(fields, "negative_prompt"),
        sampler_name=sampler.name,
        schedule=schedule,
        steps=fields.integer("steps", 50, 1, contract.STEPS_MAX),
        cfg_scale=fields.number("cfg_scale", 7, 0, contract.CFG_SCALE_MAX),
        width=fields.integer("width", 512, contract.SIZE_MIN, contract.SIZE_MAX),
        height=fields.integer("height", 512, contract.SIZE_MIN, contract.SIZE_MAX),
        sampling=sampling,
    )
    is_img2img = task == contract.TaskType.IMG2IMG.value
    seed = _seed(fields, "seed", rng)
    return GenerationRequest(
        prompt=first.prompt,
        negative_prompt=first.negative_prompt,
        seed=seed,
        subseed=_seed(fields, "subseed", rng),
        subseed_strength=fields.number("subseed_strength", 0, 0, 1),
        seed_resize_from=_seed_resize(fields),
        noise_source=parse_noise_source(settings),
        sampler=sampler,
        schedule=schedule,
        steps=first.steps,
        cfg_scale=first.cfg_scale,
        width=first.width,
        height=first.height,
        batch_size=fields.integer("batch_size", 1, 1, contract.BATCH_SIZE_MAX),
        n_iter=fields.integer("n_iter", 1, 1, contract.N_ITER_MAX),
        text=read_text_settings(fields, settings),
        image_format=_FORMATS[image_format],
        start=_start(fields, settings) if is_img2img else None,
        hires=None if is_img2img else parse_hires(fields, first),
        refiner=_refiner(fields),
        control=parse_control(fields, seed, is_img2img and bool(fields.raw.get("mask"))),
        checkpoint=settings.text("sd_model_checkpoint"),
        vae=_vae(settings),
        sampling=sampling,
        tiles=parse_tiles(settings),
        tiling=fields.flag("tiling", settings.flag("tiling")),
        styles=tuple(map(str, fields.items("styles"))),
        warnings=tuple(warnings_of(fields, task)),
    )


def _refiner(fields: Fields) -> RefinerRequest | None:
    checkpoint = fields.text("refiner_checkpoint")
    switch_at = fields.number("refiner_switch_at", 0, 0, 1)
    return None if checkpoint in _NOBODY else RefinerRequest(checkpoint, switch_at)


def _vae(settings: Fields) -> str:
    name = settings.text("sd_vae")
    return "" if name in (*_NOBODY, "Automatic") else name


def _start(fields: Fields, settings: Fields) -> ImageRequest:
    images = fields.items("init_images")
    if not images:
        raise BadRequest("img2img needs a picture in init_images (base64).", "missing_image")
    mask = None
    if fields.raw.get("mask"):
        across, down = (
            fields.number("mask_blur", fields.number(name, 4, 0, 512), 0, 512)
            for name in ("mask_blur_x", "mask_blur_y")
        )
        latent = fields.raw.get("latent_mask")
        mask = MaskRequest(
            image=decode_image(fields.raw["mask"], "mask"),
            blur=(across, down),
            latent=decode_image(latent, "latent_mask") if latent else None,
            fill=MaskFill(fields.integer("inpainting_fill", 0, 0, 3)),
            invert=fields.flag("inpainting_mask_invert"),
            only_masked=fields.flag("inpaint_full_res", True),
            padding=fields.integer("inpaint_full_res_padding", 0, 0, contract.SIZE_MAX),
            rounded=fields.flag("mask_round", True),
            overlay=settings.flag("overlay_inpaint", True),
        )
    image = decode_image(images[0], "init_images[0]")
    resize_mode = ResizeMode(fields.integer("resize_mode", 0, 0, 3))
    if resize_mode is ResizeMode.LATENT and not _fits(image):
        raise BadRequest(
            f"init_images[0] is {image.width}x{image.height}. resize_mode 3 (latent upscale) takes "
            f"sides between {contract.SIZE_MIN} and {contract.SIZE_MAX} pixels: use another one.",
            "bad_image",
        )
    return ImageRequest(
        image=image,
        denoising_strength=fields.number("denoising_strength", 0.75, 0, 1),
        resize_mode=resize_mode,
        upscaler=_img2img_upscaler(settings),
        mask=mask,
        background=_background(settings),
    )


def _background(settings: Fields) -> str:
    colour = settings.text("img2img_background_color", "#ffffff")
    try:
        ImageColor.getrgb(colour)
    except ValueError as error:
        raise BadRequest(
            "override_settings.img2img_background_color must be a colour such as #ffffff, "
            f"not {colour!r}.",
            "bad_field",
        ) from error
    return colour


def _img2img_upscaler(settings: Fields) -> AnyPictureUpscaler:
    name = settings.text("upscaler_for_img2img")
    return resolve_picture_upscaler(name, _IMG2IMG_UPSCALER) if name else NO_UPSCALER


def _fits(image: Image.Image) -> bool:
    return min(image.size) >= contract.SIZE_MIN and max(image.size) <= contract.SIZE_MAX


def _seed(fields: Fields, name: str, rng: random.Random) -> int:
    seed = fields.integer(name, -1, -1, SEED_MAX)
    return rng.randrange(SEED_MAX) if seed == -1 else seed


def _seed_resize(fields: Fields) -> tuple[int, int] | None:
    width, height = (
        fields.integer(name, 0, -1, contract.SIZE_MAX)
        for name in ("seed_resize_from_w", "seed_resize_from_h")
    )
    if width <= 0 or height <= 0:
        return None
    if min(width, height) < contract.SIZE_MIN:
        raise BadRequest(
            f"seed_resize_from_w and seed_resize_from_h must be at least {contract.SIZE_MIN}, "
            "or 0 for none.",
            "bad_field",
        )
    return width, height
