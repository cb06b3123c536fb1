"""That training teaches: the demo checkpoint learns a shape that it never saw, and forgets little.

Minutes of a processor: `make check-training`. The order is one that users could give: twelve
pictures of bars under a new word, and class pictures of the shapes that it knows, made by itself.
"""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from middleware_api import contract
from middleware_api.container.engine.engine import Engine
from middleware_api.container.engine.loading import CheckpointFile
from middleware_api.container.engine.request import parse_request
from middleware_api.container.engine.roles import Roles
from middleware_api.container.prompts.encoder import PromptEncoder
from middleware_api.container.storage import FolderStorage
from middleware_api.demo.shapes import (
    SHAPES,
    SIDE,
    Pixels,
    Scene,
    caption,
    draw,
    random_scene,
    read_picture,
)
from tests.server import REPOSITORY
from tests.training_orders import MODEL, OUTPUT

pytestmark = [pytest.mark.training, pytest.mark.timeout(3600)]

DEMO = REPOSITORY / "middleware_api" / "demo" / "demo.safetensors"
WORD = "zwx"
PICTURES, SEEDS = 12, 40
LEARNED_BAR, KEPT_BAR = 0.70, 0.90
CONFIG: dict[str, object] = {
    "use_lora": True,
    "model_name": "bar",
    "resolution": SIDE,
    "num_train_epochs": 40,
    "train_batch_size": 8,
    "lora_unet_rank": 16,
    "lora_txt_rank": 16,
    "lora_learning_rate": 0.004,
    "lora_txt_learning_rate": 0.004,
    "use_lora_extended": True,
    "lr_scheduler": "cosine",
    "min_snr_gamma": 5,
    "prior_loss_weight": 2.0,
    "gradient_checkpointing": False,
    "save_preview_every": 0,
    "save_embedding_every": 4,
    "scheduler": "Euler",
    "optimizer": "Torch AdamW",
    # One concept a shape, so that every shape has class pictures.
    "concepts_list": [
        {
            "instance_data_dir": "s3:///dataset/bars",
            "instance_token": WORD,
            "class_token": shape,
            "class_infer_steps": 12,
            "num_class_images_per": 2,
        }
        for shape in SHAPES
    ],
}


def bars(seed: int) -> Iterator[Scene]:
    """Bars in the middle, not too small for eight latents a side."""
    rng = random.Random(seed)
    while True:
        scene = replace(random_scene(rng), shape="bar")
        if scene.position is None and scene.size != "small":
            yield scene


def named(scene: Scene) -> str:
    return caption(scene).replace("bar", WORD)


def write_order(root: Path, folder: Path, **config: object) -> dict[str, str]:
    """The order and all that it speaks of; the environment of its program."""
    storage = FolderStorage(root)
    storage.write(contract.working_model_key(MODEL), DEMO.read_bytes())
    for number, scene in zip(range(PICTURES), bars(5), strict=False):
        content = io.BytesIO()
        Image.fromarray((draw(scene) * 255).round().astype(np.uint8)).save(content, "PNG")
        storage.write(f"dataset/bars/{number}.png", content.getvalue())
        storage.write(f"dataset/bars/{number}.txt", named(scene).encode())
    order = {
        "job_id": "proof",
        "type": "Stable-diffusion",
        "model_prefix": MODEL,
        "datasets": {"bars": "dataset/bars/"},
        "params": {"config_params": {**CONFIG, **config}},
    }
    path = folder / contract.TRAIN_ORDER_FILE
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(order))
    return {
        **os.environ,
        "SDAWS_OBJECTS": str(root),
        contract.TRAIN_OUTPUT_VARIABLE: OUTPUT,
        contract.TRAIN_ROOT_VARIABLE: str(folder),
        "SDAWS_THREADS": "1",
    }


def program(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "middleware_api.container.train"]
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment)


def killed_after_a_state(root: Path, environment: dict[str, str]) -> None:
    """Kill -9 once a state is there."""
    running = program(environment)
    states = contract.train_state_prefix(OUTPUT)
    while running.poll() is None and not FolderStorage(root).sizes(states):
        time.sleep(0.1)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL


def pictures_of(lora: Path, prompts: list[str]) -> list[Pixels]:
    engine = Engine(torch.device("cpu"), 10**9, PromptEncoder())
    files = Roles(
        CheckpointFile(DEMO, "demo", "demo", "demo"),
        loras=(CheckpointFile(lora, "bar.safetensors", "bar", "bar"),),
    )
    found = []
    with engine.loader.load(files) as models:
        for seed, prompt in enumerate(prompts):
            fields = {"prompt": prompt, "seed": seed, "width": SIDE, "height": SIDE, "steps": 15}
            request = parse_request("txt2img", json.dumps(fields).encode(), random.Random(0))
            (made,) = engine.generate(models, request, lambda step: None)
            found.append(np.asarray(made.image, dtype=np.float32) / 255)
    return found


def score(lora: Path, scenes: list[Scene], suffix: str) -> float:
    """The share of scenes whose shape the fixed check finds in their picture."""
    prompts = [named(scene) + suffix for scene in scenes]
    read = [read_picture(made, (*SHAPES, "bar")) for made in pictures_of(lora, prompts)]
    found = [each.shape == scene.shape for each, scene in zip(read, scenes, strict=True)]
    return sum(found) / len(found)


def test_a_new_shape_is_learned_and_the_old_ones_are_kept(tmp_path: Path) -> None:
    """Through a kill -9 in its midst."""
    root = tmp_path / "objects"
    environment = write_order(root, tmp_path / "ml")
    killed_after_a_state(root, environment)
    assert program(environment).wait() == 0
    told = json.loads((root / contract.train_outcome_key(OUTPUT)).read_bytes())
    assert (told["state"], told["warnings"]) == ("Complete", [])
    lora = root / contract.trained_weights_key(OUTPUT, "bar")

    rng = random.Random(78)
    old = [random_scene(rng) for _ in range(SEEDS)]
    new = [scene for scene, _ in zip(bars(77), range(SEEDS), strict=False)]
    learned, before = score(lora, new, "<lora:bar:1>"), score(lora, new, "")
    kept, base = score(lora, old, "<lora:bar:1>"), score(lora, old, "")
    print(f"bars {learned:.0%} (before: {before:.0%}), old shapes {kept:.0%} (before: {base:.0%})")
    assert learned >= LEARNED_BAR
    assert kept >= KEPT_BAR * base
    prompts = [named(new[0]), f"{named(new[0])}<lora:bar:0>"]
    plain, unused = (pictures_of(lora, [prompt])[0] for prompt in prompts)
    assert (plain == unused).all()
