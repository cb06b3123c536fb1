"""The fields and settings that say how prompts are read, beside the prompts themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from middleware_api import contract
from middleware_api.container.errors import BadRequest
from middleware_api.container.fields import Fields
from middleware_api.container.networks.block_weights import PRESETS, read_presets
from middleware_api.container.prompts.emphasis import Emphasis

_CLIP_SKIP_MAX = 12
_SCORE_MAX = 10
_BACKTRACK_MAX = 74
_COMMENT = re.compile(r"#[^\n]*(\n|$)")
_COMMENT_LINE = re.compile(r"(^|\n)#[^\n]*(\n|$)")

SETTINGS = {
    *("CLIP_stop_at_last_layers", "emphasis", "comma_padding_backtrack", "pad_cond_uncond"),
    *("enable_prompt_comments", "sdxl_clip_l_skip", "sdxl_crop_top", "sdxl_crop_left"),
    *("sdxl_refiner_low_aesthetic_score", "sdxl_refiner_high_aesthetic_score"),
}
"""The names in `override_settings` that are read here."""


@dataclass(frozen=True)
class TellingSettings:
    """What SDXL's models are told beside the prompts: where the picture was cut, (top, left), and
    to its refiner how good it is said to be, by the prompt and by the negative prompt."""

    crop: tuple[int, int] = (0, 0)
    scores: tuple[float, float] = (6.0, 2.5)


@dataclass(frozen=True)
class TextSettings:
    """`clip_skip` 1 is the text encoder's last layer, 2 the one before it.

    A word that a chunk of tokens would tear from its comma goes to the next chunk whole, if it is
    no longer than `backtrack` tokens. `pads` makes the shorter of prompt and negative prompt as
    long as the other, by empty chunks. Without `networks`, `<lora:...>` and its like do nothing.
    `skips_in_xl`: CLIP skip counts for the first of SDXL's encoders, not for SD 1.x alone.
    `block_presets` are names for weights of LoRAs' blocks, None where those count for nothing.
    """

    clip_skip: int = 1
    emphasis: Emphasis = Emphasis.ORIGINAL
    backtrack: int = 20
    pads: bool = False
    networks: bool = True
    skips_in_xl: bool = False
    telling: TellingSettings = TellingSettings()
    block_presets: Mapping[str, str] | None = field(default_factory=lambda: PRESETS, hash=False)


def read_text_settings(fields: Fields, settings: Fields) -> TextSettings:
    """Raises BadRequest naming the field."""
    return TextSettings(
        clip_skip=_clip_skip(fields, settings),
        emphasis=_emphasis(settings),
        backtrack=settings.integer("comma_padding_backtrack", 20, 0, _BACKTRACK_MAX),
        pads=settings.flag("pad_cond_uncond"),
        networks=not fields.flag("disable_extra_networks"),
        skips_in_xl=settings.flag("sdxl_clip_l_skip"),
        block_presets=read_presets(fields),
        telling=TellingSettings(
            crop=(
                settings.integer("sdxl_crop_top", 0, 0, contract.SIZE_MAX),
                settings.integer("sdxl_crop_left", 0, 0, contract.SIZE_MAX),
            ),
            scores=(
                settings.number("sdxl_refiner_high_aesthetic_score", 6.0, 0, _SCORE_MAX),
                settings.number("sdxl_refiner_low_aesthetic_score", 2.5, 0, _SCORE_MAX),
            ),
        ),
    )


def read_prompt(fields: Fields, name: str) -> str:
    """A prompt without its comments, which go from a `#` to the end of the line."""
    text = fields.prompt(name)
    settings = Fields(fields.mapping("override_settings"), "override_settings.")
    if not settings.flag("enable_prompt_comments", True):
        return text
    return _COMMENT.sub("\n", _COMMENT_LINE.sub("\n", text))


def _clip_skip(fields: Fields, settings: Fields) -> int:
    """The setting decides; beside it, the field of the same name and the WebUI's attribute."""
    skip = 1
    for place, name in (
        (fields, "clip_skip"),
        (fields, "CLIP_stop_at_last_layers"),
        (settings, "CLIP_stop_at_last_layers"),
    ):
        skip = place.integer(name, skip, 1, _CLIP_SKIP_MAX)
    return skip


def _emphasis(settings: Fields) -> Emphasis:
    name = settings.text("emphasis", Emphasis.ORIGINAL.value)
    try:
        return Emphasis(name)
    except ValueError as error:
        raise BadRequest(
            f"override_settings.emphasis {name!r} is not available. Choose one of: "
            f"{', '.join(each.value for each in Emphasis)}.",
            "bad_field",
        ) from error
