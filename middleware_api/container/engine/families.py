"""The families of Stable Diffusion that this engine reads, and how their files are told apart.

A family is known by its tensors' names alone, as in the WebUI 1.10.1.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum


class Layout(Enum):
    """Whose names and habits a text encoder has: transformers' CLIP, or OpenCLIP."""

    CLIP = "CLIP"
    OPEN_CLIP = "OpenCLIP"


@dataclass(frozen=True)
class TextSource:
    """A text encoder in a family's files, and how it is read.

    `has_skip`: from the layer that CLIP skip names, else always from the one before the last.
    `is_normed`: through the encoder's last norm. `embedding` is its vectors' name in a textual
    inversion file for several encoders, `lora` what its layers' names begin with in a LoRA.
    """

    prefix: str
    layout: Layout
    has_skip: bool = False
    is_normed: bool = True
    is_pooled: bool = False
    embedding: str = ""
    lora: tuple[str, ...] = ("lora_te_text_model_", "lora_te1_text_model_")


@dataclass(frozen=True)
class Family:
    """What all files of a family have in common.

    Latents times `vae_scale` have unit spread: families of one scale read each other's. `numbers`
    is how many the UNet is told beside the text: sizes, and for a refiner the aesthetic score.
    """

    name: str
    texts: tuple[TextSource, ...]
    vae_scale: float
    numbers: int = 0

    @property
    def is_xl(self) -> bool:
        return self.numbers > 0

    @property
    def text_prefixes(self) -> tuple[str, ...]:
        return tuple(text.prefix for text in self.texts)


_BIG_G = TextSource(
    "conditioner.embedders.1.model.",
    Layout.OPEN_CLIP,
    is_normed=False,
    is_pooled=True,
    embedding="clip_g",
    lora=("lora_te2_text_model_",),
)
SD1 = Family(
    "Stable Diffusion 1.x",
    (TextSource("cond_stage_model.transformer.", Layout.CLIP, has_skip=True),),
    0.18215,
)
SD2 = Family(
    "Stable Diffusion 2.x", (TextSource("cond_stage_model.model.", Layout.OPEN_CLIP),), 0.18215
)
SDXL = Family(
    "Stable Diffusion XL",
    (
        TextSource(
            "conditioner.embedders.0.transformer.",
            Layout.CLIP,
            is_normed=False,
            embedding="clip_l",
            lora=("lora_te1_text_model_",),
        ),
        _BIG_G,
    ),
    0.13025,
    numbers=6,
)
SDXL_REFINER = Family(
    "Stable Diffusion XL refiner",
    (
        TextSource(
            "conditioner.embedders.0.model.",
            Layout.OPEN_CLIP,
            is_normed=False,
            is_pooled=True,
            lora=_BIG_G.lora,
        ),
    ),
    0.13025,
    numbers=5,
)
# SD Turbo, which is 2.1 under other names.
_SD2_TURBO = Family(
    SD2.name, (TextSource("conditioner.embedders.0.model.", Layout.OPEN_CLIP),), SD2.vae_scale
)
NAMES = "Stable Diffusion 1.x, 2.x and XL"

# First match wins: a substring that only that kind of file has in its tensor names.
_OTHERS = (
    ("joint_blocks.", "a Stable Diffusion 3 checkpoint"),
    ("double_blocks.", "a Flux checkpoint"),
    ("double_layers.", "an AuraFlow checkpoint"),
    ("edm_vpred.", "a CosXL checkpoint"),
    ("edm_mean", "a Playground 2.5 checkpoint"),
    ("depth_model.", "a depth-to-image checkpoint of Stable Diffusion 2"),
    ("embedder.model.visual.", "an unCLIP checkpoint of Stable Diffusion 2.1"),
    ("cond_stage_model.roberta.", "an AltDiffusion checkpoint"),
    ("control_model.", "a ControlNet"),
    ("controlnet_cond_embedding.", "a ControlNet"),
    ("lora_", "a LoRA"),
    ("string_to_param", "a textual inversion embedding"),
    ("emb_params", "a textual inversion embedding"),
    ("down_blocks.", "one part of a diffusers folder"),
)

_TOLD_BESIDE = ".label_emb."  # which every UNet of SDXL's kind has


def other_kind_of(names: Collection[str]) -> str | None:
    """What a file is, with its article, when it is known and none of the families."""
    return next((kind for mark, kind in _OTHERS if any(mark in name for name in names)), None)


def family_of(names: Collection[str]) -> Family:
    """By the text encoders; SD 1.x where there are none."""
    refiner = SDXL_REFINER if any(_TOLD_BESIDE in name for name in names) else _SD2_TURBO
    for family in (SDXL, refiner, SD2):
        if any(name.startswith(family.texts[-1].prefix) for name in names):
            return family
    return SD1


# The names under which the families' VAEs went around.
_VAE_NAMES = (
    (re.compile(r"sdxl|xl[-_ .]?vae", re.IGNORECASE), SDXL),
    (re.compile(r"vae-ft-(mse|ema)|kl-f8|orangemix", re.IGNORECASE), SD1),
)


def vae_family_of(name: str, metadata: Mapping[str, str]) -> Family | None:
    """What a VAE file seems to belong to; all of them have the same tensors."""
    told = metadata.get("modelspec.architecture", "").casefold()
    if told.startswith("stable-diffusion"):
        return SDXL if told.startswith("stable-diffusion-xl") else SD1
    return next((family for names, family in _VAE_NAMES if names.search(name)), None)
