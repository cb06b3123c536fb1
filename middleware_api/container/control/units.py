"""ControlNet's units: the fields of the WebUI's ControlNet extension, parsed once.

https://github.com/Mikubill/sd-webui-controlnet/wiki/API
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, TypeVar

from PIL import Image

from middleware_api.container.errors import BadRequest
from middleware_api.container.fields import Fields, decode_image
from middleware_api.contract import CONTROL_UNITS_MAX, SAFETENSORS
from middleware_api.preprocessors import (
    PREPROCESSORS,
    Preprocessor,
    find_preprocessor,
    needs_network,
)

TITLE = "controlnet"
"""The extension's name among `alwayson_scripts`, where case does not matter."""
NO_MAPS = "control_net_no_detectmap"
"""Its setting by which no unit's map is answered."""


class ControlMode(Enum):
    """What weighs more where prompt and picture disagree."""

    BALANCED = "Balanced"
    PROMPT = "My prompt is more important"
    CONTROL = "ControlNet is more important"


class Fit(Enum):
    """How a picture of other proportions is brought to the job's size."""

    STRETCH = "Just Resize"
    CROP = "Crop and Resize"
    FILL = "Resize and Fill"


class Passes(Enum):
    """In which passes of a job with hires fix a unit works."""

    BOTH = "Both"
    FIRST = "Low res only"
    SECOND = "High res only"


@dataclass(frozen=True)
class ControlUnit:
    """One ControlNet, what it is shown, and how much of the job it steers.

    `module_name` is the word that the caller has for the preprocessor, whose are `resolution` and
    the thresholds. `image` None: the job's own.
    `mask` is white where the picture is to be made anew or, for most preprocessors, a scribble.
    `start` and `end` are parts of the steps. `layer_weights` stand in for `weight`, one a layer.
    `region` is white where the unit works.
    """

    module: Preprocessor
    module_name: str
    model: str
    weight: float
    image: Image.Image | None
    mask: Image.Image | None
    fit: Fit
    resolution: float
    first_threshold: float
    second_threshold: float
    start: float
    end: float
    pixel_perfect: bool
    mode: ControlMode
    passes: Passes
    crops_with_mask: bool
    layer_weights: tuple[float, ...]
    region: Image.Image | None
    shows_map: bool

    def describe(self) -> str:
        """As the extension writes it into the parameters."""
        pairs: dict[str, object] = {
            "Module": self.module_name,
            "Model": self.model.removesuffix(SAFETENSORS),  # a file's name: menus leave it out
            "Weight": self.weight,
            "Resize Mode": self.fit.value,
            "Processor Res": self.resolution,
            "Threshold A": self.first_threshold,
            "Threshold B": self.second_threshold,
            "Guidance Start": self.start,
            "Guidance End": self.end,
            "Pixel Perfect": self.pixel_perfect,
            "Control Mode": self.mode.value,
        }
        return ", ".join(f"{name}: {value}" for name, value in pairs.items())


@dataclass(frozen=True)
class ControlRequest:
    """A job's units that are on; `seed` is what a preprocessor draws from, 0 where none does."""

    units: tuple[ControlUnit, ...] = ()
    seed: int = 0


# Fields that steer the extension's pages and folders, with the values that ask for nothing.
_IDLE: dict[str, tuple[object, ...]] = {
    "input_mode": (None, "", "simple"),
    "batch_images": (None, "", []),
    "batch_image_dir": (None, ""),
    "batch_input_gallery": (None, "", []),
    "batch_mask_dir": (None, ""),
    "batch_mask_gallery": (None, "", []),
    "batch_modifiers": (None, []),
    "batch_image_files": (None, []),
    "batch_keyframe_idx": (None, "", []),
    "animatediff_batch": (None, False),
    "loopback": (None, False),
    "ipadapter_input": (None, [], [None]),
    "image_fg": (None, ""),
    "mask_image_fg": (None, ""),
    "use_preview_as_input": (None, False),
    "generated_image": (None, ""),
}
# Without meaning for a ControlNet of the kinds that are loaded here, or for the answer.
_WITHOUT_EFFECT = {"is_ui", "output_dir", "pulid_mode", "union_control_type", "threshold_c"}
_USED = {
    *("enabled", "module", "model", "weight", "image", "mask", "resize_mode", "low_vram"),
    *("processor_res", "threshold_a", "threshold_b", "guidance_start", "guidance_end"),
    *("pixel_perfect", "control_mode", "inpaint_crop_input_image", "hr_option"),
    *("save_detected_map", "advanced_weighting", "effective_region_mask"),
}
_ALIASES = {
    "input_image": "image",
    "mask_image": "mask",  # Forge's name
    "lowvram": "low_vram",
    "guidance": "guidance_end",
}
# What earlier versions called the same.
_FIT_WORDS = {
    "Inner Fit (Scale to Fit)": "Crop and Resize",
    "Outer Fit (Shrink to Fit)": "Resize and Fill",
    "Scale to Fit (Inner Fit)": "Crop and Resize",
    "Envelope (Outer Fit)": "Resize and Fill",
}
_LOW_VRAM = "low_vram has no effect: the engine moves no part of a model out of the GPU's memory."


