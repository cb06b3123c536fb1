"""ControlNet in a real small model, held to diffusers' pipeline and to the extension's rules."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    EulerDiscreteScheduler,
    MultiControlNetModel,
    StableDiffusionControlNetPipeline,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from middleware_api.container.control.controlnet import ControlNet, config_of, load_controlnet
from middleware_api.container.control.job_control import JobControl
from middleware_api.container.engine import pictures
from middleware_api.container.engine.checkpoint_shapes import VAE_SCALE, UNetShape
from middleware_api.container.engine.engine import Engine, Picture
from middleware_api.container.engine.loading import CheckpointFile, Models
from middleware_api.container.engine.request import GenerationRequest, parse_request
from middleware_api.container.engine.roles import Roles
from middleware_api.container.errors import BadRequest, CheckpointUnreadable
from middleware_api.container.prompts.conditioning import Conditioning, Guidance
from middleware_api.container.prompts.encoder import PromptEncoder
from middleware_api.container.samplers.denoiser import Guided
from middleware_api.container.samplers.noise import generator_of
from middleware_api.container.samplers.prediction import Prediction
from tests.engine_checkpoints import TINY, TINY_2, TINY_XL, Size, write_checkpoint
from tests.sample_controlnets import controlnet, write_controlnet
from tests.test_engine import encoded, mask_of, photo, pixels_of

Unit = dict[str, Any]
INPAINTING = replace(TINY, unet=replace(TINY.unet, in_channels=9))


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.set_num_threads(1)
    return Engine(torch.device("cpu"), 10**9, PromptEncoder())


@pytest.fixture(scope="module")
def networks() -> list[ControlNetModel]:
    return [controlnet(seed=0), controlnet(seed=1)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, networks: list[ControlNetModel]) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    write_checkpoint(folder / "tiny.safetensors")
    write_controlnet(folder / "one.safetensors", networks[0])
    write_controlnet(folder / "two.safetensors", networks[1], ldm=False)
    write_controlnet(folder / "one_shuffle.safetensors", networks[0])
    return folder


class Studio:
    """The engine asked in the WebUI's fields, units and all."""

    def __init__(self, engine: Engine, weights: Path) -> None:
        self.engine, self.weights = engine, weights

    def file(self, name: str) -> CheckpointFile:
        return CheckpointFile(self.weights / f"{name}.safetensors", name, name, "")

    def request(self, *units: Unit, **fields: object) -> GenerationRequest:
        task = "img2img" if "init_images" in fields else "txt2img"
        body: dict[str, object] = {"prompt": "a red circle", "seed": 7, "steps": 4}
        body |= {"width": 64, "height": 64, "alwayson_scripts": {"ControlNet": {"args": units}}}
        return parse_request(task, json.dumps(body | fields).encode(), random.Random(0))

    def models(self, request: GenerationRequest) -> Iterator[Models]:
        nets = tuple(self.file(unit.model) for unit in request.control.units)
        with self.engine.loader.load(Roles(self.file("tiny"), controlnets=nets)) as models:
            yield models

    def all(self, *units: Unit, **fields: object) -> list[Picture]:
        request = self.request(*units, **fields)
        return [
            picture
            for models in self.models(request)
            for picture in self.engine.generate(models, request, lambda step: None)
        ]

    def one(self, *units: Unit, **fields: object) -> np.ndarray[Any, Any]:
        return pixels_of(self.all(*units, **fields)[0].image)


@pytest.fixture
def studio(engine: Engine, weights: Path) -> Studio:
    return Studio(engine, weights)


def unit(model: str = "one", **fields: object) -> Unit:
    return {"enabled": True, "model": model, "image": encoded(photo())} | fields


