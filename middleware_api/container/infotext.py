"""The words that travel with a picture: the WebUI's parameters text and the answer's `info`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import PurePath

from middleware_api import __version__
from middleware_api.container.checkpoint import StableDiffusion
from middleware_api.container.request import GenerationRequest, MaskFill

VERSION = f"sd-aws-extension {__version__}"
_FILL_WORDS = {
    MaskFill.FILL: "fill",
    MaskFill.LATENT_NOISE: "latent noise",
    MaskFill.LATENT_NOTHING: "latent nothing",
}


def seed_of(request: GenerationRequest, index: int) -> int:
    """Picture n has seed + n, unless its variation seed is what changes."""
    return request.seed + (index if request.subseed_strength == 0 else 0)


def extra_params(request: GenerationRequest) -> dict[str, object]:
    """What only an inpainting job adds to the parameters."""
    mask = request.start.mask if request.start else None
    if mask is None:
        return {}
    extra: dict[str, object] = {}
    if mask.invert:
        extra["Mask mode"] = "Inpaint not masked"
    if mask.blur > 0:
        extra["Mask blur"] = _number(mask.blur)
    if mask.only_masked:
        extra |= {"Inpaint area": "Only masked", "Masked area padding": mask.padding}
    if mask.fill in _FILL_WORDS:
        extra["Masked content"] = _FILL_WORDS[mask.fill]
    return extra


def infotext(request: GenerationRequest, model: StableDiffusion, index: int) -> str:
    """Prompt, negative prompt, and one line of `Name: value` pairs, as the WebUI reads back."""
    varied = request.subseed_strength > 0
    pairs: dict[str, object | None] = {
        "Steps": request.steps,
        "Sampler": request.sampler.name,
        "Schedule type": request.schedule,
        "CFG scale": _number(request.cfg_scale),
        "Seed": seed_of(request, index),
        "Size": f"{request.width}x{request.height}",
        "Model hash": model.sha256[:10] or None,
        "Model": model.title,
        "Variation seed": request.subseed + index if varied else None,
        "Variation seed strength": _number(request.subseed_strength) if varied else None,
        "Denoising strength": _number(request.start.denoising_strength) if request.start else None,
        "Clip skip": request.clip_skip if request.clip_skip > 1 else None,
        **extra_params(request),
        "Version": VERSION,
    }
    line = ", ".join(f"{name}: {_quote(v)}" for name, v in pairs.items() if v is not None)
    negative = f"\nNegative prompt: {request.negative_prompt}" if request.negative_prompt else ""
    return f"{request.prompt}{negative}\n{line}"


def info(
    request: GenerationRequest,
    model_name: str,
    sha256: str,
    infotexts: Sequence[str],
    warnings: Sequence[str],
    started: datetime,
) -> dict[str, object]:
    """The `info` object of the WebUI 1.10.1 API, plus `warnings`.

    `model_name` is the checkpoint's file name. A job that was cancelled early has no model: then
    `sha256` may be empty.
    """
    count = len(infotexts)
    return {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * count,
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * count,
        "seed": request.seed,
        "all_seeds": [seed_of(request, i) for i in range(count)],
        "subseed": request.subseed,
        "all_subseeds": [request.subseed + i for i in range(count)],
        "subseed_strength": request.subseed_strength,
        "width": request.width,
        "height": request.height,
        "sampler_name": request.sampler.name,
        "cfg_scale": request.cfg_scale,
        "steps": request.steps,
        "batch_size": request.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": PurePath(model_name).stem,
        "sd_model_hash": sha256[:10],
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": request.start.denoising_strength if request.start else None,
        "extra_generation_params": extra_params(request),
        "index_of_first_image": 0,
        "infotexts": list(infotexts),
        "styles": list(request.styles),
        "job_timestamp": started.strftime("%Y%m%d%H%M%S"),
        "clip_skip": request.clip_skip,
        "is_using_inpainting_conditioning": False,
        "version": VERSION,
        "warnings": list(warnings),
    }


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _quote(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",\n:") else text
