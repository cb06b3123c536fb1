"""Families beside SD 1.x, held to diffusers' own pipelines with the same small files.

Diffusers reads the file by itself (`from_single_file`); only the sizes of its parts come from here.
"""

from __future__ import annotations

import copy
import json
import random
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from middleware_api.container.engine.autoencoding import decode, see
from middleware_api.container.engine.checkpoint import load_checkpoint
from middleware_api.container.engine.engine import Engine, fitted
from middleware_api.container.engine.families import SD2, Layout
from middleware_api.container.engine.loading import CheckpointFile, Models
from middleware_api.container.engine.packed import dense
from middleware_api.container.engine.pictures import to_tensor
from middleware_api.container.engine.request import GenerationRequest, parse_request
from middleware_api.container.engine.roles import Roles
from middleware_api.container.errors import BadRequest
from middleware_api.container.prompts.conditioning import Guidance
from middleware_api.container.prompts.encoder import TOKENIZER_FOLDER, PromptEncoder
from middleware_api.container.samplers.noise import generator_of
from middleware_api.container.samplers.prediction import Prediction
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
from tests.test_engine import encoded

# What diffusers' schedulers do with numpy.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
INPAINTING, XL_INPAINTING = (
    replace(size, unet=replace(size.unet, in_channels=9)) for size in (TINY, TINY_XL)
)
SIZES = {
    "one": TINY,
    "inpainting": INPAINTING,
    "xl-inpainting": XL_INPAINTING,
    "two": TINY_2,
    "xl": TINY_XL,
    "refiner": TINY_REFINER,
}
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


def guidance_of(engine: Engine, models: Models, request: GenerationRequest) -> Guidance:
    """Of the last pass."""
    return engine._prompts.guidance(models.main, engine._asks(request)[-1], models.networks)


def pictures_of(engine: Engine, models: Models, request: GenerationRequest) -> list[np.ndarray]:
    made = engine.generate(models, request, lambda step: None)
    return [np.asarray(each.image, dtype=np.float32) for each in made]


@cache
def tokenizer(pad: str) -> CLIPTokenizer:
    made = CLIPTokenizer.from_pretrained(TOKENIZER_FOLDER, local_files_only=True)
    made.pad_token, made.model_max_length = pad, 77
    return made


def parts_of(size: Size) -> dict[str, Any]:
    """The networks of diffusers' pipeline of a family."""
    names = ["text_encoder", "text_encoder_2"] if size.family.is_xl else ["text_encoder"]
    texts = {}
    for name, shape, source in zip(
        names[-len(size.texts) :], size.texts, size.family.texts, strict=True
    ):
        config = shape.config()
        if size.family is SD2:  # diffusers has SD 2's encoder without the layer that is not read
            config.num_hidden_layers -= 1
        config.projection_dim = shape.pooled or config.projection_dim
        texts[name] = (CLIPTextModelWithProjection if source.is_pooled else CLIPTextModel)(config)
    return texts | {
        "unet": UNet2DConditionModel(**dict(size.unet.config()) | {"sample_size": 64}),
        "vae": AutoencoderKL(**dict(size.vae.config()) | {"scaling_factor": size.family.vae_scale}),
    }


