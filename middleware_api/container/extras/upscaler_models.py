"""Upscalers that are models: ESRGAN and its like, told apart by spandrel, run as the WebUI does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from middleware_api.container.errors import BadRequest, CheckpointUnreadable
from middleware_api.container.extras.picture_tiles import Tiles, enlarge_by_tiles
from middleware_api.container.extras.upscalers import Look, PictureUpscaler
from middleware_api.container.fields import PICTURE_SIDE_MAX
from middleware_api.container.networks.network_files import read_network_file
from middleware_api.weights_name import WeightsName

_CHANNELS = 3
# What training programs put their weights into, beside others: the first of these that is there.
_WRAPPINGS = ("params_ema.", "params-ema.", "params.", "model_state_dict.", "model.", "net.")
_TORCHVISION = "torchvision.transforms.functional"


@dataclass(frozen=True)
class UpscalerModel:
    """A file that was read; `run` takes and answers (1, 3, height, width) in 0..1."""

    name: str
    scale: int
    network: nn.Module
    run: Callable[[Tensor], Tensor]

    @property
    def n_bytes(self) -> int:
        """In memory."""
        return sum(p.numel() * p.element_size() for p in self.network.parameters())


@dataclass(frozen=True)
class ModelUpscaler(PictureUpscaler):
    """One of these as a job uses it."""

    model: UpscalerModel
    tiles: Tiles

    @property
    def name(self) -> str:  # type: ignore[override]
        """As the WebUI's lists have it."""
        return WeightsName(self.model.name).stem

    def _grown(self, image: Image.Image, scale: float, look: Look) -> Image.Image:
        largest = max(image.size) * self.model.scale
        if largest > PICTURE_SIDE_MAX:
            raise BadRequest(
                f"{self.name} makes pictures {self.model.scale} times as large: this one would "
                f"have {largest} pixels on its way, more than {PICTURE_SIDE_MAX}. Choose a smaller "
                "picture or another upscaler.",
                "too_large",
            )

        def enlarge(tile: Image.Image) -> Image.Image:
            look()
            return _picture(self.model.run(_tensor(tile, self.model.network)))

        return enlarge_by_tiles(image.convert("RGB"), self.tiles, enlarge, self.model.scale)


def load_upscaler(path: Path, name: str, device: torch.device) -> UpscalerModel:
    """Raises CheckpointUnreadable."""
    tensors, _ = read_network_file(path, name)
    spandrel = _spandrel()
    try:
        found = spandrel.ModelLoader(device).load_from_state_dict(_unwrapped(tensors))
    except spandrel.UnsupportedModelError as error:
        raise CheckpointUnreadable(
            f"{name} is no upscaler of a kind that this engine knows (ESRGAN, Real-ESRGAN, SwinIR, "
            "HAT, DAT, SPAN and others). Choose another upscaler."
        ) from error
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointUnreadable(
            f"{name} is broken, or not the upscaler that it looks like "
            f"({' '.join(str(error).split())[:200]}). Choose another upscaler."
        ) from error
    _require_upscaler(found, spandrel, name)
    if device.type == "cuda" and found.supports_half:
        found = found.half()
    return UpscalerModel(name, int(found.scale), found.model.eval(), found)


def bare_weights(path: Path, name: str) -> dict[str, Tensor]:
    """An upscaler's tensors as every program reads them; raises CheckpointUnreadable."""
    return _unwrapped(read_network_file(path, name)[0])


def _require_upscaler(found: Any, spandrel: ModuleType, name: str) -> None:
    if isinstance(found, spandrel.ImageModelDescriptor) and found.purpose in ("SR", "Restoration"):
        channels = (found.input_channels, found.output_channels)
        if channels == (_CHANNELS, _CHANNELS):
            return
        reason = f"for pictures of {channels[0]} channels, not of 3"
    else:
        reason = f"a model for another purpose ({found.architecture.name})"
    raise CheckpointUnreadable(f"{name} is {reason}. Choose another upscaler.")


def _unwrapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without what is around the weights. ESRGAN's own names begin with "model.", too: only what
    has no number behind it is a wrapping."""
    for wrapping in _WRAPPINGS:
        inner = {
            key.removeprefix(wrapping): tensor
            for key, tensor in tensors.items()
            if key.startswith(wrapping)
        }
        if inner and not any(key[0].isdecimal() for key in inner if key):
            return inner
    return dict(tensors)


@cache
def _spandrel() -> ModuleType:
    """spandrel, which few jobs need."""
    with _without_torchvision():
        return import_module("spandrel")


@contextmanager
def _without_torchvision() -> Iterator[None]:
    """Stands in for the functions of torchvision that spandrel imports by name, for LaMa and
    RestoreFormer, which are no upscalers: nothing else of it uses torchvision."""
    missing = [name for name in _parents(_TORCHVISION) if name not in sys.modules]
    for name in missing:
        sys.modules[name] = _Nothing(name)
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


class _Nothing(ModuleType):
    """A module that has whatever is asked for, and none of it works."""

    def __getattr__(self, name: str) -> None:
        return None


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def _tensor(image: Image.Image, network: nn.Module) -> Tensor:
    """Blue first: the WebUI feeds upscalers so, although most were trained on red first."""
    like = next(network.parameters())
    pixels = torch.from_numpy(np.asarray(image)[:, :, ::-1] / 255)
    return pixels.permute(2, 0, 1)[None].to(like.device, like.dtype)


def _picture(made: Tensor) -> Image.Image:
    pixels = made[0].float().clamp(0, 1).permute(1, 2, 0).cpu().numpy() * 255
    return Image.fromarray(np.ascontiguousarray(pixels.round().astype(np.uint8)[:, :, ::-1]))
