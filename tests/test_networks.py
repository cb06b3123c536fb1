"""LoRAs and hypernetworks in a real small model: what they add, and that nothing of it stays."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from middleware_api.container.engine.checkpoint import StableDiffusion, load_checkpoint
from middleware_api.container.errors import CheckpointUnreadable
from middleware_api.container.networks.adapters import Lora, load_lora
from middleware_api.container.networks.block_weights import BLOCKS
from middleware_api.container.networks.hypernetworks import load_hypernetwork
from middleware_api.container.networks.job_networks import JobNetworks
from middleware_api.container.networks.patches import Patch, UsedHypernetwork, UsedLora, patch_of
from middleware_api.container.prompts.embeddings import load_embedding
from middleware_api.container.prompts.networks import networks_of
from tests.engine_checkpoints import write_checkpoint

QUERY = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT = "encoder.layers.1.mlp.fc1"
LDM_UP = "lora_unet_output_blocks_2_1_transformer_blocks_0_attn1_to_q"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StableDiffusion:
    torch.set_num_threads(1)
    path = write_checkpoint(tmp_path_factory.mktemp("weights") / "tiny.safetensors")
    return load_checkpoint(path, path.name, "", torch.device("cpu"), torch.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def lora(folder: Path, tensors: Mapping[str, Tensor], **metadata: str) -> Lora:
    path = folder / f"lora{len(list(folder.iterdir()))}.safetensors"
    save_file(dict(tensors), path, metadata)
    return load_lora(path, path.name)


def pair(layer: str, out: int = 32, into: int = 32, seed: int = 0) -> dict[str, Tensor]:
    """Down and up of rank 2 at a strength of one half."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{layer}.lora_down.weight": torch.randn(2, into, generator=generator),
        f"{layer}.lora_up.weight": torch.randn(out, 2, generator=generator),
        f"{layer}.alpha": torch.tensor(1.0),
    }


def product(tensors: Mapping[str, Tensor], rank: int = 2) -> Tensor:
    down, up = (next(t for n, t in tensors.items() if part in n) for part in ("down", "up"))
    return up[:, :rank] @ down[:rank] / 2


def difference(model: StableDiffusion, patch: Patch, name: str = QUERY) -> Tensor:
    """What the patch adds to a weight while it is applied."""
    owner = model.text_encoders[0].module if name.startswith("encoder") else model.unet
    before = owner.get_submodule(name).weight.clone()
    with patch.applied():
        during = owner.get_submodule(name).weight.clone()
    assert torch.equal(owner.get_submodule(name).weight, before)
    return during - before


def everything(model: StableDiffusion) -> dict[str, Tensor]:
    states = [m.state_dict() for m in (model.unet, model.text_encoders[0].module)]
    return {f"{i}.{name}": value.clone() for i, s in enumerate(states) for name, value in s.items()}


@pytest.mark.parametrize(
    "layer",
    [
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q",
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q",
    ],
    ids=["diffusers", "LDM"],
)
def test_layers_are_known_by_the_names_of_both_layouts(
    model: StableDiffusion, folder: Path, layer: str
) -> None:
    tensors = pair(layer)
    used = UsedLora(lora(folder, tensors), text=9, unet=0.8)
    added = difference(model, patch_of(model, [used], []))
    assert torch.allclose(added, 0.8 * product(tensors), atol=1e-5)


def test_text_encoder_and_unet_have_weights_of_their_own(
    model: StableDiffusion, folder: Path
) -> None:
    unet = pair("lora_unet_" + QUERY.replace(".", "_"))
    text = pair("lora_te_text_model_" + TEXT.replace(".", "_"), 256, 64, seed=1)
    patch = patch_of(model, [UsedLora(lora(folder, unet | text), text=0.5, unet=-1)], [])
    assert torch.allclose(difference(model, patch), -product(unet), atol=1e-5)
    assert torch.allclose(difference(model, patch, TEXT), 0.5 * product(text), atol=1e-5)


def test_two_add_up_and_the_model_is_the_same_afterwards(
    model: StableDiffusion, folder: Path
) -> None:
    layer = "lora_unet_" + QUERY.replace(".", "_")
    one, two = pair(layer), pair(layer, seed=1)
    used = [UsedLora(lora(folder, t), 1, w) for t, w in ((one, 1.0), (two, 0.5))]
    before = everything(model)
    patch = patch_of(model, used, [])
    expected = product(one) + product(two) / 2
    assert torch.allclose(difference(model, patch), expected, atol=1e-5)
    with pytest.raises(InterruptedError), patch.applied():
        raise InterruptedError  # a job that is cancelled within a step
    after = everything(model)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_weight_0_adds_nothing(model: StableDiffusion, folder: Path) -> None:
    used = UsedLora(lora(folder, pair("lora_unet_" + QUERY.replace(".", "_"))), 0, 0)
    assert difference(model, patch_of(model, [used], [])).abs().max() == 0


