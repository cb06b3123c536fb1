"""The engine's pictures against the WebUI's: one checkpoint, networks, prompts and seeds."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from middleware_api.container.engine.engine import Engine
from middleware_api.container.engine.loading import CheckpointFile
from middleware_api.container.engine.request import GenerationRequest, parse_request
from middleware_api.container.engine.roles import Roles, choose_files
from middleware_api.container.prompts.encoder import PromptEncoder
from middleware_api.contract import CheckpointType, ContainerCheckpoint
from middleware_api.demo.train import CHECKPOINT
from tests.parity.prompts import CASES, fields_of, recorded
from tests.sample_networks import EMBEDDINGS, HYPERNETWORKS, LORAS, names_of, write_converted

RECORDED = {case: (picture, text) for case, picture, text in recorded()}
PSNR_MIN = 40


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.set_num_threads(1)
    return Engine(torch.device("cpu"), 10**9, PromptEncoder())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("networks")
    write_converted(folder)
    (folder / "demo.safetensors").symlink_to(CHECKPOINT)
    return folder


class Studio:
    """The engine with the demo checkpoint and every sample network at hand."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine, self._folder = engine, folder
        kinds = {
            CheckpointType.STABLE_DIFFUSION: ["demo.safetensors"],
            CheckpointType.LORA: names_of(LORAS),
            CheckpointType.EMBEDDINGS: names_of(EMBEDDINGS),
            CheckpointType.HYPERNETWORKS: names_of(HYPERNETWORKS),
        }
        self._files = [
            ContainerCheckpoint(type=kind.value, name=name, key=name, sha256="", size=0)
            for kind, names in kinds.items()
            for name in names
        ]

    def ask(self, case: str) -> tuple[GenerationRequest, Roles[CheckpointFile]]:
        fields = fields_of(case)
        task = "img2img" if "init_images" in fields else "txt2img"
        request = parse_request(task, json.dumps(fields).encode(), random.Random(0))
        files, _ = choose_files(request, self._files)
        return request, files.each(
            lambda file: CheckpointFile(
                self._folder / file["name"], file["name"], file["key"], file["sha256"]
            )
        )

    def make(self, case: str) -> tuple[Image.Image, str]:
        request, files = self.ask(case)
        with self._engine.loader.load(files) as models:
            *_, last = self._engine.generate(models, request, lambda step: None)
        return last.image, last.infotext


@pytest.fixture(scope="module")
def studio(engine: Engine, folder: Path) -> Studio:
    return Studio(engine, folder)


def psnr(one: Image.Image, other: Image.Image) -> float:
    pixels = (np.asarray(each.convert("RGB"), dtype=np.float64) for each in (one, other))
    error = float(np.mean((next(pixels) - next(pixels)) ** 2))
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


def comparable(parameters: str) -> str:
    """Without what must differ: the program's name, API floats, hashes of files torch wrote."""
    text = re.sub(r", Version: .*", "", parameters)
    text = re.sub(r"(CFG scale: \d+)\.0", r"\1", text)
    return re.sub(r"(old|sparkle): \w{12}", r"\1", text)


@pytest.mark.parametrize("case", CASES)
def test_the_picture_and_its_parameters_are_the_webuis(studio: Studio, case: str) -> None:
    picture, parameters = studio.make(case)
    expected, written = RECORDED[case]
    assert psnr(picture, expected) >= PSNR_MIN
    assert comparable(parameters) == comparable(written)
