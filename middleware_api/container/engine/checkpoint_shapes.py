"""What a Stable Diffusion file's tensors say of its architecture, read from their shapes.

What the shapes do not tell follows the families' own files: 32 norm groups and, in the UNet, 8
heads where its projections are convolutions (1.x) and heads of 64 where they are linear (2.x, XL);
text heads of 64, with quick GELU in CLIP and GELU in OpenCLIP.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from transformers import CLIPTextConfig

from middleware_api.container.engine.families import SD1, Layout, TextSource
from middleware_api.container.prompts.open_clip import PROJECTION, from_open_clip

UNET = "model.diffusion_model."
VAE = "first_stage_model."
VOCABULARY = 49408  # CLIP's; a smaller table could not hold every token id
VAE_SCALE = SD1.vae_scale
LATENT_CHANNELS = 4
INPAINT_CHANNELS = 9  # the latent, a mask, and the latent of the picture without what it masks
NORM_GROUPS = 32
NUMBER_WIDTH = 256  # of the waves that SDXL's UNets see each number beside the text as
_UNET_HEADS = 8
_HEAD_WIDTH = 64

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class UNetShape:
    """What the UNet's tensors say of it.

    `depths` are the transformer blocks at each level, 0 for none. `added` is the width of what
    SDXL's read beside the text, 0 in other families.
    """

    in_channels: int
    out_channels: int
    block_channels: tuple[int, ...]
    layers_per_block: int
    depths: tuple[int, ...]
    context_dim: int
    middle_depth: int = 1
    is_linear: bool = False
    added: int = 0

    @property
    def _heads(self) -> int | tuple[int, ...]:
        if not self.is_linear:
            return _UNET_HEADS
        return tuple(max(1, channels // _HEAD_WIDTH) for channels in self.block_channels)

    def config(self) -> dict[str, object]:
        """As diffusers' UNet2DConditionModel takes it (its `attention_head_dim` counts heads)."""
        down = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in self.depths]
        up = ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(self.depths)]
        added: dict[str, object] = {}
        if self.added:
            added = {
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": NUMBER_WIDTH,
                "projection_class_embeddings_input_dim": self.added,
            }
        return added | {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "block_out_channels": self.block_channels,
            "layers_per_block": self.layers_per_block,
            "cross_attention_dim": self.context_dim,
            "down_block_types": tuple(down),
            "up_block_types": tuple(up),
            # The last also says how many the middle has.
            "transformer_layers_per_block": tuple(
                depth or self.middle_depth for depth in self.depths
            ),
            "use_linear_projection": self.is_linear,
            "attention_head_dim": self._heads,
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
    """What the text encoder's tensors say of it; `pooled` is the width of the whole text's meaning,
    0 where that is not read."""

    vocabulary: int
    positions: int
    width: int
    intermediate: int
    layers: int
    layout: Layout = Layout.CLIP
    pooled: int = 0

    def config(self) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=self.vocabulary,
            max_position_embeddings=self.positions,
            hidden_size=self.width,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=max(1, self.width // _HEAD_WIDTH),
            hidden_act="quick_gelu" if self.layout is Layout.CLIP else "gelu",
            bos_token_id=VOCABULARY - 2,
            eos_token_id=VOCABULARY - 1,
            pad_token_id=VOCABULARY - 1,
        )


def unet_shape_of(shapes: Shapes) -> UNetShape:
    """Raises KeyError or ValueError when the tensors do not make a UNet of any of the families."""
    entry = _shape(shapes, f"{UNET}input_blocks.0.0.weight")
    channels: list[int] = [entry[0]]
    resnets: list[int] = [0]
    depths: list[int] = [0]
    for i in range(1, _count(shapes, rf"{re.escape(UNET)}input_blocks\.(\d+)\.")):
        block = f"{UNET}input_blocks.{i}"
        if f"{block}.0.op.weight" in shapes:
            channels.append(channels[-1])
            resnets.append(0)
            depths.append(0)
            continue
        channels[-1] = _shape(shapes, f"{block}.0.out_layers.3.weight")[0]
        resnets[-1] += 1
        depths[-1] = _depth(shapes, f"{block}.1.")
    if len(set(resnets)) != 1:
        raise ValueError(f"its UNet levels have {resnets} layers where equal counts are expected")
    middle = f"{UNET}middle_block.1."
    middle_depth = _depth(shapes, middle)
    if not middle_depth:
        raise ValueError("its UNet has no attention in the middle (SSD-1B and Vega have none)")
    if depths[-1] not in (0, middle_depth):
        raise ValueError(
            f"its UNet has {middle_depth} transformer blocks in the middle and {depths[-1]} above"
        )
    added = shapes.get(f"{UNET}label_emb.0.0.weight", (0, 0))
    return UNetShape(
        in_channels=entry[1],
        out_channels=_shape(shapes, f"{UNET}out.2.weight")[0],
        block_channels=tuple(channels),
        layers_per_block=resnets[0],
        depths=tuple(depths),
        context_dim=_shape(shapes, f"{middle}transformer_blocks.0.attn2.to_k.weight")[1],
        middle_depth=middle_depth,
        is_linear=len(_shape(shapes, f"{middle}proj_in.weight")) == 2,
        added=added[1],
    )


def _depth(shapes: Shapes, place: str) -> int:
    """How many transformer blocks there are in this place."""
    return _count(shapes, rf"{re.escape(place)}transformer_blocks\.(\d+)\.")


def vae_shape_of(shapes: Shapes) -> VaeShape:
    """Raises KeyError or ValueError when the tensors do not make an autoencoder."""
    down = f"{VAE}encoder.down"
    levels = _count(shapes, rf"{re.escape(down)}\.(\d+)\.block\.")
    return VaeShape(
        block_channels=tuple(
            _shape(shapes, f"{down}.{i}.block.0.conv1.weight")[0] for i in range(levels)
        ),
        layers_per_block=_count(shapes, rf"{re.escape(down)}\.0\.block\.(\d+)\."),
        latent_channels=_shape(shapes, f"{VAE}post_quant_conv.weight")[0],
    )


def text_of(shapes: Shapes, source: TextSource) -> TextShape:
    """Raises ValueError when the tensors do not make this text encoder."""
    ours: dict[str, tuple[int, ...]] = {}
    for key, shape in shapes.items():
        if key.startswith(source.prefix):
            ours[text_key(key, source)] = shape
    vocabulary, width = _shape(ours, "embeddings.token_embedding.weight")
    return TextShape(
        vocabulary=vocabulary,
        positions=_shape(ours, "embeddings.position_embedding.weight")[0],
        width=width,
        intermediate=_shape(ours, "encoder.layers.0.mlp.fc1.weight")[0],
        layers=_count(ours, r"encoder\.layers\.(\d+)\."),
        layout=source.layout,
        pooled=_shape(ours, PROJECTION)[1] if source.is_pooled else 0,
    )


def text_key(key: str, source: TextSource) -> str:
    """A tensor's name inside the text encoder, as transformers has it."""
    bare = key.removeprefix(source.prefix)
    if source.layout is Layout.OPEN_CLIP:
        return from_open_clip(bare)
    return bare.removeprefix("text_model.")


def _shape(shapes: Shapes, key: str) -> tuple[int, ...]:
    if key not in shapes:
        raise ValueError(f"tensor {key} is missing")
    return shapes[key]


def _count(keys: Iterable[str], pattern: str) -> int:
    """One more than the highest index that the pattern's group finds."""
    found = (re.match(pattern, key) for key in keys)
    return 1 + max((int(match[1]) for match in found if match), default=-1)
