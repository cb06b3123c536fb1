"""The `webuiapi` client from PyPI, unchanged, on a real server with the demo checkpoint.

Its requests carry the token as the password of HTTP Basic, as they do to a WebUI with `--api-auth`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import webuiapi
from PIL import Image, ImageOps
from safetensors.torch import save

from middleware_api.container.engine.checkpoint_shapes import UNetShape
from middleware_api.demo.__main__ import CHECKPOINT
from tests.engine_checkpoints import TINY
from tests.sample_controlnets import controlnet, ldm_names
from tests.sample_upscalers import repeating, write_pickled
from tests.server import Server

SMALL = {"steps": 3, "width": 64, "height": 64, "seed": 7, "sampler_name": "Euler"}
# Long enough that whatever a test does happens while it runs.
LONG = {**SMALL, "steps": 500, "n_iter": 20}


@pytest.fixture(scope="module")
def webui_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("webuiapi") / "var")
    assert running.deploy()["endpoint_status"] == "InService"
    running.upload(CHECKPOINT.read_bytes(), "demo.safetensors")
    yield running
    running.stop()


@pytest.fixture
def api(webui_studio: Server) -> webuiapi.WebUIApi:
    client = webuiapi.WebUIApi(baseurl=f"{webui_studio.url}/sdapi/v1", sampler="Euler", steps=3)
    client.set_auth("anybody", str(webui_studio.client.headers["x-api-key"]))
    return client


def in_a_thread(act: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    """Begins it; the list gets what it returns."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(act()))
    thread.start()
    return thread, results


def watched(api: webuiapi.WebUIApi, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The progress once it is as wanted."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        seen: dict[str, Any] = api.get_progress()
        if wanted(seen):
            return seen
        time.sleep(0.02)
    raise AssertionError(f"still not as wanted: {seen}")


def test_without_the_token_nothing_opens(webui_studio: Server) -> None:
    stranger = webuiapi.WebUIApi(baseurl=f"{webui_studio.url}/sdapi/v1")
    with pytest.raises(RuntimeError, match="401"):
        stranger.txt2img(prompt="x")
    stranger.set_auth("anybody", "wrong")
    with pytest.raises(RuntimeError, match="401"):
        stranger.txt2img(prompt="x")


def test_its_controlnet_units_steer(api: webuiapi.WebUIApi, webui_studio: Server) -> None:
    demo = replace(TINY, unet=UNetShape(4, 4, (96, 96), 1, (1, 0), 64))
    weights = save(ldm_names({k: v.half() for k, v in controlnet(size=demo).state_dict().items()}))
    webui_studio.upload(weights, "control_lines.safetensors", "ControlNet")
    (model,) = api.controlnet_model_list()
    assert model.startswith("control_lines [")
    assert "canny" in api.controlnet_module_list()
    line = Image.new("RGB", (64, 64))
    line.paste("white", (20, 0, 24, 64))
    unit = webuiapi.ControlNetUnit(image=line, module="invert", model="control_lines [d14c016b]")
    # A dict of our own: the client keeps its default one, units and all, for later calls.
    asked = {"prompt": "a red circle", "alwayson_scripts": {}, **SMALL}
    plain = api.txt2img(**asked)
    made = api.txt2img(**asked, controlnet_units=[unit])
    picture, seen = made.images
    assert seen.tobytes() == ImageOps.invert(line).tobytes()
    assert len(plain.images) == 1
    assert plain.image.tobytes() != picture.tobytes()
    assert "ControlNet 0: " in made.info["infotexts"][0]
    assert made.info["warnings"] == []


def test_a_prompt_becomes_pictures(api: webuiapi.WebUIApi) -> None:
    made = api.txt2img(prompt="a red circle", negative_prompt="blur", batch_size=2, **SMALL)
    assert [picture.size for picture in made.images] == [(64, 64)] * 2
    assert made.info["all_seeds"] == [7, 8]
    assert made.info["sd_model_name"] == "demo"
    assert made.parameters["prompt"] == "a red circle"
    again = api.txt2img(prompt="a red circle", negative_prompt="blur", batch_size=2, **SMALL)
    assert [p.tobytes() for p in again.images] == [p.tobytes() for p in made.images]
    told = api.png_info(made.image)
    assert told.info == made.info["infotexts"][0]
    assert told.parameters["Prompt"] == "a red circle"
    assert told.parameters["Seed"] == "7"
    assert api.txt2img(prompt="a red circle", send_images=False, **SMALL).images == []


def test_a_picture_becomes_another(api: webuiapi.WebUIApi) -> None:
    red = Image.new("RGB", (64, 64), "red")
    made = api.img2img(images=[red], prompt="a red square", denoising_strength=0.5, **SMALL)
    assert made.image.size == (64, 64)
    assert made.info["denoising_strength"] == 0.5
    mask = Image.new("L", (64, 64), 0)
    kept = api.img2img(images=[red], mask_image=mask, inpaint_full_res=False, **SMALL)
    assert kept.image.convert("RGB").getpixel((3, 3)) == (255, 0, 0)


def test_the_lists_and_the_options(api: webuiapi.WebUIApi) -> None:
    (title,) = api.util_get_model_names()
    assert title.startswith("demo.safetensors [")
    assert api.util_get_current_model() == title
    api.util_set_model("demo")
    api.set_options({"CLIP_stop_at_last_layers": 2})
    options = api.get_options()
    assert (options["sd_model_checkpoint"], options["CLIP_stop_at_last_layers"]) == (title, 2)
    assert api.txt2img(prompt="x", **SMALL).info["clip_skip"] == 2
    api.set_options({"CLIP_stop_at_last_layers": 1})
    assert "Euler a" in api.util_get_sampler_names()
    assert "karras" in api.util_get_scheduler_names()
    assert [u["name"] for u in api.get_upscalers()] == ["None", "Lanczos", "Nearest"]
    assert "Latent" in [mode["name"] for mode in api.get_latent_upscale_modes()]
    nothing: list[Callable[[], Any]] = [
        *(api.get_sd_vae, api.get_loras, api.get_hypernetworks, api.get_face_restorers),
        *(api.get_realesrgan_models, api.get_prompt_styles),
    ]
    assert [ask() for ask in nothing] == [[]] * len(nothing)
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}}
    assert api.get_scripts() == {"txt2img": [], "img2img": []}
    assert set(api.get_memory()) == {"ram", "cuda"}
    assert api.refresh_checkpoints() is None