def config_folder(folder: Path, size: Size, kind: type[DiffusionPipeline]) -> Path:
    """What diffusers asks of a folder beside a single file: the sizes, and how to sample."""
    index: dict[str, Any] = {"_class_name": kind.__name__, "_diffusers_version": "0.30"}
    if size is TINY_REFINER:
        index |= {"requires_aesthetics_score": True, "text_encoder": [None, None]}
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        timestep_spacing="linspace",
        steps_offset=1,
        prediction_type="v_prediction" if size is TINY_2 else "epsilon",
    )
    with torch.device("meta"):
        parts = parts_of(size) | {"scheduler": scheduler}
    for name, part in parts.items():
        if name.startswith("text_encoder"):
            part.config.save_pretrained(folder / name)
            index[name] = ["transformers", type(part).__name__]
        else:
            part.save_config(folder / name)
            index[name] = ["diffusers", type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def loaded(files: Files, name: str, kind: type[Any], **options: Any) -> Any:
    """Diffusers' pipeline of a file, which it reads by itself."""
    size = SIZES[name]
    filler = {Layout.CLIP: "<|endoftext|>", Layout.OPEN_CLIP: "!"}  # the latter is number 0
    tokenizers = [tokenizer(filler[source.layout]) for source in size.family.texts]
    if size.family.is_xl:
        first = tokenizers[0] if len(tokenizers) > 1 else None
        options |= {"tokenizer": first, "tokenizer_2": tokenizers[-1]}
    else:
        options |= {"tokenizer": tokenizers[0]}
    folder = config_folder(files.folder / name, size, kind)
    return kind.from_single_file(
        str(files.of(name).path), config=str(folder), local_files_only=True, **options
    )


@pytest.fixture(scope="module")
def two(files: Files) -> StableDiffusionPipeline:
    return loaded(files, "two", StableDiffusionPipeline, safety_checker=None)


@pytest.fixture(scope="module")
def xl(files: Files) -> StableDiffusionXLPipeline:
    return loaded(files, "xl", StableDiffusionXLPipeline, add_watermarker=False)


def noise_of(request: GenerationRequest, side: int = SIDE) -> torch.Tensor:
    return torch.randn(1, 4, side // 8, side // 8, generator=generator_of(request.seed))


def picture_of(pipeline: Any, request: GenerationRequest, **more: Any) -> np.ndarray:
    """Diffusers' picture of a request, in levels of 0 to 255."""
    sized = {"height": SIDE, "width": SIDE, "latents": noise_of(request), "output_type": "np"}
    with torch.inference_mode():
        made = pipeline(
            request.prompt,
            negative_prompt=request.negative_prompt or None,  # its word for nothing
            num_inference_steps=request.steps,
            guidance_scale=request.cfg_scale,
            **sized | more,
        )
    return made.images[0] * 255


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """But for the WebUI's rounding down."""
    assert theirs.std() > 10
    assert np.abs(ours - theirs).max() < 1.5


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-4)


def test_sd2_reads_prompts_as_diffusers_does(
    engine: Engine, files: Files, two: StableDiffusionPipeline
) -> None:
    request = request_of(clip_skip=3)  # which SD 2.x takes no notice of
    with engine.loader.load(Roles(files.of("two"))) as models, torch.inference_mode():
        ours = guidance_of(engine, models, request).at(0)
        theirs = two.encode_prompt(request.prompt, "cpu", 1, True, request.negative_prompt)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.beside is None
        assert close(mine.tokens, other)


@pytest.mark.parametrize("mark", ["metadata", "key"])
def test_an_sd2_that_answers_with_velocity_makes_diffusers_picture(
    engine: Engine, files: Files, two: StableDiffusionPipeline, mark: str
) -> None:
    request = request_of()
    if mark == "key":
        file = files.made("with key", TINY_2, {"v_pred": torch.zeros(0)})
    else:
        file = files.made("told", TINY_2, {}, **{"modelspec.prediction_type": "v"})
    with engine.loader.load(Roles(file)) as models:
        (ours,) = pictures_of(engine, models, request)
    assert_same(ours, picture_of(two, request))


def test_an_sd2_is_asked_what_it_answers_with(engine: Engine, files: Files) -> None:
    """As the WebUI does: the noise at the highest level is the latent, the velocity far below."""
    for answer, expected in ((0.5, Prediction.NOISE), (-2.0, Prediction.VELOCITY)):
        last = "model.diffusion_model.out.2."
        weights = {
            f"{last}weight": torch.zeros(4, 64, 3, 3),
            f"{last}bias": torch.full((4,), answer),
        }
        file = files.made(f"answers {answer}", TINY_2, weights)
        with engine.loader.load(Roles(file)) as models:
            assert models.main.prediction is expected
    for name, size in (("xl", TINY_XL), ("one", TINY)):  # others are believed
        weights = {f"{last}weight": torch.zeros(4, 32, 3, 3), f"{last}bias": torch.full((4,), -2.0)}
        with engine.loader.load(Roles(files.made(f"silent {name}", size, weights))) as models:
            assert models.main.prediction is Prediction.NOISE


def test_sdxl_reads_prompts_as_diffusers_does(
    engine: Engine, files: Files, xl: StableDiffusionXLPipeline
) -> None:
    request = request_of(clip_skip=3)
    with engine.loader.load(Roles(files.of("xl"))) as models, torch.inference_mode():
        towards, away = guidance_of(engine, models, request).at(0)
        tokens, no_tokens, pooled, no_pooled = xl.encode_prompt(
            request.prompt, device="cpu", negative_prompt=request.negative_prompt
        )
    assert close(towards.tokens, tokens)
    assert close(away.tokens, no_tokens)
    assert close(towards.beside[0], pooled)
    assert close(away.beside[0], no_pooled)


def test_sdxl_makes_diffusers_picture(
    engine: Engine, files: Files, xl: StableDiffusionXLPipeline
) -> None:
    request = request_of(batch_size=2)
    with engine.loader.load(Roles(files.of("xl"))) as models:
        ours, _ = pictures_of(engine, models, request)
    assert_same(ours, picture_of(xl, request))


def test_an_empty_negative_prompt_is_nothing_to_sdxl(
    engine: Engine, files: Files, xl: StableDiffusionXLPipeline
) -> None:
    request = request_of(negative_prompt="")
    with engine.loader.load(Roles(files.of("xl"))) as models:
        (ours,) = pictures_of(engine, models, request)
        _, away = guidance_of(engine, models, request_of(negative_prompt=" ")).at(0)
    assert_same(ours, picture_of(xl, request))
    assert away.tokens.abs().max() > 0


def test_sdxl_is_told_the_size_and_what_was_cut(
    engine: Engine, files: Files, xl: StableDiffusionXLPipeline
) -> None:
    settings = {"sdxl_crop_top": 8, "sdxl_crop_left": 16}
    request = request_of(height=48, override_settings=settings)
    with engine.loader.load(Roles(files.of("xl"))) as models:
        (ours,) = pictures_of(engine, models, request)
    noise = torch.randn(1, 4, 6, 4, generator=generator_of(request.seed))
    told = {"height": 48, "crops_coords_top_left": (8, 16), "latents": noise}
    assert_same(ours, picture_of(xl, request, **told))
    hires = {"enable_hr": True, "hr_resize_x": 80, "hr_resize_y": 48, "denoising_strength": 0.5}
    with engine.loader.load(Roles(files.of("xl"))) as models:
        told = guidance_of(engine, models, request_of(**hires)).numbers
    assert tuple(told.tolist()) == (
        80,
        80,
        0,
        0,
        80,
        80,
    )  # what is then cut off counts, as in the WebUI


def test_a_refiner_goes_on_where_diffusers_hands_over(
    engine: Engine, files: Files, xl: StableDiffusionXLPipeline
) -> None:
    refiner = loaded(files, "refiner", StableDiffusionXLImg2ImgPipeline, add_watermarker=False)
    switch = {"refiner_checkpoint": "refiner.safetensors", "refiner_switch_at": 0.6}
    request = request_of(steps=5, **switch)
    with engine.loader.load(Roles(files.of("xl"), refiner=files.of("refiner"))) as models:
        (ours,) = pictures_of(engine, models, request)
    sized = {"height": SIDE, "width": SIDE}
    with torch.inference_mode():
        latents = xl(
            request.prompt,
            negative_prompt=request.negative_prompt,
            num_inference_steps=5,
            guidance_scale=7,
            denoising_end=0.6,
            latents=noise_of(request),
            output_type="latent",
            **sized,
        ).images
        made = refiner(
            request.prompt,
            negative_prompt=request.negative_prompt,
            num_inference_steps=5,
            guidance_scale=7,
            denoising_start=0.6,
            image=latents,
            original_size=(SIDE, SIDE),
            target_size=(SIDE, SIDE),
            output_type="np",
        ).images[0]
    assert_same(ours, made * 255)


def test_long_prompts_of_sdxl_are_read_in_chunks(
    engine: Engine, files: Files, xl: StableDiffusionXLPipeline
) -> None:
    """Each as a prompt of its own; what the whole text means is told of the first one alone."""
    parts = ("a red circle", "a green ring", "blue")
    request = request_of(prompt=" BREAK ".join(parts), negative_prompt="x AND y")
    with engine.loader.load(Roles(files.of("xl"))) as models, torch.inference_mode():
        towards, away = guidance_of(engine, models, request).at(0)
        alone = [xl.encode_prompt(part, device="cpu") for part in parts]
    assert close(towards.tokens[0], torch.cat([tokens[0] for tokens, *_ in alone]))
    assert close(towards.beside[0], alone[0][2])
    assert away.tokens.shape == (1, 77, 192)


def test_emphasis_weighs_each_of_sdxls_encoders_by_itself(
    engine: Engine, files: Files, xl: StableDiffusionXLPipeline
) -> None:
    with engine.loader.load(Roles(files.of("xl"))) as models, torch.inference_mode():
        towards, _ = guidance_of(engine, models, request_of(prompt="a (red:1.5) circle")).at(0)
        plain, _, pooled, _ = xl.encode_prompt("a red circle", device="cpu")
    weights = torch.ones(77, 1)
    weights[2] = 1.5  # behind the beginning and "a"
    for side in (slice(0, 64), slice(64, 192)):
        weighted = plain[0, :, side] * weights
        expected = weighted * (plain[..., side].mean() / weighted.mean())
        assert torch.allclose(towards.tokens[0, :, side], expected, rtol=1e-3, atol=1e-4)
    assert close(towards.beside[0], pooled)


def test_the_first_of_sdxls_encoders_has_a_clip_skip_if_asked(
    engine: Engine, files: Files, xl: StableDiffusionXLPipeline
) -> None:
    settings = {"sdxl_clip_l_skip": True}
    request = request_of(clip_skip=3, override_settings=settings)
    with engine.loader.load(Roles(files.of("xl"))) as models, torch.inference_mode():
        towards, _ = guidance_of(engine, models, request).at(0)
        ids = xl.tokenizer(request.prompt, padding="max_length", return_tensors="pt").input_ids
        first = xl.text_encoder(ids, output_hidden_states=True).hidden_states[-3]
        plain, *_ = xl.encode_prompt(request.prompt, device="cpu")
    assert close(towards.tokens[..., :64], first)
    assert close(towards.tokens[..., 64:], plain[..., 64:])


@pytest.mark.parametrize(
    ("name", "kind", "options", "texts"),
    [
        (
            "inpainting",
            StableDiffusionInpaintPipeline,
            {"safety_checker": None},
            {"Conditional mask weight": "1.0"},
        ),
        ("xl-inpainting", StableDiffusionXLInpaintPipeline, {"add_watermarker": False}, {}),
    ],
)
def test_an_inpainting_model_sees_an_empty_picture_where_there_is_none(
    engine: Engine,
    files: Files,
    name: str,
    kind: type[Any],
    options: dict[str, object],
    texts: dict[str, str],
) -> None:
    request = request_of()
    pipeline = loaded(files, name, kind, **options)
    with engine.loader.load(Roles(files.of(name))) as models:
        scale = models.main.vae_scale
        (ours,) = pictures_of(engine, models, request)
        assert engine.text_parameters(models, request) == texts
    with torch.inference_mode():
        seen = pipeline.vae.encode(torch.zeros(1, 3, SIDE, SIDE)).latent_dist.mode() * scale
    grey, white = Image.new("RGB", (SIDE, SIDE), (127, 127, 127)), Image.new("L", (SIDE, SIDE), 255)
    given = {"image": grey, "mask_image": white, "masked_image_latents": seen, "strength": 1.0}
    assert_same(ours, picture_of(pipeline, request, **given))


def test_an_inpainting_model_sees_what_the_mask_leaves(engine: Engine, files: Files) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 3), np.uint8))
    mask = Image.new("L", (SIDE, SIDE))
    mask.paste(255, (8, 0, 24, 16))
    fields = {"init_images": [encoded(image)], "mask": encoded(mask), "mask_blur": 0}
    whole = {"inpaint_full_res": False, "inpainting_fill": 1}
    inpaint = loaded(files, "inpainting", StableDiffusionInpaintPipeline, safety_checker=None)
    with engine.loader.load(Roles(files.of("inpainting"))) as models, torch.inference_mode():
        shown = engine.start_of(models.main, request_of(**fields, **whole))([1]).picture
        halves = {"override_settings": {"inpainting_mask_weight": 0.5}}
        weaker = engine.start_of(models.main, request_of(**fields, **whole, **halves))([1]).picture
    pixels = to_tensor(image)
    hidden = torch.zeros(1, 1, SIDE, SIDE)
    hidden[..., 0:16, 8:24] = 1
    small = torch.zeros(1, 1, 4, 4)
    small[..., 0:2, 1:3] = 1
    with torch.inference_mode():
        for strength, seen in ((1, shown), (0.5, weaker)):
            left = inpaint.vae.encode(pixels * (1 - hidden * strength)).latent_dist.mode()
            assert torch.equal(seen[:, :1], small)
            assert close(seen[:, 1:], left * 0.18215)


