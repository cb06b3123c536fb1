"""Small random models of the families beside SD 1.x, as a real WebUI 1.10.1 loads them, and what is
asked of both.

Beside each file goes a `.yaml` with its sizes. The text encoders are of sizes that the WebUI's
packages know: OpenCLIP's `ViT-S-32-alt`, and CLIP's of the demo checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from middleware_api.container.engine.checkpoint_shapes import TextShape, UNetShape, VaeShape
from middleware_api.container.engine.families import SD1, SD2, SDXL, SDXL_REFINER, Layout
from middleware_api.container.engine.loading import CheckpointFile
from middleware_api.container.engine.roles import Roles
from tests.engine_checkpoints import Size, Tensors, random_tensors
from tests.parity.cases import drawn_mask, drawn_scene
from tests.sample_networks import Draw

_CLIP = TextShape(49408, 77, 64, 256, 2)
_OPEN = TextShape(49408, 77, 256, 1024, 10, Layout.OPEN_CLIP)
_POOLED = replace(_OPEN, pooled=256)
_VAE = VaeShape((32, 32, 32, 32), 1, 4)
_XL_UNET = UNetShape(4, 4, (64, 128), 1, (0, 2), 320, 2, is_linear=True, added=256 + 6 * 256)
_REFINER_UNET = replace(_XL_UNET, context_dim=256, added=256 + 5 * 256)


@dataclass(frozen=True)
class Model:
    """A file and its `.yaml`."""

    size: Size
    settings: dict[str, Any]
    seed: int
    mark: str = ""

    def tensors(self) -> Tensors:
        tensors = random_tensors(self.size, self.seed)
        # The WebUI draws from what a VAE sees by chance of its own: here there is nothing to draw.
        for leaf in ("weight", "bias"):
            whole = tensors[f"first_stage_model.quant_conv.{leaf}"].clone()
            whole[4:] = -20.0 if leaf == "bias" else 0.0
            tensors[f"first_stage_model.quant_conv.{leaf}"] = whole
        # Emphasis keeps the mean of what is read, and divides by it: one of exactly 0 is no number.
        for name, tensor in tensors.items():
            if name.endswith(("ln_final.bias", "final_layer_norm.bias")):
                tensors[name] = torch.full_like(tensor, 0.3)
        return tensors | ({self.mark: torch.zeros(0)} if self.mark else {})

    def write(self, path: Path) -> Path:
        save_file(self.tensors(), path)
        path.with_suffix(".yaml").write_text(json.dumps({"model": self.settings}, indent=1))
        return path


def _unet(shape: UNetShape, **more: object) -> dict[str, Any]:
    return {
        "image_size": 8,
        "in_channels": shape.in_channels,
        "out_channels": 4,
        "model_channels": shape.block_channels[0],
        "attention_resolutions": [2**i for i, depth in enumerate(shape.depths) if depth],
        "num_res_blocks": shape.layers_per_block,
        "channel_mult": [c // shape.block_channels[0] for c in shape.block_channels],
        "use_spatial_transformer": True,
        "context_dim": shape.context_dim,
        "use_checkpoint": False,
        "legacy": False,
        **({"num_head_channels": 64} if shape.is_linear else {"num_heads": 8}),
        **({"use_linear_in_transformer": True} if shape.is_linear else {}),
        **more,
    }


_DD = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 64,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}
_ENCODER = {"embed_dim": 4, "ddconfig": _DD, "lossconfig": {"target": "torch.nn.Identity"}}


def _ldm(unet: dict[str, Any], text: dict[str, Any], **more: object) -> dict[str, Any]:
    latent = "LatentInpaintDiffusion" if unet["in_channels"] == 9 else "LatentDiffusion"
    return {
        "target": f"ldm.models.diffusion.ddpm.{latent}",
        "params": {
            "linear_start": 0.00085,
            "linear_end": 0.0120,
            "num_timesteps_cond": 1,
            "timesteps": 1000,
            "first_stage_key": "jpg",
            "cond_stage_key": "txt",
            "image_size": 8,
            "channels": 4,
            "cond_stage_trainable": False,
            "conditioning_key": "hybrid" if unet["in_channels"] == 9 else "crossattn",
            "scale_factor": 0.18215,
            "use_ema": False,
            **({"finetune_keys": None} if unet["in_channels"] == 9 else {}),
            "unet_config": {
                "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
                "params": unet,
            },
            "first_stage_config": {
                "target": "ldm.models.autoencoder.AutoencoderKL",
                "params": _ENCODER,
            },
            "cond_stage_config": {
                "target": f"ldm.modules.encoders.modules.{text.pop('kind')}",
                "params": text,
            },
            **more,
        },
    }


def _sgm(unet: dict[str, Any], texts: list[dict[str, Any]], numbers: list[str]) -> dict[str, Any]:
    diffusion = "sgm.modules.diffusionmodules"
    encoders = [
        {
            "is_trainable": False,
            "input_key": "txt",
            "target": f"sgm.modules.encoders.modules.{text.pop('kind')}",
            "params": text,
        }
        for text in texts
    ]
    told = [
        {
            "is_trainable": False,
            "input_key": name,
            "target": "sgm.modules.encoders.modules.ConcatTimestepEmbedderND",
            "params": {"outdim": 256},
        }
        for name in numbers
    ]
    return {
        "target": "sgm.models.diffusion.DiffusionEngine",
        "params": {
            "scale_factor": 0.13025,
            "disable_first_stage_autocast": True,
            "denoiser_config": {
                "target": f"{diffusion}.denoiser.DiscreteDenoiser",
                "params": {
                    "num_idx": 1000,
                    "weighting_config": {"target": f"{diffusion}.denoiser_weighting.EpsWeighting"},
                    "scaling_config": {"target": f"{diffusion}.denoiser_scaling.EpsScaling"},
                    "discretization_config": {
                        "target": f"{diffusion}.discretizer.LegacyDDPMDiscretization"
                    },
                },
            },
            "network_config": {"target": f"{diffusion}.openaimodel.UNetModel", "params": unet},
            "conditioner_config": {
                "target": "sgm.modules.GeneralConditioner",
                "params": {"emb_models": encoders + told},
            },
            "first_stage_config": {
                "target": "sgm.models.autoencoder.AutoencoderKLInferenceWrapper",
                "params": _ENCODER,
            },
        },
    }


def _clip(**more: object) -> dict[str, Any]:
    return {"kind": "FrozenCLIPEmbedder", "version": "models/demo-text-encoder"} | more


def _open(kind: str, **more: object) -> dict[str, Any]:
    return {"kind": kind, "arch": "ViT-S-32-alt", "layer": "penultimate", "freeze": True} | more


def _xl_unet(shape: UNetShape) -> dict[str, Any]:
    """Without the size that only LDM's asks for."""
    depths = [max(1, depth) for depth in shape.depths]
    told = {"adm_in_channels": shape.added, "num_classes": "sequential"}
    unet = _unet(shape, transformer_depth=depths, **told)
    return {name: value for name, value in unet.items() if name != "image_size"}


