"""The demo checkpoint draws what it is asked for: a small part of benchmarks/demo_checkpoint.py."""

from __future__ import annotations

import pytest
import torch

from benchmarks.demo_checkpoint import CHECKPOINT, Answer, answers, share
from middleware_api.demo.shapes import caption


@pytest.fixture(scope="module")
def found() -> list[Answer]:
    torch.set_num_threads(1)
    return list(answers(CHECKPOINT, 24, steps=20, cfg_scale=7))


def test_pictures_have_the_colours_asked_for(found: list[Answer]) -> None:
    wrong = [caption(answer.scene) for answer in found if not answer.colours_right]
    assert share([answer.colours_right for answer in found]) >= 0.8, wrong


def test_pictures_have_the_shapes_asked_for(found: list[Answer]) -> None:
    wrong = [caption(answer.scene) for answer in found if not answer.shape_right]
    assert share([answer.shape_right for answer in found]) >= 0.6, wrong


def test_the_file_stays_small_enough_to_ship() -> None:
    assert CHECKPOINT.stat().st_size <= 22_000_000