@torch.inference_mode()
def diffusers_picture(
    studio: Studio, nets: list[ControlNetModel], **arguments: Any
) -> np.ndarray[Any, Any]:
    """What diffusers' pipeline makes of Studio's request with these networks and the photo."""
    request = studio.request(sampler_name="Euler", scheduler="Uniform")
    for models in studio.models(request):
        model = models.main
        guidance = studio.engine._prompts.guidance(
            model, studio.engine._asks(request)[0], models.networks
        )
        towards, away = (texts.tokens for texts in guidance.at(0))
        scheduler = EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="linspace",
        )
        pipeline = StableDiffusionControlNetPipeline(
            vae=model.vae,
            text_encoder=None,
            tokenizer=None,
            unet=model.unet,
            controlnet=MultiControlNetModel(nets) if len(nets) > 1 else nets[0],
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        hint = torch.from_numpy(np.array(photo(), np.float32)).permute(2, 0, 1)[None] / 255
        latents = pipeline(
            prompt_embeds=towards,
            negative_prompt_embeds=away,
            image=[hint] * len(nets) if len(nets) > 1 else hint,
            latents=torch.randn((1, 4, 8, 8), generator=generator_of(7)),
            num_inference_steps=4,
            guidance_scale=7.0,
            output_type="latent",
            **arguments,
        ).images
        return pixels_of(pictures.to_picture(model.vae.decode(latents / VAE_SCALE).sample[0]))
    raise AssertionError("a model was lent")


def close(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> bool:
    return bool(np.abs(ours - theirs).max() <= 1)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers'
def test_pictures_are_those_of_diffusers_pipeline(
    studio: Studio, networks: list[ControlNetModel]
) -> None:
    """One network and two, their weights, and the steps in which they work."""
    one, two = networks
    plain = diffusers_picture(studio, [one], controlnet_conditioning_scale=0.0)
    assert close(studio.one(), plain)
    for units, nets, arguments in (
        ([unit(weight=0.8)], [one], {"controlnet_conditioning_scale": 0.8}),
        ([unit("two")], [two], {}),
        (
            [unit(weight=0.5), unit("two", weight=1.5)],
            [one, two],
            {"controlnet_conditioning_scale": [0.5, 1.5]},
        ),
        # The WebUI counts a step once its first guess is there: 0, 0, 1, 2 of 4.
        ([unit(guidance_start=0.2)], [one], {"control_guidance_start": 0.5}),
        ([unit(guidance_end=0.1)], [one], {"control_guidance_end": 0.5}),
    ):
        made = studio.one(*units)
        assert close(made, diffusers_picture(studio, nets, **arguments)), arguments
        assert not close(made, plain)


def test_what_adds_nothing_changes_no_bit(studio: Studio) -> None:
    plain = studio.one()
    for idle in (
        unit(weight=0),
        unit(advanced_weighting=[0, 0, 0, 0, 0]),
        unit(enabled=False),
        unit(guidance_start=0.9, guidance_end=1),
    ):
        assert np.array_equal(studio.one(idle), plain)


@pytest.fixture(scope="module")
def net(weights: Path) -> ControlNet:
    path = weights / "one.safetensors"
    return load_controlnet(path, path.name, "", torch.device("cpu"), torch.float32)


@torch.inference_mode()
def added(
    studio: Studio, net: ControlNet, asked: Unit, share_done: float = 0.0, is_second: bool = False
) -> list[torch.Tensor]:
    """What a unit adds for a prompt's row and a negative prompt's."""
    control = JobControl.of([net], studio.request(asked), [(64, 64)]).at_work(no_encode, is_second)
    more = control.added(*rows(), None, prompts=1, share_done=share_done)
    if not more:
        return []
    return [*more["down_block_additional_residuals"], more["mid_block_additional_residual"]]


def no_encode(picture: object) -> torch.Tensor:
    raise AssertionError("nothing is held to the picture")


def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, 4, 8, 8, generator=draw),
        torch.tensor([500.0, 500.0]),
        torch.randn(2, 77, 64, generator=draw),
    )


@torch.inference_mode()
def diffusers_layers(network: ControlNetModel) -> list[torch.Tensor]:
    latents, times, texts = rows()
    hint = torch.from_numpy(np.array(photo(), np.float32)).permute(2, 0, 1)[None] / 255
    down, middle = network(latents, times, texts, hint.expand(2, -1, -1, -1), return_dict=False)
    return [*down, middle]


def alike(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> bool:
    return all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(ours, theirs, strict=True)
    )


