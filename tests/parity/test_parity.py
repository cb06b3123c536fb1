"""The engine's pictures against those of a real WebUI 1.10.1 with the same demo checkpoint."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from middleware_api.container.engine.engine import Engine
from middleware_api.container.engine.request import parse_request
from middleware_api.container.prompts.encoder import PromptEncoder
from tests.parity.cases import CASES, SAMPLERS, Case
from tests.parity.files import roles_of, write_upscalers
from tests.parity.kept import KEPT, psnr, read_kept, thinned

BAR_DB = 40.0


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.set_num_threads(1)
    return Engine(torch.device("cpu"), 10**9, PromptEncoder())


@pytest.fixture(scope="module")
def upscalers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upscalers")
    write_upscalers(folder)
    return folder


def test_the_kept_pictures_show_every_sampler() -> None:
    kept = [case for case in CASES if case.name in KEPT]
    assert {case.name for case in kept} == KEPT == read_kept().keys()
    assert {case.fields.get("sampler_name") for case in kept} >= set(SAMPLERS)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in KEPT], ids=lambda case: case.name
)
def test_a_picture_is_the_webuis(engine: Engine, upscalers: Path, case: Case) -> None:
    request = parse_request(case.task, json.dumps(case.body).encode(), random.Random(0))
    assert request.warnings == ()
    with engine.loader.load(roles_of(request, upscalers)) as models:
        (picture,) = engine.generate(models, request, lambda step: None)
    assert psnr(thinned(picture.image), read_kept()[case.name]) >= BAR_DB
