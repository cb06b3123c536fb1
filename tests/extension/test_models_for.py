"""Nothing to prepare: a generation's models are found, asked about, or uploaded by themselves."""

from __future__ import annotations

import hashlib
import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from aws_extension import errors
from aws_extension.client import CloudClient
from aws_extension.fake_transport import FakeTransport
from aws_extension.webui.choice import CloudChoice
from middleware_api.contract import CheckpointType
from tests.extension.pretend_cloud import CHECKPOINT, SHA256, TOKEN, PretendCloud
from tests.extension.webui_host import DOUBLE, forget_host

SD, LORA, VAE = CheckpointType.STABLE_DIFFUSION, CheckpointType.LORA, CheckpointType.VAE
CANNY = "control_v11p_sd15_canny [d14c016b]"


class Machine:
    """A host with files on its disk, and a pretended cloud."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cloud = PretendCloud()
        self.answer = self.cloud
        self.transport = FakeTransport(lambda sent: self.answer(sent))
        self.client = CloudClient("http://cloud.test", TOKEN, adapter=self.transport)
        for name in ("hashes", "sd_models", "sd_vae", "shared", "paths"):
            setattr(self, name, importlib.import_module(f"modules.{name}"))
        self.paths.models_path = str(folder)
        self.paths.data_path = str(folder / "data")
        self.shared.cmd_opts.embeddings_dir = str(folder / "embeddings")
        self.prepare = importlib.import_module("aws_extension.webui.models_for").prepare_models

    def file(self, name: str, parts: int = 3) -> Path:
        """Weights of several parts, no two files alike."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(hashlib.sha256(name.encode()).digest() * (parts * 3125))
        return path

    def checkpoint(self, name: str) -> Path:
        path = self.file(f"Stable-diffusion/{name}")
        stem = path.stem
        self.sd_models.checkpoints_list[name] = SimpleNamespace(
            filename=str(path), name=name, title=name, model_name=stem, name_for_extra=stem
        )
        return path

    def hashed(self, title: str, path: Path, age: float = 0.0) -> str:
        """As if the host had hashed the file; with an `age`, an earlier one in its place."""
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entry = {"mtime": path.stat().st_mtime + age, "sha256": digest}
        self.hashes.cache("hashes")[title] = entry
        return digest

    def lora(self, name: str, alias: str, monkeypatch: pytest.MonkeyPatch) -> Path:
        path = self.file(f"Lora/{name}.safetensors")
        networks = ModuleType("networks")
        networks.available_networks = {name: SimpleNamespace(filename=str(path), alias=alias)}
        monkeypatch.setitem(sys.modules, "networks", networks)
        return path

    def run(self, fields, checkpoint=CHECKPOINT, *, agreed=False, prompts=()):
        choice = CloudChoice(checkpoint, upload_missing=agreed)
        return self.prepare(fields, choice, self.client, prompts, self.folder / "state")

    @property
    def asked(self) -> list[str]:
        return [sent.method for sent in self.transport.sent]

    @property
    def there(self) -> list[str]:
        return [c.name for c in self.cloud.checkpoints.all if c.state == "Active"]


@pytest.fixture
def machine(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DOUBLE))
    yield Machine(tmp_path)
    forget_host()


def test_what_is_in_the_cloud_goes_at_once(machine):
    made = machine.run({"prompt": "a cat", "seed": 5})
    assert made.models == {SD: [CHECKPOINT]}
    assert made.checkpoint == CHECKPOINT
    assert made.fields == {"prompt": "a cat", "seed": 5}
    assert made.warnings == ()
    assert machine.asked == ["GET"]


def test_a_checkpoint_that_is_only_here_is_asked_about_with_its_size(machine):
    machine.checkpoint("mine.safetensors")
    with pytest.raises(errors.ModelsNotInCloud) as told:
        machine.run({}, "mine.safetensors")
    assert str(told.value).startswith(
        "Only on this machine: mine.safetensors (checkpoint, 300 kB). Nothing was sent. Press "
    )
    assert machine.asked == ["GET"]


def test_with_the_users_consent_it_is_uploaded_with_the_hosts_bar(machine):
    machine.checkpoint("mine.safetensors")
    state = machine.shared.state
    state.job_count, state.sampling_step = 7, 3
    made = machine.run({}, "mine.safetensors", agreed=True)
    assert made.models == {SD: ["mine.safetensors"]}
    assert machine.there == [CHECKPOINT, "mine.safetensors"]
    assert "Cloud: mine.safetensors: All parts sent, the server puts them together…" in state.told
    assert any("Reading 0.3 of 0.3 MB" in text for text in state.told)
    assert (state.job_count, state.sampling_step, state.textinfo) == (7, 3, None)


