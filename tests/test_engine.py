"""Requests to pictures, with a real small model of random weights."""

from __future__ import annotations

import base64
import io
import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from middleware_api.container.engine.engine import Engine, Picture
from middleware_api.container.engine.infotext import VERSION
from middleware_api.container.engine.loading import CheckpointFile, Models
from middleware_api.container.engine.pictures import read_mask
from middleware_api.container.engine.request import GenerationRequest, parse_request
from middleware_api.container.engine.roles import Roles
from middleware_api.container.engine.tiling import seamless
from middleware_api.container.errors import JobCancelled
from middleware_api.container.progress import Step
from middleware_api.container.prompts.encoder import PromptEncoder
from middleware_api.container.samplers.samplers import SAMPLERS, Sampler
from tests.engine_checkpoints import write_checkpoint

Pixels = NDArray[np.int16]


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.set_num_threads(1)
    return Engine(torch.device("cpu"), 10**9, PromptEncoder())


@pytest.fixture(scope="module")
def model(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Models]:
    path = write_checkpoint(tmp_path_factory.mktemp("weights") / "tiny, small.safetensors")
    with engine.loader.load(Roles(CheckpointFile(path, path.name, "key", ""))) as loaded:
        yield loaded


class Studio:
    """The engine with a model, asked in the WebUI's fields."""

    def __init__(self, engine: Engine, model: Models) -> None:
        self.engine, self.model = engine, model
        self.steps: list[Step] = []

    def request(self, **fields: object) -> GenerationRequest:
        task = "img2img" if "init_images" in fields else "txt2img"
        small = {"prompt": "a red circle", "seed": 7, "steps": 4, "width": 64, "height": 64}
        return parse_request(task, json.dumps(small | fields).encode(), random.Random(0))

    def make(self, **fields: object) -> list[Picture]:
        request = self.request(**fields)
        return list(self.engine.generate(self.model, request, self.steps.append))

    def pixels(self, **fields: object) -> list[Pixels]:
        return [pixels_of(picture.image) for picture in self.make(**fields)]


@pytest.fixture
def studio(engine: Engine, model: Models) -> Studio:
    return Studio(engine, model)


def pixels_of(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB"), dtype=np.int16)


def encoded(image: Image.Image, prefix: str = "") -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return prefix + base64.b64encode(stream.getvalue()).decode()


def photo(width: int = 64, height: int = 64) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def mask_of(box: tuple[int, int, int, int], size: tuple[int, int] = (64, 64)) -> Image.Image:
    mask = Image.new("L", size)
    left, top, right, bottom = box
    ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill=255)
    return mask


# DPM adaptive fits its steps to the whole batch, in the WebUI too.
@pytest.mark.parametrize(
    "sampler", [s for s in SAMPLERS if s.name != "DPM adaptive"], ids=lambda s: s.name
)
def test_a_seed_makes_the_same_picture_alone_and_in_a_batch(
    studio: Studio, sampler: Sampler
) -> None:
    fields = {"sampler_name": sampler.name}
    (once,), (again,) = studio.pixels(**fields), studio.pixels(**fields)
    assert once.shape == (64, 64, 3)
    assert once.std() > 5
    assert np.array_equal(once, again)
    before, in_batch, after = studio.pixels(**fields, seed=6, batch_size=3)
    assert np.abs(in_batch - once).max() <= 1
    assert not np.array_equal(before, once)
    assert not np.array_equal(after, once)


def test_batches_follow_each_other_with_the_next_seeds(studio: Studio) -> None:
    pictures = studio.make(batch_size=2, n_iter=2)
    assert [p.index for p in pictures] == [0, 1, 2, 3]
    assert ["Seed: 7," in p.infotext for p in pictures] == [True, False, False, False]
    assert "Seed: 10," in pictures[3].infotext
    (last,) = studio.pixels(seed=10)
    assert np.abs(pixels_of(pictures[3].image) - last).max() <= 1


def test_every_step_is_announced_over_all_batches(studio: Studio) -> None:
    studio.make(n_iter=2, steps=3)
    assert [step.done for step in studio.steps] == [0, 1, 2, 3, 3, 4, 5, 6]
    assert {step.total for step in studio.steps} == {6}
    assert studio.steps[1].clean is not None
    preview = studio.engine.preview(studio.model, torch.randn(2, 4, 64, 32))
    assert preview.size == (64, 128)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "a blue square"},
        {"negative_prompt": "blurry"},
        {"cfg_scale": 2},
        {"cfg_scale": 1},
        {"seed": 8},
        {"subseed": 5, "subseed_strength": 0.4},
        {"scheduler": "Karras"},
        {"steps": 5},
        {"override_settings": {"CLIP_stop_at_last_layers": 2}},
    ],
    ids=str,
)
def test_what_the_request_asks_for_shows(studio: Studio, change: dict[str, object]) -> None:
    (plain,), (changed,) = studio.pixels(), studio.pixels(**change)
    assert not np.array_equal(plain, changed)


