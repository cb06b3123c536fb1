"""Small networks for the demo checkpoint, one of each kind of file that prompts can name.

Drawn from fixed seeds, so that the WebUI's pictures with them (`tests/parity`) stay true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from middleware_api.container.weights.unpickle import _tensors as unpickled_tensors
from middleware_api.contract import converted_name, is_pickled

Tensors = dict[str, Tensor]

CONTEXT, INNER = 64, 96  # widths of the demo checkpoint's text encoder and UNet
# By the names of LDM's modules: the WebUI's table from diffusers' names knows SD 1.5's depth alone.
_BLOCKS = ("input_blocks_1_1", "middle_block_1", "output_blocks_2_1", "output_blocks_3_1")
_ATTENTION = {
    "attn1_to_q": (INNER, INNER),
    "attn1_to_v": (INNER, INNER),
    "attn2_to_k": (INNER, CONTEXT),
    "attn2_to_v": (INNER, CONTEXT),
    "ff_net_0_proj": (8 * INNER, INNER),
}
_CONVOLUTIONS = ("input_blocks_1_0_in_layers_2", "middle_block_0_out_layers_3")
_TEXT = {"self_attn_q_proj": (64, 64), "self_attn_v_proj": (64, 64), "mlp_fc1": (256, 64)}


class Draw:
    """Random numbers of a seed, in the order in which they are asked for."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int, scale: float = 0.35) -> Tensor:
        return torch.randn(shape, generator=self._generator) * scale


def _unet_layers() -> Iterator[tuple[str, tuple[int, int]]]:
    for block in _BLOCKS:
        for part, shape in _ATTENTION.items():
            yield f"lora_unet_{block}_transformer_blocks_0_{part}", shape


def _text_layers() -> Iterator[tuple[str, tuple[int, int]]]:
    for layer in range(2):
        for part, shape in _TEXT.items():
            yield f"lora_te_text_model_encoder_layers_{layer}_{part}", shape


def lora(seed: int = 1, rank: int = 4) -> Tensors:
    """Down and up with alpha, on the UNet's attention and the text encoder."""
    draw = Draw(seed)
    tensors: Tensors = {}
    for name, (out, into) in [*_unet_layers(), *_text_layers()]:
        tensors[f"{name}.lora_down.weight"] = draw(rank, into)
        tensors[f"{name}.lora_up.weight"] = draw(out, rank)
        tensors[f"{name}.alpha"] = torch.tensor(rank / 2)
    return tensors


def convolutional() -> Tensors:
    """Convolutions: one with a kernel in its lower half, one with a core between (CP)."""
    draw = Draw(2)
    wide, cored = (f"lora_unet_{name}" for name in _CONVOLUTIONS)
    return {
        f"{wide}.lora_down.weight": draw(4, INNER, 3, 3),
        f"{wide}.lora_up.weight": draw(INNER, 4, 1, 1),
        f"{wide}.alpha": torch.tensor(2.0),
        f"{cored}.lora_down.weight": draw(4, INNER, 1, 1, scale=0.5),
        f"{cored}.lora_mid.weight": draw(4, 4, 3, 3, scale=0.5),
        f"{cored}.lora_up.weight": draw(INNER, 4, 1, 1, scale=0.5),
        f"{cored}.alpha": torch.tensor(4.0),
        "lora_unet_input_blocks_1_1_proj_in.lora_down.weight": draw(4, INNER, 1, 1),
        "lora_unet_input_blocks_1_1_proj_in.lora_up.weight": draw(INNER, 4, 1, 1),
    }


