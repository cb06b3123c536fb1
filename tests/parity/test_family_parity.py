"""The engine's pictures against a real WebUI 1.10.1's, for SD 2.x, SDXL and inpainting models."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from middleware_api.container.engine.engine import Engine
from middleware_api.container.engine.request import parse_request
from middleware_api.container.prompts.encoder import PromptEncoder
from tests.parity.families import CASES, FamilyCase, files_of, write_all
from tests.parity.kept import FAMILIES_FILE, psnr, read_kept, thinned

BAR_DB = 40.0
# What diffusers has no counterpart of (tests/test_engine_families.py); the rest is the benchmark's.
ASKED = (
    *("SD 2, long prompt", "SD 2 LoRA", "SD 2 of velocity, DPM++ 2M SDE"),
    *("SD 2 of velocity, zero SNR, DDIM", "SDXL, long prompt", "SDXL, padded"),
    *("SDXL, Align Your Steps", "SDXL hires of a picture", "SDXL with its refiner, DPM++ 2M"),
    *("SDXL LoRA", "SDXL embedding"),
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


def likeness(engine: Engine, folder: Path, case: FamilyCase) -> float:
    request = parse_request(case.task, json.dumps(case.body).encode(), random.Random(0))
    assert request.warnings == ()
    with engine.loader.load(files_of(case, folder)) as models:
        assert engine.warnings(models, request) == []
        *_, picture = engine.generate(models, request, lambda step: None)
    return psnr(thinned(picture.image), read_kept(FAMILIES_FILE)[case.name])


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in ASKED], ids=lambda case: case.name
)
def test_a_picture_is_the_webuis(engine: Engine, folder: Path, case: FamilyCase) -> None:
    assert likeness(engine, folder, case) >= BAR_DB


def test_halves_make_the_same_picture_but_for_little(folder: Path) -> None:
    """As on a GPU: what is told beside the text, the latents and the masks are of one type."""
    engine = Engine(torch.device("cpu"), 10**9, PromptEncoder(), torch.float16)
    (case,) = (case for case in CASES if case.name == "SDXL with its refiner, DPM++ 2M")
    assert BAR_DB <= likeness(engine, folder, case) < 80
