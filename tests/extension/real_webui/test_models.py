"""Nothing to prepare, in a real WebUI: its own lists name what is only on its disk."""

from __future__ import annotations

import os

import pytest
import requests

from tests.extension.conftest import RealServer, write_random_weights
from tests.extension.real_webui.conftest import RealWebui
from tests.weights import HEADER_BYTES, safetensors

PROMPT = "a red circle <lora:fine:0.8>, Soft-Hands"


@pytest.fixture(scope="module")
def files(webui: RealWebui) -> None:
    """A checkpoint that the WebUI has listed, and what it has not yet looked at."""
    write_random_weights(webui.data / "models" / "Stable-diffusion" / "mine.safetensors")
    for name in (
        "embeddings/soft-hands.safetensors",
        "embeddings/unused.safetensors",
        "models/Lora/fine.safetensors",
    ):
        path = webui.data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(safetensors(os.urandom(20_000 - HEADER_BYTES)))
    requests.post(f"{webui.url}/sdapi/v1/refresh-checkpoints", timeout=60).raise_for_status()


def ask(webui: RealWebui, *args: object) -> requests.Response:
    fields = {"prompt": PROMPT, "alwayson_scripts": {"cloud": {"args": [True, *args]}}}
    return webui.call("/sdapi/v1/txt2img", fields)


def test_what_is_only_here_is_listed_then_sent_and_nothing_else(
    webui: RealWebui, files: None, real_server: RealServer
) -> None:
    def there() -> set[str]:
        return {name for c in real_server.client().list_checkpoints() for name in c.names}

    before = there()
    refused = ask(webui, "mine.safetensors")
    assert refused.status_code == 500
    assert refused.json()["error"] == "ModelsNotInCloud"
    for listed in ("mine.safetensors (checkpoint, ", "fine.safetensors (LoRA, 20 kB)",
                   "soft-hands.safetensors (embedding, 20 kB)", "Nothing was sent."):  # fmt: skip
        assert listed in refused.json()["errors"]
    assert there() == before
    made = ask(webui, "mine.safetensors", "Automatic", True)
    assert made.status_code == 200, made.text
    assert "Model: mine" in made.json()["info"]
    assert there() - before == {"mine.safetensors", "fine.safetensors", "soft-hands.safetensors"}


def test_what_is_nowhere_is_named(webui: RealWebui, files: None) -> None:
    answer = ask(webui, "nowhere.safetensors")
    assert "nor on this machine: checkpoint 'nowhere.safetensors'." in answer.json()["errors"]
