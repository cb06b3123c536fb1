"""DeepDanbooru in torch's form: a residual network that gives a picture's tags, and how sure it is.

Its shape is read from its weights: `model-resnet_custom_v3.pt` has 179 convolutions, named in their
order, and its tags beside them. Padding is TensorFlow's, which the weights were trained with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from middleware_api.container.engine.pictures import resize
from middleware_api.container.engine.request import ResizeMode
from middleware_api.container.errors import CheckpointUnreadable
from middleware_api.container.networks.network_files import read_network_file

SIDE = 512
_CONVOLUTION = "n_Conv_"
_TAG = "tags."
# Before and behind a row or a column, by stride.
_AROUND = {1: (1, 1), 2: (0, 1)}


@dataclass(frozen=True)
class _Convolution:
    weight: Tensor
    bias: Tensor | None

    @property
    def side(self) -> int:
        return self.weight.shape[2]

    @property
    def keeps_channels(self) -> bool:
        return self.side == 1 and self.weight.shape[0] == self.weight.shape[1]

    def __call__(self, x: Tensor, stride: int = 1) -> Tensor:
        return functional.conv2d(x, self.weight, self.bias, stride=stride)


@dataclass(frozen=True)
class Tagger:
    """A file that was read."""

    tags: tuple[str, ...]
    convolutions: tuple[_Convolution, ...]

    @property
    def n_bytes(self) -> int:
        """In memory."""
        weights = [each.weight for each in self.convolutions]
        return sum(weight.numel() * weight.element_size() for weight in weights)

    @torch.inference_mode()
    def scores(self, image: Image.Image) -> dict[str, float]:
        """How sure it is of each tag, 0..1."""
        whole = resize(image.convert("RGB"), SIDE, SIDE, ResizeMode.FILL)
        like = self.convolutions[0].weight
        pixels = torch.from_numpy(np.asarray(whole, dtype=np.float32) / 255)
        x = self._seen(pixels.permute(2, 0, 1)[None].to(like.device, like.dtype))
        sure = self.convolutions[-1](x).mean(dim=(2, 3)).sigmoid()[0]
        return dict(zip(self.tags, sure.float().tolist(), strict=True))

    def _seen(self, x: Tensor) -> Tensor:
        first, *layers = self.convolutions[:-1]
        x = first(functional.pad(x, (2, 3, 2, 3)), stride=2).relu()
        x = functional.max_pool2d(functional.pad(x, (0, 1, 0, 1), value=float("-inf")), 3, 2)
        stride = 1  # of the first stage; each that follows halves the picture
        while layers:
            # A new stage changes what goes around its first block, too: by a layer of its own,
            # before the block's or, where the number of channels stays, behind them.
            aside = None
            if layers[1].side == 1:
                aside, *layers = layers
            narrow, middle, wide, *layers = layers
            if layers and layers[0].keeps_channels:
                aside, *layers = layers
            at = 1 if aside is None else stride
            around = x if aside is None else aside(x, at)
            stride = stride if aside is None else 2
            x = narrow(x).relu()
            x = middle(functional.pad(x, _AROUND[at] * 2), at).relu()
            x = (wide(x) + around).relu()
        return x


def load_tagger(path: Path, name: str, device: torch.device) -> Tagger:
    """Raises CheckpointUnreadable."""
    tensors, metadata = read_network_file(path, name)
    try:
        convolutions = tuple(_in_order({key: t.to(device) for key, t in tensors.items()}))
        tags = tuple(str(json.loads(metadata[f"{_TAG}{i}"])) for i in range(_count(metadata)))
        tagger = Tagger(tags, convolutions)
        tagger.scores(Image.new("RGB", (8, 8)))  # finds out whether its layers fit each other
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointUnreadable(
            f"{name} is no DeepDanbooru model that this engine reads "
            f"({' '.join(str(error).split())[:200]}). Upload model-resnet_custom_v3.pt of "
            "TorchDeepDanbooru as it is."
        ) from error
    return tagger


def _in_order(tensors: Mapping[str, Tensor]) -> list[_Convolution]:
    names = [f"{_CONVOLUTION}{i}" for i in range(sum(key.endswith(".weight") for key in tensors))]
    if len(names) < 2:
        raise ValueError("it has no layers")
    # The last one has no bias.
    return [_Convolution(tensors[f"{name}.weight"], tensors.get(f"{name}.bias")) for name in names]


def _count(metadata: Mapping[str, str]) -> int:
    return sum(key.startswith(_TAG) for key in metadata)