def test_control_modes_weigh_layers_and_sides_as_the_extension_does(
    studio: Studio, net: ControlNet, networks: list[ControlNetModel]
) -> None:
    layers = diffusers_layers(networks[0])
    soft = [layer * 0.825 ** (12 - i) for i, layer in enumerate(layers)]
    prompts = torch.tensor([1.0, 0.0])[:, None, None, None]
    assert alike(added(studio, net, unit(control_mode=0)), layers)
    assert alike(added(studio, net, unit(control_mode="My prompt is more important")), soft)
    one_sided = added(studio, net, unit(control_mode=2, weight=0.5))
    assert alike(one_sided, [layer * 0.5 * prompts for layer in soft])
    # Thin lines are softened in the second pass of hires fix, too.
    canny = unit(module="canny")
    first, second = (added(studio, net, canny, is_second=second) for second in (False, True))
    assert alike(second, [layer * 0.825 ** (12 - i) for i, layer in enumerate(first)])


def test_layers_have_weights_of_their_own_and_a_region(
    studio: Studio, net: ControlNet, networks: list[ControlNetModel]
) -> None:
    layers = diffusers_layers(networks[0])
    weights = [0.0, 0.1, 0.2, 0.3, 2.0]
    expected = [layer * weight for layer, weight in zip(layers, weights, strict=True)]
    assert alike(added(studio, net, unit(advanced_weighting=weights, control_mode=1)), expected)
    left = encoded(mask_of((0, 0, 32, 64)))
    for layer, whole in zip(
        added(studio, net, unit(effective_region_mask=left)), layers, strict=True
    ):
        half = layer.shape[3] // 2
        assert torch.equal(layer[..., half + 1 :], torch.zeros_like(layer[..., half + 1 :]))
        assert torch.allclose(layer[..., : half - 1], whole[..., : half - 1], atol=1e-5)
    with pytest.raises(BadRequest, match="has 5 layers and advanced_weighting 2 numbers"):
        added(studio, net, unit(advanced_weighting=[1, 1]))


def test_the_shuffle_network_adds_one_number_a_channel_to_the_prompts_side(
    studio: Studio, weights: Path, networks: list[ControlNetModel]
) -> None:
    path = weights / "one_shuffle.safetensors"
    net = load_controlnet(path, path.name, "", torch.device("cpu"), torch.float32)
    means = [layer.mean(dim=(2, 3), keepdim=True) for layer in diffusers_layers(networks[0])]
    prompts = torch.tensor([1.0, 0.0])[:, None, None, None]
    assert alike(added(studio, net, unit("one_shuffle")), [mean * prompts for mean in means])


def test_prompts_and_pictures_of_a_batch_go_through_one_call(studio: Studio) -> None:
    calls: list[int] = []
    request = studio.request(unit(guidance_end=0.3), batch_size=2, negative_prompt="blurry")
    for models in studio.models(request):
        hooks = [
            module.register_forward_pre_hook(lambda module, inputs: calls.append(len(inputs[0])))
            for module in (models.main.unet, models.controlnets[0].module)
        ]
        first, second = list(studio.engine.generate(models, request, lambda step: None))[:2]
        for hook in hooks:
            hook.remove()
    # Both networks in three steps (0, 0 and 1 of 4 are counted), the UNet alone in the last.
    assert calls == [4] * 7
    alone = studio.one(unit(guidance_end=0.3), seed=8, negative_prompt="blurry")
    assert np.abs(pixels_of(second.image) - alone).max() <= 1
    assert not np.array_equal(pixels_of(first.image), alone)


def test_img2img_shows_its_own_picture_where_the_unit_has_none(studio: Studio) -> None:
    start = {"init_images": [encoded(photo())], "denoising_strength": 0.7}
    own, none = unit(), unit(image=None)
    assert np.array_equal(studio.one(none, **start), studio.one(own, **start))
    assert not np.array_equal(studio.one(none, **start), studio.one(**start))
    with pytest.raises(BadRequest, match=r"ControlNet 0 \(one\) has no picture"):
        studio.one(none)


def test_a_unit_works_in_the_passes_that_it_is_told(studio: Studio) -> None:
    hires = {"enable_hr": True, "hr_scale": 1.5, "hr_upscaler": "Lanczos", "steps": 2}
    made = {word: studio.all(unit(hr_option=word), **hires) for word in _PASSES}
    assert [[p.image.size for p in pictures] for pictures in made.values()] == [
        [(96, 96), (96, 96), (64, 64)]
    ] * 3
    both, first, second = (pixels_of(made[word][0].image) for word in _PASSES)
    plain = studio.one(**hires)
    assert len({picture.tobytes() for picture in (both, first, second, plain)}) == 4
    # The second pass alone is steered: the first one's picture is the plain one's.
    given = encoded(studio.all(steps=2)[0].image)
    asked = unit(hr_option="High res only")
    assert np.array_equal(studio.one(asked, **hires, firstpass_image=given), second)


