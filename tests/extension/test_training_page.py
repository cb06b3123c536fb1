"""The Training page in a real browser, on a real server whose training program pretends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from PIL import Image

from aws_extension.client import CloudClient
from aws_extension.uploader import upload_checkpoint
from middleware_api.contract import CheckpointType, TrainState
from tests.extension.browsing import Visit, app, sync_api
from tests.extension.browsing import browser as browser  # a fixture
from tests.extension.conftest import MIDDLEWARE_PYTHON, REPOSITORY, TOKEN
from tests.weights import safetensors

PATIENCE = 30_000


class Studio(NamedTuple):
    """A host with pictures and a saved Dreambooth model, and its server."""

    address: str
    folder: Path
    client: CloudClient


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Studio]:
    if not MIDDLEWARE_PYTHON.exists():
        pytest.skip("the middleware's environment .venv is missing: make it by `make test`")
    folder = tmp_path_factory.mktemp("training")
    _fill(folder)
    environment = {
        "SDAWS_DATA_DIR": str(folder / "var"),
        "SDAWS_API_TOKEN": TOKEN,
        "PRETEND_PAUSE": "0.05",
    }
    server = subprocess.Popen(
        [str(MIDDLEWARE_PYTHON), "-m", "tests.pretend_training_server"],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    url = server.stdout.readline().removeprefix("listening on ").strip()
    client = CloudClient(url, TOKEN)
    try:
        upload_checkpoint(client, folder / "base.safetensors", CheckpointType.STABLE_DIFFUSION)
        with app(folder, url, TOKEN) as address:
            yield Studio(address, folder, client)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(30)
        server.stdout.close()


def _fill(folder: Path) -> None:
    (folder / "base.safetensors").write_bytes(safetensors(b"base"))
    models = folder / "models"
    (models / "Stable-diffusion").mkdir(parents=True)
    (models / "Stable-diffusion" / "mine.safetensors").write_bytes(safetensors(b"mine"))
    pictures = folder / "pictures"
    pictures.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (number * 80, 100, 50)).save(pictures / f"{number}.png")
    saved = models / "dreambooth" / "puppy"
    saved.mkdir(parents=True)
    concept = {"instance_data_dir": str(pictures), "instance_prompt": "photo of sks puppy"}
    settings = {
        "src": "/elsewhere/mine.safetensors", "use_lora": False, "num_train_epochs": 3,
        "custom_model_name": "puppy-full", "min_snr_gamma": 5, "concepts_list": [concept],
    }  # fmt: skip
    (saved / "db_config.json").write_text(json.dumps(settings))


def box(name: str) -> str:
    return f"#sdaws_training_{name} textarea, #sdaws_training_{name} input"


def test_a_folder_of_pictures_becomes_a_lora_that_is_stopped_and_used(
    browser: sync_api.Browser, studio: Studio
) -> None:
    visit = Visit(browser, studio.address)
    page = visit.page
    visit.open("Training")
    page.wait_for_selector("#sdaws_trainings :text('No training yet')")
    page.click("#sdaws_training_start")
    page.wait_for_selector(":text('Choose a data set, or enter a folder')")
    page.fill(box("folder_0"), str(studio.folder / "pictures"))
    page.fill(box("instance_0"), "photo of sks dog")
    page.fill(box("name"), "my dog")
    page.fill(box("epochs"), "600")
    page.wait_for_selector("#sdaws_training_told :text('1,800.')")
    page.click("#sdaws_training_start")
    page.click("#sdaws_trainings :text('Open')", timeout=PATIENCE)
    page.wait_for_selector("#sdaws_training_detail .sdaws-curve", timeout=PATIENCE)
    page.wait_for_selector("#sdaws_training_detail .sdaws-samples img")
    page.wait_for_function(
        "document.querySelector('#sdaws_training_detail .sdaws-samples img').naturalWidth === 64"
    )
    page.click("#sdaws_training_detail :text('Stop and keep')")
    page.wait_for_selector("#sdaws_training_detail :text('is kept as a checkpoint')")
    page.click("#sdaws_training_detail :text('Use it in txt2img')")
    page.wait_for_selector("#sdaws_generate:visible")
    assert page.input_value("#sdaws_prompt textarea") == "<lora:my dog:1>"
    visit.open("Training")
    page.click("#sdaws_training_detail :text('Delete…')")
    page.click("#sdaws_training_detail :text('Yes, delete it')")
    page.wait_for_selector("#sdaws_trainings :text('No training yet')", timeout=PATIENCE)
    assert visit.complaints == []


def test_saved_settings_of_the_extension_train_a_checkpoint_of_this_machine(
    browser: sync_api.Browser, studio: Studio
) -> None:
    visit = Visit(browser, studio.address)
    page = visit.page
    visit.open("Training")
    page.wait_for_selector("#sdaws_trainings :text('No training yet')")
    page.evaluate(
        """() => {
            const box = document.querySelector("#sdaws_training_wanted textarea");
            box.value = "puppy";
            box.dispatchEvent(new Event("input", { bubbles: true }));
        }"""
    )
    page.wait_for_selector("#sdaws_training_judged tr:has-text('min_snr_gamma')")
    assert page.input_value("#sdaws_training_base input").startswith("mine.safetensors")
    page.click("#sdaws_training_start")
    page.click("#sdaws_trainings :text('Open')", timeout=PATIENCE)
    page.wait_for_selector("#sdaws_training_detail :text('Finished')", timeout=PATIENCE)
    page.click("#sdaws_training_detail :text('Use it in txt2img')")
    page.wait_for_function(
        "document.querySelector('#sdaws_checkpoint input').value === 'puppy-full.safetensors'"
    )
    ((job,), _) = studio.client.training.page(10)
    assert job.state is TrainState.COMPLETE
    config = studio.client.training.look(job.id).config
    assert (config["min_snr_gamma"], config["use_lora"]) == (5, False)
    assert visit.complaints == []
