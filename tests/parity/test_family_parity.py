"""The engine's pictures against a real WebUI 1.10.1's, for SD 2.x, SDXL and inpainting models."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from middleware_api.container.engine import Engine
from middleware_api.container.prompts import PromptEncoder
from middleware_api.container.request import parse_request
from tests.parity.families import CASES, FamilyCase, files_of, write_all
from tests.parity.kept import FAMILIES_FILE, psnr, read_kept, thinned

BAR_DB = 40.0
# One for each thing that could go wrong by itself; the rest is the benchmark's.
ASKED = (
    *("SD 2, long prompt", "SD 2 LoRA", "SD 2 of velocity, DPM++ 2M SDE"),
    *("SD 2 of velocity, zero SNR, DDIM", "SDXL, nothing to avoid", "SDXL, long prompt"),
    *("SDXL, clip skip for it", "SDXL, cut", "SDXL, Align Your Steps", "SDXL, padded"),
    *("SDXL hires of a picture", "SDXL with its refiner, DPM++ 2M", "SDXL LoRA"),
    *("SDXL embedding", "refiner alone", "inpainting model, no picture"),
    *("inpainting model, mask, DDIM", "inpainting model, weak mask"),
)


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.set_num_threads(1)
    return Engine(torch.device("cpu"), 10**9, PromptEncoder())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    write_all(folder)
    return folder


def test_every_case_has_its_picture() -> None:
    names = {case.name for case in CASES}
    assert read_kept(FAMILIES_FILE).keys() == names
    assert names >= set(ASKED)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in ASKED], ids=lambda case: case.name
)
def test_a_picture_is_the_webuis(engine: Engine, folder: Path, case: FamilyCase) -> None:
    request = parse_request(case.task, json.dumps(case.body).encode(), random.Random(0))
    assert request.warnings == ()
    with engine.load(files_of(case, folder)) as models:
        assert engine.warnings(models, request) == []
        *_, picture = engine.generate(models, request, lambda step: None)
    assert psnr(thinned(picture.image), read_kept(FAMILIES_FILE)[case.name]) >= BAR_DB