def test_variation_seeds_count_while_the_seed_stays(studio: Studio) -> None:
    both = studio.pixels(subseed=5, subseed_strength=0.4, batch_size=2)
    (second,) = studio.pixels(subseed=6, subseed_strength=0.4)
    assert np.abs(both[1] - second).max() <= 1


def test_sizes_that_are_not_multiples_of_eight_lose_the_rest(studio: Studio) -> None:
    (picture,) = studio.make(width=70, height=40)
    assert picture.image.size == (64, 40)


def test_img2img_keeps_more_of_the_picture_with_less_denoising(studio: Studio) -> None:
    start = encoded(photo(), "data:image/png;base64,")
    results = {
        strength: studio.pixels(init_images=[start], denoising_strength=strength, steps=10)[0]
        for strength in (0.05, 0.5, 1.0)
    }
    base = results[0.05]
    assert np.abs(results[0.5] - base).mean() < np.abs(results[1.0] - base).mean()
    again = studio.pixels(init_images=[encoded(photo())], denoising_strength=0.5, steps=10)[0]
    assert np.array_equal(again, results[0.5])


@pytest.mark.parametrize("name", ["Euler a", "DPM++ SDE", "DDIM", "PLMS", "UniPC"])
def test_img2img_runs_with_the_samplers_of_each_family(studio: Studio, name: str) -> None:
    for strength in (0, 0.6, 1):
        (made,) = studio.pixels(
            init_images=[encoded(photo())], denoising_strength=strength, sampler_name=name
        )
        assert made.std() > 5


@pytest.mark.parametrize("fill", [0, 1, 2, 3])
@pytest.mark.parametrize("only_masked", [False, True])
def test_inpainting_leaves_everything_outside_the_mask(
    studio: Studio, fill: int, only_masked: bool
) -> None:
    start = photo(96, 64) if only_masked else photo()
    box = (16, 16, 40, 48)
    (made,) = studio.pixels(
        init_images=[encoded(start)],
        mask=encoded(mask_of(box, start.size)),
        mask_blur=0,
        inpainting_fill=fill,
        inpaint_full_res=only_masked,
        inpaint_full_res_padding=8,
    )
    difference = np.abs(made - pixels_of(start)).max(axis=2)
    inside = np.zeros(difference.shape, dtype=bool)
    inside[16:48, 16:40] = True
    assert difference[~inside].max() == 0
    assert difference[inside].mean() > 5


def test_an_inverted_mask_makes_the_rest_anew(studio: Studio) -> None:
    (made,) = studio.pixels(
        init_images=[encoded(photo())],
        mask=encoded(mask_of((0, 0, 32, 64))),
        mask_blur=0,
        inpainting_mask_invert=1,
        inpaint_full_res=False,
    )
    difference = np.abs(made - pixels_of(photo())).max(axis=2)
    assert difference[:, :32].max() == 0
    assert difference[:, 32:].mean() > 5


def test_a_blurred_mask_fades_from_new_to_old(studio: Studio) -> None:
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    (made,) = studio.pixels(
        init_images=[encoded(grey)],
        mask=encoded(mask_of((24, 0, 64, 64))),
        mask_blur=4,
        inpaint_full_res=False,
    )
    difference = np.abs(made - pixels_of(grey)).max(axis=2)
    assert difference[:, :12].max() == 0  # farther than the blur reaches
    assert difference[:, 40:].mean() > 5


def test_a_mask_is_blurred_across_and_down_as_asked(studio: Studio) -> None:
    request = studio.request(
        init_images=[encoded(photo())],
        mask=encoded(mask_of((24, 24, 40, 40))),
        mask_blur_x=6,
        mask_blur_y=0,
    )
    assert request.start is not None
    assert request.start.mask is not None
    blurred = np.asarray(read_mask(request.start.mask, None))
    touched = np.argwhere(blurred)
    assert touched[:, 0].min() == 24  # rows: sharp
    assert touched[:, 1].min() < 16


def test_a_latent_mask_says_what_is_made_anew_and_the_mask_what_is_shown(studio: Studio) -> None:
    def made(prompt: str, latent: Image.Image) -> Pixels:
        return studio.pixels(
            init_images=[encoded(photo())],
            mask=encoded(mask_of((16, 0, 64, 64))),
            latent_mask=encoded(latent),
            mask_blur=0,
            inpainting_fill=1,
            inpaint_full_res=False,
            prompt=prompt,
        )[0]

    nothing, right = Image.new("L", (64, 64)), mask_of((40, 0, 64, 64))
    # No latent is made anew: what is shown anew is the start, through the autoencoder.
    assert np.array_equal(made("a", nothing), made("b", nothing))
    assert not np.array_equal(made("a", right), made("b", right))
    assert np.array_equal(made("a", right)[:, :16], pixels_of(photo())[:, :16])