def hadamard() -> Tensors:
    """LoHa, once with cores."""
    draw = Draw(3)
    tensors: Tensors = {}
    for name, (out, into) in _unet_layers():
        for half in ("w1", "w2"):
            tensors[f"{name}.hada_{half}_a"] = draw(out, 4, scale=0.4)
            tensors[f"{name}.hada_{half}_b"] = draw(4, into, scale=0.4)
        tensors[f"{name}.alpha"] = torch.tensor(1.0)
    name = f"lora_unet_{_CONVOLUTIONS[0]}"
    for half, core in (("w1", "t1"), ("w2", "t2")):
        tensors[f"{name}.hada_{half}_a"] = draw(4, INNER, scale=0.5)
        tensors[f"{name}.hada_{half}_b"] = draw(4, INNER, scale=0.5)
        tensors[f"{name}.hada_{core}"] = draw(4, 4, 3, 3, scale=0.5)
    return tensors


def kronecker() -> Tensors:
    """LoKr: whole factors, factored ones, and a convolution's."""
    draw = Draw(4)
    tensors: Tensors = {}
    for i, (name, (out, into)) in enumerate(_unet_layers()):
        if i % 2:
            tensors[f"{name}.lokr_w1"] = draw(8, 8)
        else:
            tensors[f"{name}.lokr_w1_a"] = draw(8, 2)
            tensors[f"{name}.lokr_w1_b"] = draw(2, 8)
        tensors[f"{name}.lokr_w2_a"] = draw(out // 8, 4)
        tensors[f"{name}.lokr_w2_b"] = draw(4, into // 8)
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    tensors[f"lora_unet_{_CONVOLUTIONS[0]}.lokr_w1"] = draw(8, 8)
    tensors[f"lora_unet_{_CONVOLUTIONS[0]}.lokr_w2"] = draw(INNER // 8, INNER // 8, 3, 3)
    tensors[f"lora_unet_{_CONVOLUTIONS[1]}.lokr_w1"] = draw(8, 8)
    tensors[f"lora_unet_{_CONVOLUTIONS[1]}.lokr_w2_a"] = draw(4, INNER // 8)
    tensors[f"lora_unet_{_CONVOLUTIONS[1]}.lokr_w2_b"] = draw(4, INNER // 8)
    tensors[f"lora_unet_{_CONVOLUTIONS[1]}.lokr_t2"] = draw(4, 4, 3, 3, scale=0.5)
    return tensors


def decomposed() -> Tensors:
    """DoRA: a LoRA with the length of each input's column."""
    draw = Draw(5)
    tensors = lora(seed=6)
    for name, (_, into) in [*_unet_layers(), *_text_layers()]:
        tensors[f"{name}.dora_scale"] = 1 + draw(1, into)
    return tensors


def full() -> Tensors:
    """Whole differences, of norms and biases too, and scaled rows (IA3), and GLoRA."""
    draw = Draw(7)
    conv = f"lora_unet_{_CONVOLUTIONS[0]}"
    attention = "lora_unet_middle_block_1_transformer_blocks_0"
    text = "lora_te_text_model_encoder_layers_0"
    return {
        f"{conv}.diff": draw(INNER, INNER, 3, 3, scale=0.05),
        f"{conv}.diff_b": draw(INNER),
        "lora_unet_middle_block_1_norm.w_norm": draw(INNER),
        "lora_unet_middle_block_1_norm.b_norm": draw(INNER),
        f"{text}_layer_norm1.w_norm": draw(CONTEXT),
        f"{text}_layer_norm1.b_norm": draw(CONTEXT),
        f"{attention}_attn1_to_k.weight": draw(INNER),
        f"{attention}_attn1_to_k.on_input": torch.tensor(False),
        f"{attention}_attn1_to_q.weight": draw(INNER),
        f"{attention}_attn1_to_q.on_input": torch.tensor(True),
        f"{attention}_attn2_to_v.a1.weight": draw(4, CONTEXT),
        f"{attention}_attn2_to_v.a2.weight": draw(CONTEXT, 4),
        f"{attention}_attn2_to_v.b1.weight": draw(4, CONTEXT),
        f"{attention}_attn2_to_v.b2.weight": draw(INNER, 4),
        f"{attention}_attn2_to_v.alpha": torch.tensor(4.0),
    }


def hypernetwork(structure: list[float], activation: str, with_norm: bool) -> dict[object, object]:
    """As the WebUI's training saves it."""
    draw = Draw(8)

    def module(width: int) -> Tensors:
        weights: Tensors = {}
        place = 0
        for i in range(len(structure) - 1):
            into, out = int(width * structure[i]), int(width * structure[i + 1])
            weights[f"linear.{place}.weight"] = draw(out, into, scale=0.1)
            weights[f"linear.{place}.bias"] = draw(out, scale=0.1)
            place += 1
            if i < len(structure) - 2:
                place += 1  # the activation has no weights
            if with_norm:
                weights[f"linear.{place}.weight"] = 1 + draw(out, scale=0.1)
                weights[f"linear.{place}.bias"] = draw(out, scale=0.1)
                place += 1
        return weights

    layers = {width: (module(width), module(width)) for width in (CONTEXT, INNER)}
    return {
        **layers,
        "step": 100,
        "name": "any",
        "layer_structure": structure,
        "activation_func": activation,
        "is_layer_norm": with_norm,
        "weight_initialization": "Normal",
        "activate_output": False,
        "use_dropout": False,
        "last_layer_dropout": False,
    }


def _write_lora(make: Callable[[], Tensors], **metadata: str) -> Callable[[Path], None]:
    return lambda path: save_file(make(), path, metadata)


def _write_pt(content: Callable[[], object]) -> Callable[[Path], None]:
    # In the old form: the WebUI 1.10.1 refuses what today's torch puts into its archives.
    return lambda path: torch.save(content(), path, _use_new_zipfile_serialization=False)


def _vectors(seed: int, count: int) -> Tensor:
    return Draw(seed)(count, CONTEXT, scale=0.5)


LORAS = {
    "style.safetensors": _write_lora(lora, ss_output_name="styled"),
    "conv.safetensors": _write_lora(convolutional),
    "loha.safetensors": _write_lora(hadamard),
    "lokr.safetensors": _write_lora(kronecker),
    "dora.safetensors": _write_lora(decomposed),
    "full.safetensors": _write_lora(full),
    "old.pt": _write_pt(lambda: lora(seed=9)),
}
EMBEDDINGS = {
    "sparkle.pt": _write_pt(
        lambda: {
            "string_to_token": {"*": 265},
            "string_to_param": {"*": nn.Parameter(_vectors(10, 2))},
            "name": "anything",
            "step": 100,
            "sd_checkpoint": None,
            "sd_checkpoint_name": None,
        }
    ),
    "soft-glow2.safetensors": _write_lora(lambda: {"emb_params": _vectors(11, 3)}),
    "wide.safetensors": _write_lora(lambda: {"emb_params": Draw(12)(2, CONTEXT * 2)}),
}
HYPERNETWORKS = {
    "wave.pt": _write_pt(lambda: hypernetwork([1, 2, 1], "relu", with_norm=False)),
    "ripple.pt": _write_pt(lambda: hypernetwork([1, 1.5, 1], "swish", with_norm=True)),
}


def write_networks(loras: Path, embeddings: Path, hypernetworks: Path) -> None:
    """All files as the WebUI has them, each kind into its folder."""
    for folder, files in (
        (loras, LORAS),
        (embeddings, EMBEDDINGS),
        (hypernetworks, HYPERNETWORKS),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        for name, write in files.items():
            write(folder / name)


def write_converted(folder: Path) -> None:
    """All files as workers get them: those of torch written anew as an upload has them."""
    write_networks(folder, folder, folder)
    for path in folder.glob("*.pt"):
        content = torch.load(path, weights_only=True)
        tensors, metadata = unpickled_tensors(content, path.stat().st_size)
        save_file(tensors, path.with_suffix(".safetensors"), metadata)
        path.unlink()


def names_of(files: Iterable[str]) -> list[str]:
    """What files are called once they are converted."""
    return [converted_name(name) if is_pickled(name) else name for name in files]