def test_a_second_pass_of_an_inpainting_model_makes_all_anew(engine: Engine, files: Files) -> None:
    hires = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.7}
    with engine.loader.load(Roles(files.of("inpainting"))) as models:
        (made,) = pictures_of(engine, models, request_of(**hires))
        weaker = {"override_settings": {"inpainting_mask_weight": 0.2}}
        (other,) = pictures_of(engine, models, request_of(**hires, **weaker))
    assert made.shape == (48, 48, 3)
    assert not np.array_equal(made, other)


def test_a_schedule_down_from_nothing_of_the_picture(
    engine: Engine, files: Files, two: StableDiffusionPipeline
) -> None:
    keys = {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    with engine.loader.load(Roles(files.made("zero", TINY_2, keys))) as models:
        (by_key,) = pictures_of(engine, models, request_of())
    setting = {"override_settings": {"sd_noise_schedule": "Zero Terminal SNR"}}
    with engine.loader.load(Roles(files.made("v", TINY_2, {"v_pred": torch.zeros(0)}))) as models:
        (by_setting,) = pictures_of(engine, models, request_of(**setting))
    assert np.array_equal(by_key, by_setting)
    usual = two.scheduler
    two.scheduler = EulerDiscreteScheduler.from_config(usual.config, rescale_betas_zero_snr=True)
    try:
        assert_same(by_key, picture_of(two, request_of()))
    finally:
        two.scheduler = usual


def test_align_your_steps_has_a_table_for_sdxl(engine: Engine, files: Files) -> None:
    request = request_of(steps=11, scheduler="Align Your Steps")
    levels = {}
    for name in ("one", "xl"):
        with engine.loader.load(Roles(files.of(name))) as models:
            levels[name] = fitted(request, models).plan.sigmas
    assert levels["one"][:3] == pytest.approx((14.615, 6.475, 3.861))
    assert levels["xl"][:3] == pytest.approx((14.615, 6.315, 3.771))


def vectors_of(pipeline: Any, word: str) -> Tensors:
    """A word's own vectors, as an embedding for both encoders has them."""
    ids = pipeline.tokenizer(word, add_special_tokens=False).input_ids
    tables = (pipeline.text_encoder, pipeline.text_encoder_2)
    return {
        key: table.get_input_embeddings().weight[ids].detach().clone()
        for key, table in zip(("clip_l", "clip_g"), tables, strict=True)
    }


def test_an_embedding_for_sdxl_has_vectors_for_both_encoders(
    engine: Engine, files: Files, xl: StableDiffusionXLPipeline
) -> None:
    save_file(vectors_of(xl, "bright red"), files.folder / "glow.safetensors")
    save_file({"emb_params": torch.zeros(1, 64)}, files.folder / "narrow.safetensors")
    named = tuple(
        CheckpointFile(files.folder / f"{name}.safetensors", f"{name}.safetensors", name, name)
        for name in ("glow", "narrow")
    )
    request = request_of(prompt="a (glow:1.2) ring, narrow")
    with engine.loader.load(Roles(files.of("xl"), embeddings=named)) as models:
        towards, _ = guidance_of(engine, models, request).at(0)
        warnings = engine.warnings(models, request)
        texts = engine.text_parameters(models, request)
    with engine.loader.load(Roles(files.of("xl"))) as models:
        written = request_of(prompt="a (bright red:1.2) ring, narrow")
        expected, _ = guidance_of(engine, models, written).at(0)
    assert close(towards.tokens, expected.tokens)
    assert close(towards.beside[0], expected.beside[0])
    assert texts == {"TI hashes": "glow: glow"}
    assert warnings == [
        "Embedding narrow was made for another kind of model than xl.safetensors, which is of "
        "Stable Diffusion XL: it was left out."
    ]


def pair(layer: str, out: int, into: int) -> Tensors:
    generator = torch.Generator().manual_seed(len(layer))
    return {
        f"{layer}.lora_down.weight": torch.randn(2, into, generator=generator),
        f"{layer}.lora_up.weight": torch.randn(out, 2, generator=generator),
        f"{layer}.alpha": torch.tensor(2.0),
    }


def dense_state(module: torch.nn.Module) -> Tensors:
    return {key: dense(value).clone() for key, value in module.state_dict().items()}


def patched(engine: Engine, files: Files, name: str, tensors: Tensors, **metadata: str) -> Any:
    """The parts that a LoRA changes in a model, by their names in diffusers, and the warnings."""
    path = files.folder / f"lora{len(list(files.folder.iterdir()))}.safetensors"
    save_file(tensors, path, metadata)
    file = CheckpointFile(path, path.name, path.name, path.name)
    request = request_of(prompt=f"a <lora:{path.stem}:0.5>")
    with engine.loader.load(Roles(files.of(name), loras=(file,))) as models:
        patch = models.networks.patch(models.main, engine._asks(request)[0].networks)
        changed = {}
        parts = {"unet": models.main.unet}
        parts |= {f"te{i}": each.module for i, each in enumerate(models.main.text_encoders)}
        before = {name: dense_state(module) for name, module in parts.items()}
        with patch.applied():
            for part, module in parts.items():
                for key, value in dense_state(module).items():
                    if not torch.equal(value, before[part][key]):
                        changed[f"{part}.{key}"] = value - before[part][key]
        warnings = engine.warnings(models, request)
    return changed, [each.replace(path.stem, "ink") for each in warnings]


KNOWN = {  # by kohya's names: the shape, and the layer in diffusers
    "xl": {
        "lora_unet_input_blocks_3_1_transformer_blocks_1_attn2_to_k": (
            (128, 192),
            "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k",
        ),
        "lora_unet_label_emb_0_0": ((128, 1664), "unet.add_embedding.linear_1"),
        "lora_te1_text_model_encoder_layers_1_mlp_fc1": ((256, 64), "te0.encoder.layers.1.mlp.fc1"),
        "lora_te2_text_model_encoder_layers_2_self_attn_v_proj": (
            (128, 128),
            "te1.encoder.layers.2.self_attn.v_proj",
        ),
    },
    "two": {
        "lora_te_text_model_encoder_layers_2_self_attn_out_proj": (
            (64, 64),
            "te0.encoder.layers.2.self_attn.out_proj",
        ),
        "lora_unet_down_blocks_0_attentions_0_proj_in": (
            (64, 64),
            "unet.down_blocks.0.attentions.0.proj_in",
        ),
    },
}


@pytest.mark.parametrize("name", KNOWN)
def test_loras_reach_the_layers_that_kohyas_names_mean(
    engine: Engine, files: Files, name: str
) -> None:
    tensors: Tensors = {}
    for layer, (shape, _) in KNOWN[name].items():
        tensors |= pair(layer, *shape)
    added, warnings = patched(engine, files, name, tensors)
    assert warnings == []
    assert added.keys() == {f"{changed}.weight" for _, changed in KNOWN[name].values()}
    for layer, (_, changed) in KNOWN[name].items():
        up, down = tensors[f"{layer}.lora_up.weight"], tensors[f"{layer}.lora_down.weight"]
        assert torch.allclose(added[f"{changed}.weight"], 0.5 * (up @ down), atol=1e-4)


def test_a_lora_of_another_family_is_named_and_left_out(engine: Engine, files: Files) -> None:
    layer = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    told = {"ss_base_model_version": "sd_v1"}
    for tensors, metadata, words in (
        (pair(layer, 128, 192), told, "was made for Stable Diffusion 1.x"),
        (pair(layer, 128, 1024), {}, "was made for Stable Diffusion 2.x"),
        (pair("lora_unet_double_blocks_0_img_attn_qkv", 3, 3), {}, "was made for Flux"),
        (pair(layer, 128, 77), {}, "was made for another kind of model"),
    ):
        changed, (warning,) = patched(engine, files, "xl", tensors, **metadata)
        assert changed == {}
        assert warning.startswith(f"LoRA ink {words}")
        assert "of Stable Diffusion XL: it was left out." in warning


def test_models_that_cannot_work_together_are_refused(engine: Engine, files: Files) -> None:
    for roles, words in (
        (Roles(files.of("xl"), refiner=files.of("one")), "one.safetensors cannot refine what xl"),
        (Roles(files.of("one"), refiner=files.of("inpainting")), "is an inpainting model"),
    ):
        with pytest.raises(BadRequest, match=words), engine.loader.load(roles):
            pass
    with engine.loader.load(Roles(files.of("one"), refiner=files.of("two"))):
        pass  # they read each other's latents
    hires = {"enable_hr": True, "hr_checkpoint_name": "xl.safetensors", "hr_scale": 1.5}
    with engine.loader.load(Roles(files.of("one"), second_pass=files.of("xl"))) as models:
        with pytest.raises(BadRequest, match="cannot go on with the latents of one"):
            pictures_of(engine, models, request_of(**hires))
        (made,) = pictures_of(engine, models, request_of(**hires, hr_upscaler="Lanczos"))
    assert made.shape == (48, 48, 3)


def test_a_vae_that_seems_of_another_family_is_doubted(engine: Engine, files: Files) -> None:
    prefix = "first_stage_model."
    own = {
        name.removeprefix(prefix): tensor
        for name, tensor in random_tensors(TINY).items()
        if name.startswith(prefix)
    }
    for name, metadata, doubts in (
        ("plain.safetensors", {}, []),
        ("vae-ft-mse-840000.safetensors", {}, ["xl.safetensors"]),
        ("sdxl_vae.safetensors", {}, ["one.safetensors"]),
        (
            "told.safetensors",
            {"modelspec.architecture": "stable-diffusion-xl-v1-base/vae"},
            ["one"],
        ),
    ):
        save_file(own, files.folder / name, metadata)
        vae = CheckpointFile(files.folder / name, name, name, name)
        found = []
        for model in ("one", "xl"):
            with engine.loader.load(Roles(files.of(model), vae=vae)) as models:
                found += engine.warnings(models, request_of())
        assert len(found) == len(doubts)
        assert all(doubt in warning for doubt, warning in zip(doubts, found, strict=True))


def test_a_vae_that_overflows_in_halves_goes_on_in_singles(engine: Engine, files: Files) -> None:
    with engine.loader.load(Roles(files.of("xl"))) as models, torch.inference_mode():
        file = files.of("xl")  # anew: a VAE that has been used cannot be copied
        anew = load_checkpoint(file.path, file.name, "", torch.device("cpu"), torch.float32)
        vae = anew.vae
        for strong in (vae.decoder.conv_norm_out, vae.encoder.conv_norm_out):
            strong.weight *= 6e4  # what goes through it is beyond 65504, as in SDXL's own
        halves = [copy.deepcopy(vae).half() for _ in range(2)]
        model = replace(models.main, vae=vae)
        latent = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0))
        pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        for ask, given, in_halves in (
            (decode, latent, halves[0]),
            (lambda model, pixels: see(model, pixels).mean, pixels, halves[1]),
        ):
            known = ask(model, given)
            half = replace(model, vae=in_halves)
            assert torch.allclose(ask(half, given), known, rtol=0.01, atol=0.01 * known.abs().max())
            assert next(half.vae.parameters()).dtype is torch.float32  # and stays so
        with pytest.raises(BadRequest, match="its numbers are not finite"):
            decode(model, latent * torch.nan)