def test_only_what_the_request_uses_is_sent(machine, monkeypatch):
    for name in ("mine.safetensors", "unused.safetensors"):
        machine.checkpoint(name)
    machine.lora("detail_v2", "detail", monkeypatch)
    machine.file("embeddings/soft-hands.pt")
    machine.file("embeddings/unused.pt")
    machine.file("ControlNet/control_v11p_sd15_canny.pth")
    machine.sd_vae.vae_dict["soft.vae.pt"] = str(machine.file("VAE/soft.vae.pt"))
    machine.shared.hypernetworks["oil"] = str(machine.file("hypernetworks/oil.pt"))
    kept = machine.file("RealESRGAN/RealESRGAN_x4plus.pth")
    machine.shared.sd_upscalers = [
        SimpleNamespace(name="Lanczos", data_path=None),
        SimpleNamespace(name="R-ESRGAN 4x+", data_path="https://x", local_data_path=str(kept)),
        SimpleNamespace(name="ESRGAN_4x", data_path="https://y", local_data_path="https://y"),
    ]
    fields = {
        "prompt": "a cat",
        "hr_upscaler": "R-ESRGAN 4x+",
        "override_settings": {"sd_vae": "soft.vae.pt"},
        "alwayson_scripts": {"controlnet": {"args": [{"enabled": True, "model": CANNY}]}},
    }
    prompts = ["<lora:detail:1> a cat", "Soft-Hands <hypernet:oil:1>"]
    with pytest.raises(errors.ModelsNotInCloud, match=r"Together 2\.1 MB\."):
        machine.run(fields, "mine.safetensors", prompts=prompts)
    made = machine.run(fields, "mine.safetensors", prompts=prompts, agreed=True)
    assert {kind.value: names for kind, names in made.models.items()} == {
        "Stable-diffusion": ["mine.safetensors"], "VAE": ["soft.vae.pt"],
        "ControlNet": ["control_v11p_sd15_canny.pth"], "Lora": ["detail_v2.safetensors"],
        "embeddings": ["soft-hands.pt"], "hypernetworks": ["oil.pt"],
        "ESRGAN": ["RealESRGAN_x4plus.pth"],
    }  # fmt: skip
    assert len(machine.there) == 1 + 7
    assert made.fields["hr_upscaler"] == "RealESRGAN_x4plus.pth"
    (unit,) = made.fields["alwayson_scripts"]["controlnet"]["args"]
    assert unit["model"] == "control_v11p_sd15_canny.pth"
    # The alias is this machine's: the engine knows the file.
    assert made.prompt(prompts[0]) == "<lora:detail_v2:1> a cat"


def test_a_file_that_is_there_under_another_name_is_used_under_that(machine):
    path = machine.checkpoint("mine.safetensors")
    digest = machine.hashed("checkpoint/mine.safetensors", path)
    machine.cloud.checkpoints.add("Stable-diffusion", "theirs.safetensors", digest)
    made = machine.run({"refiner_checkpoint": f"mine.safetensors [{digest[:10]}]"})
    assert made.models == {SD: [CHECKPOINT, "theirs.safetensors"]}
    assert made.fields == {"refiner_checkpoint": "theirs.safetensors"}
    assert machine.run({}, "mine.safetensors").checkpoint == "theirs.safetensors"


def test_so_it_is_when_only_the_upload_tells(machine):
    path = machine.checkpoint("mine.safetensors")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    machine.cloud.checkpoints.add("Stable-diffusion", "theirs.safetensors", digest)
    assert machine.run({}, "mine.safetensors", agreed=True).checkpoint == "theirs.safetensors"
    assert "PUT" not in machine.asked


def test_a_known_hash_spares_the_reading_and_an_outdated_one_is_not_trusted(machine):
    path = machine.checkpoint("mine.safetensors")
    machine.hashed("checkpoint/mine.safetensors", path)
    machine.run({}, "mine.safetensors", agreed=True)
    assert not any("Reading" in text for text in machine.shared.state.told)
    other = machine.checkpoint("other.safetensors")
    digest = machine.hashed("checkpoint/other.safetensors", other, age=60.0)
    machine.cloud.checkpoints.add("Stable-diffusion", "not-it.safetensors", digest)
    with pytest.raises(errors.ModelsNotInCloud):
        machine.run({}, "other.safetensors")


