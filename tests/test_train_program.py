"""The training program from an order to finished weights, on tiny random models."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from middleware_api import contract
from middleware_api.container.engine.checkpoint import load_checkpoint
from middleware_api.container.engine.engine import Engine
from middleware_api.container.engine.loading import CheckpointFile
from middleware_api.container.engine.request import parse_request
from middleware_api.container.engine.roles import Roles
from middleware_api.container.errors import DiskFull
from middleware_api.container.prompts.encoder import PromptEncoder
from middleware_api.container.storage import FolderStorage
from middleware_api.contract import TrainOutcome
from tests.engine_checkpoints import TINY_2, TINY_XL, Size
from tests.training_orders import MODEL, OUTPUT, Store, picture

LORA = f"{OUTPUT}tiny-cat.safetensors"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def pixels(store: Store, prompt: str, lora: str | None = None) -> np.ndarray:
    """What the engine makes of the working model with, perhaps, a LoRA."""
    engine = Engine(torch.device("cpu"), 10**9, PromptEncoder())
    base = CheckpointFile(store.root / contract.working_model_key(MODEL), "base", "base", "base")
    loras = (
        () if lora is None else (CheckpointFile(store.root / lora, "cat.safetensors", lora, ""),)
    )
    body = b'{"prompt": "%s", "seed": 3, "steps": 2, "width": 64, "height": 64}' % prompt.encode()
    request = parse_request("txt2img", body, random.Random(0))
    with engine.loader.load(Roles(base, loras=tuple(loras))) as models:
        (made,) = engine.generate(models, request, lambda step: None)
    return np.asarray(made.image)


def test_a_lora_is_kohyas_and_weight_0_is_the_base_bit_for_bit(store: Store) -> None:
    outcome = store.train()
    assert outcome["state"] == "Complete"
    (made,) = outcome["weights"]
    assert (made["type"], made["key"]) == ("Lora", LORA)
    assert made["size"] == store.storage.sizes(OUTPUT)[LORA]
    base = pixels(store, "zwx cat")
    assert (pixels(store, "zwx cat <lora:cat:0>", LORA) == base).all()
    assert (pixels(store, "zwx cat <lora:cat:1>", LORA) != base).any()
    with safe_open(store.root / LORA, framework="pt") as file:
        told = file.metadata()
    assert told["ss_network_dim"] == "4"
    assert told["ss_network_alpha"] == "4.0"
    assert told["ss_base_model_version"] == "sd_v1"
    assert told["ss_num_train_images"] == "4"
    assert told["ss_steps"] == told["ss_max_train_steps"] == "4"


@pytest.mark.parametrize(
    ("size", "names"),
    [
        (TINY_2, {"lora_unet", "lora_te"}),
        (TINY_XL, {"lora_unet", "lora_te1", "lora_te2"}),
    ],
    ids=["sd2", "sdxl"],
)
def test_the_other_families_learn_too(tmp_path: Path, size: Size, names: set[str]) -> None:
    store = Store(tmp_path, size)
    assert store.train()["error"] == ""
    tensors = load_file(store.root / LORA)
    assert {"_".join(n.split("_")[:2]) for n in tensors} == names
    assert (pixels(store, "zwx <lora:cat:1>", LORA) != pixels(store, "zwx")).any()


@pytest.mark.parametrize("size", [TINY_2, None], ids=["sd2", "sd1"])
def test_a_full_checkpoint_is_what_was_trained(tmp_path: Path, size: Size | None) -> None:
    store = Store(tmp_path) if size is None else Store(tmp_path, size)
    outcome = store.train(
        use_lora=False, learning_rate=1e-3, txt_learning_rate=1e-3, use_ema=True, save_ema=True
    )
    assert outcome["error"] == ""
    assert outcome["weights"][0]["type"] == "Stable-diffusion"
    base = load_file(store.root / contract.working_model_key(MODEL))
    made = load_file(store.root / LORA)
    averages = {name for name in made if name.startswith("model_ema.")}
    assert made.keys() - averages == base.keys()
    assert len(averages) == sum(name.startswith("model.") for name in base)
    changed = {
        name.split(".")[0] for name in base if not torch.equal(made[name], base[name].float())
    }
    assert changed == {"model", "cond_stage_model"}
    cpu = torch.device("cpu")
    loaded = load_checkpoint(store.root / LORA, "made", "", cpu, torch.float32)
    assert loaded.prediction.value == "epsilon"


def test_the_loss_falls_and_the_file_is_what_was_trained(store: Store) -> None:
    """The last sample picture is made by the model that was trained, the other with the file."""
    concept: dict[str, object] = {"save_infer_steps": 2, "sample_seed": 3, "save_guidance_scale": 7}
    config: dict[str, object] = {"num_train_epochs": 6, "resolution": 64, "scheduler": "Euler"}
    store.train(concepts=[concept], save_preview_every=6, **config)
    told = store.progress()
    losses = [loss for _, loss in told["losses"]]
    assert sum(losses[-4:]) < sum(losses[:4])
    (sample,) = told["samples"]
    with Image.open(store.root / sample["key"]) as opened:
        trained = np.asarray(opened, dtype=int)
    reloaded = pixels(store, f"{sample['prompt']}<lora:cat:1>", LORA).astype(int)
    assert abs(trained - reloaded).max() <= 1
    assert abs(trained - pixels(store, sample["prompt"])).max() > 1


def test_killed_and_gone_on_equals_never_killed(store: Store, tmp_path: Path) -> None:
    """The process is gone without a word while a step is made; states are older than that."""

    class Killed(BaseException):
        pass

    class Machine(FolderStorage):
        """One whose process is gone once a second state is written."""

        def delete(self, key: str) -> None:
            raise Killed

    how: dict[str, object] = {
        "save_embedding_every": 1,
        "num_train_epochs": 5,
        "train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "hflip": True,
        "offset_noise": 0.1,
        "stop_text_encoder": 0.5,
        "lr_scheduler": "cosine",
    }
    with pytest.raises(Killed):
        store.train(storage=Machine(store.root), **how)
    states = store.storage.sizes(contract.train_state_prefix(OUTPUT))
    assert len(states) == 3  # the oldest was to be deleted
    with safe_open(store.root / LORA, framework="pt") as file:
        told = file.metadata()
    assert (told["ss_steps"], told["ss_max_train_steps"]) == ("4", "10"), "usable as it lies"
    # The last one is broken, as on a disk that lost power: the one before it does.
    last = store.root / max(states)
    last.write_bytes(last.read_bytes()[:100])
    assert store.train(**how)["state"] == "Complete"
    resumed = store.progress()["losses"]

    other = Store(tmp_path / "other")
    assert other.train(**how)["state"] == "Complete"
    assert resumed == other.progress()["losses"]
    assert len(resumed) == 10
    one, two = load_file(store.root / LORA), load_file(other.root / LORA)
    assert all(torch.equal(one[name], two[name]) for name in two)
    assert not store.storage.sizes(contract.train_state_prefix(OUTPUT))


def test_stop_and_keep(store: Store) -> None:
    """Stopped after a step: its weights are there, and a state to go on from."""
    stopping = threading.Event()

    class Clock:
        """Asks for the stop when the first step is told."""

        def __call__(self) -> float:
            told = contract.train_progress_key(OUTPUT) in store.storage.sizes(OUTPUT)
            if told and store.progress()["phase"] == "training":
                stopping.set()
            return 1000.0

    outcome = store.train(stopping, clock=Clock(), num_train_epochs=1000)
    assert outcome["state"] == "Stopped"
    assert outcome["error"] == ""
    assert load_file(store.root / outcome["weights"][0]["key"])
    assert store.storage.sizes(contract.train_state_prefix(OUTPUT))
    assert 0 < store.progress()["step"] < 2000


def test_stopped_before_the_first_step_there_is_nothing_to_keep(store: Store) -> None:
    stopping = threading.Event()
    stopping.set()
    outcome = store.train(stopping)
    assert (outcome["state"], outcome["weights"]) == ("Stopped", [])


def test_class_pictures_are_made_once_and_samples_come(store: Store) -> None:
    concept: dict[str, object] = {
        "num_class_images_per": 1,
        "class_infer_steps": 1,
        "n_save_sample": 2,
        "save_infer_steps": 1,
    }
    store.put("dataset/cats/wide.jpg", picture(9, (90, 40), "JPEG"))
    assert store.train(concepts=[concept], save_preview_every=1)["warnings"] == []
    classes = store.storage.sizes(contract.class_picture_prefix(OUTPUT))
    assert len(classes) == 5
    told = store.progress()
    assert [sample["step"] for sample in told["samples"]] == [3, 3, 6, 6]
    assert {sample["prompt"] for sample in told["samples"]} == {"a photo of zwx cat"}
    assert all(store.storage.exists(sample["key"]) for sample in told["samples"])
    before = {key: (store.root / key).stat().st_mtime_ns for key in classes}
    assert store.train(concepts=[concept])["state"] == "Complete"
    assert before == {key: (store.root / key).stat().st_mtime_ns for key in classes}


def test_what_is_not_done_is_told_and_a_bad_picture_named(store: Store) -> None:
    store.put("dataset/cats/broken.png", picture(1)[:60])
    outcome = store.train(nonsense=1, optimizer="Prodigy", mixed_precision="fp16")
    assert outcome["state"] == "Complete"
    assert len(outcome["warnings"]) == 4
    for word in ("nonsense", "Prodigy", "mixed_precision", "broken.png"):
        assert any(word in warning for warning in outcome["warnings"])
    assert store.progress()["warnings"] == outcome["warnings"]


@pytest.mark.parametrize(
    ("concept", "config", "reason"),
    [
        ({"instance_data_dir": "s3:///dataset/any"}, {}, "'any' has no pictures"),
        ({"instance_data_dir": "C:\\cats"}, {}, "instance_data_dir must be the location"),
        ({}, {"lora_unet_rank": 0}, "lora_unet_rank must be a whole number between 1 and 1024"),
        ({}, {"train_unet": False, "stop_text_encoder": 0}, "Nothing is left to train"),
    ],
    ids=["no pictures", "no data set", "bad value", "nothing"],
)
def test_a_failure_tells_its_reason(
    store: Store,
    concept: dict[str, object],
    config: dict[str, object],
    reason: str,
) -> None:
    outcome = store.train(concepts=[concept], **config)
    assert outcome["state"] == "Fail"
    assert reason in outcome["error"]


def test_a_loss_that_is_no_number_ends_it(store: Store) -> None:
    model = store.root / contract.working_model_key(MODEL)
    tensors = load_file(model)
    tensors["model.diffusion_model.out.2.bias"] += torch.nan
    save_file(tensors, model)
    assert "The loss of step 1 is nan: training has gone astray" in store.train()["error"]


class Full(FolderStorage):
    """No room for files of this ending."""

    ending = ".safetensors"

    def writing(self, key: str, size: int):  # type: ignore[no-untyped-def]
        if key.endswith(self.ending):
            raise DiskFull(f"No room left for {key}.")
        return super().writing(key, size)


def test_a_full_disk_ends_it_with_that_reason(store: Store) -> None:
    outcome = store.train(storage=Full(store.root), save_embedding_every=1)
    assert outcome["state"] == "Fail"
    assert outcome["error"].startswith("No room left for ")
    # A state that could not be saved is told of, and is no reason to stop.
    assert any("The state after step 2 was not saved" in each for each in outcome["warnings"])


def made_model(store: Store, *sources: str, **params: object) -> TrainOutcome:
    order = {
        "model_id": "m2",
        "type": "Stable-diffusion",
        "name": "tiny",
        "sources": list(sources),
        "params": {"create_model_params": params},
    }
    return store.carry_out(order, "Stable-diffusion/model/tiny/m2/output/")


def test_a_model_is_made_of_a_checkpoint_with_its_average(store: Store) -> None:
    base = load_file(store.root / contract.working_model_key(MODEL))
    name = "model.diffusion_model.out.2.weight"
    average = torch.full_like(base[name], 0.5)
    source = "Stable-diffusion/checkpoint/c1/a b.safetensors"
    (store.root / source).parent.mkdir(parents=True)
    ema = {"model_ema.diffusion_modelout2weight": average}
    save_file(base | ema, store.root / source, {"modelspec.title": "A"})
    outcome = made_model(store, source, extract_ema=True, from_hub=True, is_512=True)
    assert outcome["state"] == "Complete"
    assert [w.split()[0] for w in outcome["warnings"]] == ["create_model_params.from_hub"]
    made = store.root / "Stable-diffusion/model/tiny/m2/output/model.safetensors"
    tensors = load_file(made)
    assert tensors.keys() == base.keys()
    assert torch.equal(tensors[name], average)
    with safe_open(made, framework="pt") as file:
        assert file.metadata()["source_name"] == "a b.safetensors"
        assert file.metadata()["modelspec.title"] == "A"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no tensors at all", "a.safetensors is not a readable"),
        (None, "is not in the object store"),
    ],
)
def test_a_model_that_cannot_be_made_tells_why(
    store: Store, content: bytes | None, reason: str
) -> None:
    key = "Stable-diffusion/model/tiny/m2/files/a.safetensors"
    if content is not None:
        store.put(key, content)
    outcome = made_model(store, key)
    assert outcome["state"] == "Fail"
    assert reason in outcome["error"]
