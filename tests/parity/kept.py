"""A real WebUI's pictures, every fourth pixel of them, as numbers in a file beside the tests."""

from __future__ import annotations

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.parity.cases import ANOTHER, CASES

Pixels = NDArray[Any]

FILE = Path(__file__).parent / "kept.json"
FAMILIES_FILE = Path(__file__).parent / "families.json"
STRIDE = 4
KEPT = frozenset(
    {
        # One of each sampler, on the schedules in turn; DPM adaptive takes long with noise.
        *(f"{name}, {schedule}" for name, schedule in ANOTHER.items() if name != "DPM adaptive"),
        "eta 0, DPM adaptive",
        "img2img Euler",
        "inpaint DDIM",
        "hires UniPC",
        "noisier, DDIM",
        "exact steps, DPM++ 2M SDE",
        "quantized",
        "NV noise, Euler a",
        "NV noise, DPM++ SDE",
        "seed resize of a variation",
        "ENSD",
        "tiling",
        "churn, Euler",
        "s_min_uncond",
        "skip_early_cond",
        "UniPC logSNR",
        "UniPC vary_coeff",
        "soft mask, fill",
        "only masked, latent noise",
        "mask not rounded",
        "mask without overlay",
        "resize mode 1, tall",
        "resize mode 2, wide",
        "resize mode 0 by a model, wide",
        "hires by tiles of 16 and 8",
        "on another background",
    }
)


def psnr(one: Pixels, other: Pixels) -> float:
    """Likeness of two pictures of 8 bits in dB, 99 for the same."""
    error = float(((one.astype(np.float64) - other.astype(np.float64)) ** 2).mean())
    return 99.0 if error == 0 else 10 * math.log10(255**2 / error)


def thinned(image: Image.Image) -> Pixels:
    return np.asarray(image.convert("RGB"))[::STRIDE, ::STRIDE]


def write_kept(pictures: dict[str, Image.Image]) -> None:
    """These, and those of cases that were kept before."""
    known = json.loads(FILE.read_text("utf-8")) | _as_text(pictures)
    _write(FILE, {c.name: known[c.name] for c in CASES if c.name in known.keys() & KEPT})


def write_families(pictures: dict[str, Image.Image]) -> None:
    """These alone."""
    _write(FAMILIES_FILE, _as_text(pictures))


def _as_text(pictures: dict[str, Image.Image]) -> dict[str, str]:
    return {
        name: base64.b64encode(thinned(picture).tobytes()).decode()
        for name, picture in pictures.items()
    }


def _write(file: Path, kept: dict[str, str]) -> None:
    file.write_text(json.dumps(kept, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")


def read_kept(file: Path = FILE) -> dict[str, Pixels]:
    """All pictures are 64 pixels high."""

    def pixels(text: str) -> Pixels:
        return np.frombuffer(base64.b64decode(text), np.uint8).reshape(64 // STRIDE, -1, 3)

    return {name: pixels(text) for name, text in json.loads(file.read_text("utf-8")).items()}
