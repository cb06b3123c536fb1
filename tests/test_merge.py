"""Merging checkpoints in the container: formulas, roundings, what is written, what is refused."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from middleware_api import contract
from middleware_api.container.errors import BadRequest, CheckpointUnreadable, ContainerError
from middleware_api.container.job import JobRunner, parse_invocation
from middleware_api.container.storage import FolderStorage
from middleware_api.container.weights import merge as merge_module
from middleware_api.container.weights.merge import discarded, merge
from middleware_api.contract import CheckpointType, TaskType

Tensors = dict[str, torch.Tensor]

JOB = "5a1e"
PART = 0.3
FORMS = {
    "Weighted sum": lambda a, b, c: (1 - PART) * a + PART * b,
    "Add difference": lambda a, b, c: a + PART * (b - c),
}
CONV = "model.diffusion_model.input_blocks.0.0.weight"
NORM = "model.diffusion_model.out.0.weight"
DECODER = "first_stage_model.decoder.conv_in.weight"
POSITIONS = "cond_stage_model.transformer.text_model.embeddings.position_ids"
BETAS = "betas"


def tensors(seed: int, dtype: torch.dtype = torch.float16, channels: int = 4) -> Tensors:
    """A small file with one of each kind of tensor that a checkpoint has."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(dtype)

    return {
        CONV: draw(32, channels, 3, 3),
        NORM: draw(7),
        DECODER: draw(16, 4, 3, 3),
        POSITIONS: torch.arange(77)[None] + seed,
        "model_ema.num_updates": torch.tensor(seed, dtype=torch.int32),
        BETAS: draw(10),
    }


class Merges:
    """A worker that merges files of a folder."""

    def __init__(self, root: Path) -> None:
        self.storage = FolderStorage(root)
        self.runner = JobRunner({TaskType.MERGE.value: merge}, self.storage, threading.Event())
        self.told: list[dict[str, Any]] = []
        self.metadata: dict[str, str] = {}

    def file(self, name: str, content: Tensors | bytes, kind: str = "Stable-diffusion") -> Path:
        """An input under that name; bytes stand as they are."""
        key = f"{kind}/checkpoint/{len(self.told)}/{name}"
        path = self.storage.root / key
        path.parent.mkdir(parents=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            save_file(content, path, self.metadata or None)
        size, digest = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
        self.told.append({"type": kind, "name": name, "key": key, "size": size, "sha256": digest})
        return path

    def run(self, **changes: object) -> contract.InvocationResult:
        """Merges a.safetensors with b and c, where they are asked for."""
        order = {
            "primary_model_name": "a.safetensors",
            "secondary_model_name": "b.safetensors",
            "tertiary_model_name": None,
            "interp_method": "Weighted sum",
            "multiplier": PART,
            "save_as_half": False,
            "custom_name": "mix",
            "bake_in_vae": None,
            "discard_weights": "",
            "file_stem": "mix",
        }
        key = contract.params_key(TaskType.MERGE, JOB)
        self.storage.write(key, json.dumps(order | changes).encode())
        (self.storage.root / contract.outcome_key(JOB)).unlink(missing_ok=True)
        body = {
            "job_id": JOB,
            "task_type": "merge",
            "params_key": key,
            "checkpoints": self.told,
            "output_prefix": contract.output_prefix(JOB),
        }
        return self.runner.run(parse_invocation(json.dumps(body).encode()))

    def made(self, **changes: object) -> Tensors:
        """What comes of it, by another reader."""
        return load_file(self.path(**changes))

    def path(self, **changes: object) -> Path:
        (checkpoint,) = self.run(**changes)["checkpoints"]
        return self.storage.root / checkpoint["key"]

    def left(self) -> list[Path]:
        """All that lies where results go."""
        folder = self.storage.root / "Stable-diffusion/checkpoint" / f"merge-{JOB}"
        return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def merges(tmp_path: Path) -> Merges:
    return Merges(tmp_path)


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """To the bit."""
    return one.dtype == other.dtype and torch.equal(one, other)


# The formulas.


@pytest.mark.parametrize("method", list(FORMS))
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    "dtypes",
    [
        (torch.float16, torch.float16, torch.float16),
        (torch.float32, torch.float32, torch.float32),
        (torch.float16, torch.float32, torch.bfloat16),
    ],
    ids=["halves", "singles", "mixed"],
)
def test_each_tensor_is_what_torch_makes_of_it(
    merges: Merges, method: str, half: bool, dtypes: tuple[torch.dtype, ...]
) -> None:
    a, b, c = (tensors(seed, dtype) for seed, dtype in enumerate(dtypes))
    for name, content in zip("abc", (a, b, c), strict=True):
        merges.file(f"{name}.safetensors", content)
    made = merges.made(interp_method=method, save_as_half=half, tertiary_model_name="c.safetensors")
    assert made.keys() == a.keys()
    for name in (CONV, NORM, DECODER, "model_ema.num_updates"):
        wanted = FORMS[method](a[name], b[name], c[name])
        if half and wanted.dtype is torch.float32:
            wanted = wanted.half()
        assert same(made[name], wanted), name
    # Not weights of the model: as they are, not even halved.
    for name in (POSITIONS, BETAS):
        assert same(made[name], a[name]), name


