"""Training from the client's side: folders, estimates, the Dreambooth extension's settings, and
the way from one click to a job."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aws_extension.client import CloudClient
from aws_extension.dataset_folder import send_folder
from aws_extension.dreambooth_settings import Verdict, judge, read_settings, saved_settings
from aws_extension.errors import UploadFailed
from aws_extension.fake_transport import FakeAnswer, FakeTransport, Sent
from aws_extension.known_hashes import KnownHashes
from aws_extension.pages import training_form, training_view
from aws_extension.pages.training_form import FULL, LORA, read_form
from aws_extension.train_estimates import Measured, estimate, size_of
from aws_extension.train_preparation import TrainOrder, TrainPreparations

CONFIG = {
    "use_lora": True,
    "num_train_epochs": 10,
    "resolution": 256,
    "concepts_list": [{"num_class_images_per": 2}],
}


class Cloud:
    """The rows of training, answered from memory."""

    def __init__(self) -> None:
        self.datasets: dict[str, str] = {}
        self.models: list[dict[str, Any]] = []
        self.jobs: list[dict[str, Any]] = []
        self.put: dict[str, bytes] = {}
        self.refused = ""

    def __call__(self, sent: Sent) -> FakeAnswer:
        path = sent.url.removeprefix("http://cloud.test").removeprefix("/prod").partition("?")[0]
        if path.startswith("/store/"):
            self.put[path.removeprefix("/store/")] = sent.body
            return FakeAnswer()
        if path.startswith("/dataset/") and path.split("/")[2] not in self.datasets:
            return FakeAnswer(404, {"statusCode": 404, "error": "none", "code": "none"})
        return FakeAnswer(body=getattr(self, f"{sent.method.lower()}_{path[1:]}")(sent))

    def get_datasets(self, sent: Sent) -> dict[str, Any]:
        found = [{"datasetName": n, "status": s} for n, s in self.datasets.items()]
        return {"datasets": found}

    def post_dataset(self, sent: Sent) -> dict[str, Any]:
        name = sent.json["dataset_name"]
        self.datasets[name] = "Initialed"
        return {
            "s3PresignUrl": [
                {"filename": one["filename"], "url": f"http://cloud.test/store/{one['name']}"}
                for one in sent.json["content"]
            ]
        }

    def put_dataset(self, sent: Sent) -> dict[str, Any]:
        self.datasets[sent.json["dataset_name"]] = sent.json["status"]
        return {}

    def get_models(self, sent: Sent) -> dict[str, Any]:
        return {"models": self.models}

    def post_model(self, sent: Sent) -> dict[str, Any]:
        asked = sent.json
        self.models.append(
            {"id": "m1", "model_name": asked["name"], "status": "Initial", "error": self.refused,
             "checkpoint_id": asked["checkpoint_id"]}
        )  # fmt: skip
        return {"job": {"id": "m1"}}

    def put_model(self, sent: Sent) -> dict[str, Any]:
        self.models[0]["status"] = "Fail" if self.refused else "Complete"
        return {}

    def post_train(self, sent: Sent) -> dict[str, Any]:
        self.jobs.append(sent.json)
        return {"job": {"id": "t1"}}

    def put_train(self, sent: Sent) -> dict[str, Any]:
        self.jobs[-1]["state"] = sent.json["status"]
        return {}


Build = Callable[[Any], tuple[CloudClient, FakeTransport]]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "my dog!"
    folder.mkdir()
    for name in ("a.png", "b.JPG", "a.txt", "notes.md"):
        (folder / name).write_bytes(name.encode())
    return folder


def test_a_folder_is_sent_once(fake_client: Build, pictures: Path) -> None:
    cloud = Cloud()
    client, _ = fake_client(cloud)
    told: list[tuple[int, int]] = []
    name = send_folder(client, pictures, lambda done, total: told.append((done, total)))
    assert name.startswith("my-dog-")
    assert cloud.datasets == {name: "Enabled"}
    assert cloud.put == {"a.png": b"a.png", "b.JPG": b"b.JPG", "a.txt": b"a.txt"}
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    cloud.put.clear()
    assert send_folder(client, pictures) == name
    assert cloud.put == {}
    (pictures / "c.png").write_bytes(b"c")
    assert send_folder(client, pictures) != name


def test_a_folder_that_cannot_be_a_data_set_is_refused(
    fake_client: Build, pictures: Path, tmp_path: Path
) -> None:
    client, transport = fake_client(Cloud())
    with pytest.raises(UploadFailed, match="cannot be read"):
        send_folder(client, tmp_path / "nowhere")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UploadFailed, match="has no pictures"):
        send_folder(client, empty)
    (pictures / "what?.png").write_bytes(b"x")
    with pytest.raises(UploadFailed, match=r"'what\?\.png' cannot be a name"):
        send_folder(client, pictures)
    assert transport.sent == []


def test_an_estimate_grows_with_the_pixels_of_what_was_measured() -> None:
    size = size_of(CONFIG, pictures=8)
    assert (size.steps, size.class_pictures, size.with_classes) == (80, 16, True)
    measured = Measured("local", 0.5, replace(size, resolution=128))
    told = estimate(replace(size, class_pictures=0), "local", measured)
    assert told.is_measured
    assert told.seconds == pytest.approx(80 * 0.5 * 4)
    assert told.cost == 0
    assert estimate(size, "local", None).seconds is None, "nothing is known of it"
    by_rule = estimate(size_of({**CONFIG, "use_lora": False}, 8), "ml.g5.xlarge", None)
    assert by_rule.seconds is not None
    assert by_rule.cost == pytest.approx(1.408 * by_rule.seconds / 3600)
    assert estimate(size, "ml.g5.xlarge", None).seconds < by_rule.seconds
    assert estimate(size, "ml.odd.xlarge", None).cost is None


def test_every_setting_of_the_extension_is_judged(tmp_path: Path) -> None:
    folder = tmp_path / "dreambooth"
    (folder / "dog").mkdir(parents=True)
    file = folder / "dog" / "db_config.json"
    concept = {"instance_prompt": "x", "is_valid": True, "odd": 1}
    file.write_text(
        json.dumps(
            {"db_use_lora": True, "tomesd": 0.0, "train_imagic": True, "src": "x", "odd": 1,
             "concepts_list": [concept]}
        )
    )  # fmt: skip
    assert saved_settings(folder) == {"dog": file}
    assert saved_settings(tmp_path / "nowhere") == saved_settings(None) == {}
    assert {one.name: one.verdict for one in judge(read_settings(file))} == {
        "use_lora": Verdict.HONOURED,
        "tomesd": Verdict.UNUSED,
        "train_imagic": Verdict.LEFT_OUT,
        "src": Verdict.MAPPED,
        "odd": Verdict.LEFT_OUT,
        "concepts_list[0].instance_prompt": Verdict.HONOURED,
        "concepts_list[0].is_valid": Verdict.MAPPED,
        "concepts_list[0].odd": Verdict.LEFT_OUT,
    }
    for content, why in (("[]", "holds no settings"), ("{", "is no JSON")):
        file.write_text(content)
        with pytest.raises(UploadFailed, match=why):
            read_settings(file)
    with pytest.raises(UploadFailed, match="cannot be read"):
        read_settings(folder)


def test_imported_settings_come_back_out_of_the_form() -> None:
    imported = {
        "use_lora": False,
        "learning_rate": 3e-6,
        "resolution": "640",
        "lora_txt_rank": 2,
        "min_snr_gamma": 5.0,
        "noise_scheduler": None,
        "concepts_list": [
            {"instance_data_dir": "/here", "instance_prompt": "sks", "class_infer_steps": 9},
            *({"instance_data_dir": f"/{number}"} for number in range(4)),
        ],
    }
    values = [update["value"] for update in training_form.fill(imported)]
    assert values[0] == FULL
    read = read_form(values, imported)
    assert (read.config["use_lora"], read.config["learning_rate"]) == (False, 3e-6)
    assert read.config["min_snr_gamma"] == 5.0, "it has no control, and stays"
    assert (read.config["resolution"], read.config["lora_txt_rank"]) == (640, 2)
    assert "lora_learning_rate" not in read.config
    assert "noise_scheduler" not in read.config
    concept = read.concepts[0]
    assert (concept["instance_data_dir"], concept["class_infer_steps"]) == ("/here", 9)
    assert read.folders == ["/here", "/0", "/1", "/2", "/3"], "none is lost"
    values[0] = LORA
    first = len(values) - training_form.CONCEPTS * 6
    values[first:] = [*["dogs", " "], *values[first + 2 : first + 6], *["", "", "", "", 0, ""] * 3]
    read = read_form(values, {})
    assert read.config["lora_learning_rate"] == 3e-6
    assert read.folders == ["s3:///dataset/dogs"]


def run(client: CloudClient, order: TrainOrder, folder: Path) -> TrainPreparations:
    """An order that has come to its end."""
    preparations = TrainPreparations(lambda user: client, folder, KnownHashes())
    preparations.begin(order, "me")
    for thread in threading.enumerate():
        if thread.name == "sdaws-training":
            thread.join(30)
    return preparations


def test_one_click_makes_the_model_and_sends_the_pictures(
    fake_client: Build, pictures: Path, tmp_path: Path
) -> None:
    cloud = Cloud()
    client, _ = fake_client(cloud)
    order = TrainOrder(
        "dog", "local", {"use_lora": True},
        ({"instance_data_dir": str(pictures), "class_data_dir": str(tmp_path / "made later")},),
        checkpoint_id="c1",
    )  # fmt: skip
    assert run(client, order, tmp_path).of("me") == ()
    (job,) = cloud.jobs
    (name,) = cloud.datasets
    place = f"s3:///dataset/{name}"
    assert (job["model_id"], job["state"]) == ("m1", "Training")
    assert job["params"]["config_params"] == {
        "use_lora": True,
        "concepts_list": [{"instance_data_dir": place}],
    }
    assert job["params"]["training_params"]["data_tar_list"] == [place]
    run(client, order, tmp_path)
    assert len(cloud.models) == 1, "the same checkpoint is no second model"
    assert len(cloud.jobs) == 2


def test_what_cannot_be_prepared_says_so_until_it_is_closed(
    fake_client: Build, tmp_path: Path
) -> None:
    cloud = Cloud()
    cloud.refused = "it is no Stable Diffusion."
    client, _ = fake_client(cloud)
    preparations = run(client, TrainOrder("dog", "local", {}, (), checkpoint_id="c1"), tmp_path)
    (failed,) = preparations.of("me")
    assert "it is no Stable Diffusion" in failed.error
    assert preparations.of("other") == ()
    preparations.cancel(failed.id, "other")
    assert preparations.of("me") == (failed,)
    preparations.cancel(failed.id, "me")
    assert preparations.of("me") == ()
    assert cloud.jobs == []


def test_a_curve_needs_two_points() -> None:
    assert training_view.curve([(1, 0.5)]) == ""
    drawn = training_view.curve([(1, 0.5), (11, 0.5), (21, 0.25)])
    assert "points='0.0,0.0 320.0,0.0 640.0,160.0'" in drawn