def is_controlnet(title: str) -> bool:
    """Whether an always-on script is the ControlNet extension."""
    return title.lower() == TITLE


def parse_control(fields: Fields, seed: int, is_masked: bool) -> ControlRequest:
    """Every unit that is on; raises BadRequest naming the field.

    `seed` is the job's, as the caller gave it or as it was drawn. `is_masked` is whether the job
    has an inpainting mask of its own.
    """
    units = tuple(_unit(unit, is_masked) for unit in _enabled(fields))
    if Fields(fields.mapping("override_settings"), "override_settings.").flag(NO_MAPS):
        units = tuple(replace(unit, shows_map=False) for unit in units)
    if len(units) > CONTROL_UNITS_MAX:
        raise BadRequest(
            f"{len(units)} ControlNet units are on. Use at most {CONTROL_UNITS_MAX}.", "bad_field"
        )
    return ControlRequest(units, _draw_seed(fields, seed) if _draws(units) else 0)


def _draws(units: tuple[ControlUnit, ...]) -> bool:
    return any(unit.module.name == "shuffle" for unit in units)


def _draw_seed(fields: Fields, seed: int) -> int:
    """The sum of seed and variation seed, for which an open one counts as the seed again."""
    subseed = fields.integer("subseed", -1, -1, 2**32 - 1)
    return (seed + (seed if subseed == -1 else subseed)) & 0xFFFFFFFF


def control_warnings(fields: Fields) -> list[str]:
    """A sentence for each field of a unit that is on and not acted on."""
    found = []
    for unit in _enabled(fields):
        for name, value in unit.raw.items():
            if name in _IDLE:
                if value not in _IDLE[name]:
                    found.append(f"{unit.prefix}{name} is not supported yet and was ignored.")
            elif name not in _USED | _WITHOUT_EFFECT:
                found.append(f"{unit.prefix}{name} is no field of a unit and was ignored.")
        if unit.flag("low_vram"):
            found.append(f"{unit.prefix}{_LOW_VRAM}")
    return found


def _enabled(fields: Fields) -> Iterator[Fields]:
    """The units that are on, under the names of the fields' newest version."""
    for title, script in fields.mapping("alwayson_scripts").items():
        if not is_controlnet(title):
            continue
        args = script.get("args") if isinstance(script, dict) else script
        for place, unit in enumerate(_flat(args)):
            if not isinstance(unit, dict):
                continue  # earlier versions had switches of their pages before the units
            named = Fields(
                {_ALIASES.get(str(name), str(name)): value for name, value in unit.items()},
                f"alwayson_scripts.{title}.args[{place}].",
            )
            if named.flag("enabled", True):
                yield named


def _flat(args: object) -> Iterator[object]:
    """Units in a list, a single one, or lists of them."""
    if isinstance(args, list):
        for each in args:
            yield from _flat(each)
    else:
        yield args


