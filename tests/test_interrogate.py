"""The task interrogate: DeepDanbooru's network, whose answers are known here, and its tags' text.

By hand the network was held to the WebUI's own with random weights of the full size: all 9,176
scores of a picture within 2e-7.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor

from middleware_api import contract
from middleware_api.container.engine.engine import Engine
from middleware_api.container.errors import BadRequest, CheckpointUnreadable
from middleware_api.container.job import JobRunner, parse_invocation
from middleware_api.container.prompts.encoder import PromptEncoder
from middleware_api.container.storage import FolderStorage
from middleware_api.container.tasks import tasks_of
from middleware_api.container.weights.unpickle import _tensors as unpickled_tensors

TAGS = ["red_(colour)", "blue", "rating:safe", "absent"]


def network() -> dict[str, object]:
    """A stage of two blocks, one that halves the picture without another number of channels, and
    one that halves it with: through all of them goes the picture's red and blue, and nothing else.
    """
    shapes = [
        (4, 3, 7),
        *[(8, 4, 1), (2, 4, 1), (2, 2, 3), (8, 2, 1)],  # aside, narrow, middle, wide
        *[(2, 8, 1), (2, 2, 3), (8, 2, 1)],
        *[(2, 8, 1), (2, 2, 3), (8, 2, 1), (8, 8, 1)],  # the one aside comes last
        *[(16, 8, 1), (4, 8, 1), (4, 4, 3), (16, 4, 1)],
        (len(TAGS), 16, 1),
    ]
    tensors: dict[str, Tensor] = {}
    for number, (out, into, side) in enumerate(shapes):
        tensors[f"n_Conv_{number}.weight"] = torch.zeros(out, into, side, side)
        tensors[f"n_Conv_{number}.bias"] = torch.zeros(out)
    del tensors[f"n_Conv_{len(shapes) - 1}.bias"]
    for number, middle in ((0, 3), (1, 0), (11, 0), (12, 0)):  # the first, and those aside
        weight = tensors[f"n_Conv_{number}.weight"]
        for channel, colour in ((0, 0), (1, 2 if number == 0 else 1)):
            weight[channel, colour, middle, middle] = 1
    last = tensors[f"n_Conv_{len(shapes) - 1}.weight"]
    last[0, 0], last[0, 1] = 9, -9  # more red than blue
    last[1, 0], last[1, 1] = -9, 9
    last[2, :2] = 9
    last[3, :2] = -9
    return {**tensors, "tags": TAGS}


@pytest.fixture(scope="module")
def converted() -> bytes:
    """What conversion makes of the file of torch."""
    tensors, metadata = unpickled_tensors(network(), 10**6)
    return save(tensors, metadata)


def body(job_id: str, checkpoints: list[dict[str, object]]) -> bytes:
    invocation = {
        "job_id": job_id,
        "task_type": "interrogate",
        "params_key": "params",
        "checkpoints": checkpoints,
        "output_prefix": contract.output_prefix(job_id),
    }
    return json.dumps(invocation).encode()


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.set_num_threads(1)
    return Engine(torch.device("cpu"), 10**9, PromptEncoder())


class Describer:
    """The task on a worker's storage of its own."""

    def __init__(self, engine: Engine, folder: Path, weights: bytes) -> None:
        self.storage = FolderStorage(folder)
        self.storage.write("tags", weights)
        self.runner = JobRunner(tasks_of(engine), self.storage, threading.Event())
        self.jobs = 0
        self.files: list[dict[str, object]] = [
            {
                "type": "torch_deepdanbooru",
                "name": "tags.safetensors",
                "key": "tags",
                "size": 1,
                "sha256": hashlib.sha256(weights).hexdigest(),
            }
        ]

    def info(self, colour: str = "red", **fields: object) -> dict[str, object]:
        stream = io.BytesIO()
        Image.new("RGB", (24, 16), colour).save(stream, "PNG")
        picture = base64.b64encode(stream.getvalue()).decode()
        asked = {"image": picture, "model": "deepdanbooru"} | fields
        self.storage.write("params", json.dumps(asked).encode())
        self.jobs += 1
        result = self.runner.run(parse_invocation(body(f"job-{self.jobs}", self.files)))
        assert result["images"] == []
        info: dict[str, object] = json.loads(result["info"])
        return info


@pytest.fixture
def describer(engine: Engine, tmp_path: Path, converted: bytes) -> Describer:
    return Describer(engine, tmp_path, converted)


def test_a_picture_gets_its_tags(describer: Describer) -> None:
    assert describer.info() == {"caption": r"red \(colour\)", "warnings": []}


@pytest.mark.parametrize(
    ("settings", "caption"),
    [
        ({"deepbooru_escape": False}, "red (colour)"),
        ({"deepbooru_use_spaces": False}, r"red_\(colour\)"),
        ({"deepbooru_filter_tags": "blue, red (colour)"}, ""),
        ({"interrogate_deepbooru_score_threshold": 0}, r"absent, blue, red \(colour\)"),
        (
            {"interrogate_deepbooru_score_threshold": 0, "deepbooru_sort_alpha": False},
            r"red \(colour\), blue, absent",
        ),
        ({"interrogate_return_ranks": True}, r"(red \(colour\):1.000)"),
    ],
)
def test_the_webuis_settings_say_how_tags_are_shown(
    describer: Describer, settings: dict[str, object], caption: str
) -> None:
    assert describer.info(override_settings=settings)["caption"] == caption


def test_what_is_not_heeded_is_named(describer: Describer) -> None:
    assert describer.info(colour="blue", tone="dark")["warnings"] == [
        "tone is not a field of this engine and was ignored."
    ]


def test_without_a_model_or_with_another_one_it_says_what_to_do(describer: Describer) -> None:
    with pytest.raises(BadRequest, match=r"model 'clip' is not available.* model to deepdanbooru"):
        describer.info(model="clip")
    describer.files = []
    with pytest.raises(BadRequest, match=r"Upload model-resnet_custom_v3\.pt .*torch_deepdanbooru"):
        describer.info()


def test_another_file_is_refused(engine: Engine, tmp_path: Path, weights: bytes) -> None:
    with pytest.raises(CheckpointUnreadable, match=r"tags\.safetensors is no DeepDanbooru model"):
        Describer(engine, tmp_path, weights).info()
