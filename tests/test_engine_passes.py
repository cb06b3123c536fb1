"""Hires fix, refiner, VAE and latent resize, held to what they are by definition."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from middleware_api.container.engine import pictures
from middleware_api.container.engine.checkpoint_shapes import VAE, VAE_SCALE
from middleware_api.container.engine.engine import Engine, Picture
from middleware_api.container.engine.loading import CheckpointFile, Models
from middleware_api.container.engine.request import GenerationRequest, parse_request
from middleware_api.container.engine.roles import Roles
from middleware_api.container.errors import CheckpointUnreadable
from middleware_api.container.progress import Step
from middleware_api.container.prompts.encoder import PromptEncoder
from middleware_api.container.samplers import schedules
from tests.engine_checkpoints import random_tensors, write_checkpoint
from tests.test_engine import encoded, mask_of, photo, pixels_of

HIRES = {"enable_hr": True, "hr_upscaler": "Latent (nearest)", "denoising_strength": 0}


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.set_num_threads(1)
    return Engine(torch.device("cpu"), 10**9, PromptEncoder())


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints, `a` and `b`, and each one's VAE in a file of its own."""
    folder = tmp_path_factory.mktemp("weights")
    for seed, name in enumerate("ab"):
        write_checkpoint(folder / f"{name}.safetensors", seed=seed)
        own = {
            key.removeprefix(VAE): tensor
            for key, tensor in random_tensors(seed=seed).items()
            if key.startswith(VAE)
        }
        save_file(own, folder / f"{name}.vae.safetensors")
    return folder


class Studio:
    """The engine asked in the WebUI's fields, with the files that play each part."""

    def __init__(self, engine: Engine, weights: Path) -> None:
        self.engine, self.weights = engine, weights
        self.steps: list[Step] = []

    def models(self, **roles: str) -> Iterator[Models]:
        files = {role: self.file(name) for role, name in ({"main": "a"} | roles).items()}
        with self.engine.loader.load(Roles(**files)) as models:
            yield models

    def file(self, name: str) -> CheckpointFile:
        path = self.weights / f"{name}.safetensors"
        return CheckpointFile(path, path.name, name, "")

    def request(self, **fields: object) -> GenerationRequest:
        task = "img2img" if "init_images" in fields else "txt2img"
        small = {"prompt": "a red circle", "seed": 7, "steps": 4, "width": 64, "height": 64}
        return parse_request(task, json.dumps(small | fields).encode(), random.Random(0))

    def make(self, roles: dict[str, str] | None = None, **fields: object) -> list[Picture]:
        request = self.request(**fields)
        self.steps = []
        return [
            picture
            for models in self.models(**(roles or {}))
            for picture in self.engine.generate(models, request, self.steps.append)
        ]

    def one(self, roles: dict[str, str] | None = None, **fields: object) -> Picture:
        (picture,) = self.make(roles, **fields)
        return picture

    def first_latents(self, model: Models) -> torch.Tensor:
        """What the first pass of `request()` ends with."""
        ends: list[torch.Tensor] = []
        listening = model.main.vae.post_quant_conv.register_forward_pre_hook(
            lambda module, inputs: ends.append(inputs[0] * VAE_SCALE)
        )
        list(self.engine.generate(model, self.request(), lambda step: None))
        listening.remove()
        return ends[0]


@pytest.fixture
def studio(engine: Engine, weights: Path) -> Studio:
    return Studio(engine, weights)


