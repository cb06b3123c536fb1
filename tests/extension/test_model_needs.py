"""What a request's words mean as models, and where those are found. No host is needed."""

from __future__ import annotations

from pathlib import Path

import pytest

from aws_extension.answers import Checkpoint
from aws_extension.model_needs import (
    LocalFile,
    Need,
    RequestWalk,
    describe_uploads,
    find_needs,
    resolve,
)
from middleware_api.contract import CheckpointState, CheckpointType

SD, VAE, LORA = CheckpointType.STABLE_DIFFUSION, CheckpointType.VAE, CheckpointType.LORA
EMBEDDING, CONTROLNET = CheckpointType.EMBEDDINGS, CheckpointType.CONTROLNET
HYPERNETWORK = CheckpointType.HYPERNETWORKS
A, B = "a1" * 32, "b2" * 32


def in_cloud(kind, name, sha256=""):
    return Checkpoint("c", kind.value, CheckpointState.ACTIVE, (name,), None, 1, "", (sha256,))


def here(kind, name, *names, sha256="", folder="/models"):
    return LocalFile(kind, Path(folder) / name, 2_100_000_000, names, sha256)


class Disk:
    """What this machine has, for a test."""

    def __init__(self, *files):
        self.files = files

    def of(self, kind):
        return [file for file in self.files if file.kind is kind]


def needs(fields, prompts=(), embeddings=(), files=None):
    """Without the checkpoint, which is always the first."""
    first, *others = find_needs(RequestWalk(embeddings, files or {}), "m", fields, prompts)
    assert first == Need(SD, "m")
    return others


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", []),
        ("<lora:detail:0.8> a cat", [Need(LORA, "detail")]),
        ("<lora:detail:0.8:0.5:lbw=OUTALL>", [Need(LORA, "detail")]),
        ("<lora:detail>", [Need(LORA, "detail")]),
        ("[<lora:a:1>|<lyco:b:1>]", [Need(LORA, "a"), Need(LORA, "b")]),
        ("<lora:a:1> <lora:a:0.5>", [Need(LORA, "a")]),
        ("<hypernet:soft:1>", [Need(HYPERNETWORK, "soft")]),
        ("<other:x:1> a < b", []),
    ],
)
def test_tags_in_prompts_name_models(prompt, expected):
    assert needs({"prompt": prompt}) == expected
    assert needs({"hr_negative_prompt": prompt}) == expected
    assert needs({}, [prompt]) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat, bad-hands-5", ["bad-hands-5"]),
        ("(bad-hands:1.2), EasyNegative", ["bad-hands", "EasyNegative"]),
        ("easynegative", ["easynegative"]),
        ("easynegatives, my_bad-hands", []),
        ("<lora:bad-hands:1>", []),
    ],
)
def test_embeddings_are_whole_words_that_are_known_as_such(prompt, expected):
    known = ["bad-hands", "bad-hands-5", "EasyNegative"]
    found = [n.name for n in needs({"negative_prompt": prompt}, (), known) if n.kind is EMBEDDING]
    assert found == expected
    assert all(n.kind is not EMBEDDING for n in needs({"negative_prompt": prompt}))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"refiner_checkpoint": "r.safetensors [0123456789]"},
         [Need(SD, "r.safetensors", "0123456789")]),
        ({"refiner_checkpoint": "None", "hr_checkpoint_name": "Use same checkpoint"}, []),
        ({"hr_checkpoint_name": "sub/h.ckpt"}, [Need(SD, "sub/h.ckpt")]),
        ({"override_settings": {"sd_vae": "soft.vae.pt", "CLIP_stop_at_last_layers": 2}},
         [Need(VAE, "soft.vae.pt")]),
        ({"override_settings": {"sd_vae": "Automatic"}}, []),
    ],
)  # fmt: skip
def test_fields_and_settings_name_models(fields, expected):
    assert needs(fields) == expected


def script(title, *args):
    return {"alwayson_scripts": {title: {"args": list(args)}}}


CANNY = "control_v11p_sd15_canny [d14c016b]"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        (script("controlnet", {"enabled": True, "model": CANNY, "module": "canny"},
                {"enabled": False, "model": "off"}, {"model": "None"}),
         [Need(CONTROLNET, "control_v11p_sd15_canny", "d14c016b")]),
        (script("adetailer", True, False,
                {"ad_model": "face.pt", "ad_prompt": "<lora:face:1>", "ad_checkpoint": "x.ckpt",
                 "ad_use_checkpoint": True, "ad_vae": "v.pt", "ad_use_vae": False,
                 "ad_controlnet_model": "Passthrough"},
                {"ad_model": "None", "ad_prompt": "<lora:unused:1>"},
                {"ad_model": "hand.pt", "ad_tab_enable": False, "ad_controlnet_model": "c"}),
         [Need(LORA, "face"), Need(SD, "x.ckpt")]),
        (script("some other", "known.safetensors [0123456789]", "unknown.safetensors", 3,
                ["known.safetensors"], "<lora:not a prompt:1>", {"a_prompt": "<lora:p:1>"}),
         [Need(SD, "known.safetensors", "0123456789"), Need(SD, "known.safetensors"),
          Need(LORA, "p")]),
    ],
)  # fmt: skip
def test_script_arguments_name_models(fields, expected):
    assert needs(fields, files={"known.safetensors": SD}) == expected


