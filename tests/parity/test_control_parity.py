"""The engine's ControlNet against the WebUI's extension: pictures, maps and parameters."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from middleware_api.container.engine.engine import Engine
from middleware_api.container.engine.loading import CheckpointFile
from middleware_api.container.engine.request import parse_request
from middleware_api.container.engine.roles import Roles
from middleware_api.container.prompts.encoder import PromptEncoder
from middleware_api.demo.train import CHECKPOINT
from tests.parity.control import CASES, kept, told, write_networks
from tests.parity.kept import psnr, thinned

BAR_DB = 50.0
EXPECTED = kept()


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.set_num_threads(1)
    return Engine(torch.device("cpu"), 10**9, PromptEncoder())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    write_networks(folder)
    return folder


@pytest.mark.parametrize("case", CASES)
def test_a_picture_and_its_maps_are_the_extensions(engine: Engine, folder: Path, case: str) -> None:
    task = "img2img" if "init_images" in CASES[case] else "txt2img"
    request = parse_request(task, json.dumps(CASES[case]).encode(), random.Random(0))
    assert request.warnings == ()
    names = [unit.model for unit in request.control.units]
    nets = tuple(CheckpointFile(folder / f"{name}.safetensors", name, name, "") for name in names)
    demo = CheckpointFile(CHECKPOINT, CHECKPOINT.name, "demo", "")
    with engine.loader.load(Roles(demo, controlnets=nets)) as models:
        picture, *maps = engine.generate(models, request, lambda step: None)
    (expected, *seen), written = EXPECTED[case]
    assert psnr(thinned(picture.image), expected) >= BAR_DB
    assert [thinned(each.image).tolist() for each in maps] == [each.tolist() for each in seen]
    assert told(picture.infotext) == written
