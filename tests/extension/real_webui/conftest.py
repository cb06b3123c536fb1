"""A real WebUI without a checkpoint or a GPU, with this extension in it, before a real server.

    make check-webui WEBUI_DIR=/path/to/stable-diffusion-webui

WEBUI_DIR is a checkout of AUTOMATIC1111's WebUI 1.10.1 that has been started once, so that its
`venv` and `repositories` are there. Its own settings, outputs and models stay untouched: each run
has a data folder of its own.
"""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from aws_extension.uploader import upload_checkpoint
from middleware_api.contract import CheckpointType
from tests.extension.conftest import REPOSITORY, RealServer, write_random_weights

START_SECONDS = 180
FLAGS = (
    *("--api", "--skip-install", "--skip-prepare-environment", "--skip-torch-cuda-test"),
    *("--skip-python-version-check", "--skip-version-check", "--no-download-sd-model"),
    *("--do-not-download-clip", "--no-half", "--use-cpu", "all", "--no-hashing"),
)
# What its pages show at first, in its own `ui-config.json`: what the small checkpoint can do.
FIRST_SHOWN = {
    f"{part}/{name}/value": value
    for tab in ("txt2img", "img2img")
    for part, name, value in (
        (tab, "Width", 64),
        (tab, "Height", 64),
        (tab, "CFG Scale", 5.0),
        (f"customscript/sampler.py/{tab}", "Sampling steps", 4),
        (f"customscript/sampler.py/{tab}", "Sampling method", "Euler"),
    )
}
# An extension of the tests: what is going on inside.
INSIDE = """
import threading
from modules import processing, script_callbacks
from aws_extension.webui import interception

def tell(demo, app):
    @app.get("/inside")
    def inside():
        return {
            "threads": sorted(thread.name for thread in threading.enumerate()),
            "interceptors": len(interception._installed),
            "original": interception._installed[0].process_images.original.__code__.co_filename,
        }

script_callbacks.on_app_started(tell)
"""

# A stand-in for the Dreambooth extension: its tab, with the names and ids that it has.
DREAMBOOTH = """
import gradio as gr
from modules import script_callbacks

def tab():
    with gr.Blocks() as dreambooth_interface:
        with gr.Row(elem_id="DbTopRow"):
            gr.Button(value="Save Settings", elem_id="db_save_config")
            train = gr.Button(value="Train", variant="primary", elem_id="db_train")
        gr.Dropdown(label="Model", choices=["cat", "dot"])
        said = gr.HTML(elem_id="db_status")
        train.click(lambda: "trained here", None, said)
    return ((dreambooth_interface, "Dreambooth", "dreambooth_interface"),)

script_callbacks.on_ui_tabs(tab)
"""


@dataclass(frozen=True)
class RealWebui:
    """A running WebUI; `data` is where it saves."""

    url: str
    data: Path
    log: Path
    checkpoint: str
    other_checkpoint: str

    def call(self, path: str, fields: dict[str, Any], cloud: bool = True) -> requests.Response:
        """A request to the WebUI's own API, by default with the panel's toggle on."""
        scripts = {"cloud": {"args": [True, self.checkpoint]}} if cloud else {}
        scripts.update(fields.pop("alwayson_scripts", {}))
        plain = {"width": 64, "height": 64, "steps": 4, "cfg_scale": 5, "sampler_name": "Euler"}
        body = {**plain, **fields, "alwayson_scripts": scripts}
        return requests.post(f"{self.url}{path}", json=body, timeout=300)

    def generate(self, path: str, **fields: Any) -> dict[str, Any]:
        """A successful generation's answer, its pictures decoded."""
        answer = self.call(path, fields)
        assert answer.status_code == 200, f"{answer.text}\n{self.log.read_text()[-3000:]}"
        document: dict[str, Any] = answer.json()
        document["images"] = [decode(image) for image in document["images"]]
        return document

    def saved(self, folder: str) -> list[Path]:
        """Files in one of its output folders, in the order of their names."""
        return sorted((self.data / "outputs" / folder).rglob("*.png"))


def decode(picture: str) -> Image.Image:
    """A base64 picture, loaded."""
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    image.load()
    return image


def encode(image: Image.Image) -> str:
    """The other way round."""
    target = io.BytesIO()
    image.save(target, "PNG")
    return base64.b64encode(target.getvalue()).decode()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The WebUI that is tried."""
    found = os.environ.get("WEBUI_DIR")
    if not found:
        pytest.skip("WEBUI_DIR names no checkout of the WebUI: make check-webui WEBUI_DIR=…")
    return Path(found)


@pytest.fixture(scope="session")
def webui(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[RealWebui]:
    server: RealServer = request.getfixturevalue("real_server")
    data = tmp_path_factory.mktemp("webui")
    (data / "styles.csv").write_text(
        "name,prompt,negative_prompt\nround,{prompt} very round,a square\n"
    )
    with running_webui(
        checkout, data, SDAWS_API_URL=server.url, SDAWS_API_TOKEN=server.token
    ) as url:
        yield RealWebui(
            url, data, data / "webui.log", server.checkpoint, _other_checkpoint(server, data)
        )


@contextmanager
def running_webui(checkout: Path, data: Path, **environ: str) -> Iterator[str]:
    """The WebUI with our extension, and a data folder of its own; its address."""
    (data / "extensions").mkdir()
    (data / "extensions" / "sdaws").symlink_to(REPOSITORY)
    for name, script in (("tell-inside", INSIDE), ("sd_dreambooth_extension", DREAMBOOTH)):
        (data / "extensions" / name / "scripts").mkdir(parents=True)
        (data / "extensions" / name / "scripts" / "main.py").write_text(script)
    (data / "ui-config.json").write_text(json.dumps(FIRST_SHOWN))
    port = free_port()
    log = data / "webui.log"
    fixed = {
        "HF_HUB_OFFLINE": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "SD_WEBUI_RESTARTING": "1",  # opens no browser
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(str(checkout / "venv" / "bin" / "python"), "-W", "ignore", "launch.py"),
                *("--port", str(port), "--data-dir", str(data), *FLAGS),
            ],
            cwd=checkout,
            env={**os.environ, **fixed, **environ},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for_start(log, 1, lambda: process.poll() is not None)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def wait_for_start(log: Path, count: int, has_ended: Callable[[], bool] = lambda: False) -> None:
    """The log tells, of each start: the API answers before all of it is there."""
    deadline = time.monotonic() + START_SECONDS
    while log.read_text().count("Startup time:") < count:
        assert not has_ended(), log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.2)


def _other_checkpoint(server: RealServer, folder: Path) -> str:
    """A second checkpoint for the cloud, with random weights."""
    path = folder / "random-weights.safetensors"
    write_random_weights(path)
    upload_checkpoint(server.client(), path, CheckpointType.STABLE_DIFFUSION)
    return path.name
