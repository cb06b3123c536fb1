"""The panel: what it lists, what it asks about, and how its arguments are read."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest

from aws_extension import errors
from tests.extension.pretend_cloud import CHECKPOINT
from tests.extension.webui_host import host as host  # a fixture

MINE = "mine.safetensors · on this machine, 300 kB"


def put_checkpoint(host, name="mine.safetensors"):
    """A file on the host's disk and in its list."""
    path = host.folder / name
    path.write_bytes(hashlib.sha256(name.encode()).digest() * 9375)
    host.sd_models.checkpoints_list[name] = SimpleNamespace(
        filename=str(path), name=name, title=name, model_name="mine", name_for_extra="mine"
    )
    return path


def test_the_lists_show_what_is_where_and_in_what_state(host):
    put_checkpoint(host)
    put_checkpoint(host, CHECKPOINT)  # in the cloud as well: listed once
    host.cloud.endpoints.append("second")
    host.cloud.endpoint_states = {"second": "Creating", "third": "Deleting"}
    host.cloud.endpoints.append("third")
    checkpoints, endpoints, line = host.panel_module.read_lists(None, None)
    assert checkpoints["choices"] == [CHECKPOINT, MINE]
    assert checkpoints["value"] == CHECKPOINT
    assert endpoints["choices"] == ["Automatic", "pretend-1", "second · starting"]
    assert "Endpoints ready:" in line


def test_a_choice_is_kept_when_its_remark_has_changed(host):
    checkpoints, endpoints, _ = host.panel_module.read_lists(
        f"{CHECKPOINT} · on this machine, 1.0 MB", "pretend-1 · starting"
    )
    assert (checkpoints["value"], endpoints["value"]) == (CHECKPOINT, "pretend-1")


def test_what_was_trained_is_chosen_and_a_lora_leaves_the_checkpoint(host):
    host.cloud.checkpoints.add("Stable-diffusion", "my dog.safetensors", "cd" * 32)
    use = host.panel_module.use_trained
    enabled, checkpoints, _, _ = use("checkpoint my dog.safetensors 17", CHECKPOINT, None)
    assert (enabled["value"], checkpoints["value"]) == (True, "my dog.safetensors")
    enabled, checkpoints, _, _ = use("lora dog.safetensors 17", CHECKPOINT, None)
    assert (enabled["value"], checkpoints["value"]) == (True, CHECKPOINT)


def test_a_chosen_checkpoint_is_loaded_ahead_when_the_cloud_has_it(host):
    prefetch = host.panel_module.prefetch
    prefetch(False, CHECKPOINT, "Automatic")
    prefetch(True, None, "Automatic")
    prefetch(True, MINE, "Automatic")
    prefetch(True, "elsewhere.safetensors", "Automatic")
    assert host.cloud.prefetched == []
    prefetch(True, CHECKPOINT, "Automatic")
    prefetch(True, CHECKPOINT, "pretend-1 · updating")
    assert host.cloud.prefetched == [("c1", ""), ("c1", "pretend-1")]


def test_no_one_hears_of_a_hint_that_fails(host, monkeypatch):
    empty = SimpleNamespace(client=lambda: (_ for _ in ()).throw(errors.NotConfigured("No.")))
    monkeypatch.setattr(host.panel_module, "host_access", lambda: empty)
    host.panel_module.prefetch(True, CHECKPOINT, "Automatic")


def test_at_first_the_checkpoint_of_this_machine_is_chosen(host):
    put_checkpoint(host)
    host.shared.opts.sd_model_checkpoint = "mine.safetensors [0123456789]"
    checkpoints, _, _ = host.panel_module.read_lists(None, None)
    assert checkpoints["value"] == MINE


def test_without_a_connection_it_names_the_first_step_and_asks_nobody(host, monkeypatch):
    empty = SimpleNamespace(client=lambda: (_ for _ in ()).throw(errors.NotConfigured("No.")))
    monkeypatch.setattr(host.panel_module, "host_access", lambda: empty)
    _, _, line = host.panel_module.read_lists(None, None)
    assert host.panel_module.FIRST_STEP in line
    assert host.transport.sent == []


@pytest.mark.parametrize(
    ("checkpoint", "without_asking", "refused", "expected"),
    [
        (CHECKPOINT, False, "", ""),
        (None, False, "", ""),
        (MINE, False, "", "mine.safetensors (300 kB)."),
        (MINE, True, "", ""),
        (CHECKPOINT, False, str(errors.ModelsNotInCloud("x.pt (LoRA, 2.0 MB).")),
         "x.pt (LoRA, 2.0 MB)."),
        (MINE, False, str(errors.ModelsNotInCloud("x.pt (LoRA, 2.0 MB).")),
         "x.pt (LoRA, 2.0 MB)."),
    ],
)  # fmt: skip
def test_the_button_comes_with_what_it_would_upload(
    host, checkpoint, without_asking, refused, expected
):
    ask, text = host.panel_module.show_uploads(checkpoint, without_asking, refused)
    assert ask["visible"] is bool(expected)
    assert f">{expected}</span>" in text if expected else text == ""


