"""The tasks extra-single-image and extra-batch-images: the WebUI's Extras tab."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from middleware_api import contract
from middleware_api.container.engine.engine import Engine
from middleware_api.container.errors import BadRequest
from middleware_api.container.extras import extras
from middleware_api.container.extras.upscalers import NO_UPSCALER, PictureUpscaler
from middleware_api.container.job import JobRunner, parse_invocation
from middleware_api.container.prompts.encoder import PromptEncoder
from middleware_api.container.storage import FolderStorage
from middleware_api.container.tasks import tasks_of
from tests.sample_upscalers import repeating, write_upscaler

LANCZOS, NEAREST = Image.Resampling.LANCZOS, Image.Resampling.NEAREST
JOB = "e1"


def photo(width: int = 40, height: int = 24) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, parameters: str = "") -> str:
    stream, text = io.BytesIO(), PngImagePlugin.PngInfo()
    if parameters:
        text.add_text("parameters", parameters)
    image.save(stream, "PNG", pnginfo=text)
    return base64.b64encode(stream.getvalue()).decode()


def parsed(**fields: object) -> extras.ExtrasRequest:
    body = {"image": encoded(photo()), "upscaler_1": "Lanczos"} | fields
    return extras.parse_extras("extra-single-image", json.dumps(body).encode())


def enlarged(picture: Image.Image | None = None, **fields: object) -> tuple[Image.Image, str]:
    request = parsed(**{"image": encoded(picture or photo())} | fields)
    first, second = request.first, request.second if request.blends else NO_UPSCALER
    assert isinstance(first, PictureUpscaler)
    assert isinstance(second, PictureUpscaler)
    upscalers = extras.Upscalers(first, second)
    return extras.enlarged(request.images[0], request, upscalers, lambda: None)


def equal(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and np.array_equal(np.asarray(one), np.asarray(other))


def test_pictures_are_enlarged_as_pillow_does_it() -> None:
    made, text = enlarged()
    assert equal(made, photo().resize((80, 48), LANCZOS))
    assert text == "Postprocess upscale by: 2, Postprocess upscaler: Lanczos"
    made, _ = enlarged(upscaler_1="nearest", upscaling_resize=3)
    assert equal(made, photo().resize((120, 72), NEAREST))


def test_sizes_are_multiples_of_eight_as_the_webuis() -> None:
    made, _ = enlarged(upscaling_resize=1.33, upscaler_1="Nearest")
    assert equal(made, photo().resize((53, 31), NEAREST).resize((48, 24), LANCZOS))
    smaller, _ = enlarged(upscaling_resize=0.5, upscaler_1="Nearest")
    assert equal(smaller, photo().resize((16, 8), LANCZOS))


def test_a_size_is_covered_and_cropped_to_its_middle() -> None:
    size = {"resize_mode": 1, "upscaling_resize_w": 64, "upscaling_resize_h": 64}
    whole, text = enlarged(**size, upscaling_crop=False)
    assert whole.size == (104, 64)
    assert text == "Postprocess upscale to: 64x64, Postprocess upscaler: Lanczos"
    made, text = enlarged(**size)
    assert equal(made, whole.crop((20, 0, 84, 64)))
    assert text == (
        "Postprocess upscale to: 64x64, Postprocess crop to: 64x64, Postprocess upscaler: Lanczos"
    )


def test_a_second_upscaler_is_laid_over_the_first() -> None:
    both = {"upscaler_2": "Nearest", "extras_upscaler_2_visibility": 0.25}
    made, text = enlarged(**both)
    first, second = photo().resize((80, 48), LANCZOS), photo().resize((80, 48), NEAREST)
    assert equal(made, Image.blend(first, second, 0.25))
    assert text.endswith("Postprocess upscaler: Lanczos, Postprocess upscaler 2: Nearest")
    hidden, _ = enlarged(**both | {"extras_upscaler_2_visibility": 0})
    assert equal(hidden, first)


def test_transparency_stays_and_other_modes_become_rgb() -> None:
    clear = photo().convert("RGBA")
    clear.putalpha(100)
    assert enlarged(clear)[0].mode == "RGBA"
    assert enlarged(photo().convert("L"))[0].mode == "RGB"


def test_without_an_upscaler_the_picture_stays() -> None:
    made, text = enlarged(upscaler_1=None, upscaler_2="Nearest", extras_upscaler_2_visibility=1)
    assert equal(made, photo())
    assert text == ""


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"image": ""}, "needs a picture in image"),
        ({"image": "aGVsbG8="}, "image is not a readable picture"),
        ({"gfpgan_visibility": 0.1}, "gfpgan_visibility: this engine restores no faces"),
        ({"codeformer_visibility": 1}, "codeformer_visibility: this engine restores no faces"),
        ({"override_settings": {"ESRGAN_tile_overlap": 192}}, "ESRGAN_tile_overlap must be below"),
        ({"resize_mode": 2}, "resize_mode must be between 0 and 1"),
        ({"upscaling_resize": 0}, "upscaling_resize must be above 0"),
        ({"upscaling_resize": 500}, "would be 20000x12000. Choose a size of at most 16384"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, object], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        enlarged(**fields)


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.set_num_threads(1)
    return Engine(torch.device("cpu"), 10**9, PromptEncoder())


@pytest.fixture
def runner(engine: Engine, tmp_path: Path) -> JobRunner:
    return JobRunner(tasks_of(engine), FolderStorage(tmp_path), threading.Event())


def run(
    runner: JobRunner,
    task: contract.TaskType = contract.TaskType.EXTRA_SINGLE_IMAGE,
    files: Sequence[str] = (),
    **fields: object,
) -> contract.InvocationResult:
    key = contract.params_key(task, JOB)
    one = task is contract.TaskType.EXTRA_SINGLE_IMAGE
    body = {"image": encoded(photo(), "a cat\nSteps: 4")} if one else {}
    runner.storage.write(key, json.dumps({**body, "upscaler_1": "Lanczos"} | fields).encode())
    invocation = {
        "job_id": JOB,
        "task_type": task.value,
        "params_key": key,
        "checkpoints": [
            {"type": "ESRGAN", "name": name, "key": f"ESRGAN/{name}", "size": 1, "sha256": ""}
            for name in files
        ],
        "output_prefix": contract.output_prefix(JOB),
    }
    return runner.run(parse_invocation(json.dumps(invocation).encode()))


def picture_of(runner: JobRunner, result: contract.InvocationResult, index: int = 0) -> Image.Image:
    return Image.open(io.BytesIO(runner.storage.read(result["images"][index])))


def test_the_job_needs_no_checkpoint_and_keeps_the_parameters(runner: JobRunner) -> None:
    result = run(runner, colour="blue")
    assert result["images"] == [contract.image_key(JOB, 0)]
    assert result["parameters"]["image"] is None
    picture = picture_of(runner, result)
    assert equal(picture, photo().resize((80, 48), LANCZOS))
    text = "Postprocess upscale by: 2, Postprocess upscaler: Lanczos"
    assert picture.info == {"parameters": "a cat\nSteps: 4", "postprocessing": text}
    assert json.loads(result["info"]) == {
        "html_info": f"<p>{text}</p>",
        "infotexts": [text],
        "warnings": ["colour is not a field of this engine and was ignored."],
    }


def test_a_cancelled_job_makes_nothing(runner: JobRunner) -> None:
    runner.storage.write(contract.cancel_key(JOB), b"")
    result = run(runner)
    assert (result["status"], result["images"]) == ("cancelled", [])
    assert json.loads(result["info"])["infotexts"] == []


def test_a_picture_is_enlarged_by_a_model_that_the_job_brings(
    runner: JobRunner, tmp_path: Path
) -> None:
    write_upscaler(tmp_path / "ESRGAN/2x_same.safetensors", repeating(2), "params_ema")
    write_upscaler(tmp_path / "ESRGAN/2x_blue.safetensors", repeating(2, blue=1), "params")
    both = {"upscaler_1": "2x_same", "upscaler_2": "2x_blue.safetensors"}
    result = run(
        runner,
        files=("2x_same.safetensors", "2x_blue.safetensors", "2x_other.safetensors"),
        **both,
        extras_upscaler_2_visibility=0.5,
    )
    same = photo().resize((80, 48), NEAREST)
    blue = Image.merge("RGB", (*same.split()[:2], Image.new("L", same.size, 255)))
    assert equal(picture_of(runner, result), Image.blend(same, blue, 0.5))
    info = json.loads(result["info"])
    assert info["infotexts"] == [
        "Postprocess upscale by: 2, Postprocess upscaler: 2x_same, Postprocess upscaler 2: 2x_blue"
    ]
    assert info["warnings"] == [
        "ESRGAN file 2x_other.safetensors is not named by the request and was ignored."
    ]


def test_a_batch_of_pictures_comes_back_in_its_order(runner: JobRunner) -> None:
    entries = [
        {"data": encoded(photo(), "first"), "name": "a.png"},
        {"data": "data:image/png;base64," + encoded(photo(16, 16)), "name": "b.png"},
    ]
    result = run(runner, contract.TaskType.EXTRA_BATCH_IMAGES, imageList=entries)
    first, second = picture_of(runner, result, 0), picture_of(runner, result, 1)
    assert equal(first, photo().resize((80, 48), LANCZOS))
    assert first.info["parameters"] == "first"
    assert equal(second, photo(16, 16).resize((32, 32), LANCZOS))
    assert result["parameters"]["imageList"] is None
    info = json.loads(result["info"])
    assert (len(info["infotexts"]), info["warnings"]) == (2, [])


@pytest.mark.parametrize(
    ("pictures", "words"),
    [
        ([], "needs 1 to 100 pictures in imageList"),
        (["x"], r"imageList\[0\] must be an object"),
        ([{"data": "x"}], r"imageList\[0\]\.data is not a readable picture"),
    ],
)
def test_a_batch_that_cannot_be_read_is_refused(
    runner: JobRunner, pictures: list[object], words: str
) -> None:
    with pytest.raises(BadRequest, match=words):
        run(runner, contract.TaskType.EXTRA_BATCH_IMAGES, imageList=pictures)


def test_an_upscaler_that_the_job_does_not_bring_is_named(
    runner: JobRunner, tmp_path: Path
) -> None:
    with pytest.raises(
        BadRequest,
        match=r"upscaler_2 'R-ESRGAN' is not among the job's upscalers: None, Lanczos, Nearest, "
        r"4x_x\. Choose one of these, or upload the upscaler's file as ESRGAN",
    ):
        run(runner, files=("4x_x.safetensors",), upscaler_2="R-ESRGAN")
