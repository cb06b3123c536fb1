"""The task extra-single-image: the WebUI's Extras tab, as far as it needs no model."""

from __future__ import annotations

import base64
import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from middleware_api import contract
from middleware_api.container import extras
from middleware_api.container.errors import BadRequest
from middleware_api.container.job import JobRunner, parse_invocation
from middleware_api.container.storage import FolderStorage

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


def enlarged(picture: Image.Image | None = None, **fields: object) -> tuple[Image.Image, str]:
    body = {"image": encoded(picture or photo()), "upscaler_1": "Lanczos"} | fields
    return extras.enlarged(extras.parse_extras(json.dumps(body).encode()))


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
        ({"upscaler_1": "R-ESRGAN 4x+"}, "upscaler_1 'R-ESRGAN 4x\\+' .* None, Lanczos, Nearest"),
        ({"upscaler_2": "Latent"}, "upscaler_2 'Latent' is not available"),
        ({"gfpgan_visibility": 0.1}, "gfpgan_visibility: this engine has no model"),
        ({"codeformer_visibility": 1}, "codeformer_visibility: this engine has no model"),
        ({"resize_mode": 2}, "resize_mode must be between 0 and 1"),
        ({"upscaling_resize": 0}, "upscaling_resize must be above 0"),
        ({"upscaling_resize": 500}, "would be 20000x12000. Choose a size of at most 16384"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_name(fields: dict[str, object], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        enlarged(**fields)


@pytest.fixture
def runner(tmp_path: Path) -> JobRunner:
    tasks = {contract.TaskType.EXTRA_SINGLE_IMAGE.value: extras.upscale}
    return JobRunner(tasks, FolderStorage(tmp_path), threading.Event())


def run(runner: JobRunner, **fields: object) -> contract.InvocationResult:
    key = contract.params_key(contract.TaskType.EXTRA_SINGLE_IMAGE, JOB)
    body = {"image": encoded(photo(), "a cat\nSteps: 4"), "upscaler_1": "Lanczos"} | fields
    runner.storage.write(key, json.dumps(body).encode())
    invocation = {
        "job_id": JOB,
        "task_type": contract.TaskType.EXTRA_SINGLE_IMAGE.value,
        "params_key": key,
        "checkpoints": [],
        "output_prefix": contract.output_prefix(JOB),
    }
    return runner.run(parse_invocation(json.dumps(invocation).encode()))


def test_the_job_needs_no_checkpoint_and_keeps_the_parameters(runner: JobRunner) -> None:
    result = run(runner, colour="blue")
    assert result["images"] == [contract.image_key(JOB, 0)]
    assert result["parameters"]["image"] is None
    picture = Image.open(io.BytesIO(runner.storage.read(result["images"][0])))
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