def _unit(fields: Fields, is_masked: bool) -> ControlUnit:
    # Old versions wrote nothing, or capitals, for none.
    name = fields.text("module", "none")
    name = "none" if name in ("", "None") else name
    module = _module(fields, name)
    if is_masked and module.name == "inpaint_only":  # the job keeps what is not masked itself
        module = _module(fields, "inpaint")
    image, mask = _pictures(fields)
    start, end = fields.number("guidance_start", 0, 0, 1), fields.number("guidance_end", 1, 0, 1)
    if start > end:
        raise BadRequest(
            f"{fields.prefix}guidance_start {start:g} is behind guidance_end {end:g}.", "bad_field"
        )
    model = fields.text("model")
    if model in ("", "None", "none"):
        raise BadRequest(
            f"{fields.prefix}model names no ControlNet. Choose one, or switch the unit off.",
            "missing_checkpoint",
        )
    anything = (-(10**9), 10**9)
    region = fields.raw.get("effective_region_mask")
    return ControlUnit(
        module=module,
        module_name=name,
        model=model,
        weight=fields.number("weight", 1, 0, 2),
        image=image,
        mask=mask,
        fit=_one_of(fields, "resize_mode", Fit, Fit.CROP, _FIT_WORDS),
        resolution=module.resolution.settle(fields.integer("processor_res", -1, *anything)),
        first_threshold=module.first.settle(fields.number("threshold_a", -1, *anything)),
        second_threshold=module.second.settle(fields.number("threshold_b", -1, *anything)),
        start=start,
        end=end,
        pixel_perfect=fields.flag("pixel_perfect"),
        mode=_one_of(fields, "control_mode", ControlMode, ControlMode.BALANCED),
        passes=_one_of(fields, "hr_option", Passes, Passes.BOTH),
        crops_with_mask=fields.flag("inpaint_crop_input_image", True),
        layer_weights=_layer_weights(fields),
        region=decode_image(region, f"{fields.prefix}effective_region_mask") if region else None,
        shows_map=fields.flag("save_detected_map", True),
    )


def _module(fields: Fields, name: str) -> Preprocessor:
    module = find_preprocessor(name)
    if module is not None:
        return module
    why = "is not a preprocessor of this engine"
    if needs_network(name):
        why = "needs a network of its own, which this engine does not have"
    elif name.startswith("reference_"):
        why = "works inside of the checkpoint's attention, which this engine does not do yet"
    raise BadRequest(
        f"{fields.prefix}module {name!r} {why}. Send the map that it makes as the unit's image "
        f"with module 'none', or use one of: {', '.join(each.name for each in PREPROCESSORS)}.",
        "unsupported_preprocessor",
    )


def _pictures(fields: Fields) -> tuple[Image.Image | None, Image.Image | None]:
    """A unit's picture and its mask, in any of the forms that the extension takes."""
    value: Any = fields.raw.get("image")
    mask: Any = fields.raw.get("mask")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, list) and len(value) == 2 and not isinstance(value[0], dict):
        value, mask = value
    if isinstance(value, list) and value:
        raise BadRequest(
            f"{fields.prefix}image has {len(value)} pictures. Send a unit for each.", "bad_image"
        )
    if isinstance(value, dict):
        value, mask = value.get("image"), value.get("mask")
    if not value:
        return None, None
    image = decode_image(value, f"{fields.prefix}image")
    if not mask:
        return image, None
    shape = decode_image(mask, f"{fields.prefix}mask")
    if shape.size != image.size:
        raise BadRequest(
            f"{fields.prefix}mask is {shape.width}x{shape.height} and the image "
            f"{image.width}x{image.height}. Send a mask of the image's size.",
            "bad_image",
        )
    return image, shape


_Choice = TypeVar("_Choice", bound=Enum)


def _one_of(
    fields: Fields,
    name: str,
    kind: type[_Choice],
    default: _Choice,
    words: Mapping[str, str] | None = None,
) -> _Choice:
    """By its words or, as in older requests, by its place among them."""
    value: Any = fields.raw.get(name)
    choices = list(kind)
    if value is None:
        return default
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return choices[value]
    value = (words or {}).get(value, value) if isinstance(value, str) else value
    for choice in choices:
        if value == choice.value:
            return choice
    known = ", ".join(f"{place} or {each.value!r}" for place, each in enumerate(choices))
    raise BadRequest(f"{fields.prefix}{name} {value!r} must be one of: {known}.", "bad_field")


def _layer_weights(fields: Fields) -> tuple[float, ...]:
    weights = fields.items("advanced_weighting")
    if any(isinstance(each, bool) or not isinstance(each, (int, float)) for each in weights):
        raise BadRequest(f"{fields.prefix}advanced_weighting must be numbers.", "bad_field")
    return tuple(map(float, weights))