_PASSES = ("Both", "Low res only", "High res only")


def test_maps_follow_the_pictures_unless_they_are_not_wanted(studio: Studio) -> None:
    made = studio.all(unit(module="invert"), unit("two", save_detected_map=False), n_iter=2)
    assert [picture.index for picture in made] == [0, 1, 2]
    assert [bool(picture.infotext) for picture in made] == [True, True, False]
    assert np.array_equal(pixels_of(made[2].image), 255 - pixels_of(photo()))
    settings = {"control_net_no_detectmap": True}
    assert studio.request(override_settings=settings).warnings == ()
    assert len(studio.all(unit(module="invert"), override_settings=settings)) == 1


def test_the_parameters_tell_of_the_units_that_are_on(studio: Studio) -> None:
    (made, *_) = studio.all(
        unit(enabled=False),
        unit(module="canny", threshold_a=50, control_mode=1),
        unit("two", weight=0.5, resize_mode="Just Resize", pixel_perfect=True, guidance_end=0.8),
    )
    assert (
        'ControlNet 0: "Module: canny, Model: one, Weight: 1.0, Resize Mode: Crop and Resize, '
        "Processor Res: 512, Threshold A: 50.0, Threshold B: 200, Guidance Start: 0.0, "
        'Guidance End: 1.0, Pixel Perfect: False, Control Mode: My prompt is more important", '
        'ControlNet 1: "Module: none, Model: two, Weight: 0.5, Resize Mode: Just Resize, '
        "Processor Res: 512, Threshold A: 0.5, Threshold B: 0.5, Guidance Start: 0.0, "
        'Guidance End: 0.8, Pixel Perfect: True, Control Mode: Balanced", Version'
    ) in made.infotext


def test_inpaint_only_keeps_the_units_picture_where_its_mask_is_black(studio: Studio) -> None:
    mask = encoded(mask_of((0, 0, 24, 64)))
    asked = unit(module="inpaint_only", image={"image": encoded(photo()), "mask": mask})
    made = studio.all(asked)
    difference = np.abs(pixels_of(made[0].image) - pixels_of(photo())).max(axis=2)
    assert difference[:, 32:].max() == 0
    assert difference[:, :20].mean() > 5
    # What is made anew shows half transparent in the map.
    shown = np.asarray(made[1].image)
    assert (shown[:, :24, 3] == 128).all()
    assert (shown[:, 24:, 3] == 255).all()
    # With a mask of the job's own, that one keeps the rest.
    start = {"init_images": [encoded(photo())], "mask": mask, "inpaint_full_res": False}
    request = studio.request(unit(module="inpaint_only", image=None), **start)
    assert request.control.units[0].module.name == "inpaint"


@torch.inference_mode()
def test_colorfix_gives_the_latents_the_pictures_own_means(studio: Studio) -> None:
    """With a reach beyond the latents, everything but their means is the guess's own."""
    asked = unit(module="tile_colorfix", threshold_a=32)
    request = studio.request(asked)
    for models in studio.models(request):
        vae = models.main.vae

        def encode(picture: Image.Image, vae: Any = vae) -> torch.Tensor:
            mean: torch.Tensor = vae.encode(pictures.to_tensor(picture)).latent_dist.mode()
            return mean * VAE_SCALE

        latent = encode(photo())
        work = JobControl.of(models.controlnets, request, [(64, 64)]).at_work(encode, False)
        guess = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        held = work.corrected(guess, True)
    padded = [
        torch.nn.functional.pad(each, (32,) * 4, mode="replicate") for each in (guess, latent)
    ]
    means = [torch.nn.functional.avg_pool2d(each, 65, stride=1) for each in padded]
    assert torch.allclose(held, guess - means[0] + means[1], atol=1e-5)
    assert not np.array_equal(studio.one(asked), studio.one(unit(module="none")))


def test_recolouring_keeps_the_lightness_of_the_units_picture(studio: Studio) -> None:
    (made, seen) = studio.all(unit(module="recolor_intensity"))
    brightest = pixels_of(made.image).max(axis=2)
    assert np.abs(brightest - pixels_of(seen.image)[:, :, 0]).max() <= 1


