"""Families beside SD 1.x, held to diffusers' own pipelines with the same small files.

Diffusers reads the file by itself (`from_single_file`); only the sizes of its parts come from here.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from middleware_api.container.engine import CheckpointFile, Engine, Models
from middleware_api.container.families import SD2
from middleware_api.container.noise import generator_of
from middleware_api.container.prompts import TOKENIZER_FOLDER, PromptEncoder
from middleware_api.container.request import GenerationRequest, parse_request
from middleware_api.container.roles import Roles
from tests.engine_checkpoints import (
    TINY,
    TINY_2,
    TINY_REFINER,
    TINY_XL,
    Size,
    Tensors,
    random_tensors,
    write_checkpoint,
)

# What diffusers' schedulers do with numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SIZES = {"one": TINY, "two": TINY_2, "xl": TINY_XL, "refiner": TINY_REFINER}
SIDE = 32


@dataclass(frozen=True)
class Files:
    """A folder with a file of each family."""

    folder: Path

    def of(self, name: str) -> CheckpointFile:
        path = self.folder / f"{name}.safetensors"
        if not path.is_file():
            write_checkpoint(path, SIZES[name], seed=3)
        return CheckpointFile(path, path.name, name, "")

    def made(self, name: str, size: Size, changed: Tensors, **metadata: str) -> CheckpointFile:
        path = self.folder / f"{name}.safetensors"
        save_file(random_tensors(size, seed=3) | changed, path, metadata)
        return CheckpointFile(path, path.name, name, "")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    torch.set_num_threads(1)
    return Files(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(torch.device("cpu"), 10**9, PromptEncoder())


def request_of(**fields: object) -> GenerationRequest:
    small = {"prompt": "a red circle", "negative_prompt": "green", "seed": 7, "steps": 3}
    sized = {"width": SIDE, "height": SIDE, "sampler_name": "Euler", "scheduler": "Uniform"}
    task = "img2img" if "init_images" in fields else "txt2img"
    return parse_request(task, json.dumps(small | sized | fields).encode(), random.Random(0))


def guidance_of(engine: Engine, models: Models, request: GenerationRequest) -> Any:
    return engine._passes(models, request)[-1].denoise


def pictures_of(engine: Engine, models: Models, request: GenerationRequest) -> list[np.ndarray]:
    made = engine.generate(models, request, lambda step: None)
    return [np.asarray(each.image, dtype=np.float32) for each in made]


def config_folder(folder: Path, size: Size, kind: type[DiffusionPipeline]) -> Path:
    """What diffusers asks of a folder beside a single file: the sizes, and how to sample."""
    prediction = "v_prediction" if kind is StableDiffusionPipeline else "epsilon"
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="linspace",
        steps_offset=1,
        prediction_type=prediction,
    )
    unet = dict(size.unet.config())
    vae = dict(size.vae.config()) | {"scaling_factor": size.family.vae_scale}
    parts: dict[str, Any] = {"scheduler": scheduler}
    with torch.device("meta"):
        parts["unet"] = UNet2DConditionModel(**unet)
        parts["vae"] = AutoencoderKL(**vae)
    names = ["text_encoder", "text_encoder_2"]
    names = names[-len(size.texts) :] if size.family.is_xl else names[:1]
    for shape, source, name in zip(size.texts, size.family.texts, names, strict=True):
        config = shape.config()
        if size.family is SD2:  # diffusers has SD 2's encoder without the layer that is not read
            config.num_hidden_layers -= 1
        config.projection_dim = shape.pooled or config.projection_dim
        of = CLIPTextModelWithProjection if source.is_pooled else CLIPTextModel
        with torch.device("meta"):
            parts[name] = of(config)
        parts[name.replace("text_encoder", "tokenizer")] = name
    index: dict[str, Any] = {"_class_name": kind.__name__, "_diffusers_version": "0.30"}
    for name, part in parts.items():
        place = folder / name
        if name.startswith("tokenizer"):
            tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER_FOLDER, local_files_only=True)
            if name == "tokenizer_2" or size.family.texts[0].layout.value == "OpenCLIP":
                tokenizer.pad_token = "!"  # number 0
            tokenizer.model_max_length = 77
            tokenizer.save_pretrained(place)
            index[name] = ["transformers", "CLIPTokenizer"]
        elif name.startswith("text_encoder"):
            part.config.save_pretrained(place)
            index[name] = ["transformers", type(part).__name__]
        else:
            part.save_config(place)
            index[name] = ["diffusers", type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def two(files: Files) -> StableDiffusionPipeline:
    folder = config_folder(files.folder / "two", TINY_2, StableDiffusionPipeline)
    return StableDiffusionPipeline.from_single_file(
        str(files.of("two").path),
        config=str(folder),
        local_files_only=True,
        safety_checker=None,
        torch_dtype=torch.float32,
    )


@pytest.fixture(scope="module")
def xl(files: Files) -> StableDiffusionXLPipeline:
    folder = config_folder(files.folder / "xl", TINY_XL, StableDiffusionXLPipeline)
    return StableDiffusionXLPipeline.from_single_file(
        str(files.of("xl").path),
        config=str(folder),
        local_files_only=True,
        add_watermarker=False,
        torch_dtype=torch.float32,
    )


def noise_of(request: GenerationRequest) -> torch.Tensor:
    return torch.randn(1, 4, SIDE // 8, SIDE // 8, generator=generator_of(request.seed))


def test_sd2_reads_prompts_as_diffusers_does(
    engine: Engine, files: Files, two: StableDiffusionPipeline
) -> None:
    request = request_of()
    with engine.load(Roles(files.of("two"))) as models, torch.inference_mode():
        ours = guidance_of(engine, models, request).guidance.at(0)
        theirs = two.encode_prompt(request.prompt, "cpu", 1, True, request.negative_prompt)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.beside is None
        assert torch.allclose(mine.tokens, other, atol=1e-4)


def test_an_sd2_that_answers_with_velocity_makes_diffusers_picture(
    engine: Engine, files: Files, two: StableDiffusionPipeline
) -> None:
    request = request_of()
    told = files.made("velocity", TINY_2, {}, **{"modelspec.prediction_type": "v"})
    with engine.load(Roles(told)) as models, torch.inference_mode():
        (ours,) = pictures_of(engine, models, request)
    theirs = two(
        request.prompt,
        negative_prompt=request.negative_prompt,
        num_inference_steps=request.steps,
        guidance_scale=request.cfg_scale,
        latents=noise_of(request),
        height=SIDE,
        width=SIDE,
        output_type="np",
    ).images[0]
    assert np.abs(ours - theirs * 255).max() < 1.5


def test_sdxl(engine: Engine, files: Files, xl: StableDiffusionXLPipeline) -> None:
    request = request_of()
    with engine.load(Roles(files.of("xl"))) as models, torch.inference_mode():
        ours = guidance_of(engine, models, request).guidance.at(0)
        tokens, no_tokens, pooled, no_pooled = xl.encode_prompt(
            request.prompt, device="cpu", negative_prompt=request.negative_prompt
        )
        assert torch.allclose(ours[0].tokens, tokens, atol=1e-4)
        assert torch.allclose(ours[1].tokens, no_tokens, atol=1e-4)
        assert torch.allclose(ours[0].beside[0], pooled, atol=1e-4)
        assert torch.allclose(ours[1].beside[0], no_pooled, atol=1e-4)
        (picture,) = pictures_of(engine, models, request)
    theirs = xl(
        request.prompt,
        negative_prompt=request.negative_prompt,
        num_inference_steps=request.steps,
        guidance_scale=request.cfg_scale,
        latents=noise_of(request),
        height=SIDE,
        width=SIDE,
        output_type="np",
    ).images[0]
    assert np.abs(picture - theirs * 255).max() < 1.5