def same(one: Picture, other: Picture) -> bool:
    return np.array_equal(pixels_of(one.image), pixels_of(other.image))


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("Latent", {"mode": "bilinear"}),
        ("Latent (antialiased)", {"mode": "bilinear", "antialias": True}),
        ("Latent (bicubic)", {"mode": "bicubic"}),
        ("Latent (bicubic antialiased)", {"mode": "bicubic", "antialias": True}),
        ("Latent (nearest)", {"mode": "nearest"}),
        ("Latent (nearest-exact)", {"mode": "nearest-exact"}),
    ],
)
def test_without_denoising_hires_fix_is_the_interpolation_of_the_first_latents(
    studio: Studio, name: str, how: dict[str, object]
) -> None:
    for models in studio.models():
        latents = studio.first_latents(models)
        # 80x48 asked of a square: grown to 80x80, then 4 latents cut off, 2 above and 2 below.
        large = torch.nn.functional.interpolate(latents, size=(10, 10), **how)[:, :, 2:8]
        with torch.inference_mode():
            expected = pictures.to_picture(models.main.vae.decode(large / VAE_SCALE).sample[0])
    fields = HIRES | {"hr_upscaler": name, "hr_resize_x": 80, "hr_resize_y": 48}
    made = studio.one(**fields)
    assert made.image.size == (80, 48)
    # Here the latents have been scaled back, which rounds them.
    assert np.abs(pixels_of(made.image) - pixels_of(expected)).max() <= 1


@pytest.mark.parametrize(
    ("name", "filter"),
    [("Lanczos", "LANCZOS"), ("Nearest", "NEAREST"), ("None", "LANCZOS")],
)
def test_picture_upscalers_resample_the_first_picture(
    studio: Studio, name: str, filter: str
) -> None:
    fields = HIRES | {"hr_upscaler": name, "hr_scale": 1.5}
    first, made = studio.one(), studio.one(**fields)
    large = first.image.resize((96, 96), Image.Resampling[filter])
    for models in studio.models():
        with torch.inference_mode():
            seen = models.main.vae.encode(pictures.to_tensor(large)).latent_dist
            noise = torch.randn(seen.mean.shape, generator=torch.Generator().manual_seed(7))
            drawn = seen.mean + seen.std * noise  # as the WebUI draws: by the picture's seed
            expected = pictures.to_picture(models.main.vae.decode(drawn).sample[0])
    assert made.image.size == (96, 96)
    assert np.abs(pixels_of(made.image) - pixels_of(expected)).max() <= 1
    given = studio.one(**fields, firstpass_image=encoded(first.image))
    assert same(given, made)
    other = studio.one(**fields, firstpass_image=encoded(photo()))
    assert not same(other, made)


def test_a_given_first_picture_takes_the_place_of_the_first_pass(studio: Studio) -> None:
    fields = {"enable_hr": True, "hr_upscaler": "Lanczos", "hr_second_pass_steps": 3}
    first = studio.one()
    whole = studio.one(**fields)
    assert [step.done for step in studio.steps] == [0, 1, 2, 3, 4, 4, 5, 6, 7]
    assert {step.total for step in studio.steps} == {7}
    given = studio.one(**fields, firstpass_image=encoded(first.image, "data:image/png;base64,"))
    assert [step.done for step in studio.steps] == [0, 1, 2, 3]
    assert {step.total for step in studio.steps} == {3}
    assert same(given, whole)
    assert given.infotext == whole.infotext
    assert given.image.size == (128, 128)


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M", "DPM++ SDE", "DDIM", "UniPC", "PLMS"])
def test_both_passes_draw_each_pictures_own_noise(studio: Studio, sampler: str) -> None:
    fields = {"enable_hr": True, "hr_scale": 1.25, "sampler_name": sampler, "steps": 2}
    (_, second), alone = studio.make(**fields, batch_size=2), studio.one(**fields, seed=8)
    assert np.abs(pixels_of(second.image) - pixels_of(alone.image)).max() <= 1
    assert second.image.size == (80, 80)


@pytest.mark.parametrize(
    "change",
    [
        {"hr_prompt": "a blue square"},
        {"hr_negative_prompt": "blurry"},
        {"hr_sampler_name": "Heun"},
        {"hr_scheduler": "Karras"},
        {"hr_second_pass_steps": 2},
        {"hr_cfg": 2},
        {"denoising_strength": 0.4},
        {"hr_upscaler": "Lanczos"},
    ],
    ids=str,
)
def test_what_the_second_pass_is_told_shows_in_it_alone(
    studio: Studio, change: dict[str, object]
) -> None:
    fields = {"enable_hr": True, "hr_scale": 1.25, "hr_upscaler": "Latent", "steps": 3}
    assert not same(studio.one(**fields), studio.one(**fields | change))
    assert same(studio.one(steps=3), studio.one(steps=3, **change))


