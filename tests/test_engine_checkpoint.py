"""Checkpoint files: sizes read from the tensors, and one clear sentence for anything else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel

from middleware_api.container.engine.checkpoint import StableDiffusion, _to_unet, load_checkpoint
from middleware_api.container.engine.checkpoint_shapes import text_of, unet_shape_of, vae_shape_of
from middleware_api.container.engine.families import family_of
from middleware_api.container.engine.model_cache import ModelCache
from middleware_api.container.errors import CheckpointUnreadable
from middleware_api.container.prompts.text_encoders import text_tensors
from tests.engine_checkpoints import (
    SD15,
    SD21,
    TINY,
    TINY_2,
    TINY_REFINER,
    TINY_XL,
    XL_BASE,
    XL_REFINER,
    Size,
    Tensors,
    empty_tensors,
    random_tensors,
)

OLD_TEXT = "cond_stage_model.transformer.text_model."
NEW_TEXT = "cond_stage_model.transformer."


def load(path: Path) -> StableDiffusion:
    return load_checkpoint(path, path.name, "", torch.device("cpu"), torch.float32)


def saved(path: Path, tensors: Tensors) -> Path:
    save_file(tensors, path)
    return path


@contextmanager
def refused(words: str) -> Iterator[None]:
    with pytest.raises(CheckpointUnreadable, match=words) as caught:
        yield
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize(
    "size",
    [TINY, TINY_2, TINY_XL, TINY_REFINER, SD15, SD21, XL_BASE, XL_REFINER],
    ids=["tiny", "tiny 2", "tiny XL", "tiny refiner", "1.5", "2.1", "XL", "XL refiner"],
)
def test_sizes_are_read_from_the_tensors(size: Size) -> None:
    shapes = {name: tuple(t.shape) for name, t in empty_tensors(size).items()}
    assert unet_shape_of(shapes) == size.unet
    assert vae_shape_of(shapes) == size.vae
    assert family_of(shapes) is size.family
    assert [text_of(shapes, source) for source in size.family.texts] == [*size.texts]


def test_stable_diffusion_15_is_described_as_in_its_published_config() -> None:
    config = SD15.unet.config()
    assert config["down_block_types"] == ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    assert config["up_block_types"] == ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    assert SD15.texts[0].config().num_attention_heads == 12
    count = sum(tensor.numel() for tensor in empty_tensors(SD15).values())
    assert count == 859_520_964 + 83_653_863 + 123_060_480  # UNet, VAE, text encoder


def test_sd2_and_sdxl_are_described_as_in_their_published_configs() -> None:
    assert SD21.unet.config()["attention_head_dim"] == (5, 10, 20, 20)
    assert XL_BASE.unet.config()["attention_head_dim"] == (5, 10, 20)
    assert [text.config().num_attention_heads for text in XL_BASE.texts] == [12, 20]
    for size, unet, texts in (
        (SD21, 865_910_724, 354_032_640),
        (XL_BASE, 2_567_463_684, 123_060_480 + 694_659_840),
    ):
        count = sum(tensor.numel() for tensor in empty_tensors(size).values())
        assert count == unet + 83_653_863 + texts


@pytest.mark.parametrize("size", [SD21, XL_BASE, XL_REFINER], ids=["2.1", "XL", "XL refiner"])
def test_every_tensor_of_a_full_size_file_has_a_place(size: Size) -> None:
    """Names of many levels and layers, on the meta device."""
    tensors = empty_tensors(size)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**size.unet.config())
        encoders = [CLIPTextModel(shape.config()) for shape in size.texts]
    assert _to_unet(tensors, size.unet.config()).keys() == unet.state_dict().keys()
    for source, encoder in zip(size.family.texts, encoders, strict=True):
        assert text_tensors(tensors, source).keys() - {"text_projection"} == {*encoder.state_dict()}


def test_all_weights_of_the_file_reach_the_modules(tmp_path: Path) -> None:
    tensors = random_tensors()
    model = load(saved(tmp_path / "tiny.safetensors", tensors))
    assert sum(p.numel() for m in model.modules for p in m.parameters()) == sum(
        t.numel() for t in tensors.values()
    )
    assert model.n_bytes == 4 * sum(t.numel() for t in tensors.values())
    assert model.latent_factor == 8


def test_text_encoders_load_under_both_of_their_names(tmp_path: Path) -> None:
    tensors = random_tensors()
    positions = torch.arange(77, dtype=torch.float16).flip(0)[None]  # as some merges store them
    tensors[f"{OLD_TEXT}embeddings.position_ids"] = positions
    renamed = {name.replace(OLD_TEXT, NEW_TEXT): tensor for name, tensor in tensors.items()}
    for path in (
        saved(tmp_path / "old.safetensors", tensors),
        saved(tmp_path / "new.safetensors", renamed),
    ):
        encoder = load(path).text_encoders[0].module
        assert encoder.embeddings.position_ids.tolist() == [[*range(76, -1, -1)]]


def test_other_kinds_of_files_are_named(tmp_path: Path) -> None:
    one = torch.zeros(1)
    for tensor, kind in (
        ("model.diffusion_model.joint_blocks.0.x", "a Stable Diffusion 3 checkpoint"),
        ("double_blocks.0.img_attn.norm.key_norm.scale", "a Flux checkpoint"),
        ("edm_vpred.sigma_max", "a CosXL checkpoint"),
        ("depth_model.model.x", "a depth-to-image checkpoint"),
        ("lora_unet_down_blocks_0.lora_up.weight", "a LoRA"),
        ("control_model.zero_convs.0.0.bias", "a ControlNet"),
        ("emb_params", "a textual inversion embedding"),
        ("first_stage_model.decoder.conv_in.bias", "it has no UNet"),
    ):
        with refused(kind):
            load(saved(tmp_path / "other.safetensors", {tensor: one}))


def test_sd_turbo_is_an_sd2_under_other_names(tmp_path: Path) -> None:
    tensors = {
        name.replace("cond_stage_model.", "conditioner.embedders.0."): tensor
        for name, tensor in random_tensors(TINY_2).items()
    }
    model = load(saved(tmp_path / "turbo.safetensors", tensors))
    assert model.family.name == "Stable Diffusion 2.x"
    assert not model.family.is_xl


def test_broken_files_are_refused(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.safetensors", random_tensors()).read_bytes()
    for content in (whole[:-1000], b"<html>not found</html>", b""):
        path = tmp_path / "broken.safetensors"
        path.write_bytes(content)
        with refused("broken.safetensors is not a readable .safetensors file"):
            load(path)
    with refused("absent.safetensors is not in the object store"):
        load(tmp_path / "absent.safetensors")
    with refused("old.ckpt is a .ckpt; this engine loads .safetensors files only"):
        load(tmp_path / "old.ckpt")


def test_incomplete_checkpoints_say_what_is_missing(tmp_path: Path) -> None:
    for missing in (
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.out.0.bias",
        "first_stage_model.post_quant_conv.weight",
        f"{OLD_TEXT}final_layer_norm.weight",
    ):
        tensors = random_tensors()
        del tensors[missing]
        with refused(r"not a complete Stable Diffusion 1.x checkpoint.* (is|are) missing"):
            load(saved(tmp_path / "part.safetensors", tensors))
    tensors = {n: t for n, t in random_tensors().items() if not n.startswith(NEW_TEXT)}
    with refused("it has no text encoder"):
        load(saved(tmp_path / "part.safetensors", tensors))


def test_variants_that_the_engine_cannot_sample_are_refused(tmp_path: Path) -> None:
    entry = "model.diffusion_model.input_blocks.0.0.weight"
    tokens = f"{OLD_TEXT}embeddings.token_embedding.weight"
    block = "model.diffusion_model.out.0.weight"
    for name, tensor, words in (
        (entry, torch.zeros(32, 8, 3, 3), "an instruct-pix2pix model"),
        (entry, torch.zeros(32, 5, 3, 3), "takes 5 channels where 4 or 9 are expected"),
        (tokens, torch.zeros(1000, 64), "1000 of CLIP's 49408 tokens"),
        (block, torch.ones(64), "tensors of unexpected sizes"),
    ):
        with refused(words):
            load(saved(tmp_path / "odd.safetensors", {**random_tensors(), name: tensor}))


def test_the_cache_stays_within_its_bytes_and_keeps_what_was_used_last() -> None:
    cache = ModelCache[bytes](10, len)
    loads: list[str] = []

    def use(key: str, size: int) -> None:
        def load() -> bytes:
            loads.append(key)
            return bytes(size)

        with cache.use(key, size, load) as model:
            assert len(model) == size

    for key in ("a", "b", "a", "c"):  # 4 bytes each: the third to come finds two
        use(key, 4)
    assert loads == ["a", "b", "c"]
    assert cache.keys == ["a", "c"]
    use("whole", 10)
    assert cache.keys == ["whole"]


def test_the_cache_never_drops_what_is_in_use() -> None:
    cache = ModelCache[bytes](10, len)
    with cache.use("a", 8, lambda: bytes(8)):
        with cache.use("b", 8, lambda: bytes(8)):
            assert cache.keys == ["a", "b"]
        with cache.use("c", 8, lambda: bytes(8)):
            assert cache.keys == ["a", "c"]


def test_room_is_made_before_a_model_is_loaded() -> None:
    cache = ModelCache[bytes](10, len)
    with cache.use("a", 8, lambda: bytes(8)):
        pass
    seen: list[list[str]] = []
    with cache.use("b", 8, lambda: seen.append(cache.keys) or bytes(8)):
        assert seen == [[]]


def test_levels_of_an_odd_size_are_doubled_first_and_fitted_then(tmp_path: Path) -> None:
    unet = load(saved(tmp_path / "tiny.safetensors", random_tensors())).unet
    (upsampler,) = unet.up_blocks[0].upsamplers
    small = torch.randn(1, 64, 5, 4, generator=torch.Generator().manual_seed(0))
    doubled = upsampler(small)
    assert doubled.shape == (1, 64, 10, 8)
    nearest = [row * 10 // 9 for row in range(9)]
    assert torch.equal(upsampler(small, (9, 8)), doubled[:, :, nearest])
    guess = unet(torch.randn(1, 4, 9, 8), torch.tensor([1]), torch.zeros(1, 77, 64)).sample
    assert guess.shape == (1, 4, 9, 8)
