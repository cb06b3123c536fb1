"""The cases of ControlNet's parity, and how they are recorded from a WebUI with the extension.

`python -m tests.parity.control networks FOLDER` writes the networks into a WebUI's
models/ControlNet; `python -m tests.parity.control record URL` asks it for the pictures and writes
`control.json`: of pictures and maps every fourth pixel, and the parameters as the extension
(1.1.455) wrote them. The WebUI (1.10.1) must have the demo checkpoint with its `.yaml`.

The extension knows SD 1.5's size alone. Its `controlnet_default_config` must be made the demo
network's: 96 channels, one layer a level, two levels, attention at the first, a text of 64; and its
hook must add 5 layers in place of 13.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import requests
import torch
from PIL import Image, ImageDraw

from middleware_api.container.engine.checkpoint_shapes import UNetShape
from tests.engine_checkpoints import TINY
from tests.parity.kept import Pixels, thinned
from tests.sample_controlnets import controlnet, write_controlnet

KEPT = Path(__file__).with_name("control.json")
DEMO = replace(TINY, unet=UNetShape(4, 4, (96, 96), 1, (1, 0), 64))
NETWORKS = {"control_one": 0, "control_two": 1}
# What a trained network adds is small; a random one's would drown the picture.
_STRENGTH = 0.15


def encoded(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def decoded(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def write_networks(folder: Path) -> None:
    for name, seed in NETWORKS.items():
        network = controlnet(seed, DEMO)
        for part in (*network.controlnet_down_blocks, network.controlnet_mid_block):
            part.weight.mul_(_STRENGTH)
        write_controlnet(folder / f"{name}.safetensors", network)


def _drawing() -> Image.Image:
    image = Image.new("RGB", (96, 64), (200, 180, 120))
    draw = ImageDraw.Draw(image)
    draw.ellipse((10, 8, 60, 50), fill=(40, 60, 150))
    draw.rectangle((50, 30, 90, 60), fill=(250, 250, 250))
    return image


def _mask(mode: str = "L") -> str:
    mask = Image.new("L", (64, 64))
    ImageDraw.Draw(mask).rectangle((16, 16, 44, 40), fill=255)
    return encoded(mask.convert(mode))


_WIDE, _SQUARE = encoded(_drawing()), encoded(_drawing().resize((64, 64)))
_MASKED = {"image": _SQUARE, "mask": _mask()}
_SMALL = {
    "prompt": "a red circle",
    "negative_prompt": "blue",
    "seed": 7,
    "steps": 8,
    "width": 64,
    "height": 64,
    "sampler_name": "Euler",
    "scheduler": "Automatic",
    "cfg_scale": 7,
}
_HIRES = {
    "enable_hr": True,
    "hr_scale": 1.5,
    "hr_upscaler": "Latent",
    "denoising_strength": 0.7,
}
_START = {"init_images": [_SQUARE], "denoising_strength": 0.8}
_PART = {"mask": _mask(), "mask_blur": 2, "inpainting_fill": 1, "inpaint_full_res_padding": 4}


def _unit(**fields: Any) -> dict[str, Any]:
    return {"enabled": True, "model": "control_one", "module": "none", "image": _SQUARE} | fields


def _case(*units: dict[str, Any], **fields: Any) -> dict[str, Any]:
    scripts = {"ControlNet": {"args": [*units]}}
    return {**_SMALL, **fields, "alwayson_scripts": scripts}


_RANGE = {"guidance_start": 0.25, "guidance_end": 0.6}
CASES: dict[str, dict[str, Any]] = {
    "two units": _case(_unit(weight=0.7), _unit(model="control_two", weight=0.6)),
    "the prompt weighs more": _case(_unit(control_mode="My prompt is more important", weight=2)),
    "the unit weighs more": _case(_unit(control_mode="ControlNet is more important", weight=2)),
    "some steps of DPM++ 2M": _case(_unit(**_RANGE), sampler_name="DPM++ 2M"),
    "canny, filled": _case(
        _unit(module="canny", image=_WIDE, pixel_perfect=True, resize_mode="Resize and Fill")
    ),
    "lineart_standard": _case(_unit(module="lineart_standard", image=_WIDE)),
    "shuffle": _case(_unit(module="shuffle", image=_WIDE)),
    "recolor_luminance": _case(_unit(module="recolor_luminance", image=_WIDE, threshold_a=1.2)),
    "colorfix, sharp": _case(_unit(module="tile_colorfix+sharp")),
    "inpaint_only": _case(_unit(module="inpaint_only", image=_MASKED)),
    "layers and a region": _case(
        _unit(advanced_weighting=[0.1, 0.3, 0.5, 0.7, 1.2], effective_region_mask=_mask("RGB"))
    ),
    "hires": _case(_unit(module="canny", image=_WIDE), **_HIRES),
    "only masked": _case(_unit(image=None, module="invert"), **_START, **_PART),
    "inpainting": _case(
        _unit(image=None, module="inpaint_only"), **_START, **_PART, inpaint_full_res=False
    ),
}


def told(infotext: str) -> str:
    """What parameters say of the units."""
    return infotext.partition("ControlNet 0: ")[2].partition(", Version: ")[0].split(", Hires")[0]


def kept() -> dict[str, tuple[list[Pixels], str]]:
    """By case: every fourth pixel of the picture and its maps, and what was told."""

    def pixels(entry: dict[str, Any]) -> Pixels:
        shape = (entry["rows"], -1, 3)
        return np.frombuffer(base64.b64decode(entry["pixels"]), np.uint8).reshape(shape)

    document = json.loads(KEPT.read_text("utf-8"))
    return {
        case: ([pixels(each) for each in entry["pictures"]], entry["told"])
        for case, entry in document.items()
    }


def _entry(image: Image.Image) -> dict[str, Any]:
    pixels = thinned(image)
    return {"rows": len(pixels), "pixels": base64.b64encode(pixels.tobytes()).decode()}


def record(url: str) -> None:
    document = {}
    for case, fields in CASES.items():
        task = "img2img" if "init_images" in fields else "txt2img"
        answer = requests.post(f"{url}/sdapi/v1/{task}", json=fields, timeout=600)
        answer.raise_for_status()
        info = json.loads(answer.json()["info"])
        pictures = [_entry(decoded(text)) for text in answer.json()["images"]]
        document[case] = {"pictures": pictures, "told": told(info["infotexts"][0])}
    KEPT.write_text(json.dumps(document, indent=0, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    act, where = sys.argv[1:]
    with torch.no_grad():
        {"networks": lambda: write_networks(Path(where)), "record": lambda: record(where)}[act]()