def test_files_that_are_something_else_are_refused_in_words(
    studio: Studio, weights: Path, networks: list[ControlNetModel]
) -> None:
    whole = load_file(weights / "one.safetensors")
    for name, tensors, words in (
        ("lora", {"lora_controlnet": torch.zeros(1)}, "is a Control-LoRA, which this engine"),
        ("t2i", {"adapter.body.0.resnets.0.block1.weight": torch.zeros(1)}, "is a T2I-Adapter"),
        ("ip", {"ip_adapter.1.to_k_ip.weight": torch.zeros(1)}, "is an IP-Adapter"),
        ("lllite", {"lllite_unet_x.depth1.0.weight": torch.zeros(1)}, "is a ControlNet-LLLite"),
        ("union", {"task_embedding": torch.zeros(1), **whole}, "is a ControlNet Union"),
        ("flux", {"controlnet_blocks.0.weight": torch.zeros(1)}, "for Stable Diffusion 3 or Flux"),
        ("tiny", load_file(weights / "tiny.safetensors"), "is a checkpoint, which this engine"),
        ("odd", {"x": torch.zeros(1)}, "is no ControlNet: it has no tensor named"),
        ("half", dict([*whole.items()][: len(whole) // 2]), "is not a complete ControlNet|is no"),
    ):
        path = weights / f"is_{name}.safetensors"
        save_file(tensors, path)
        with pytest.raises(CheckpointUnreadable, match=words):
            studio.one(unit(f"is_{name}"))
    (weights / "is_broken.safetensors").write_bytes(b"x" * 100)
    for name, words in (("is_broken", "is not a readable"), ("is_gone", "is not in the object")):
        with pytest.raises(CheckpointUnreadable, match=words):
            studio.one(unit(name))


def test_a_controlnet_of_another_family_is_refused(studio: Studio, weights: Path) -> None:
    wider = replace(TINY, unet=UNetShape(4, 4, (32, 64), 1, (1, 0), 96))
    for name, size, words in (
        ("wider", wider, r"made for a model of \(32, 64\) channels that reads 96 of a text"),
        ("xl", TINY_XL, r"made for Stable Diffusion XL and tiny is a model of \(32, 64\)"),
    ):
        write_controlnet(weights / f"{name}.safetensors", controlnet(size=size), ldm=False)
        with pytest.raises(BadRequest, match=words):
            studio.one(unit(name))


@pytest.mark.parametrize("size", [TINY_2, TINY_XL, INPAINTING], ids=["2.x", "XL", "inpainting"])
@torch.inference_mode()
def test_later_families_are_steered_too(studio: Studio, weights: Path, size: Size) -> None:
    """What the UNet gets is what diffusers' own network makes of all that the UNet is told."""
    network = controlnet(size=size, in_channels=4)
    kind = f"{size.family.name} {size.unet.in_channels}"
    net, base = f"net of {kind}", f"base of {kind}"
    write_controlnet(weights / f"{net}.safetensors", network, ldm=False)
    write_checkpoint(weights / f"{base}.safetensors", size)
    seen: list[tuple[Any, dict[str, Any]]] = []
    request = studio.request(unit(net), steps=1)
    files = Roles(studio.file(base), controlnets=(studio.file(net),))
    with studio.engine.loader.load(files) as models:
        hook = models.main.unet.register_forward_pre_hook(
            lambda module, inputs, more: seen.append((inputs, more)), with_kwargs=True
        )
        list(studio.engine.generate(models, request, lambda step: None))
        hook.remove()
    ((latents, times, texts), more), *_ = seen
    hint = torch.from_numpy(np.array(photo(), np.float32)).permute(2, 0, 1)[None] / 255
    down, middle = network(
        *(latents[:, :4], times, texts, hint.expand(2, -1, -1, -1)),
        added_cond_kwargs=more["added_cond_kwargs"],
        return_dict=False,
    )
    assert alike([*more["down_block_additional_residuals"]], down)
    assert alike([more["mid_block_additional_residual"]], [middle])


@pytest.mark.parametrize("prediction", list(Prediction), ids=lambda each: each.name)
def test_a_guess_that_is_held_to_itself_is_the_guess(prediction: Prediction) -> None:
    guided = Guided(torch.nn.Identity(), Guidance((), Conditioning((), ())), 7, torch.float32)
    guided = replace(guided, prediction=prediction)
    x, answer = (torch.randn(1, 4, 8, 8, generator=generator_of(seed)) for seed in (0, 1))
    clean = guided._clean(x, answer, 3.0)
    assert torch.allclose(guided._answer(x, clean, 3.0), answer, atol=1e-5)


@pytest.mark.parametrize("linear", [False, True], ids=["1.x", "2.x"])
def test_full_size_files_are_understood(tmp_path: Path, linear: bool) -> None:
    """Shapes alone: what diffusers' own configuration of lllyasviel's networks has."""
    context = 1024 if linear else 768
    with torch.device("meta"):
        network = ControlNetModel(
            cross_attention_dim=context,
            attention_head_dim=(5, 10, 20, 20) if linear else 8,
            use_linear_projection=linear,
        )
        found = config_of(dict(network.state_dict()))
        again = ControlNetModel(**found)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in network.state_dict().items()
    }
    for name in ("attention_head_dim", "cross_attention_dim", "block_out_channels"):
        assert again.config[name] == network.config[name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"module": "openpose_full"}, r"'openpose_full' needs a network of its own.*: none, inv"),
        ({"module": "depth_midas"}, "needs a network of its own"),
        ({"module": "reference_only"}, "works inside of the checkpoint's attention"),
        ({"module": "magic"}, "is not a preprocessor of this engine"),
        ({"model": "None"}, r"ControlNet.args\[0\].model names no ControlNet"),
        ({"weight": 3}, r"args\[0\].weight must be between 0 and 2"),
        ({"guidance_start": 0.8, "guidance_end": 0.2}, "guidance_start 0.8 is behind"),
        ({"control_mode": "loud"}, "control_mode 'loud' must be one of: 0 or 'Balanced'"),
        ({"resize_mode": 3}, "resize_mode 3 must be one of"),
        ({"image": "x"}, r"args\[0\].image is not a readable picture"),
        ({"image": [{}, {}]}, "has 2 pictures. Send a unit for each"),
        ({"mask": encoded(Image.new("L", (8, 8)))}, "Send a mask of the image's size"),
        ({"effective_region_mask": "x"}, "effective_region_mask is not a readable picture"),
        ({"advanced_weighting": ["a"]}, "advanced_weighting must be numbers"),
        ({"pixel_perfect": "yes"}, "pixel_perfect must be true or false"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_units_that_cannot_be_done_are_refused(
    studio: Studio, change: dict[str, object], words: str
) -> None:
    with pytest.raises(BadRequest, match=words):
        studio.request(unit(**change))


def test_units_come_in_many_forms(studio: Studio) -> None:
    picture, mask = encoded(photo()), encoded(mask_of((0, 0, 8, 8)))
    names = {"enabled": True, "model": "one"}
    for image in (
        {"image": picture, "mask": mask},
        [picture, mask],
        [{"image": picture, "mask": mask}],
    ):
        for field in ("image", "input_image"):
            (found,) = studio.request(names | {field: image}).control.units
            assert found.image is not None
            assert found.mask is not None
    older = names | {"image": picture, "guidance": 0.5, "lowvram": False, "mask_image": mask}
    (found,) = studio.request(older).control.units
    assert (found.end, found.mask is None) == (0.5, False)
    for scripts in (
        {"controlnet": {"args": [False, True, older]}},
        {"ControlNet": {"args": older}},
        {"CONTROLNET": [older]},
        {"ControlNet": {"args": [[older]]}},
    ):
        request = studio.request(alwayson_scripts=scripts)
        assert (len(request.control.units), request.warnings) == (1, ())
    many = [names | {"image": picture}] * 11
    with pytest.raises(BadRequest, match="11 ControlNet units are on"):
        studio.request(*many)


def test_fields_without_effect_are_warned_of(studio: Studio) -> None:
    request = studio.request(
        unit(low_vram=True, batch_images="/in", colour=1, loopback=False, is_ui=True),
        unit(enabled=False, colour=1),
    )
    assert request.warnings == (
        "alwayson_scripts.ControlNet.args[0].batch_images is not supported yet and was ignored.",
        "alwayson_scripts.ControlNet.args[0].colour is no field of a unit and was ignored.",
        "alwayson_scripts.ControlNet.args[0].low_vram has no effect: the engine moves no part of a "
        "model out of the GPU's memory.",
    )
