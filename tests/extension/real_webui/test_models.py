"""Nothing to prepare, in a real WebUI: its own lists name what is only on its disk."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path

import pytest
import requests

from aws_extension.quantities import size
from tests.extension.conftest import RealServer, write_random_weights
from tests.extension.real_webui.conftest import RealWebui

# The demo's text encoder is so wide; what is added to it here is as good as nothing.
WIDTH = 64
LAYER = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
LORA = {f"{LAYER}.lora_down.weight": [32, WIDTH], f"{LAYER}.lora_up.weight": [WIDTH, 32]}
EMBEDDING = {"emb_params": [60, WIDTH]}
PROMPT = "a red circle <lora:fine:0.8>, Soft-Hands"


@pytest.fixture(scope="module")
def files(webui: RealWebui) -> None:
    """A checkpoint that the WebUI has listed, and what it has not yet looked at."""
    write_random_weights(webui.data / "models" / "Stable-diffusion" / "mine.safetensors")
    write_tensors(webui.data / "embeddings" / "soft-hands.safetensors", EMBEDDING)
    write_tensors(webui.data / "embeddings" / "unused.safetensors", EMBEDDING)
    write_tensors(webui.data / "models" / "Lora" / "fine.safetensors", LORA)
    requests.post(f"{webui.url}/sdapi/v1/refresh-checkpoints", timeout=60).raise_for_status()


def write_tensors(path: Path, shapes: dict[str, list[int]]) -> None:
    """Small halves, other ones in each file."""
    header, at, content = {}, 0, b""
    for name, shape in shapes.items():
        count = math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + 2 * count]}
        # Below 2**-14 whatever the other bits are.
        content += bytes(byte for low in os.urandom(count) for byte in (low, 0))
        at += 2 * count
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)


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
    lora = size((webui.data / "models" / "Lora" / "fine.safetensors").stat().st_size)
    words = size((webui.data / "embeddings" / "soft-hands.safetensors").stat().st_size)
    for listed in (
        "mine.safetensors (checkpoint, ",
        f"fine.safetensors (LoRA, {lora})",
        f"soft-hands.safetensors (embedding, {words})",
        "Nothing was sent.",
    ):
        assert listed in refused.json()["errors"]
    assert there() == before
    made = ask(webui, "mine.safetensors", "Automatic", True)
    assert made.status_code == 200, made.text
    assert "Model: mine" in made.json()["info"]
    assert there() - before == {"mine.safetensors", "fine.safetensors", "soft-hands.safetensors"}


def test_what_is_nowhere_is_named(webui: RealWebui, files: None) -> None:
    answer = ask(webui, "nowhere.safetensors")
    assert "nor on this machine: checkpoint 'nowhere.safetensors'." in answer.json()["errors"]
