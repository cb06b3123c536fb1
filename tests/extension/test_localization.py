"""The Chinese file covers what the pages say, and nothing that they no longer say."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from datetime import datetime, timezone
from pathlib import Path

import gradio as gr
import pytest

from aws_extension import errors
from aws_extension.access import CloudAccess
from aws_extension.answers import InferenceOutput, parse_checkpoint, parse_endpoint, parse_job
from aws_extension.dataset_calls import Dataset, DatasetFile
from aws_extension.dataset_uploads import DatasetOrder, Sending, SendState
from aws_extension.fake_transport import FakeTransport
from aws_extension.model_needs import LocalFile
from aws_extension.pages import (
    connection,
    datasets,
    endpoints,
    jobs,
    merge,
    models,
    training_choices,
    training_view,
)
from aws_extension.pages.dataset_cards import PER_PAGE, Look, folder_cards, set_cards
from aws_extension.pages.host import FolderHost
from aws_extension.pages.layout import build_pages
from aws_extension.pages.model_list import ModelRow
from aws_extension.picture_folder import FolderPicture
from aws_extension.settings import SettingsStore
from aws_extension.train_estimates import Estimate
from aws_extension.train_preparation import Preparation, TrainOrder
from aws_extension.training_calls import TrainJob, TrainLook, TrainPicture, WorkingModel
from aws_extension.upload_progress import UploadProgress
from aws_extension.upload_queue import Upload, UploadState
from middleware_api.contract import (
    CheckpointState,
    CheckpointType,
    DatasetState,
    EndpointState,
    InferenceState,
    MergeMethod,
    ModelState,
    TaskType,
    TrainState,
)
from middleware_api.training_fields import (
    OTHER_CONCEPT_FIELDS,
    OTHER_FIELDS,
    ConceptSettings,
    TrainSettings,
)
from tests.extension import said
from tests.extension.pretend_cloud import TOKEN, PretendCloud
from tests.extension.webui_host import host as host  # a fixture

FILE = Path(__file__).parents[2] / "localizations" / "zh_CN.json"
# Names that are the same in every language.
NAMES = {
    "txt2img", "img2img", "extra-single-image", "extra-batch-images", "interrogate", "convert",
    "Stable-diffusion", "embeddings", "Lora", "hypernetworks", "ControlNet", "VAE", "LoRA",
    "diffusers", "webui", "http://127.0.0.1:7860",
    "ESRGAN", "torch_deepdanbooru",
    "http://127.0.0.1:8210", "/path/to/model.safetensors", "https://…/model.safetensors",
}  # fmt: skip


OUTPUT = InferenceOutput({}, ("a circle",), ("a warning",))


@pytest.fixture(scope="module")
def chinese() -> dict[str, str]:
    found: dict[str, str] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


@pytest.fixture
def access(tmp_path) -> CloudAccess:
    return CloudAccess(SettingsStore({}, tmp_path / "connection.json"))


def untranslated(said_texts: set[str], chinese: dict[str, str]) -> list[str]:
    return sorted(said_texts - chinese.keys() - NAMES)


def test_every_control_of_the_pages(access, tmp_path, chinese):
    with gr.Blocks(analytics_enabled=False) as blocks, gr.Tabs():
        build_pages(access, FolderHost(tmp_path))
    assert untranslated(said.of_controls(blocks.get_config_file()), chinese) == []


def test_every_control_of_the_panel(host, chinese):
    with gr.Blocks(analytics_enabled=False) as blocks:
        host.panel_module.CloudPanel().ui(is_img2img=False)
    assert untranslated(said.of_controls(blocks.get_config_file()), chinese) == []


def test_every_sentence_that_the_code_hands_to_the_builders(chinese):
    assert untranslated(said.handed_to_builders("pages", "webui"), chinese) == []


def test_every_card_in_every_state(access, chinese):
    made = []
    for state in InferenceState:
        for pictures in ([], ["a.png", "b.png"]):
            job = parse_job(
                {"InferenceJobId": "j", "status": state.value, "image_names": pictures,
                 "error": "x" if state is InferenceState.FAILED else "", "preview_url": "u",
                 "taskType": "txt2img"}
            )  # fmt: skip
            made += [jobs.details(access, job, "u", OUTPUT, "gone"), merge.show(job)]
            made += [card.content for card in jobs.show(access, (job,), "u", {}).cards]
    for state in EndpointState:
        for kind, count in (("local", 1), ("ml.g5.xlarge", 0)):
            one = parse_endpoint(
                {"EndpointDeploymentJobId": "d", "endpoint_name": "e", "instance_type": kind,
                 "endpoint_status": state.value, "autoscaling_enabled": count == 0,
                 "current_instance_count": count, "price_per_hour": count or None}
            )  # fmt: skip
            shown = endpoints.show([one], datetime.now(timezone.utc))
            made += [shown.note, *(card.content for card in shown.cards)]
    for kept in CheckpointState:
        file = parse_checkpoint({"id": "c", "status": kept.value, "type": "Lora", "name": ["f"]})
        row = ModelRow(CheckpointType.LORA, "f", 1, cloud=file)
        fetched = replace(row, cloud=replace(file, sources=("https://x",), progress=0.5))
        here = replace(row, local=LocalFile(CheckpointType.LORA, Path("f"), 1))
        only_here = replace(here, cloud=None)
        converted = replace(row, cloud=replace(file, message="x"))
        rows = [row, fetched, converted, here, only_here]
        for uploading in UploadState:
            assert only_here.order is not None
            upload = Upload(only_here.order, uploading, error="x")
            rows.append(replace(only_here, upload=upload))
        shown = models.show(access, {CheckpointType.LORA: rows})
        made += [shown.note, *(card.content for card in shown.cards)]
    made.append(models.show(access, {}).note)
    made += trainings(access)
    made += data_sets(access)
    for fault in (errors.Unauthorised, errors.Forbidden, errors.ServerFault, errors.NotFound):
        made.append(connection.html.notice("bad", *connection.explain(fault("text", 400))))
    cloud = PretendCloud()
    environ = {"SDAWS_API_URL": "http://cloud.test", "SDAWS_API_TOKEN": TOKEN}
    store = SettingsStore(environ, access.store.path)
    for cloud.endpoints in (["one"], []):
        made.append(connection.test_result(CloudAccess(store, FakeTransport(cloud))))
    made.append(connection.test_result(access))
    texts = set().union(*map(said.of_html, made))
    assert {"Finished", "Asleep", "Only here"} <= texts
    assert untranslated(texts, chinese) == []


def data_sets(access) -> list[str]:
    """Everything that the Data sets page shows."""
    progress = UploadProgress("sending", 1, 2, 3.0)
    order = DatasetOrder("dogs", (Path("a.png"),))
    sendings = [Sending(order, state, 1, progress, "x") for state in SendState]
    there = [Dataset("dogs", state) for state in DatasetState]
    usable = FolderPicture(Path("/f/a.png"), 1, 100, 80)
    pictures = [
        usable,
        replace(usable, path=Path("/f/b.png"), same_as="a.png"),
        replace(usable, path=Path("/f/c.png"), like="a.png"),
        replace(usable, path=Path("/f/d.png"), fault="x"),
        *(replace(usable, path=Path(f"/f/{n}.png"), sha256=str(n)) for n in range(PER_PAGE)),
    ]
    looks = [Look("/f", 512, page, frozenset({"/f/a.png"})) for page in (0, 1)]
    files = [DatasetFile("a.png", None, "u"), DatasetFile("b.png", 3, "u")]
    shown = [
        datasets.show(sendings, there),
        datasets.show((), ()),
        *(folder_cards(access, pictures, look) for look in looks),
        folder_cards(access, [], looks[0]),
        set_cards(access, "dogs", files, {}, 0),
    ]
    return [text for one in shown for text in (one.note, *(card.content for card in one.cards))]


def trainings(access) -> list[str]:
    """Everything that the Training page shows of the cloud."""
    listed = [training_view.show_list((), ()), training_view.show_models((), {})]
    job = TrainJob(
        "t", "dog", TrainState.TRAINING, datetime.now(timezone.utc), None, "local", 0.5, 0.1, 10,
        1.0, 0.0, "", "",
    )  # fmt: skip
    looks = [(1, 0.5), (2, 0.4)]
    for state in TrainState:
        for names, kind in (((), ""), (("dog.safetensors",), "Lora")):
            one = replace(job, state=state, error="x", cost=None if names else 0.0)
            seen = TrainLook(
                one, {}, "training", 5, 1e-4, 9.0, tuple(looks),
                (TrainPicture(5, "a dog", "http://x"),), ("w",), kind, names,
            )  # fmt: skip
            listed += [
                training_view.show_list((), (one,)),
                training_view.show_one(access, seen, "u"),
            ]
    for state in ModelState:
        model = WorkingModel("m", "dog", state, "c", 0.5, "x")
        listed.append(training_view.show_models((model,), {"c": "base.safetensors"}))
    order = TrainOrder("dog", "local", {}, ())
    for one in (Preparation("p", "u", order), Preparation("p", "u", order, error="x")):
        listed.append(training_view.show_list((one,), ()))
    made = [text for one in listed for text in (one.note, *(card.content for card in one.cards))]
    for told in (None, 60.0), (0.0, 60.0), (1.0, None):
        for pictures in (0, 3):
            for measured in (True, False):
                made.append(
                    training_choices.tell(Estimate(9, told[1], told[0], measured), pictures)
                )
    concept = {**asdict(ConceptSettings()), **dict.fromkeys(OTHER_CONCEPT_FIELDS, "x")}
    imported = {**asdict(TrainSettings()), **dict.fromkeys(OTHER_FIELDS, 0), "odd": 1}
    imported["concepts_list"] = [concept]
    return [*made, training_choices.show_import(imported)]


def test_every_formula_of_the_merger(chinese):
    assert untranslated(set(merge.METHODS) | set(merge.METHODS.values()), chinese) == []


def test_nothing_is_translated_that_is_not_said(chinese):
    constants = said.constants() | {word.value for kind in (MergeMethod, TaskType) for word in kind}
    markup = "".join(constants)
    unsaid = [
        text
        for text in chinese
        if text not in constants and f">{text}<" not in markup and f"title='{text}'" not in markup
    ]
    assert unsaid == []
    assert all(text.strip() == text and translated for text, translated in chinese.items())