def test_a_checkpoint_that_the_request_sets_wins_over_the_panels(machine):
    machine.checkpoint("mine.safetensors")
    machine.cloud.checkpoints.add("Stable-diffusion", "other.safetensors")
    made = machine.run({"override_settings": {"sd_model_checkpoint": "other"}}, "mine.safetensors")
    assert made.checkpoint == "other.safetensors"
    titled = {"override_settings": {"sd_model_checkpoint": f"demo [{SHA256[:10]}]"}}
    assert machine.run(titled).checkpoint == CHECKPOINT


def test_without_any_checkpoint_the_user_is_told_what_to_do(machine):
    with pytest.raises(errors.CloudError, match="press its refresh button"):
        machine.run({}, "")
    assert machine.asked == []


def test_what_is_nowhere_is_named_and_nothing_is_sent(machine):
    machine.checkpoint("mine.safetensors")
    fields = {"override_settings": {"sd_vae": "lost.vae.pt"}}
    with pytest.raises(errors.CloudError, match=r"nor on this machine: VAE 'lost\.vae\.pt'\."):
        machine.run(fields, "mine.safetensors", agreed=True)
    assert machine.asked == ["GET"]


def test_a_lora_that_is_nowhere_is_a_warning_as_in_the_webui(machine):
    made = machine.run({"prompt": "<lora:lost:1> a cat"})
    assert made.models == {SD: [CHECKPOINT]}
    (warning,) = made.warnings
    assert warning.startswith("No LoRA 'lost' in the cloud or on this machine")


def test_a_lora_that_came_after_the_hosts_last_look_is_found(machine, monkeypatch):
    machine.lora("detail_v2", "detail", monkeypatch)
    machine.file("Lora/sub/new.safetensors")
    monkeypatch.setattr(machine.shared.cmd_opts, "lora_dir", str(machine.folder / "Lora"), False)
    made = machine.run({"prompt": "<lora:new:1>"}, agreed=True)
    assert made.models[LORA] == ["new.safetensors"]
    local = importlib.import_module("aws_extension.webui.local_models").HostModels()
    assert [f.path.name for f in local.of(LORA)] == ["detail_v2.safetensors", "new.safetensors"]


@pytest.mark.parametrize("button", ["interrupted", "skipped", "stopping_generation"])
def test_an_interrupted_upload_leaves_nothing_half_and_goes_on_later(machine, button):
    machine.checkpoint("mine.safetensors")
    parts = machine.cloud.checkpoints

    def stop_in_the_middle(sent):
        if "/parts/" in sent.url:
            setattr(machine.shared.state, button, True)
        return machine.cloud(sent)

    machine.answer = stop_in_the_middle
    with pytest.raises(errors.Cancelled, match="nothing was generated"):
        machine.run({}, "mine.safetensors", agreed=True)
    assert machine.there == [CHECKPOINT]
    assert 0 < len(parts.all[1].parts) <= 3
    setattr(machine.shared.state, button, False)
    machine.answer, arrived = machine.cloud, set(parts.all[1].parts)
    machine.shared.state.told.clear()
    machine.transport.sent.clear()
    machine.run({}, "mine.safetensors", agreed=True)
    assert machine.there == [CHECKPOINT, "mine.safetensors"]
    sent = {int(s.url.rpartition("/")[2]) for s in machine.transport.sent if "/parts/" in s.url}
    assert sent.isdisjoint(arrived)
    assert not any("Reading" in text for text in machine.shared.state.told)


def test_a_skip_that_meant_an_earlier_picture_stops_no_upload(machine):
    machine.checkpoint("mine.safetensors")
    machine.shared.state.skipped = True
    machine.run({}, "mine.safetensors", agreed=True)
    assert "mine.safetensors" in machine.there


def test_an_upload_that_fails_says_which_file_and_why(machine):
    machine.checkpoint("mine.safetensors")
    machine.cloud.checkpoints.refuse_parts_with = 404
    with pytest.raises(errors.UploadFailed) as told:
        machine.run({}, "mine.safetensors", agreed=True)
    assert str(told.value).startswith(
        "'mine.safetensors' could not be uploaded, and nothing was generated. The server no longer"
    )
    assert machine.shared.state.textinfo is None


def test_a_host_that_lacks_parts_lists_what_it_has(machine):
    del machine.sd_vae.vae_dict, machine.shared.hypernetworks
    machine.sd_models.checkpoints_list["gone"] = SimpleNamespace(
        filename="/gone.ckpt", name="gone", title="gone", model_name="g", name_for_extra="g"
    )
    local = importlib.import_module("aws_extension.webui.local_models").HostModels()
    assert [local.of(kind) for kind in CheckpointType] == [()] * len(CheckpointType)