def test_the_walk_writes_the_clouds_names_and_leaves_the_rest():
    fields = {
        "prompt": "a cat <lora:detail:0.8:x> (soft:1.1)",
        "seed": 5,
        "refiner_checkpoint": "r [0123456789]",
        "override_settings": {"sd_vae": "Automatic", "eta": 1},
        **script("controlnet", {"enabled": True, "model": CANNY, "image": "iVBOR"}),
    }
    names = {
        Need(LORA, "detail"): "detail-v2.safetensors",
        Need(EMBEDDING, "soft"): "softer.pt",
        Need(SD, "r", "0123456789"): "refiner.safetensors",
        Need(CONTROLNET, "control_v11p_sd15_canny", "d14c016b"): "canny.pth",
    }
    walk = RequestWalk(["soft"])
    assert walk.fields(fields, names.get) == {
        "prompt": "a cat <lora:detail-v2:0.8:x> (softer:1.1)",
        "seed": 5,
        "refiner_checkpoint": "refiner.safetensors",
        "override_settings": {"sd_vae": "Automatic", "eta": 1},
        **script("controlnet", {"enabled": True, "model": "canny.pth", "image": "iVBOR"}),
    }
    assert walk.fields(fields, lambda need: None) == fields


def test_upscalers_are_files_unless_every_engine_has_them():
    for builtin in ("Latent (nearest-exact)", "lanczos", "None", ""):
        fields = {"hr_upscaler": builtin, "override_settings": {"upscaler_for_img2img": builtin}}
        assert find_needs(RequestWalk(), "m.ckpt", fields) == [Need(SD, "m.ckpt")]
    fields = {"hr_upscaler": "4x_a", "override_settings": {"upscaler_for_img2img": "4x_b"}}
    upscalers = [Need(CheckpointType.ESRGAN, name) for name in ("4x_a", "4x_b")]
    assert find_needs(RequestWalk(), "m.ckpt", fields) == [Need(SD, "m.ckpt"), *upscalers]


@pytest.mark.parametrize(
    ("need", "cloud", "local", "expected"),
    [
        # the request's own hash first, whatever the name
        (Need(SD, "mine.ckpt", A[:10]), [("theirs.ckpt", A), ("mine.ckpt", B)], [], "theirs.ckpt"),
        # a name of the cloud as it stands, before this machine is asked
        (Need(SD, "m.ckpt"), [("x.ckpt", A), ("m.ckpt", B)], [("m.ckpt", A)], "m.ckpt"),
        # this machine's hash, under another name
        (Need(SD, "m.ckpt"), [("x.ckpt", A)], [("m.ckpt", A)], "x.ckpt"),
        # names: no extension, a folder before it, another case
        (Need(SD, "m"), [("m.safetensors", "")], [], "m.safetensors"),
        (Need(SD, "anime/m.ckpt"), [("m.ckpt", "")], [], "m.ckpt"),
        (Need(SD, r"anime\M"), [("m.ckpt", "")], [], "m.ckpt"),
        (Need(SD, "m"), [("M.ckpt", ""), ("m.ckpt", "")], [], "m.ckpt"),
        (Need(SD, "v1.5"), [("v1.5.ckpt", "")], [], "v1.5.ckpt"),
        # ControlNet's eight digits are no part of a SHA-256
        (Need(SD, "m", A[:8]), [("x.ckpt", A), ("m.ckpt", B)], [], "m.ckpt"),
        (Need(SD, "absent"), [("m.ckpt", A)], [], None),
    ],
)
def test_models_are_found_by_hash_first_then_by_name(need, cloud, local, expected):
    found = resolve(
        [need],
        [in_cloud(SD, *item) for item in cloud],
        Disk(*(here(SD, name, sha256=sha256) for name, sha256 in local)),
    )
    assert found.names.get(need) == expected
    assert found.models == ({SD: [expected]} if expected else {})
    assert found.missing == (() if expected else (need,))


def test_only_what_is_asked_for_and_not_there_is_to_be_uploaded():
    disk = Disk(
        here(SD, "mine.ckpt", "anime/mine.ckpt [a1a1a1a1a1]", sha256=A),
        here(LORA, "detail_v2.safetensors", "detail_v2", "detail"),
        here(LORA, "unused.safetensors", "unused"),
    )
    asked = [
        Need(SD, "anime/mine.ckpt", A[:10]),
        Need(SD, "mine"),
        Need(LORA, "detail"),  # by its alias
        Need(VAE, "there.vae.pt"),
        Need(LORA, "nowhere"),
        Need(VAE, "nowhere.pt"),
    ]
    found = resolve(asked, [in_cloud(VAE, "there.vae.pt")], disk)
    assert [file.path.name for file in found.uploads] == ["mine.ckpt", "detail_v2.safetensors"]
    assert found.models == {VAE: ["there.vae.pt"]}
    assert found.missing == (Need(LORA, "nowhere"), Need(VAE, "nowhere.pt"))
    assert found.required == (Need(VAE, "nowhere.pt"),)


def test_of_two_files_of_one_name_the_hash_decides():
    disk = Disk(
        here(SD, "m.ckpt", "a/m.ckpt", sha256=A, folder="/models/a"),
        here(SD, "m.ckpt", "b/m.ckpt", sha256=B, folder="/models/b"),
    )
    for need in (Need(SD, "a/m.ckpt", B[:10]), Need(SD, "b/m.ckpt")):
        (file,) = resolve([need], [], disk).uploads
        assert file.path.parent.name == "b"


def test_files_are_described_with_their_sizes():
    one = here(SD, "m.safetensors")
    two = LocalFile(LORA, Path("/l/detail.pt"), 151_100_000)
    assert describe_uploads([one]) == "m.safetensors (checkpoint, 2.10 GB)."
    assert describe_uploads([one, two]) == (
        "m.safetensors (checkpoint, 2.10 GB), detail.pt (LoRA, 151.1 MB). Together 2.25 GB."
    )