def test_another_checkpoint_makes_the_second_pass(studio: Studio) -> None:
    fields = {"enable_hr": True, "hr_scale": 1.25, "steps": 2, "hr_checkpoint_name": "b"}
    first = studio.one(steps=2)
    made = studio.one({"second_pass": "b"}, **fields, hr_upscaler="Lanczos")
    by_hand = studio.one(
        {"main": "b"}, **fields, hr_upscaler="Lanczos", firstpass_image=encoded(first.image)
    )
    assert same(made, by_hand)
    assert f"Hires checkpoint: b [{_hash(studio, 'b')}]" in made.infotext
    assert not same(made, studio.one(**fields, hr_upscaler="Lanczos"))


def _hash(studio: Studio, name: str) -> str:
    for models in studio.models(main=name):
        found = models.names.main.short_hash
    return found


def test_a_refiner_with_the_same_weights_changes_nothing(studio: Studio) -> None:
    fields = {"refiner_checkpoint": "a", "refiner_switch_at": 0.5, "sampler_name": "DPM++ 2M"}
    assert same(studio.one({"refiner": "a"}, **fields), studio.one(sampler_name="DPM++ 2M"))


def test_a_refiner_takes_over_where_the_webui_lets_it(studio: Studio) -> None:
    def refined(switch_at: float, **fields: object) -> Picture:
        asked = {"refiner_checkpoint": "b", "refiner_switch_at": switch_at}
        return studio.one({"refiner": "b"}, **asked, **fields)

    plain = studio.one()
    assert same(refined(1), plain)
    assert same(refined(0), studio.one({"main": "b"}))
    # Euler's four levels lie at the model's timesteps 999, 666, 333 and 0.
    half, also_half, late = refined(0.5), refined(0.66), refined(0.67)
    assert same(half, also_half)
    assert not same(half, late)
    assert f"Refiner: b [{_hash(studio, 'b')}], Refiner switch at: 0.5, Version" in half.infotext
    assert "Refiner" not in refined(1).infotext


def test_with_hires_fix_the_refiner_works_in_the_second_pass_alone(studio: Studio) -> None:
    hires = {"enable_hr": True, "hr_scale": 1.25, "hr_upscaler": "Lanczos", "steps": 2}
    asked = {"refiner_checkpoint": "b", "refiner_switch_at": 0}
    made = studio.one({"refiner": "b"}, **hires, **asked)
    first = studio.one(steps=2)
    given = studio.one({"refiner": "b"}, **hires, **asked, firstpass_image=encoded(first.image))
    assert same(made, given)


def test_levels_done_are_those_of_the_model() -> None:
    assert schedules.share_done(schedules.SIGMA_MAX) == 0
    assert schedules.share_done(schedules.SIGMA_MIN) == 0.999
    assert schedules.share_done(float(schedules.sigma_of(499))) == 0.5


def test_the_checkpoints_own_vae_from_a_file_changes_nothing(studio: Studio) -> None:
    fields = {"init_images": [encoded(photo())], "denoising_strength": 0.5}
    own = studio.one(**fields)
    assert same(studio.one({"vae": "a.vae"}, **fields), own)
    other = studio.one({"vae": "b.vae"}, **fields)
    assert not same(other, own)
    whole = studio.one({"vae": "b"}, **fields)  # a whole checkpoint brings its VAE along
    assert same(whole, other)
    assert ", VAE: b.vae.safetensors, " in other.infotext
    assert "VAE hash: " in other.infotext
    assert "VAE" not in own.infotext


def test_the_vae_stands_in_for_every_checkpoints_own(studio: Studio) -> None:
    asked = {"refiner_checkpoint": "b", "refiner_switch_at": 0}
    refined = studio.one({"refiner": "b", "vae": "a.vae"}, **asked)
    assert same(refined, studio.one({"main": "b", "vae": "a.vae"}))
    assert not same(refined, studio.one({"main": "b"}))