@cache
def models() -> dict[str, Model]:
    """By their files' names without the ending."""
    two = Size(UNetShape(4, 4, (64, 128), 1, (1, 0), 256, is_linear=True), _VAE, (_OPEN,), SD2)
    inpaint = Size(UNetShape(9, 4, (32, 64), 1, (1, 0), 64), _VAE, (_CLIP,), SD1)
    pooled = _open("FrozenOpenCLIPEmbedder2", always_return_pooled=True, legacy=False)
    sizes = ["original_size_as_tuple", "crop_coords_top_left"]

    def sd2(**more: object) -> dict[str, Any]:
        return _ldm(_unet(two.unet), _open("FrozenOpenCLIPEmbedder"), **more)

    return {
        "two": Model(two, sd2(), 21),
        "two-v": Model(two, sd2(parameterization="v"), 22, mark="v_pred"),
        "xl": Model(
            Size(_XL_UNET, _VAE, (_CLIP, _POOLED), SDXL),
            _sgm(
                _xl_unet(_XL_UNET),
                [_clip(layer="hidden", layer_idx=1), dict(pooled)],
                [*sizes, "target_size_as_tuple"],
            ),
            23,
        ),
        "xl-refiner": Model(
            Size(_REFINER_UNET, _VAE, (_POOLED,), SDXL_REFINER),
            _sgm(_xl_unet(_REFINER_UNET), [dict(pooled)], [*sizes, "aesthetic_score"]),
            24,
        ),
        "one-inpainting": Model(inpaint, _ldm(_unet(inpaint.unet), _clip()), 25),
    }


