"""The words that travel with a picture: the WebUI's parameters text and the answer's `info`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime

from middleware_api import __version__
from middleware_api.container.engine.hires import HiresRequest
from middleware_api.container.engine.request import GenerationRequest, MaskFill, MaskRequest
from middleware_api.container.engine.roles import Roles
from middleware_api.container.samplers.sampling_settings import (
    ZERO_SNR,
    NoiseSource,
    SamplingSettings,
    UniPCSettings,
)
from middleware_api.weights_name import WeightsName

VERSION = f"sd-aws-extension {__version__}"
MASK_STRENGTH = "Conditional mask weight"  # of pictures that an inpainting model made
_FILL_WORDS = {
    MaskFill.FILL: "fill",
    MaskFill.LATENT_NOISE: "latent noise",
    MaskFill.LATENT_NOTHING: "latent nothing",
}


def seed_of(request: GenerationRequest, index: int) -> int:
    """Picture n has seed + n, unless its variation seed is what changes."""
    return request.seed + (index if request.subseed_strength == 0 else 0)


def extra_params(
    request: GenerationRequest, names: Roles[WeightsName], texts: Mapping[str, str]
) -> dict[str, object]:
    """What only some requests add to the parameters, in the WebUI's order."""
    extra: dict[str, object] = {
        f"ControlNet {place}": unit.describe() for place, unit in enumerate(request.control.units)
    }
    if request.start is not None and request.start.mask is not None:
        extra |= _inpainting(request.start.mask)
    if request.hires is not None:
        extra |= _hires(request, request.hires, names)
    extra |= {name: text for name, text in texts.items() if name != MASK_STRENGTH}
    if request.refiner is not None and names.refiner is not None and request.is_refined:
        extra["Refiner"] = names.refiner.short_title
        extra["Refiner switch at"] = _number(request.refiner.switch_at)
    return extra | _sampling(request)


def _sampling(request: GenerationRequest) -> dict[str, object]:
    """The settings that change this sampler's pictures, under the names the WebUI reads back."""
    sampler, settings = request.sampler, request.sampling
    guidance, churn = settings.guidance, settings.churn
    extra: dict[str, object] = {}
    if request.start is not None and settings.initial_noise != 1:
        extra["Noise multiplier"] = _number(settings.initial_noise)
    if settings.extra_noise and (request.start or request.hires):
        extra["Extra noise"] = _number(settings.extra_noise)
    eta = sampler.eta_of(settings)
    if eta != sampler.eta_of(SamplingSettings()):
        extra["Eta DDIM" if sampler.is_on_timesteps else "Eta"] = _number(eta)
    if sampler.churns and churn.amount:
        extra["Sigma churn"] = _number(churn.amount)
        extra["Sigma tmin"] = _number(churn.low)
        extra["Sigma tmax"] = _number(churn.high) if churn.high < math.inf else 0
    if settings.noise != 1:
        extra["Sigma noise"] = _number(settings.noise)
    if settings.discard_penultimate and not sampler.discard_penultimate:
        extra["Discard penultimate sigma"] = True
    if settings.schedule.zero_snr:
        extra["Noise Schedule"] = ZERO_SNR
    if not sampler.is_on_timesteps:
        extra |= _schedule(request)
    if sampler.name == "UniPC":
        extra |= _unipc(settings.unipc)
    if guidance.skip_below:
        extra["NGMS"] = _number(guidance.skip_below)
        if guidance.skip_all:
            extra["NGMS all steps"] = True
    if guidance.skip_early:
        extra["Skip Early CFG"] = _number(guidance.skip_early)
    return extra


def _schedule(request: GenerationRequest) -> dict[str, object]:
    settings = request.sampling.schedule
    extra: dict[str, object] = {}
    if request.sampling.sgm_noise and request.start is None:
        extra["SGM noise multiplier"] = True
    for name, value in (
        ("Schedule min sigma", settings.sigma_min),
        ("Schedule max sigma", settings.sigma_max),
        ("Schedule rho", settings.rho),
    ):
        if value:
            extra[name] = _number(value)
    if request.schedule == "Beta":
        extra["Beta schedule alpha"] = _number(settings.beta_alpha)
        extra["Beta schedule beta"] = _number(settings.beta_beta)
    return extra


def _unipc(settings: UniPCSettings) -> dict[str, object]:
    usual = UniPCSettings()
    named: dict[str, tuple[object, object]] = {
        "UniPC variant": (settings.variant, usual.variant),
        "UniPC skip type": (settings.skip_type, usual.skip_type),
        "UniPC order": (settings.order, usual.order),
        "UniPC lower order final": (settings.lower_order_final, usual.lower_order_final),
    }
    return {name: value for name, (value, default) in named.items() if value != default}


def _inpainting(mask: MaskRequest) -> dict[str, object]:
    extra: dict[str, object] = {}
    if mask.invert:
        extra["Mask mode"] = "Inpaint not masked"
    across, down = mask.blur
    if across == down > 0:
        extra["Mask blur"] = _number(across)
    if mask.only_masked:
        extra |= {"Inpaint area": "Only masked", "Masked area padding": mask.padding}
    if mask.fill in _FILL_WORDS:
        extra["Masked content"] = _FILL_WORDS[mask.fill]
    return extra