def test_a_tensor_larger_than_a_piece_is_whole(
    merges: Merges, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = tensors(0), tensors(1)
    for name, content in (("a", a), ("b", b)):
        merges.file(f"{name}.safetensors", content)
    monkeypatch.setattr(merge_module, "PIECE_ELEMENTS", 100)
    made = merges.made()
    assert same(made[CONV], FORMS["Weighted sum"](a[CONV], b[CONV], None))


def test_what_only_one_of_two_has(merges: Merges) -> None:
    a, b, c = tensors(0), tensors(1), tensors(2)
    del b[NORM], c[CONV]
    a["model.only.a"], b["model.only.b"] = torch.ones(2), torch.ones(2)
    for name, content in (("a", a), ("b", b), ("c", c)):
        merges.file(f"{name}.safetensors", content)
    added = merges.made(interp_method="Add difference", tertiary_model_name="c.safetensors")
    assert same(added[NORM], a[NORM])
    assert same(added[CONV], a[CONV] + PART * torch.zeros_like(b[CONV]))  # C lacks it
    assert same(added["model.only.a"], a["model.only.a"])
    assert "model.only.b" not in added


def test_old_names_of_the_text_encoder_are_the_new_ones(merges: Merges) -> None:
    old = "cond_stage_model.transformer.encoder.layers.0.mlp.fc1.bias"
    new = "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.bias"
    merges.file("a.safetensors", {old: torch.zeros(3)})
    merges.file("b.safetensors", {new: torch.ones(3)})
    made = merges.made()
    assert made.keys() == {new}
    assert same(made[new], PART * torch.ones(3))


def test_no_interpolation_takes_one_and_halves_all_of_it(merges: Merges) -> None:
    a = tensors(0, torch.float32)
    merges.file("a.safetensors", a)
    alone = {"interp_method": "No interpolation", "secondary_model_name": None}
    kept, halved = merges.made(**alone), merges.made(**alone, save_as_half=True)
    assert all(same(kept[name], a[name]) for name in a)
    for name in (CONV, NORM, DECODER, BETAS):
        assert same(halved[name], a[name].half())
    assert same(halved[POSITIONS], a[POSITIONS])


@pytest.mark.parametrize(
    ("channels", "suffix", "mark"),
    [(9, ".inpainting", "is_inpainting"), (8, ".instruct-pix2pix", "is_instruct_pix2pix")],
)
@pytest.mark.parametrize("method", list(FORMS))
def test_a_model_with_more_input_channels_keeps_those_that_the_others_lack(
    merges: Merges,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
    channels: int,
    suffix: str,
    mark: str,
) -> None:
    a, b, c = tensors(0, torch.float32, channels), tensors(1, torch.float32), tensors(2)
    for name, content in (("a", a), ("b", b), ("c", c)):
        merges.file(f"{name}.safetensors", content)
    monkeypatch.setattr(merge_module, "PIECE_ELEMENTS", 100)
    path = merges.path(interp_method=method, tertiary_model_name="c.safetensors", save_as_half=True)
    assert path.name == f"mix{suffix}.safetensors"
    wanted = a[CONV].clone()
    wanted[:, :4] = FORMS[method](a[CONV][:, :4], b[CONV], c[CONV])
    assert same(load_file(path)[CONV], wanted.half())
    recipe = json.loads(metadata_of(path)["sd_merge_recipe"])
    assert recipe[mark] is True
    assert [recipe["is_inpainting"], recipe["is_instruct_pix2pix"]].count(True) == 1


# The VAE, and what is left out.


def test_a_vae_takes_the_place_of_the_models_own(merges: Merges) -> None:
    a = tensors(0)
    vae = torch.randn(16, 4, 3, 3)
    merges.file("a.safetensors", a)
    merges.file("b.safetensors", tensors(1))
    merges.file(
        "vae.safetensors",
        {"decoder.conv_in.weight": vae, "encoder.not.there": vae.clone(), "loss.x": vae.clone()},
        "VAE",
    )
    made = merges.made(bake_in_vae="vae.safetensors")
    assert made.keys() == a.keys()
    assert same(made[DECODER], vae)
    assert same(merges.made(bake_in_vae="vae.safetensors", save_as_half=True)[DECODER], vae.half())


def test_weights_whose_name_the_pattern_finds_are_left_out(merges: Merges) -> None:
    for seed, name in enumerate("ab"):
        merges.file(f"{name}.safetensors", tensors(seed))
    made = merges.made(discard_weights="ema|^betas")
    assert made.keys() == tensors(0).keys() - {"model_ema.num_updates", BETAS}


def test_a_pattern_that_leaves_nothing_is_refused(merges: Merges) -> None:
    for seed, name in enumerate("ab"):
        merges.file(f"{name}.safetensors", tensors(seed))
    with pytest.raises(BadRequest, match="leaves nothing"):
        merges.run(discard_weights=".")
    assert merges.left() == []


def test_patterns_that_never_end_and_that_are_none_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(merge_module, "PATTERN_SECONDS", 1.0)
    with pytest.raises(BadRequest, match="takes more than 1 seconds"):
        discarded(["model.diffusion_model.input_blocks.0.0.weight" * 3], r"(\w+\.?)+!")
    with pytest.raises(BadRequest, match="no regular expression"):
        discarded(["a"], "(")


# What the file says of itself.


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        found: dict[str, str] = file.metadata()
    return found


def test_the_recipe_and_the_ancestors_are_written_as_the_webui_does(merges: Merges) -> None:
    grandparent = {"f00d": {"name": "old.safetensors", "legacy_hash": "1", "sd_merge_recipe": None}}
    earlier = {"type": "webui", "custom_name": "older"}
    merges.metadata = {
        "author": "ann",
        "modelspec.thumbnail": "data:image/jpeg;base64,AAAA",
        "sd_merge_models": json.dumps(grandparent),
        "sd_merge_recipe": json.dumps(earlier),
    }
    large = tensors(0) | {"model.large": torch.randn(600_000)}
    a = merges.file("a.safetensors", large)
    merges.metadata = {"author": "bob", "sd_merge_models": "[no object", "licence": "open"}
    merges.file("b.safetensors", tensors(1) | {"model.large": torch.randn(600_000)})
    for checkpoint in merges.told:
        checkpoint["sha256"] = ""  # nobody knows them: the worker has to find out
    path = merges.path(save_as_half=True, discard_weights="betas")
    hashes = [
        hashlib.sha256((merges.storage.root / told["key"]).read_bytes()).hexdigest()
        for told in merges.told
    ]
    metadata = metadata_of(path)
    recipe, models = (json.loads(metadata.pop(f"sd_merge_{part}")) for part in ("recipe", "models"))
    assert metadata == {"author": "bob", "licence": "open", "format": "pt"}
    assert recipe == {
        "type": "webui",
        "primary_model_hash": hashes[0],
        "secondary_model_hash": hashes[1],
        "tertiary_model_hash": None,
        "interp_method": "Weighted sum",
        "multiplier": 0.3,
        "save_as_half": True,
        "custom_name": "mix",
        "config_source": 0,
        "bake_in_vae": "None",
        "discard_weights": "betas",
        "is_inpainting": False,
        "is_instruct_pix2pix": False,
    }
    assert models.keys() == {*hashes, "f00d"}
    legacy = hashlib.sha256(a.read_bytes()[0x100000:0x110000]).hexdigest()[:8]
    assert models[hashes[0]] == {
        "name": "a.safetensors",
        "legacy_hash": legacy,
        "sd_merge_recipe": earlier,
    }
    assert models["f00d"] == grandparent["f00d"]


def test_the_answer_tells_what_was_made(merges: Merges) -> None:
    for seed, name in enumerate("ab"):
        merges.file(f"{name}.safetensors", tensors(seed))
    result = merges.run()
    (checkpoint,) = result["checkpoints"]
    path = merges.storage.root / checkpoint["key"]
    assert merges.left() == [path]
    assert checkpoint == {
        "type": CheckpointType.STABLE_DIFFUSION.value,
        "name": "mix.safetensors",
        "key": f"Stable-diffusion/checkpoint/merge-{JOB}/mix.safetensors",
        "size": path.stat().st_size,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    assert (result["status"], result["images"]) == ("succeed", [])
    assert json.loads(result["info"])["sd_merge_recipe"]["custom_name"] == "mix"
    progress = json.loads(merges.storage.read(contract.progress_key(JOB)))
    assert (progress["phase"], progress["total_steps"]) == ("done", len(tensors(0)))


# Stopping.


class CancelledAt(FolderStorage):
    """Finds the cancel marker the n-th time that it looks; a file is open for writing by then."""

    def __init__(self, root: Path, looks: int, seen: Callable[[], list[Path]]) -> None:
        super().__init__(root)
        self.looks, self.seen = looks, seen
        self.open_files: list[Path] = []

    def exists(self, key: str) -> bool:
        self.looks -= 1
        self.open_files = self.seen()
        return self.looks < 0


def test_a_cancel_comes_through_between_two_tensors_and_leaves_nothing(merges: Merges) -> None:
    for seed, name in enumerate("ab"):
        merges.file(f"{name}.safetensors", tensors(seed))
    before_and_after_each_file = 4
    storage = CancelledAt(merges.storage.root, before_and_after_each_file + 3, merges.left)
    merges.runner = JobRunner({TaskType.MERGE.value: merge}, storage, threading.Event())
    result = merges.run()
    assert (result["status"], result["checkpoints"]) == ("cancelled", [])
    assert len(storage.open_files) == 1, "the merge had not begun to write"
    assert merges.left() == []
    progress = json.loads(merges.storage.read(contract.progress_key(JOB)))
    assert (progress["phase"], progress["step"]) == ("cancelled", 3)


def test_what_a_killed_worker_left_goes_when_the_job_goes_again(merges: Merges) -> None:
    for seed, name in enumerate("ab"):
        merges.file(f"{name}.safetensors", tensors(seed))
    folder = merges.storage.root / "Stable-diffusion/checkpoint" / f"merge-{JOB}"
    folder.mkdir()
    (folder / ".0123456789abcdef.part").write_bytes(b"half")
    path = merges.path()
    assert merges.left() == [path]


# Files that cannot be merged.


def spoiled(change: Callable[[dict[str, Any]], None], tail: int = 0) -> bytes:
    """A file of two tensors whose header was changed, with bytes added to its end or cut off."""
    entries: dict[str, Any] = {
        "model.a": {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]},
        "model.b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
    }
    change(entries)
    header = json.dumps(entries).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(16 + max(0, tail))
    return content[: len(content) + min(0, tail)]


HOSTILE = {
    "empty": (b"", "cut short"),
    "no safetensors": (b"not weights at all", "cut short"),
    "1 TiB of header": ((1 << 40).to_bytes(8, "little") + b"{}", "cut short"),
    "huge header": ((17 << 20).to_bytes(8, "little") + b" " * (17 << 20), "its header has"),
    "no JSON": ((4).to_bytes(8, "little") + b"{{{{", "no JSON"),
    "deep JSON": ((200_000).to_bytes(8, "little") + b"[" * 200_000, "no JSON"),
    "a list": ((2).to_bytes(8, "little") + b"[]", "no JSON object"),
    "half a character": (spoiled(lambda e: e.update({"\ud800": e.pop("model.a")})), "no JSON"),
    "truncated": (spoiled(lambda e: None, -1), "its tensors take 16 bytes and the file has 15"),
    "too long": (spoiled(lambda e: None, 1), "its tensors take 16 bytes and the file has 17"),
    "overlap": (
        spoiled(lambda e: e["model.b"].update(data_offsets=[4, 12])),
        "model.b does not begin where",
    ),
    "hole": (
        spoiled(lambda e: e["model.b"].update(data_offsets=[12, 20]), 4),
        "model.b does not begin where",
    ),
    "backwards": (spoiled(lambda e: e["model.b"].update(data_offsets=[16, 8])), "takes -8 bytes"),
    "wrong size": (
        spoiled(lambda e: e["model.a"].update(shape=[3])),
        "model.a takes 8 bytes where its shape needs 6",
    ),
    "negative": (spoiled(lambda e: e["model.a"].update(shape=[-2, -2])), "model.a is not descr"),
    "overflow": (spoiled(lambda e: e["model.a"].update(shape=[1 << 62, 4])), "model.a takes 8"),
    "a flag as number": (spoiled(lambda e: e["model.a"].update(shape=[True])), "model.a is not"),
    "unknown type": (spoiled(lambda e: e["model.a"].update(dtype="Q4")), "unknown type 'Q4'"),
    "a list as type": (spoiled(lambda e: e["model.a"].update(dtype=["F16"])), "unknown type"),
    "no object": (spoiled(lambda e: e.update({"model.a": 7})), "model.a is not described"),
    "numbers as metadata": (spoiled(lambda e: e.update(__metadata__={"a": 1})), "metadata"),
}  # fmt: skip


@pytest.mark.parametrize("what", list(HOSTILE))
def test_a_file_that_is_not_what_it_says_is_refused_once_and_leaves_nothing(
    merges: Merges, what: str
) -> None:
    content, words = HOSTILE[what]
    merges.file("a.safetensors", tensors(0))
    merges.file("b.safetensors", content)
    with pytest.raises(CheckpointUnreadable, match=r"^b\.safetensors is not a readable") as raised:
        merges.run()
    assert words in str(raised.value)
    assert merges.left() == []


def test_a_name_that_stands_twice_in_a_header_is_refused(merges: Merges) -> None:
    header = b'{"model.a":{"dtype":"F16","shape":[0],"data_offsets":[0,0]},'
    header += header[1:-1] + b"}"
    merges.file("a.safetensors", len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointUnreadable, match="stands in it twice"):
        merges.run(interp_method="No interpolation")


def differing(name: str, tensor: torch.Tensor, base: Tensors | None = None) -> Tensors:
    return {**(base or tensors(1)), name: tensor}


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (tensors(0), differing(NORM, torch.ones(8)), f"tensor {NORM} has the shapes 7 and 8"),
        (tensors(0), differing(NORM, torch.ones(7, 1)), f"{NORM} has the shapes 7 and 7×1"),
        (
            tensors(0),
            tensors(1, channels=9),
            f"b.safetensors is an inpainting model and a.safetensors is not (tensor {CONV}). Take "
            "b.safetensors as the primary",
        ),
        (tensors(0), tensors(1, channels=8), "b.safetensors is an instruct-pix2pix model"),
        (tensors(0, channels=9), tensors(1, channels=8), f"{CONV} has the shapes 32×9×3×3 and"),
        (tensors(0, channels=5), tensors(1), f"{CONV} has the shapes 32×5×3×3 and 32×4×3×3"),
        (
            differing(NORM, torch.ones(3, 9)),
            differing(NORM, torch.ones(3, 4)),
            "different kinds of models",
        ),
        (
            differing(NORM, torch.ones(7).to(torch.float8_e4m3fn)),
            tensors(1),
            f"Tensor {NORM} of a.safetensors is stored as float8_e4m3fn, which cannot be merged",
        ),
        (tensors(0), differing(NORM, torch.ones(7, dtype=torch.bool)), "b.safetensors is stored"),
    ],
)  # fmt: skip
def test_models_that_do_not_fit_are_refused_with_the_tensors_name(
    merges: Merges, a: Tensors, b: Tensors, words: str
) -> None:
    merges.file("a.safetensors", a)
    merges.file("b.safetensors", b)
    with pytest.raises(BadRequest) as raised:
        merges.run()
    assert words in str(raised.value)
    assert merges.left() == []


