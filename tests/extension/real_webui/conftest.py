"""A real WebUI without a checkpoint or a GPU, with this extension in it, before a real server.

    make check-webui WEBUI_DIR=/path/to/stable-diffusion-webui

WEBUI_DIR is a checkout of AUTOMATIC1111's WebUI 1.10.1 that has been started once, so that its
`venv` and `repositories` are there. Its own settings, outputs and models stay untouched: each run
has a data folder of its own.
"""

from __future__ import annotations

import base64
import io
import os
import socket
import subprocess
import time
from collections.abc import Iterator
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
def webui(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[RealWebui]:
    checkout = os.environ.get("WEBUI_DIR")
    if not checkout:
        pytest.skip("WEBUI_DIR names no checkout of the WebUI: make check-webui WEBUI_DIR=…")
    server: RealServer = request.getfixturevalue("real_server")
    data = tmp_path_factory.mktemp("webui")
    (data / "extensions").mkdir()
    (data / "extensions" / "sdaws").symlink_to(REPOSITORY)
    (data / "styles.csv").write_text(
        "name,prompt,negative_prompt\nround,{prompt} very round,a square\n"
    )
    port = free_port()
    log = data / "webui.log"
    environment = {
        **os.environ,
        "SDAWS_API_URL": server.url,
        "SDAWS_API_TOKEN": server.token,
        "HF_HUB_OFFLINE": "1",
        "GRADIO_ANALYTICS_ENABLED": "False",
        "SD_WEBUI_RESTARTING": "1",  # opens no browser
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(str(Path(checkout) / "venv" / "bin" / "python"), "-W", "ignore", "launch.py"),
                *("--port", str(port), "--data-dir", str(data), *FLAGS),
            ],
            cwd=checkout,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_it_is_up(process, log)
        yield RealWebui(url, data, log, server.checkpoint, _other_checkpoint(server, data))
    finally:
        process.kill()
        process.wait()


def _wait_until_it_is_up(process: subprocess.Popen[bytes], log: Path) -> None:
    """Its log tells: its API answers before all of it is there."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        if "Startup time:" in log.read_text():
            return
        time.sleep(0.3)
    raise AssertionError(f"the WebUI was not up in time\n{log.read_text()[-3000:]}")


def _other_checkpoint(server: RealServer, folder: Path) -> str:
    """A second checkpoint for the cloud, with random weights."""
    path = folder / "random-weights.safetensors"
    write_random_weights(path)
    upload_checkpoint(server.client(), path, CheckpointType.STABLE_DIFFUSION)
    return path.name
