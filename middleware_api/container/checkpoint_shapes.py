"""What a Stable Diffusion 1.x file's tensors say of its architecture, read from their shapes.

What the shapes do not tell follows SD 1.x (8 heads and 32 norm groups in the UNet, text heads of
64, quick GELU).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from transformers import CLIPTextConfig

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer."
VOCABULARY = 49408  # CLIP's; a smaller table could not hold every token id
VAE_SCALE = 0.18215
LATENT_CHANNELS = 4
NORM_GROUPS = 32
_UNET_HEADS = 8

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class UNetShape:
    """What the UNet's tensors say of it."""

    in_channels: int
    out_channels: int
    block_channels: tuple[int, ...]
    layers_per_block: int
    attention: tuple[bool, ...]
    context_dim: int

    def config(self) -> dict[str, object]:
        """As diffusers' UNet2DConditionModel takes it (its `attention_head_dim` counts heads)."""
        down = ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in self.attention]
        up = ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(self.attention)]
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "block_out_channels": self.block_channels,
            "layers_per_block": self.layers_per_block,
            "cross_attention_dim": self.context_dim,
            "down_block_types": tuple(down),
            "up_block_types": tuple(up),
            "attention_head_dim": _UNET_HEADS,
            "norm_num_groups": NORM_GROUPS,
        }


@dataclass(frozen=True)
class VaeShape:
    """What the autoencoder's tensors say of it."""

    block_channels: tuple[int, ...]
    layers_per_block: int
    latent_channels: int

    @property
    def latent_factor(self) -> int:
        """Pixels a side of one latent."""
        return int(2 ** (len(self.block_channels) - 1))

    def config(self) -> dict[str, object]:
        """As diffusers' AutoencoderKL takes it."""
        levels = len(self.block_channels)
        return {
            "block_out_channels": self.block_channels,
            "layers_per_block": self.layers_per_block,
            "latent_channels": self.latent_channels,
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
            "norm_num_groups": NORM_GROUPS,
            "scaling_factor": VAE_SCALE,
        }


@dataclass(frozen=True)
class TextShape:
    """What the text encoder's tensors say of it."""

    vocabulary: int
    positions: int
    width: int
    intermediate: int
    layers: int

    def config(self) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=self.vocabulary,
            max_position_embeddings=self.positions,
            hidden_size=self.width,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=max(1, self.width // 64),
            hidden_act="quick_gelu",
            bos_token_id=VOCABULARY - 2,
            eos_token_id=VOCABULARY - 1,
            pad_token_id=VOCABULARY - 1,
        )


def unet_shape_of(shapes: Shapes) -> UNetShape:
    """Raises KeyError or ValueError when the tensors do not make an SD 1.x UNet."""
    entry = _shape(shapes, f"{UNET}input_blocks.0.0.weight")
    channels: list[int] = [entry[0]]
    resnets: list[int] = [0]
    attention: list[bool] = [False]
    for i in range(1, _count(shapes, rf"{re.escape(UNET)}input_blocks\.(\d+)\.")):
        block = f"{UNET}input_blocks.{i}"
        if f"{block}.0.op.weight" in shapes:
            channels.append(channels[-1])
            resnets.append(0)
            attention.append(False)
            continue
        channels[-1] = _shape(shapes, f"{block}.0.out_layers.3.weight")[0]
        resnets[-1] += 1
        attention[-1] = f"{block}.1.proj_in.weight" in shapes
    if len(set(resnets)) != 1:
        raise ValueError(f"its UNet levels have {resnets} layers where equal counts are expected")
    middle = f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight"
    if len(_shape(shapes, f"{UNET}middle_block.1.proj_in.weight")) != 4:
        raise ValueError("its UNet has linear projections, as Stable Diffusion 2.x has")
    return UNetShape(
        in_channels=entry[1],
        out_channels=_shape(shapes, f"{UNET}out.2.weight")[0],
        block_channels=tuple(channels),
        layers_per_block=resnets[0],
        attention=tuple(attention),
        context_dim=_shape(shapes, middle)[1],
    )


def vae_shape_of(shapes: Shapes) -> VaeShape:
    """Raises KeyError or ValueError when the tensors do not make an SD 1.x autoencoder."""
    down = f"{VAE}encoder.down"
    levels = _count(shapes, rf"{re.escape(down)}\.(\d+)\.block\.")
    return VaeShape(
        block_channels=tuple(
            _shape(shapes, f"{down}.{i}.block.0.conv1.weight")[0] for i in range(levels)
        ),
        layers_per_block=_count(shapes, rf"{re.escape(down)}\.0\.block\.(\d+)\."),
        latent_channels=_shape(shapes, f"{VAE}post_quant_conv.weight")[0],
    )


def text_of(shapes: Shapes) -> TextShape:
    """Raises KeyError when the tensors do not make a CLIP text encoder."""
    ours = {text_key(key): shape for key, shape in shapes.items() if key.startswith(TEXT)}
    vocabulary, width = _shape(ours, "embeddings.token_embedding.weight")
    return TextShape(
        vocabulary=vocabulary,
        positions=_shape(ours, "embeddings.position_embedding.weight")[0],
        width=width,
        intermediate=_shape(ours, "encoder.layers.0.mlp.fc1.weight")[0],
        layers=_count(ours, r"encoder\.layers\.(\d+)\."),
    )


def text_key(key: str) -> str:
    """A tensor's name inside the text encoder."""
    return key.removeprefix(TEXT).removeprefix("text_model.")


def _shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    if key not in shapes:
        raise ValueError(f"tensor {key} is missing")
    return shapes[key]


def _count(keys: Iterable[str], pattern: str) -> int:
    """One more than the highest index that the pattern's group finds."""
    found = (re.match(pattern, key) for key in keys)
    return 1 + max((int(match[1]) for match in found if match), default=-1)