def test_arguments_are_read_and_each_may_be_left_out(host):
    read = host.panel_module.CloudPanel().read_choice
    assert read() is None
    assert read(False, MINE) is None
    choice = read(True, "model.safetensors")
    assert (choice.checkpoint, choice.endpoint) == ("model.safetensors", "")
    assert not choice.upload_missing
    choice = read(True, MINE, "second · starting", False, "ab" * 16, True)
    assert (choice.checkpoint, choice.endpoint) == ("mine.safetensors", "second")
    assert choice.upload_missing
    assert choice.user == "ab" * 16
    assert read(True, None, "Automatic", True).upload_missing


def test_generate_asks_first_then_uploads_and_makes_the_picture(host):
    put_checkpoint(host)
    with pytest.raises(errors.ModelsNotInCloud, match=r"mine\.safetensors \(checkpoint, 300 kB\)"):
        host.process_images(panel_p(host, upload_now=False))
    assert host.cloud.jobs == []
    assert {sent.method for sent in host.transport.sent} == {"GET"}
    result = host.process_images(panel_p(host, upload_now=True))
    assert len(result.images) == 1
    assert host.cloud.jobs[0].body["models"] == {"Stable-diffusion": ["mine.safetensors"]}
    # The consent was for that click; but now the file is there.
    assert len(host.process_images(panel_p(host, upload_now=False)).images) == 1
    assert len([s for s in host.transport.sent if "/parts/" in s.url]) == 3


class ControlNet:
    """Another extension's script with two units."""

    filename = "extensions/sd-webui-controlnet/scripts/controlnet.py"
    arguments = 2
    controls = (SimpleNamespace(value=None),) * 2

    def title(self):
        return "ControlNet"


def test_a_controlnet_model_is_used_under_the_clouds_name_for_it(host):
    folder = host.folder / "extensions" / "sd-webui-controlnet" / "models"
    folder.mkdir(parents=True)
    path = folder / "control_v11p_sd15_canny.pth"
    path.write_bytes(b"canny" * 1000)
    host.cloud.checkpoints.add(
        "ControlNet", "canny-fp16.safetensors", hashlib.sha256(path.read_bytes()).hexdigest()
    )
    unit = SimpleNamespace(enabled=True, model="control_v11p_sd15_canny [d14c016b]")
    off = SimpleNamespace(enabled=False, model="another [0123abcd]")
    p = host.p(runner=host.runner(ControlNet()), args=[off, unit])
    with pytest.raises(errors.ModelsNotInCloud, match="ControlNet model"):
        host.process_images(p)
    p.script_args[4] = True
    host.process_images(p)
    body = host.cloud.jobs[0].body
    assert body["models"]["ControlNet"] == ["canny-fp16.safetensors"]
    assert body["alwayson_scripts"]["controlnet"]["args"] == [
        {"enabled": False},
        {"enabled": True, "model": "canny-fp16.safetensors"},
    ]


def test_what_a_unit_saw_is_shown_once_behind_the_pictures_and_not_saved(host):
    host.cloud.checkpoints.add("ControlNet", "canny.safetensors", "ab" * 32)
    unit = SimpleNamespace(enabled=True, model="canny [d14c016b]")
    off = SimpleNamespace(enabled=False, model="canny [d14c016b]")

    def made(**settings):
        host.shared.opts.data.update(settings)
        p = host.p(runner=host.runner(ControlNet()), args=[off, unit], n_iter=3, seed=5)
        return host.process_images(p)

    result = made()
    assert len(result.images) == 5  # a grid, three pictures and one map
    assert len(result.infotexts) == 4
    assert "parameters" in result.images[3].info
    units = [job.body["alwayson_scripts"]["controlnet"]["args"][1] for job in host.cloud.jobs]
    assert [unit.get("save_detected_map", True) for unit in units] == [True, False, False]
    assert len(list((host.folder / "samples").iterdir())) == 3
    assert len(made(control_net_no_detectmap=True).images) == 4


def panel_p(host, *, upload_now):
    p = host.p(prompt="a circle")
    p.script_args = [0, True, MINE, "Automatic", False, "", upload_now]
    return p