def test_b_and_c_must_fit_each_other(merges: Merges) -> None:
    merges.file("a.safetensors", tensors(0, channels=9))
    merges.file("b.safetensors", tensors(1, channels=9))
    merges.file("c.safetensors", tensors(2))
    with pytest.raises(BadRequest, match=r"b\.safetensors and c\.safetensors are different kinds"):
        merges.run(interp_method="Add difference", tertiary_model_name="c.safetensors")


@pytest.mark.parametrize(
    ("vae", "words"),
    [
        ({"decoder.conv_in.weight": torch.ones(16, 4, 1, 1)}, "has the shape 16×4×1×1 where"),
        (tensors(2), "has no tensor that the checkpoint's VAE has"),
    ],
)
def test_a_vae_that_does_not_fit_is_refused(merges: Merges, vae: Tensors, words: str) -> None:
    for seed, name in enumerate("ab"):
        merges.file(f"{name}.safetensors", tensors(seed))
    merges.file("vae.safetensors", vae, "VAE")
    with pytest.raises(BadRequest, match=words):
        merges.run(bake_in_vae="vae.safetensors")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"interp_method": "Guess"}, "not what this worker understands"),
        ({"file_stem": "../mix"}, "is no file name"),
        ({"secondary_model_name": "ghost.safetensors"}, "does not tell where ghost.safetensors is"),
        ({"secondary_model_name": "b.ckpt"}, "b.ckpt is no .safetensors file"),
        ({"secondary_model_name": None}, "Weighted sum needs one model more"),
    ],
)
def test_orders_that_no_middleware_gives_are_refused(
    merges: Merges, changes: dict[str, object], words: str
) -> None:
    merges.file("a.safetensors", tensors(0))
    merges.file("b.ckpt", b"")
    with pytest.raises(ContainerError) as raised:
        merges.run(**changes)
    assert words in str(raised.value)


def test_a_file_that_is_gone_is_told(merges: Merges) -> None:
    for seed, name in enumerate("ab"):
        path = merges.file(f"{name}.safetensors", tensors(seed))
    path.unlink()
    with pytest.raises(CheckpointUnreadable, match=r"b\.safetensors is not in the object store"):
        merges.run()
