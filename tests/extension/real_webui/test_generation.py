"""Everything that the WebUI generates, made in the cloud, through the WebUI's own API."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from aws_extension.infotext import parameters_of
from tests.extension.real_webui.conftest import RealWebui, decode, encode

TXT2IMG, IMG2IMG = "/sdapi/v1/txt2img", "/sdapi/v1/img2img"
PROMPT = "a big red circle on a blue background"
pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def start() -> str:
    """A picture to start from."""
    picture = Image.new("RGB", (64, 64), "navy")
    ImageDraw.Draw(picture).ellipse((16, 16, 48, 48), fill="red")
    return encode(picture)


@pytest.fixture
def mask() -> str:
    """White where to paint: the right half."""
    picture = Image.new("L", (64, 64))
    picture.paste(255, (32, 0, 64, 64))
    return encode(picture)


def seeds(answer: dict[str, Any]) -> list[str]:
    texts = json.loads(answer["info"])["infotexts"]
    return [parameters_of(text)["Seed"] for text in texts]


def parameters(answer: dict[str, Any], index: int = 0) -> dict[str, str]:
    return parameters_of(json.loads(answer["info"])["infotexts"][index])


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.convert("RGB").tobytes() == other.convert("RGB").tobytes()


def test_txt2img_has_the_webuis_infotext_and_its_own_seeds(webui: RealWebui) -> None:
    answer = webui.generate(TXT2IMG, prompt=PROMPT, seed=7, batch_size=2, n_iter=2)
    assert seeds(answer) == ["7", "8", "9", "10"]
    said = parameters(answer)
    assert said["Model"] == Path(webui.checkpoint).stem
    assert said["Size"] == "64x64"
    assert said["Cloud endpoint"]
    assert "1.10.1" in said["Version"]
    assert parameters_of(answer["images"][0].info["parameters"]) == said
    alone = webui.generate(TXT2IMG, prompt=PROMPT, seed=9)
    assert same(alone["images"][0], answer["images"][2])


def test_pictures_are_saved_by_the_webuis_patterns(webui: RealWebui) -> None:
    settings = {"samples_filename_pattern": "[seed]-[model_name]-[model_hash]"}
    folders = ("txt2img-images", "txt2img-grids")
    before = {path for folder in folders for path in webui.saved(folder)}
    webui.generate(
        TXT2IMG, prompt=PROMPT, seed=21, n_iter=2, save_images=True, override_settings=settings
    )
    samples, grids = ([p for p in webui.saved(f) if p not in before] for f in folders)
    stem = Path(webui.checkpoint).stem
    names = sorted("-".join(path.stem.split("-")[-3:-1]) for path in samples)
    assert names == [f"21-{stem}", f"22-{stem}"]
    (first,) = [path for path in samples if f"21-{stem}" in path.name]
    with Image.open(first) as saved:
        assert parameters_of(saved.info["parameters"])["Seed"] == "21"
    assert len(grids) == 1


def test_hires_fix(webui: RealWebui) -> None:
    answer = webui.generate(
        TXT2IMG, prompt=PROMPT, seed=7, enable_hr=True, hr_scale=2, hr_upscaler="Latent",
        denoising_strength=0.6, hr_second_pass_steps=3,
    )  # fmt: skip
    assert answer["images"][0].size == (128, 128)
    said = parameters(answer)
    assert (float(said["Hires upscale"]), said["Hires upscaler"]) == (2, "Latent")
    assert (said["Hires steps"], said["Denoising strength"]) == ("3", "0.6")


def test_img2img(webui: RealWebui, start: str) -> None:
    answer = webui.generate(
        IMG2IMG, prompt=PROMPT, seed=7, init_images=[start], denoising_strength=0.4
    )
    assert parameters(answer)["Denoising strength"] == "0.4"
    kept = webui.generate(IMG2IMG, prompt=PROMPT, seed=7, init_images=[start], denoising_strength=0)
    red, green, blue = kept["images"][0].getpixel((32, 32))
    assert red > 150 > 80 > green + blue - 80  # the circle has stayed red


@pytest.mark.parametrize("only_masked", [True, False])
def test_inpaint_keeps_what_is_not_masked(
    webui: RealWebui, start: str, mask: str, only_masked: bool
) -> None:
    answer = webui.generate(
        IMG2IMG, prompt="a green square", seed=7, init_images=[start], mask=mask, mask_blur=0,
        inpainting_fill=0, inpaint_full_res=only_masked, denoising_strength=0.9,
    )  # fmt: skip
    made, before = answer["images"][0].convert("RGB"), decode(start)
    left, right = (0, 0, 28, 64), (36, 0, 64, 64)
    assert same(made.crop(left), before.crop(left))
    assert not same(made.crop(right), before.crop(right))


# Legend, lone images, sub grids, keep -1, vary seeds three ways, margin, as text.
_XYZ_REST = [True, True, False, False, False, False, False, 0, False]


def test_xyz_plot(webui: RealWebui) -> None:
    nothing = [0, "", []]
    args = [4, "2,4", [], 1, "5,6", [], *nothing, *_XYZ_REST]
    answer = webui.generate(
        TXT2IMG, prompt=PROMPT, seed=7, script_name="x/y/z plot", script_args=args
    )
    cells = answer["images"][1:]
    assert len(cells) == 4
    said = [parameters(answer, index) for index in range(1, 5)]
    assert [(one["Steps"], one["Seed"]) for one in said] == [
        ("2", "5"), ("4", "5"), ("2", "6"), ("4", "6"),
    ]  # fmt: skip
    grid = parameters(answer)
    assert (grid["X Type"], grid["Y Type"]) == ("Steps", "Seed")
    alone = webui.generate(TXT2IMG, prompt=PROMPT, seed=6, steps=2)
    assert same(alone["images"][0], cells[2])


def test_xyz_plot_over_cloud_checkpoints(webui: RealWebui) -> None:
    nothing = [0, "", []]
    axis = _axis(webui, "Checkpoint name")
    args = [axis, "", [webui.checkpoint], *nothing, *nothing, *_XYZ_REST]
    answer = webui.generate(
        TXT2IMG, prompt=PROMPT, seed=7, script_name="x/y/z plot", script_args=args
    )
    alone = webui.generate(TXT2IMG, prompt=PROMPT, seed=7)
    assert same(alone["images"][0], answer["images"][1])


def _axis(webui: RealWebui, label: str) -> int:
    source = (Path(os.environ["WEBUI_DIR"]) / "scripts" / "xyz_grid.py").read_text()
    table = source[source.index("axis_options = [") :]
    options = [line for line in table.splitlines() if line.strip().startswith("AxisOption")]
    both = [line for line in options if "AxisOptionImg2Img" not in line]
    return next(number for number, line in enumerate(both) if f'"{label}"' in line)


def test_prompt_matrix(webui: RealWebui) -> None:
    answer = webui.generate(
        TXT2IMG, prompt="a circle|red|big", seed=7, script_name="prompt matrix",
        script_args=[False, False, "positive", "comma", 0], batch_size=2,
    )  # fmt: skip
    texts = json.loads(answer["info"])["infotexts"][1:]
    assert [text.splitlines()[0] for text in texts] == [
        "a circle", "a circle, red", "a circle, big", "a circle, red, big",
    ]  # fmt: skip
    alone = webui.generate(TXT2IMG, prompt="a circle, big", seed=7)
    assert same(alone["images"][0], answer["images"][3])


def test_prompts_from_file(webui: RealWebui) -> None:
    lines = f'a red circle\n--prompt "a blue square" --steps 3 --sd_model "{webui.checkpoint}"'
    answer = webui.generate(
        TXT2IMG, prompt="", seed=7, script_name="prompts from file or textbox",
        script_args=[False, False, "start", lines],
    )  # fmt: skip
    assert len(answer["images"]) == 2
    said = [parameters(answer, index) for index in range(2)]
    assert [one["Steps"] for one in said] == ["4", "3"]
    assert [one["Seed"] for one in said] == ["7", "7"]


def test_loopback_builds_on_its_own_pictures(webui: RealWebui, start: str) -> None:
    answer = webui.generate(
        IMG2IMG, prompt=PROMPT, seed=7, init_images=[start], denoising_strength=0.3,
        script_name="loopback", script_args=[3, 0.5, "Linear", "None"],
    )  # fmt: skip
    first = webui.generate(
        IMG2IMG, prompt=PROMPT, seed=7, init_images=[start], denoising_strength=0.3
    )
    shown = answer["images"][-3:]
    assert same(shown[0], first["images"][0])
    second = webui.generate(
        IMG2IMG, prompt=PROMPT, seed=8, init_images=[encode(shown[0])], inpainting_fill=1,
        denoising_strength=0.4,
    )  # fmt: skip
    assert same(shown[1], second["images"][0])


def test_sd_upscale(webui: RealWebui, start: str) -> None:
    answer = webui.generate(
        IMG2IMG, prompt=PROMPT, seed=7, init_images=[start], denoising_strength=0.2,
        script_name="sd upscale", script_args=["", 16, "Lanczos", 2.0],
    )  # fmt: skip
    (picture,) = answer["images"]
    assert picture.size == (128, 128)
    assert len(picture.convert("RGB").getcolors(128 * 128)) > 100
    black = sum(count for count, colour in picture.getcolors(128 * 128) if colour == (0, 0, 0))
    assert black < 1000  # no tile is missing


@pytest.mark.parametrize(
    ("script", "args"),
    [
        ("poor man's outpainting", [32, 4, 0, ["left", "right"]]),
        ("outpainting mk2", ["", 64, 4, ["right"], 1.0, 0.05]),
    ],
)
def test_outpainting_keeps_the_picture_and_adds_to_it(
    webui: RealWebui, start: str, script: str, args: list[Any]
) -> None:
    answer = webui.generate(
        IMG2IMG, prompt=PROMPT, seed=7, init_images=[start], denoising_strength=0.8, width=128,
        script_name=script, script_args=args,
    )  # fmt: skip
    picture = answer["images"][-1].convert("RGB")
    assert picture.size == (128, 64)
    if "mk2" not in script:  # that one changes the colours of what it keeps
        red, green, blue = picture.getpixel((64, 32))
        assert red > 250 > 5 > max(green, blue)
    added = picture.crop((104, 0, 128, 64))
    assert len(added.getcolors(24 * 64)) > 50


def test_what_works_on_the_model_itself_is_refused_before_anything_is_sent(
    webui: RealWebui, start: str
) -> None:
    fields = {
        "prompt": PROMPT, "init_images": [start], "script_name": "img2img alternative test",
        "script_args": ["", True, True, "", "", True, 50, True, 1.0, 0.0, False],
    }  # fmt: skip
    answer = webui.call(IMG2IMG, fields)
    assert answer.status_code == 500
    assert "works on the model itself" in answer.text


def test_styles_and_override_settings(webui: RealWebui) -> None:
    answer = webui.generate(
        TXT2IMG, prompt="a circle", seed=7, styles=["round"],
        override_settings={"CLIP_stop_at_last_layers": 2, "sd_vae": "None"},
    )  # fmt: skip
    text = json.loads(answer["info"])["infotexts"][0]
    assert text.startswith("a circle very round\nNegative prompt: a square")
    assert parameters(answer)["Clip skip"] == "2"
    plain = webui.generate(
        TXT2IMG, prompt="a circle very round", negative_prompt="a square", seed=7
    )
    assert not same(plain["images"][0], answer["images"][0])


def test_refiner(webui: RealWebui) -> None:
    plain = webui.generate(TXT2IMG, prompt=PROMPT, seed=7, steps=6)
    answer = webui.generate(
        TXT2IMG, prompt=PROMPT, seed=7, steps=6, refiner_checkpoint=webui.other_checkpoint,
        refiner_switch_at=0.5,
    )  # fmt: skip
    assert "Refiner" in parameters(answer)
    assert parameters(answer)["Refiner switch at"] == "0.5"
    assert not same(plain["images"][0], answer["images"][0])


def test_a_failure_says_why(webui: RealWebui) -> None:
    answer = webui.call(
        TXT2IMG,
        {"prompt": PROMPT, "alwayson_scripts": {"cloud": {"args": [True, "none.safetensors"]}}},
    )
    assert answer.status_code == 500
    assert "none.safetensors" in answer.text


def test_toggle_off_is_the_webuis_own(webui: RealWebui) -> None:
    answer = webui.call(TXT2IMG, {"prompt": PROMPT}, cloud=False)
    assert "No checkpoints found" in answer.text or answer.status_code == 500
    assert "cloud" not in answer.text.lower()