def test_a_rank_cuts_a_lora(model: StableDiffusion, folder: Path) -> None:
    tensors = pair("lora_unet_" + QUERY.replace(".", "_"))
    used = UsedLora(lora(folder, tensors), 1, 1, rank=1)
    added = difference(model, patch_of(model, [used], []))
    assert torch.allclose(added, product(tensors, rank=1), atol=1e-5)


def test_biases_change_and_come_back_where_there_were_none(
    model: StableDiffusion, folder: Path
) -> None:
    layer = "lora_unet_" + QUERY.replace(".", "_")
    tensors = {f"{layer}.diff": torch.ones(32, 32), f"{layer}.diff_b": torch.ones(32)}
    patch = patch_of(model, [UsedLora(lora(folder, tensors), 1, 0.5)], [])
    module = model.unet.get_submodule(QUERY)
    assert module.bias is None
    with patch.applied():
        assert module.bias.tolist() == [0.5] * 32
    assert module.bias is None
    assert torch.allclose(difference(model, patch), torch.full((32, 32), 0.5))


def test_dora_gives_every_input_the_length_that_the_file_has(
    model: StableDiffusion, folder: Path
) -> None:
    layer = "lora_unet_" + QUERY.replace(".", "_")
    lengths = torch.linspace(0.5, 2, 32)[None]
    tensors = pair(layer) | {f"{layer}.dora_scale": lengths}
    patch = patch_of(model, [UsedLora(lora(folder, tensors), 1, 1)], [])
    with patch.applied():
        columns = model.unet.get_submodule(QUERY).weight.norm(dim=0)
    assert torch.allclose(columns, lengths[0], atol=1e-5)


def quarter(share: float) -> Tensor:
    """Cayley's transform of a skew pair: a turn by twice its arc tangent."""
    angle = 2 * math.atan(share)
    return torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def pairs_of(shares: list[float]) -> Tensor:
    return torch.tensor([[[0.0, share], [0.0, 0.0]] for share in shares])


def turned(model: StableDiffusion, folder: Path, parts: dict[str, Tensor]) -> Tensor:
    """What stands in for the query's weight, rows of 32."""
    layer = "lora_unet_" + QUERY.replace(".", "_")
    used = UsedLora(lora(folder, {f"{layer}.{name}": part for name, part in parts.items()}), 1, 1)
    patch = patch_of(model, [used], [])
    return model.unet.get_submodule(QUERY).weight + difference(model, patch)


def test_oft_turns_rows_within_their_blocks(model: StableDiffusion, folder: Path) -> None:
    weight = model.unet.get_submodule(QUERY).weight
    shares = [0.1 * i for i in range(16)]
    turns = torch.block_diag(*(quarter(share).T for share in shares))
    blocks = pairs_of(shares)
    assert torch.allclose(turned(model, folder, {"oft_blocks": blocks}), turns @ weight, atol=1e-5)
    diag = torch.stack([quarter(share) for share in shares])
    assert torch.allclose(turned(model, folder, {"oft_diag": diag}), turns @ weight, atol=1e-5)
    scale = torch.linspace(0.5, 2, 32)[:, None]
    made = turned(model, folder, {"oft_blocks": blocks, "rescale": scale})
    assert torch.allclose(made, scale * (turns @ weight), atol=1e-5)
    # COFT: all skews together are no longer than alpha times the rows.
    length = math.sqrt(2 * sum(share**2 for share in shares))
    bounded = [share / length * 0.01 * 32 for share in shares]
    turns = torch.block_diag(*(quarter(share).T for share in bounded))
    made = turned(model, folder, {"oft_blocks": blocks, "alpha": torch.tensor(0.01)})
    assert torch.allclose(made, turns @ weight, atol=1e-5)


def test_boft_turns_rows_that_lie_ever_farther_apart(model: StableDiffusion, folder: Path) -> None:
    weight = model.unet.get_submodule(QUERY).weight
    stages = torch.stack([pairs_of([0.3] * 16), pairs_of([0.5] * 16)])
    expected = weight.clone()
    for share, apart in ((0.3, 1), (0.5, 2)):
        for first in (row for row in range(32) if not row & apart):
            both = [first, first + apart]
            expected[both] = quarter(share) @ expected[both]
    assert torch.allclose(turned(model, folder, {"oft_blocks": stages}), expected, atol=1e-5)