def _pairs(*layers: tuple[str, int, int]) -> Tensors:
    draw = Draw(31)
    tensors: Tensors = {}
    for name, out, into in layers:
        tensors[f"{name}.lora_down.weight"] = draw(4, into)
        tensors[f"{name}.lora_up.weight"] = draw(out, 4)
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    return tensors


# Layers by the names of LDM's modules: the WebUI's table from diffusers' knows SD 1.5's depth. Of
# OpenCLIP's attention it takes all four or none.
_OPEN_LAYERS = (
    *((f"self_attn_{side}_proj", 256, 256) for side in ("q", "k", "v", "out")),
    ("mlp_fc2", 256, 1024),
)
LORAS = {
    "ink-two": lambda: _pairs(
        ("lora_unet_input_blocks_1_1_transformer_blocks_0_attn2_to_k", 64, 256),
        ("lora_unet_input_blocks_1_1_proj_in", 64, 64),
        *(
            (f"lora_te_text_model_encoder_layers_3_{part}", out, into)
            for part, out, into in _OPEN_LAYERS
        ),
    ),
    "ink-xl": lambda: _pairs(
        ("lora_unet_input_blocks_3_1_transformer_blocks_1_attn2_to_v", 128, 320),
        ("lora_unet_middle_block_1_transformer_blocks_0_ff_net_0_proj", 1024, 128),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", 256, 64),
        *(
            (f"lora_te2_text_model_encoder_layers_4_{part}", out, into)
            for part, out, into in _OPEN_LAYERS
        ),
    ),
}
EMBEDDINGS = {
    "glow-xl": lambda: {"clip_l": Draw(32)(2, 64), "clip_g": Draw(33)(2, 256)},
    "glow-two": lambda: {"emb_params": Draw(34)(3, 256)},
}


def write_all(folder: Path) -> None:
    """Everything that the cases name, as a WebUI's data folder has it."""
    places = ("models/Stable-diffusion", "models/Lora", "embeddings")
    checkpoints, loras, embeddings = (folder / place for place in places)
    for place in (checkpoints, loras, embeddings):
        place.mkdir(parents=True, exist_ok=True)
    for name, model in models().items():
        model.write(checkpoints / f"{name}.safetensors")
    for place, files in ((loras, LORAS), (embeddings, EMBEDDINGS)):
        for name, make in files.items():
            save_file(make(), place / f"{name}.safetensors")


@dataclass(frozen=True)
class FamilyCase:
    """One request of a model; its picture is 64x64 unless it says otherwise."""

    name: str
    model: str
    fields: dict[str, object] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def task(self) -> str:
        return "img2img" if "init_images" in self.fields else "txt2img"

    @property
    def body(self) -> dict[str, object]:
        """As the engine is asked."""
        small = {
            "prompt": "a large red circle",
            "negative_prompt": "green",
            "seed": 1,
            "steps": 6,
            "width": 64,
            "height": 64,
            "sampler_name": "Euler",
        }
        return small | self.fields | {"override_settings": self.settings}


def files_of(case: FamilyCase, folder: Path) -> Roles[CheckpointFile]:
    """What the case names, from a folder that `write_all` filled."""

    def file(place: str, name: str) -> CheckpointFile:
        path = folder / place / f"{name}.safetensors"
        return CheckpointFile(path, path.name, name, name)

    prompt = str(case.body["prompt"])
    refined = "refiner_checkpoint" in case.fields
    return Roles(
        file("models/Stable-diffusion", case.model),
        refiner=file("models/Stable-diffusion", "xl-refiner") if refined else None,
        loras=tuple(file("models/Lora", name) for name in LORAS if name in prompt),
        embeddings=tuple(file("embeddings", name) for name in EMBEDDINGS if name in prompt),
    )


