"""Small upscalers: one whose answer is known, and random ones, as files of torch have them.

Drawn from fixed seeds, so that the WebUI's pictures with them (`tests/parity`) stay true.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]
_WIDTH, _GROWTH = 8, 32  # spandrel knows no other growth


def repeating(scale: int, blue: float = 0.0) -> Tensors:
    """Real-ESRGAN's compact form, which adds to the picture's own pixels: nothing here, or so much
    blue, as far as the colours are given to it blue first."""
    added = torch.zeros(3 * scale**2)
    added[: scale**2] = blue
    return {
        "body.0.weight": torch.zeros(_WIDTH, 3, 3, 3),
        "body.0.bias": torch.zeros(_WIDTH),
        "body.1.weight": torch.zeros(_WIDTH),
        "body.2.weight": torch.zeros(3 * scale**2, _WIDTH, 3, 3),
        "body.2.bias": added,
    }


def esrgan(seed: int = 0) -> Tensors:
    """The old names of an ESRGAN of factor 4, of one block; makes a picture of a picture."""
    generator = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}

    def convolution(name: str, out: int, into: int, gain: float = 0.2) -> None:
        scale = gain / (9 * into) ** 0.5
        tensors[f"{name}.weight"] = torch.randn(out, into, 3, 3, generator=generator) * scale
        tensors[f"{name}.bias"] = torch.zeros(out)

    convolution("model.0", _WIDTH, 3)
    for group in (1, 2, 3):
        for number in range(1, 6):
            out = _WIDTH if number == 5 else _GROWTH
            into = _WIDTH + _GROWTH * (number - 1)
            convolution(f"model.1.sub.0.RDB{group}.conv{number}.0", out, into)
    convolution("model.1.sub.1", _WIDTH, _WIDTH)
    for name in ("model.3", "model.6", "model.8"):
        convolution(name, _WIDTH, _WIDTH)
    convolution("model.10", 3, _WIDTH)
    # The middles of the kernels hand the colours through, so that there is something to see.
    for name in ("model.0", "model.3", "model.6", "model.8", "model.10"):
        for colour in range(3):
            tensors[f"{name}.weight"][colour, colour, 1, 1] += 1
    return tensors


def write_upscaler(path: Path, tensors: Tensors, wrapped: str = "") -> Path:
    """As conversion leaves a file whose weights lie within `wrapped`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f"{wrapped}." if wrapped else ""
    save_file({prefix + name: tensor for name, tensor in tensors.items()}, path)
    return path


def write_pickled(path: Path, tensors: Tensors, wrapped: str = "") -> Path:
    """As training programs write them, in torch's older form: the WebUI 1.10.1 refuses what
    torch's newer versions put into the archive of the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {wrapped: tensors} if wrapped else tensors
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path
