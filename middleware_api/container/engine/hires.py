"""The WebUI's hires fix: the fields of txt2img's second, larger pass, and its sizes."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from middleware_api import contract
from middleware_api.container.errors import BadRequest
from middleware_api.container.extras.upscalers import LATENT_UPSCALERS, Upscaler, resolve_upscaler
from middleware_api.container.fields import Fields, decode_image
from middleware_api.container.prompts.text_settings import read_prompt
from middleware_api.container.samplers.samplers import Sampler, resolve_sampler
from middleware_api.container.samplers.sampling_settings import SamplingSettings
from middleware_api.container.samplers.schedules import Plan, resolve_schedule

SCALE_MAX = 8
_SAME = {
    "hr_checkpoint_name": "Use same checkpoint",
    "hr_sampler_name": "Use same sampler",
    "hr_scheduler": "Use same scheduler",
}


@dataclass(frozen=True)
class Target:
    """Sizes in pixels: what the first pass is enlarged to, and what of that is then cut off."""

    width: int
    height: int
    cut_x: int = 0
    cut_y: int = 0


@dataclass(frozen=True)
class HiresRequest:
    """The second pass. What the caller left open is already that of the first.

    `resize` is the caller's own (width, height), 0 where open; both 0: `scale` decides.
    `upscaler_given` is False when the caller left the choice open. `first_picture` stands in for
    the first pass.
    """

    scale: float
    resize: tuple[int, int]
    upscaler: Upscaler
    upscaler_given: bool
    steps: int
    steps_given: bool
    denoising_strength: float
    cfg_scale: float
    sampler: Sampler
    schedule: str
    prompt: str
    negative_prompt: str
    checkpoint: str
    first_picture: Image.Image | None
    sampling: SamplingSettings

    @property
    def plan(self) -> Plan:
        """The end of a schedule so long that all of `steps` are taken."""
        return self.sampler.plan_to_the_end(
            self.schedule, self.steps, self.denoising_strength, self.sampling
        )

    def target(self, width: int, height: int) -> Target:
        """For a first pass of this size."""
        to_x, to_y = self.resize
        if not to_x and not to_y:
            return Target(int(width * self.scale), int(height * self.scale))
        # As large as it must be to cover what was asked for, in the first pass's proportions.
        by_width = to_y == 0 or (to_x > 0 and width / height < to_x / to_y)
        if by_width:
            new_x, new_y = to_x, to_x * height // width
        else:
            new_x, new_y = to_y * width // height, to_y
        return Target(new_x, new_y, new_x - (to_x or new_x), new_y - (to_y or new_y))


@dataclass(frozen=True)
class FirstPass:
    """What the second pass takes over where its own fields are empty."""

    prompt: str
    negative_prompt: str
    sampler_name: str
    schedule: str
    steps: int
    cfg_scale: float
    width: int
    height: int
    sampling: SamplingSettings


def parse_hires(fields: Fields, first: FirstPass) -> HiresRequest | None:
    """None unless `enable_hr`; raises BadRequest naming the field."""
    if not fields.flag("enable_hr"):
        return None
    upscaler = fields.text("hr_upscaler")
    schedule = resolve_schedule(_own(fields, "hr_scheduler") or first.schedule)
    sampler, schedule = resolve_sampler(
        _own(fields, "hr_sampler_name") or first.sampler_name, schedule
    )
    steps = fields.integer("hr_second_pass_steps", 0, 0, contract.STEPS_MAX)
    request = HiresRequest(
        scale=fields.number("hr_scale", 2, 0, SCALE_MAX),
        resize=(
            fields.integer("hr_resize_x", 0, 0, contract.SIZE_MAX),
            fields.integer("hr_resize_y", 0, 0, contract.SIZE_MAX),
        ),
        upscaler=resolve_upscaler(upscaler, "hr_upscaler") if upscaler else LATENT_UPSCALERS[0],
        upscaler_given=bool(upscaler),
        steps=steps or first.steps,
        steps_given=steps > 0,
        denoising_strength=fields.number("denoising_strength", 0.75, 0, 1),
        cfg_scale=fields.number("hr_cfg", first.cfg_scale, 0, contract.CFG_SCALE_MAX),  # Forge's
        sampler=sampler,
        schedule=schedule,
        prompt=read_prompt(fields, "hr_prompt") or first.prompt,
        negative_prompt=read_prompt(fields, "hr_negative_prompt") or first.negative_prompt,
        checkpoint=_own(fields, "hr_checkpoint_name"),
        first_picture=_first_picture(fields),
        sampling=first.sampling,
    )
    _check_size(request.target(first.width, first.height))
    return request


def _own(fields: Fields, name: str) -> str:
    """Empty for the words by which the WebUI's menus say that nothing changes."""
    value = fields.text(name)
    return "" if value == _SAME[name] else value


def _first_picture(fields: Fields) -> Image.Image | None:
    if not fields.raw.get("firstpass_image"):
        return None
    image = decode_image(fields.raw["firstpass_image"], "firstpass_image")
    if max(image.size) > contract.SIZE_MAX or min(image.size) < contract.SIZE_MIN:
        raise BadRequest(
            f"firstpass_image is {image.width}x{image.height}. Its sides must be between "
            f"{contract.SIZE_MIN} and {contract.SIZE_MAX} pixels.",
            "bad_image",
        )
    return image


def _check_size(target: Target) -> None:
    small = min(target.width - target.cut_x, target.height - target.cut_y)
    large = max(target.width, target.height)
    if small < contract.SIZE_MIN or large > contract.SIZE_MAX:
        raise BadRequest(
            f"The hires pass would be {target.width}x{target.height}. Choose hr_scale, or "
            f"hr_resize_x and hr_resize_y, so that its sides are between {contract.SIZE_MIN} and "
            f"{contract.SIZE_MAX} pixels.",
            "bad_field",
        )