def test_progress_shows_the_running_job_until_it_is_interrupted(api: webuiapi.WebUIApi) -> None:
    assert api.get_progress()["progress"] == 0
    thread, results = in_a_thread(lambda: api.txt2img(prompt="a blue square", **LONG))
    seen = watched(api, lambda p: p["current_image"] is not None)
    assert 0 < seen["progress"] < 1
    assert 0 < seen["state"]["sampling_step"] < seen["state"]["sampling_steps"]
    assert api.interrupt() == {}
    thread.join(30)
    assert len(results[0].images) < 20
    watched(api, lambda p: p["state"]["job"] == "")


def test_skip_ends_a_job_too(api: webuiapi.WebUIApi) -> None:
    thread, results = in_a_thread(lambda: api.txt2img(prompt="a blue square", **LONG))
    watched(api, lambda p: p["progress"] > 0)
    assert api.skip() is None
    thread.join(30)
    assert len(results) == 1


def test_what_fails_says_why(api: webuiapi.WebUIApi) -> None:
    with pytest.raises(RuntimeError, match="no such sampler"):
        api.txt2img(prompt="x", **{**SMALL, "sampler_name": "no such sampler"})
    with pytest.raises(RuntimeError, match="Set model to deepdanbooru"):
        api.interrogate(Image.new("RGB", (8, 8)))
    with pytest.raises(RuntimeError, match="Upload model-resnet_custom_v3"):
        api.interrogate(Image.new("RGB", (8, 8)), model="deepdanbooru")


def test_a_picture_is_enlarged(api: webuiapi.WebUIApi) -> None:
    picture = Image.new("RGB", (8, 6), "red")
    large = api.extra_single_image(
        picture, upscaler_1=webuiapi.Upscaler.Lanczos, upscaling_resize=4
    )
    assert large.image.size == (32, 24)
    assert "Postprocess upscaler: Lanczos" in large.info


def test_an_upscaler_of_torch_is_uploaded_and_used(
    api: webuiapi.WebUIApi, webui_studio: Server, tmp_path: Path
) -> None:
    file = write_pickled(tmp_path / "2x_same.pth", repeating(2), "params_ema")
    webui_studio.upload(file.read_bytes(), file.name, "ESRGAN")
    deadline = time.monotonic() + 60
    while "2x_same" not in [u["name"] for u in api.get_upscalers()]:  # until it is converted
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pictures = [Image.linear_gradient("L").convert("RGB").resize((16, 8)), Image.new("RGB", (8, 8))]
    large = api.extra_batch_images(pictures, upscaler_1="2x_same", upscaling_resize=2)
    nearest = [p.resize((2 * p.width, 2 * p.height), Image.Resampling.NEAREST) for p in pictures]
    assert [p.tobytes() for p in large.images] == [p.tobytes() for p in nearest]
    hires = {**SMALL, "width": 32, "height": 32, "enable_hr": True, "denoising_strength": 0.5}
    one, other = (api.txt2img(hr_upscaler=name, **hires) for name in ("2x_same", "Nearest"))
    assert one.image.tobytes() == other.image.tobytes()
    assert "Hires upscaler: 2x_same" in one.info["infotexts"][0]