def test_block_weights_weigh_a_layer_by_its_block(model: StableDiffusion, folder: Path) -> None:
    """In either layout's names; the text encoder is the first block."""
    text = "lora_te_text_model_" + TEXT.replace(".", "_")
    query = pair("lora_unet_" + QUERY.replace(".", "_"))
    tensors = query | pair(text, 256, 64, seed=1) | pair(LDM_UP, seed=2)
    blocks = [0.0] * 26
    for name, weight in (("BASE", 0.25), ("IN01", 0.5), ("OUT02", 2.0)):
        blocks[BLOCKS.index(name)] = weight
    patch = patch_of(model, [UsedLora(lora(folder, tensors), 1, -1, blocks=tuple(blocks))], [])
    assert torch.allclose(difference(model, patch), -0.5 * product(query), atol=1e-5)
    added = difference(model, patch, TEXT)
    assert torch.allclose(added, 0.25 * product(pair(text, 256, 64, seed=1)), atol=1e-5)
    up = difference(model, patch, "up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
    assert torch.allclose(up, -2 * product(pair(LDM_UP, seed=2)), atol=1e-5)
    nothing = patch_of(model, [UsedLora(lora(folder, tensors), 1, 1, blocks=(0.0,) * 26)], [])
    assert difference(model, nothing).abs().max() == 0


def test_layers_of_no_kind_that_is_known_are_told(model: StableDiffusion, folder: Path) -> None:
    known = pair("lora_unet_" + QUERY.replace(".", "_"))
    odd = {"lora_unet_mid_block_x.vera_lambda": torch.zeros(1), "bundle_emb.a.b": torch.zeros(1)}
    file = lora(folder, known | odd)
    assert file.unread == {"lora_unet_mid_block_x": ("vera_lambda",), "bundle_emb": ("a.b",)}
    asked = networks_of(f"<lora:{file.name}>")
    assert JobNetworks([file]).problems(model, asked) == [
        f"LoRA {file.name}: 2 of its layers are of a kind that this engine does not read and were "
        "left out, bundle_emb (a.b) among them."
    ]


def test_layers_that_do_not_fit_are_counted(model: StableDiffusion, folder: Path) -> None:
    fits = pair("lora_unet_" + QUERY.replace(".", "_"))
    wide = pair("lora_unet_mid_block_attentions_0_proj_in", 640, 640)
    other = pair("lora_te2_text_model_encoder_layers_0_mlp_fc1")
    used = UsedLora(lora(folder, fits | wide | other), 1, 1)
    patch = patch_of(model, [used], [])
    assert patch.unfit == {used.lora.name: 2}
    assert difference(model, patch).abs().max() > 0


def test_names_and_hashes_are_those_of_the_training(folder: Path) -> None:
    plain = lora(folder, pair("x"))
    named = lora(folder, pair("x"), ss_output_name="ink", sshs_model_hash="ab" * 32)
    assert (plain.alias, named.alias) == (plain.name, "ink")
    assert named.short_hash == "abababababab"
    # Metadata play no part in the hash of the rest.
    assert plain.hash == lora(folder, pair("x"), ss_tag="1").hash


def hypernetwork(folder: Path, width: int, factors: tuple[float, float], **words: object) -> Path:
    """One layer for the keys and one for the values, each the identity times a factor."""
    tensors = {
        f"{width}.{side}.linear.0.{leaf}": value
        for side, factor in enumerate(factors)
        for leaf, value in (("weight", torch.eye(width) * factor), ("bias", torch.zeros(width)))
    }
    metadata = {"layer_structure.0": "1", "layer_structure.1": "1", "activate_output": "false"}
    path = folder / "wave.safetensors"
    save_file(tensors, path, metadata | {name: json.dumps(word) for name, word in words.items()})
    return path


def test_a_hypernetwork_changes_what_keys_and_values_read(
    model: StableDiffusion, folder: Path
) -> None:
    """Adding a multiple of what is read is the same as scaling the projection."""
    network = load_hypernetwork(hypernetwork(folder, 64, (0.5, -0.5)), "wave.safetensors")
    patch = patch_of(model, [], [UsedHypernetwork(network, 0.4)])
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    context = torch.randn(1, 77, 64, generator=torch.Generator().manual_seed(0))
    for name, factor in (("attn2.to_k", 1.2), ("attn2.to_v", 0.8)):
        layer = model.unet.get_submodule(f"{block}.{name}")
        plain = layer(context)
        with patch.applied():
            assert torch.allclose(layer(context), plain * factor, atol=1e-5)
        assert torch.equal(layer(context), plain)
    reads_pictures = model.unet.get_submodule(f"{block}.attn1.to_k")  # of another width
    assert {module for module, _ in patch.hooks} >= {layer}
    assert reads_pictures not in {module for module, _ in patch.hooks}


def test_files_that_are_something_else_are_refused_in_words(folder: Path) -> None:
    checkpoint = write_checkpoint(folder / "tiny.safetensors")
    broken = folder / "broken.safetensors"
    broken.write_bytes(b"\0" * 100)
    odd = hypernetwork(folder, 64, (1, 1), activation_func="exec")
    huge = folder / "huge.safetensors"
    save_file({"emb_params": torch.zeros(76, 8)}, huge)
    for load, path, words in (
        (lambda p: load_lora(p, p.name), checkpoint, "is no LoRA that this engine reads"),
        (lambda p: load_lora(p, p.name), broken, "is not a readable .safetensors file"),
        (lambda p: load_lora(p, p.name), folder / "gone", "is not in the object store"),
        (lambda p: load_embedding(p, p.name, ""), checkpoint, "not a textual inversion"),
        (lambda p: load_embedding(p, p.name, ""), huge, "has 76 vectors"),
        (lambda p: load_hypernetwork(p, p.name), checkpoint, "not a hypernetwork"),
        (lambda p: load_hypernetwork(p, p.name), odd, "not a hypernetwork"),
    ):
        with pytest.raises(CheckpointUnreadable, match=words):
            load(path)