def test_an_empty_mask_is_plain_img2img(studio: Studio) -> None:
    start = encoded(photo())
    (masked,) = studio.pixels(init_images=[start], mask=encoded(Image.new("L", (64, 64))))
    (plain,) = studio.pixels(init_images=[start])
    assert np.array_equal(masked, plain)


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_other_proportions_are_brought_to_the_jobs_size(studio: Studio, mode: int) -> None:
    (picture,) = studio.make(init_images=[encoded(photo(100, 40))], resize_mode=mode)
    assert picture.image.size == (64, 64)


def test_the_infotext_is_the_webuis(studio: Studio) -> None:
    (picture,) = studio.make(
        negative_prompt="blurry", cfg_scale=6.5, sampler_name="k_dpmpp_2m", scheduler="karras"
    )
    digest = studio.model.names.main.short_hash
    assert len(digest) == 10
    assert picture.infotext == (
        "a red circle\n"
        "Negative prompt: blurry\n"
        "Steps: 4, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 6.5, Seed: 7, "
        f'Size: 64x64, Model hash: {digest}, Model: "tiny, small", Version: {VERSION}'
    )


def test_the_infotext_of_inpainting_names_its_settings(studio: Studio) -> None:
    (picture,) = studio.make(
        init_images=[encoded(photo())],
        mask=encoded(mask_of((16, 16, 40, 48))),
        inpainting_fill=1,
        denoising_strength=0.5,
        subseed=3,
        subseed_strength=0.25,
        override_settings={"CLIP_stop_at_last_layers": 2},
    )
    assert (
        "Variation seed: 3, Variation seed strength: 0.25, Denoising strength: 0.5, Clip skip: 2, "
        "Mask blur: 4, Inpaint area: Only masked, Masked area padding: 0, Version"
    ) in picture.infotext


def decoded(studio: Studio, latent: torch.Tensor) -> torch.Tensor:
    picture: torch.Tensor = studio.model.main.vae.decode(latent).sample
    return picture


@torch.inference_mode()
def test_a_tiled_picture_has_no_edges_and_leaves_the_model_as_it_was(studio: Studio) -> None:
    latent = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    plain = decoded(studio, latent)
    shifted, back = latent.roll((3, 2), (2, 3)), (-24, -16)
    with seamless(studio.model.parts()):
        tiled, moved = decoded(studio, latent), decoded(studio, shifted)
    torch.testing.assert_close(moved.roll(back, (2, 3)), tiled, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(decoded(studio, shifted).roll(back, (2, 3)), plain, atol=0.05)
    assert torch.equal(decoded(studio, latent), plain)


def test_a_tiled_job_that_is_stopped_leaves_the_model_as_it_was(studio: Studio) -> None:
    def stop(step: Step) -> None:
        raise JobCancelled

    (before,) = studio.pixels()
    with pytest.raises(JobCancelled):
        list(studio.engine.generate(studio.model, studio.request(tiling=True), stop))
    (again,) = studio.pixels()
    assert np.array_equal(again, before)
    (tiled,) = studio.make(tiling=True)
    assert not np.array_equal(pixels_of(tiled.image), before)
    assert ", Tiling: True," in tiled.infotext


def test_what_the_settings_change_stands_in_the_infotext(studio: Studio) -> None:
    (made,) = studio.make(
        sampler_name="Heun",
        scheduler="Beta",
        s_churn=2,
        s_min_uncond=1.5,
        seed_resize_from_w=32,
        seed_resize_from_h=48,
        override_settings={
            "randn_source": "NV",
            "always_discard_next_to_last_sigma": True,
            "sgm_noise_multiplier": True,
            "sigma_max": 12,
            "skip_early_cond": 0.25,
        },
    )
    assert (
        "Seed resize from: 32x48, RNG: NV, Sigma churn: 2, Sigma tmin: 0, Sigma tmax: 0, "
        "Discard penultimate sigma: True, SGM noise multiplier: True, Schedule max sigma: 12, "
        "Beta schedule alpha: 0.6, Beta schedule beta: 0.6, NGMS: 1.5, Skip Early CFG: 0.25, "
    ) in made.infotext
    for fields, expected in (
        ({"sampler_name": "Euler a", "eta": 0.5}, ", Eta: 0.5,"),
        ({"sampler_name": "DDIM", "eta": 0.5}, ", Eta DDIM: 0.5,"),
        (
            {"sampler_name": "UniPC", "override_settings": {"uni_pc_order": 2}},
            ", UniPC order: 2,",
        ),
    ):
        (made,) = studio.make(**fields)
        assert expected in made.infotext


def test_models_are_kept_within_the_cache(engine: Engine, tmp_path: Path) -> None:
    files = [
        CheckpointFile(write_checkpoint(tmp_path / f"{n}.safetensors", seed=n), "x", str(n), "")
        for n in range(3)
    ]
    size = 2 * files[0].path.stat().st_size  # halves in the file, singles in memory
    small = Engine(torch.device("cpu"), int(2.5 * size), PromptEncoder())
    for file in (files[0], files[1], files[0], files[2]):
        with small.loader.load(Roles(file)) as models:
            assert models.main.n_bytes <= size
    assert small.loader.checkpoints.keys == ["0", "2"]