def test_files_that_are_no_vae_are_refused(studio: Studio, weights: Path) -> None:
    whole = {
        key.removeprefix(VAE): tensor
        for key, tensor in random_tensors().items()
        if key.startswith(VAE)
    }
    for change, words in (
        ({"encoder.down.0.block.0.conv1.weight": None}, "not a complete VAE"),
        ({"post_quant_conv.weight": torch.zeros(16, 16, 1, 1)}, "is not the VAE of a Stable"),
        ({"decoder.conv_in.weight": None}, "are missing"),
    ):
        changed = {k: v for k, v in (whole | change).items() if v is not None}
        save_file(changed, weights / "odd.safetensors")
        with pytest.raises(CheckpointUnreadable, match=words):
            studio.one({"vae": "odd"})


def test_latent_resize_is_the_interpolation_of_the_pictures_latents(studio: Studio) -> None:
    start = photo(48, 32)
    fields = {"init_images": [encoded(start)], "resize_mode": 3, "denoising_strength": 0.5}
    for models in studio.models():
        with torch.inference_mode():
            vae = models.main.vae
            seen = vae.encode(pictures.to_tensor(start)).latent_dist
            noise = torch.randn(seen.mean.shape, generator=torch.Generator().manual_seed(3))
            small = seen.mean + seen.std * noise
            large = torch.nn.functional.interpolate(small, size=(8, 8), mode="bilinear")
            request = studio.request(**fields)
            begun = studio.engine.start_of(models.main, request)([3])
        assert begun.latent is not None
        assert torch.allclose(begun.latent, large * VAE_SCALE, atol=1e-6)
    assert studio.one(**fields).image.size == (64, 64)
    assert not same(studio.one(**fields), studio.one(**fields | {"resize_mode": 0}))


def test_latent_resize_with_a_mask_keeps_the_rest(studio: Studio) -> None:
    made = studio.one(
        init_images=[encoded(photo(48, 32))],
        resize_mode=3,
        mask=encoded(mask_of((0, 0, 24, 32), (48, 32))),
        mask_blur=0,
        inpaint_full_res=False,
    )
    kept = photo(48, 32).resize((64, 64), Image.Resampling.LANCZOS)
    difference = np.abs(pixels_of(made.image) - pixels_of(kept)).max(axis=2)
    assert difference[:, 40:].max() == 0
    assert difference[:, :24].mean() > 5


def test_ensd_changes_what_follows_the_first_noise(studio: Studio) -> None:
    settings = {"override_settings": {"eta_noise_seed_delta": 31337}}
    for sampler, changes in (("Euler", False), ("Euler a", True)):
        plain = studio.one(sampler_name=sampler)
        changed = studio.one(sampler_name=sampler, **settings)
        assert same(plain, changed) is not changes
        assert ("ENSD: 31337" in changed.infotext) is changes


def test_the_infotext_of_hires_fix_is_the_webuis(studio: Studio) -> None:
    made = studio.one(
        enable_hr=True,
        hr_scale=1.25,
        hr_upscaler="Latent (nearest-exact)",
        hr_second_pass_steps=2,
        hr_prompt="a blue square, big",
        hr_negative_prompt="blurry",
        hr_sampler_name="DPM++ 2M",
        denoising_strength=0.5,
    )
    assert (
        "Denoising strength: 0.5, Hires sampler: DPM++ 2M, "
        'Hires prompt: "a blue square, big", Hires negative prompt: blurry, '
        "Hires schedule type: Karras, Hires upscale: 1.25, Hires steps: 2, "
        "Hires upscaler: Latent (nearest-exact), Version"
    ) in made.infotext
    assert "Size: 64x64" in made.infotext
    plain = studio.one(enable_hr=True, hr_resize_x=80, steps=1)
    assert "Denoising strength: 0.75, Hires resize: 80x0, Version" in plain.infotext
