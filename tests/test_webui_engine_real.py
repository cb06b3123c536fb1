"""The engine `webui` before a real WebUI 1.10.1, started as its image starts it.

    make check-webui WEBUI_DIR=/path/to/stable-diffusion-webui

WEBUI_DIR is a checkout that has been started once, so that its `venv` and `repositories` are there.
Nothing of it may be written: what the WebUI writes goes into a scratch folder, as in the image.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from middleware_api import contract
from middleware_api.container.errors import BadRequest, EngineDown, EngineFailed
from middleware_api.container.prompts.encoder import TOKENIZER_FOLDER
from middleware_api.container.webui.driven import WebUiSettings
from middleware_api.container.webui.engine import WebUiEngine
from middleware_api.demo import architecture
from tests.pretend_webui import free_port
from tests.sample_networks import write_converted, write_networks
from tests.sample_upscalers import esrgan, write_upscaler
from tests.server import REPOSITORY, until
from tests.test_webui_engine import Bench

pytestmark = pytest.mark.webui

DEMO = REPOSITORY / "middleware_api" / "demo"
START = REPOSITORY / "middleware_api" / "container" / "webui.sh"
ASKED = {
    "prompt": "a big red circle on a blue background",
    **{"steps": 8, "width": 64, "height": 64, "cfg_scale": 5, "seed": 5},
    **{"sampler_name": "Euler", "scheduler": "Karras"},
}


class Studio(Bench):
    """A bench with the demo checkpoint, and the WebUI's own API beside the engine."""

    url = ""

    def files(self, *networks: tuple[str, Path]) -> list[contract.ContainerCheckpoint]:
        demo = ("Stable-diffusion", DEMO / "demo.safetensors")
        return [self.upload(kind, path.name, path.read_bytes()) for kind, path in (demo, *networks)]

    def pictures(self, result: contract.InvocationResult) -> list[bytes]:
        return [(self.root / key).read_bytes() for key in result["images"]]

    def directly(self, **fields: Any) -> list[bytes]:
        answer = httpx.post(f"{self.url}/sdapi/v1/txt2img", json=fields, timeout=300)
        assert answer.status_code == 200, answer.text
        return [base64.b64decode(picture) for picture in answer.json()["images"]]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    checkout = os.environ.get("WEBUI_DIR")
    if not checkout:
        pytest.skip("WEBUI_DIR names no checkout of the WebUI: make check-webui WEBUI_DIR=…")
    root, scratch = tmp_path_factory.mktemp("objects"), tmp_path_factory.mktemp("scratch")
    data, port = scratch / "webui", free_port()
    write_networks(data / "models/Lora", data / "embeddings", data / "models/hypernetworks")
    for folder in ("models/Lora", "embeddings", "models/hypernetworks"):
        for path in (data / folder).iterdir():
            path.rename(path.with_stem(f"own-{path.stem}"))
    fixed = {
        **{"SDAWS_WEBUI_DIR": checkout, "SDAWS_WEBUI_DATA": str(data)},
        **{"SDAWS_WEBUI_PORT": str(port), "HOME": str(scratch), "TMPDIR": str(scratch)},
        **{"HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    }
    bench = Studio(root, None, None)  # type: ignore[arg-type]
    _describe_demo(bench, scratch, data)
    sandbox = f"{sys.executable} -m tests.only_writable {scratch} -- sh {START}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in fixed.items():
            patch.setenv(name, value)
        bench.url = f"http://127.0.0.1:{port}"
        command = f"{sandbox} --use-cpu all --no-half --no-half-vae"
        bench.engine = WebUiEngine(WebUiSettings(bench.url, command))
        yield bench
        bench.engine.close()


def _describe_demo(bench: Studio, scratch: Path, data: Path) -> None:
    """What the WebUI must be told of a checkpoint of this size, where the link to it will be."""
    encoder = scratch / "demo-text-encoder"
    shutil.copytree(TOKENIZER_FOLDER, encoder)
    architecture.text_config().save_pretrained(encoder)
    tokens = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
    tokens |= {"unk_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    (encoder / "tokenizer_config.json").write_text(json.dumps(tokens))
    (file,) = bench.files()
    folder = data / "models" / "Stable-diffusion" / "sdaws" / file["sha256"][:16]
    folder.mkdir(parents=True)
    described = (DEMO / "demo.yaml").read_text()
    (folder / "demo.yaml").write_text(described.replace("models/demo-text-encoder", str(encoder)))


def pixels(picture: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(picture)))


def test_pictures_are_those_of_a_direct_call(studio: Studio) -> None:
    with pytest.raises(EngineDown, match="it is starting"):
        studio.engine.check()
    result = studio.run("plain", files=studio.files(), n_iter=2, **ASKED)
    studio.engine.check()
    assert studio.pictures(result) == studio.directly(n_iter=2, **ASKED)
    info = json.loads(result["info"])
    assert info["warnings"] == []
    assert "Model hash: " in info["infotexts"][1]
    assert "Model: demo, " in info["infotexts"][1]
    told = Image.open(io.BytesIO(studio.pictures(result)[1])).info
    assert told["parameters"] == info["infotexts"][1]


def test_networks_are_found_by_their_names(studio: Studio, tmp_path: Path) -> None:
    write_converted(tmp_path)
    networks = [
        ("Lora", tmp_path / "style.safetensors"),
        ("embeddings", tmp_path / "sparkle.safetensors"),
        ("hypernetworks", tmp_path / "wave.safetensors"),
    ]
    files = studio.files(*networks)
    (plain,) = studio.pictures(studio.run("plain-red", files=files, **_asking("a red circle")))
    for number, prompt in enumerate(
        (
            "a red {}sparkle circle",
            "a red circle <lora:{}style:0.7>",
            "a red circle <hypernet:{}wave:0.8>",
        )
    ):
        made = studio.run(f"network-{number}", files=files, **_asking(prompt.format("")))
        (mine,) = studio.pictures(made)
        # The WebUI's own file by another name, as it was before an upload converted it.
        (theirs,) = studio.directly(**_asking(prompt.format("own-")))
        assert np.array_equal(pixels(mine), pixels(theirs)), prompt
        assert not np.array_equal(pixels(mine), pixels(plain)), prompt


def test_progress_interrupts_and_reasons(studio: Studio) -> None:
    with ThreadPoolExecutor(1) as pool:
        long = {**ASKED, "steps": 150, "n_iter": 50}
        job = pool.submit(studio.run, "long", files=studio.files(), **long)
        seen = until(lambda: studio.progress("long"), lambda p: p.get("has_preview", False))
        assert 0 < seen["step"] < seen["total_steps"] == 7500
        (studio.root / contract.cancel_key("long")).touch()
        result = job.result(timeout=60)
    assert result["status"] == "cancelled"
    scripts = {"nobody's": {"args": []}}
    with pytest.raises(BadRequest, match=r"\(422\): Script 'nobody's' not found"):
        studio.run("bad", files=studio.files(), alwayson_scripts=scripts, **ASKED)
    with pytest.raises(BadRequest, match=r"\(404\): Model not found"):
        studio.run("words", "interrogate", [], image=_picture(), model="nobody")


def test_the_extras_tab(studio: Studio) -> None:
    asked = {"image": _picture(), "upscaler_1": "Lanczos", "upscaling_resize": 2}
    result = studio.run("extras", "extra-single-image", [], **asked)
    (picture,) = studio.pictures(result)
    assert pixels(picture).shape == (128, 128, 3)
    assert "Postprocess upscaler: Lanczos" in json.loads(result["info"])["infotexts"][0]


def test_upscalers_that_are_models(studio: Studio, tmp_path: Path) -> None:
    big = write_upscaler(tmp_path / "big.safetensors", esrgan(), wrapped="params_ema")
    files = [studio.upload("ESRGAN", big.name, big.read_bytes())]
    asked = {"image": _picture(), "upscaler_1": "big", "upscaling_resize": 4}
    (picture,) = studio.pictures(studio.run("big", "extra-single-image", files, **asked))
    assert pixels(picture).shape == (256, 256, 3)
    (usual,) = studio.pictures(studio.run("usual", "extra-single-image", [], **_lanczos()))
    assert not np.array_equal(pixels(picture), pixels(usual))


def test_a_webui_that_was_killed_comes_back(studio: Studio) -> None:
    process = studio.engine._webui._process
    assert process is not None
    assert process._process is not None
    killed = threading.Timer(2.0, process._process.kill)
    killed.start()
    long = {**ASKED, "steps": 150, "n_iter": 50}
    with pytest.raises(EngineFailed, match="was killed by signal 9"):
        studio.run("killed", files=studio.files(), **long)
    result = studio.run("after", files=studio.files(), **ASKED)
    assert result["status"] == "succeed"


def _lanczos() -> dict[str, Any]:
    return {"image": _picture(), "upscaler_1": "Lanczos", "upscaling_resize": 4}


def _asking(prompt: str) -> dict[str, Any]:
    return {**ASKED, "prompt": prompt}


def _picture() -> str:
    target = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(target, "PNG")
    return base64.b64encode(target.getvalue()).decode()