def _hires(
    request: GenerationRequest, hires: HiresRequest, names: Roles[WeightsName]
) -> dict[str, object]:
    """Only what differs from the first pass."""
    extra: dict[str, object] = {}
    if names.second_pass is not None:
        extra["Hires checkpoint"] = names.second_pass.short_title
    if hires.sampler is not request.sampler:
        extra["Hires sampler"] = hires.sampler.name
    if hires.prompt != request.prompt:
        extra["Hires prompt"] = hires.prompt
    if hires.negative_prompt != request.negative_prompt:
        extra["Hires negative prompt"] = hires.negative_prompt
    schedule = hires.sampler.named_schedule(hires.schedule)
    if schedule not in ("Automatic", request.sampler.named_schedule(request.schedule)):
        extra["Hires schedule type"] = schedule
    if hires.resize == (0, 0):
        extra["Hires upscale"] = _number(hires.scale)
    else:
        extra["Hires resize"] = f"{hires.resize[0]}x{hires.resize[1]}"
    if hires.cfg_scale != request.cfg_scale:
        extra["Hires CFG Scale"] = _number(hires.cfg_scale)
    if hires.steps_given:
        extra["Hires steps"] = hires.steps
    if hires.upscaler_given:
        extra["Hires upscaler"] = hires.upscaler.name
    return extra


def _strength(request: GenerationRequest) -> float | None:
    for part in (request.start, request.hires):
        if part is not None:
            return part.denoising_strength
    return None


def infotext(
    request: GenerationRequest, names: Roles[WeightsName], texts: Mapping[str, str], index: int
) -> str:
    """Prompt, negative prompt, and one line of `Name: value` pairs, as the WebUI reads back.

    `texts` are what the prompts add: hashes of what they name, and the kind of emphasis.
    """
    varied = request.subseed_strength > 0
    strength = _strength(request)
    resized = request.seed_resize_from
    pairs: dict[str, object | None] = {
        "Steps": request.steps,
        "Sampler": request.sampler.name,
        "Schedule type": request.sampler.named_schedule(request.schedule),
        "CFG scale": _number(request.cfg_scale),
        "Seed": seed_of(request, index),
        "Size": f"{request.width}x{request.height}",
        "Model hash": names.main.short_hash or None,
        "Model": names.main.stem,
        "VAE hash": names.vae.short_hash or None if names.vae else None,
        "VAE": names.vae.name if names.vae else None,
        "Variation seed": request.subseed + index if varied else None,
        "Variation seed strength": _number(request.subseed_strength) if varied else None,
        "Seed resize from": "{}x{}".format(*resized) if resized else None,
        "Denoising strength": None if strength is None else _number(strength),
        MASK_STRENGTH: texts.get(MASK_STRENGTH),
        "Clip skip": request.text.clip_skip if request.text.clip_skip > 1 else None,
        "ENSD": _ensd(request),
        "RNG": None if request.noise_source is NoiseSource.GPU else request.noise_source.value,
        "Tiling": True if request.tiling else None,
        **extra_params(request, names, texts),
        "Version": VERSION,
    }
    negative = f"\nNegative prompt: {request.negative_prompt}" if request.negative_prompt else ""
    return f"{request.prompt}{negative}\n{parameters_line(pairs)}"


def _ensd(request: GenerationRequest) -> int | None:
    """None where it changes nothing."""
    used = request.sampler.uses_ensd and request.sampler.eta_of(request.sampling) > 0
    return request.sampling.eta_delta or None if used else None


def parameters_line(pairs: Mapping[str, object | None]) -> str:
    """`Name: value, Name: value` of those that have a value."""
    return ", ".join(f"{name}: {_quote(v)}" for name, v in pairs.items() if v is not None)


def info(
    request: GenerationRequest,
    names: Roles[WeightsName],
    texts: Mapping[str, str],
    infotexts: Sequence[str],
    warnings: Sequence[str],
    started: datetime,
) -> dict[str, object]:
    """The `info` object of the WebUI 1.10.1 API, plus `warnings`."""
    count = len(infotexts)
    width, height = request.seed_resize_from or (-1, -1)
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
        "sd_model_name": names.main.stem,
        "sd_model_hash": names.main.short_hash,
        "sd_vae_name": names.vae.name if names.vae else None,
        "sd_vae_hash": names.vae.short_hash if names.vae else None,
        "seed_resize_from_w": width,
        "seed_resize_from_h": height,
        "denoising_strength": _strength(request),
        "extra_generation_params": extra_params(request, names, texts),
        "index_of_first_image": 0,
        "infotexts": list(infotexts),
        "styles": list(request.styles),
        "job_timestamp": started.strftime("%Y%m%d%H%M%S"),
        "clip_skip": request.text.clip_skip,
        "is_using_inpainting_conditioning": MASK_STRENGTH in texts,
        "version": VERSION,
        "warnings": list(warnings),
    }


def _number(value: float) -> float | int:
    return int(value) if value == int(value) else value


def _quote(value: object) -> str:
    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(c in text for c in ",\n:") else text