_LONG = (
    "a (red:1.3) circle, [blue:green:0.5] ring BREAK "
    + "one two three, " * 20
    + "a [square|ring] &amp; nothing AND a small ((yellow)) triangle :0.7"
)


def _cases() -> Iterator[FamilyCase]:
    picture: dict[str, object] = {"init_images": [drawn_scene()], "denoising_strength": 0.6}
    mask: dict[str, object] = {"mask": drawn_mask(), "mask_blur": 0, "inpaint_full_res": False}
    hires: dict[str, object] = {"enable_hr": True, "width": 32, "height": 32}
    hires["denoising_strength"] = 0.7
    yield FamilyCase("SD 2", "two")
    yield FamilyCase("SD 2, long prompt", "two", {"prompt": _LONG, "clip_skip": 2})
    # Not LCM: the WebUI's takes every answer for noise.
    for sampler in ("Euler", "DPM++ 2M SDE", "DDIM", "UniPC"):
        yield FamilyCase(f"SD 2 of velocity, {sampler}", "two-v", {"sampler_name": sampler})
    zero: dict[str, object] = {"sd_noise_schedule": "Zero Terminal SNR"}
    for sampler in ("Euler a", "DDIM", "UniPC"):
        yield FamilyCase(
            f"SD 2 of velocity, zero SNR, {sampler}", "two-v", {"sampler_name": sampler}, zero
        )
    yield FamilyCase("SDXL", "xl")
    yield FamilyCase("SDXL, nothing to avoid", "xl", {"negative_prompt": ""})
    yield FamilyCase("SDXL, long prompt", "xl", {"prompt": _LONG})
    yield FamilyCase("SDXL, no norm", "xl", {"prompt": _LONG}, {"emphasis": "No norm"})
    yield FamilyCase("SDXL, clip skip", "xl", {}, {"CLIP_stop_at_last_layers": 2})
    yield FamilyCase(
        "SDXL, clip skip for it",
        "xl",
        {},
        {"CLIP_stop_at_last_layers": 3, "sdxl_clip_l_skip": True},
    )
    yield FamilyCase("SDXL, cut", "xl", {}, {"sdxl_crop_top": 16, "sdxl_crop_left": 300})
    yield FamilyCase("SDXL, Align Your Steps", "xl", {"scheduler": "Align Your Steps"})
    yield FamilyCase("SDXL, wide", "xl", {"width": 96, "batch_size": 2})
    yield FamilyCase("SDXL, padded", "xl", {"prompt": _LONG}, {"pad_cond_uncond": True})
    yield FamilyCase("SDXL img2img", "xl", picture)
    yield FamilyCase("SDXL hires", "xl", hires | {"hr_upscaler": "Latent"})
    yield FamilyCase(
        "SDXL hires of a picture", "xl", hires | {"hr_resize_x": 64, "hr_upscaler": "Lanczos"}
    )
    for sampler in ("Euler", "DPM++ 2M", "DDIM"):
        yield FamilyCase(
            f"SDXL with its refiner, {sampler}",
            "xl",
            {"refiner_checkpoint": "xl-refiner.safetensors", "refiner_switch_at": 0.6}
            | {"sampler_name": sampler},
        )
    for model, family in (("two", "SD 2"), ("xl", "SDXL")):
        yield FamilyCase(
            f"{family} LoRA", model, {"prompt": f"a red circle <lora:ink-{model}:0.8>"}
        )
        words = f"a (glow-{model}:1.2) circle, glow-{model}"
        yield FamilyCase(f"{family} embedding", model, {"prompt": words})
    yield FamilyCase("refiner alone", "xl-refiner", {"negative_prompt": ""})
    yield FamilyCase("inpainting model, no picture", "one-inpainting")
    for sampler in ("Euler", "DDIM"):
        yield FamilyCase(
            f"inpainting model, mask, {sampler}",
            "one-inpainting",
            picture | mask | {"sampler_name": sampler, "inpainting_fill": 1},
        )
    yield FamilyCase("inpainting model, no mask", "one-inpainting", picture)
    yield FamilyCase(
        "inpainting model, weak mask",
        "one-inpainting",
        picture | mask | {"inpainting_fill": 1},
        {"inpainting_mask_weight": 0.4},
    )


CASES = tuple(_cases())
