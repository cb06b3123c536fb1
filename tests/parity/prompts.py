"""The cases of the prompts' parity, and how their pictures are recorded from a WebUI.

`python -m tests.parity.prompts URL` asks a WebUI 1.10.1 whose data folder has the demo checkpoint
(with its `.yaml`) and the files of `tests.sample_networks`, and writes `prompts.png`, a sheet of
pictures, beside `prompts.json`, their parameters as the WebUI wrote them. The WebUI must know
hashes: start it without `--no-hashing`.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

SIDE, COLUMNS = 64, 8
SHEET = Path(__file__).with_name("prompts.png")
PARAMETERS = Path(__file__).with_name("prompts.json")
_SMALL = {
    "seed": 11,
    "steps": 8,
    "width": SIDE,
    "height": SIDE,
    "cfg_scale": 5,
    "sampler_name": "Euler",
    "negative_prompt": "blue background",
}
# All of them each time: a WebUI without a config.json does not put back what it never had.
_SETTINGS = {
    "emphasis": "Original",
    "comma_padding_backtrack": 20,
    "pad_cond_uncond": False,
    "CLIP_stop_at_last_layers": 1,
}
_RED = "a big red circle on a white background"
_LONG = ", ".join(
    f"{size} {colour} {shape}"
    for size in ("big", "small", "tiny")
    for colour in ("red", "green", "yellow")
    for shape in ("circle", "square", "ring")
)
_HIRES = {
    "enable_hr": True,
    "hr_resize_x": SIDE,
    "hr_resize_y": SIDE,
    "hr_upscaler": "Latent",
    "hr_second_pass_steps": 6,
    "denoising_strength": 0.7,
}

CASES: dict[str, dict[str, Any]] = {
    "plain": {"prompt": _RED},
    "round brackets": {"prompt": "a big ((red)) circle on a (white) background"},
    "weights, nested": {"prompt": "a (big (red:1.4) (circle:0.7):1.3) on a white background"},
    "square brackets": {"prompt": "a [big] [[red]] circle (on a [white:1.2] background:1.2)"},
    "escapes": {"prompt": r"a big \(red\) circle \[on\] a (white\\:1.3) background \ "},
    "unbalanced": {"prompt": "a big (red circle] on [a white) background:1.4)"},
    "emphasis in the negative": {"prompt": _RED, "negative_prompt": "(blue:1.5), [green]"},
    "No norm": {
        "prompt": "a (big red:1.5) circle, [white]",
        "override_settings": {"emphasis": "No norm"},
    },
    "Ignore": {
        "prompt": "a (big red:1.5) circle, [white]",
        "override_settings": {"emphasis": "Ignore"},
    },
    "None": {
        "prompt": "a (big red:1.5) circle BREAK [white]",
        "override_settings": {"emphasis": "None"},
    },
    "alternation": {"prompt": "a big [red|green|(blue:1.2)] [circle|]  on white"},
    "schedule by share": {"prompt": "a big [red:green:0.4] circle on a [white:0.6] background"},
    "schedule by step": {"prompt": "a [big::3] [red:green:5] [circle:6] (on a:1.2) background"},
    "schedule, nested": {"prompt": "a big [[red:green:2]:[blue|yellow]:4] circle [x] :3"},
    "schedule with a long part": {"prompt": f"a big [{_LONG}:red circle:.5] on white"},
    "schedule, twice the calls": {
        "prompt": "a big [red:green:6] [circle:square:0.5] on white",
        "sampler_name": "Heun",
    },
    "schedule, two calls at first": {
        "prompt": "a big [red:green:3] [circle|square] on white",
        "sampler_name": "PLMS",
    },
    "schedule in hires fix": {
        "prompt": "a big [red:green:5] [circle:square:1.5] [on white:10] [small:0.5]",
        **_HIRES,
    },
    "schedule in hires fix, twice the calls": {
        "prompt": "a big [red:green:12] [circle:square:1.4] [on white:20]",
        "sampler_name": "Heun",
        "hr_sampler_name": "DPM2",
        **_HIRES,
    },
    "schedule in img2img": {"prompt": "a big [red:green:3] circle on white", "init_images": [""],
                            "denoising_strength": 0.7},
    "not a schedule": {"prompt": "a big [red:green] circle | on [white:black:4]"},
    "AND": {"prompt": "a big red circle AND a small green square"},
    "AND, weights": {"prompt": "a big red circle :1.2 AND green square:-0.4 AND white :.5"},
    "AND, lengths": {"prompt": f"{_LONG} AND a big red circle"},
    "AND, schedules": {"prompt": "a [big|small] circle AND [red:green:4] :0.6", "batch_size": 2},
    "AND at scale 1": {"prompt": "a big red circle AND green square:0.5", "cfg_scale": 1},
    "AND in the negative": {"prompt": f"{_RED}:1.3", "negative_prompt": "blue AND green :0.5"},
    "BREAK": {"prompt": "a big red circle BREAK on a (white:1.3) BREAK background"},
    "BREAK in brackets": {"prompt": "a big (red circle BREAK on a white background:1.2) BREAK"},
    "long": {"prompt": f"a big red circle, {_LONG}"},
    "long word at the end of a chunk": {"prompt": "red " * 60 + ", " + "green " * 30},
    "long negative": {"prompt": _RED, "negative_prompt": f"blue background, {_LONG}"},
    "long, padded": {"prompt": _LONG, "override_settings": {"pad_cond_uncond": True}},
    "no backtrack": {
        "prompt": f"a big red circle, {_LONG}",
        "override_settings": {"comma_padding_backtrack": 0},
    },
    "clip skip": {
        "prompt": "a (big red:1.2) circle BREAK [white|black]",
        "override_settings": {"CLIP_stop_at_last_layers": 2},
    },
    "comments": {"prompt": "a big red circle # no square\non a (white # :\n:1.2) background\n#x"},
    "LoRA": {"prompt": f"{_RED}<lora:style:0.8>"},
    "LoRA, text and UNet": {"prompt": f"<lora:style:0.3:1.2> {_RED} <lora:old:te=1:unet=0>"},
    "LoRA, several": {"prompt": f"{_RED} <lora:style:0.6> <lora:old:-0.5><lora:conv:0.7>"},
    "LoRA, twice": {"prompt": f"{_RED} <lora:style:1><lora:style:0.4>"},
    "LoRA, weight 0": {"prompt": f"{_RED} <lora:style:0>"},
    "LoRA, alias and rank": {"prompt": f"{_RED} <lyco:styled:1:1:2>"},
    "LoRA, convolutions": {"prompt": f"{_RED} <lora:conv>"},
    "LoHa": {"prompt": f"{_RED} <lora:loha:1>"},
    "LoKr": {"prompt": f"{_RED} <lora:lokr:1>"},
    "DoRA": {"prompt": f"{_RED} <lora:dora:0.4>"},
    "full differences": {"prompt": f"{_RED} <lora:full:0.8>"},
    "LoRA, missing": {"prompt": f"{_RED} <lora:nowhere:1> <unknown:x>"},
    "LoRA in the negative": {"prompt": _RED, "negative_prompt": "blue <lora:style:1>"},
    # Behind one without a LoRA: the WebUI switches none off that was on before.
    "LoRA switched off": {"prompt": f"{_RED} <lora:style:1>", "disable_extra_networks": True},
    "LoRA in hires fix": {
        "prompt": f"{_RED} <lora:style:0.8>",
        "hr_prompt": f"{_RED} <lora:old:0.8>",
        **_HIRES,
    },
    "embedding": {"prompt": "a big sparkle circle on a (Soft-Glow2:1.3) background"},
    "embedding in both": {"prompt": "red sparkle circle", "negative_prompt": "sparkle, soft-glow2"},
    "embedding over a chunk's end": {"prompt": "red " * 73 + "soft-glow2 circle, [sparkle|ring]"},
    "embedding with clip skip": {
        "prompt": "a big sparkle circle AND soft-glow2 :0.5",
        "override_settings": {"CLIP_stop_at_last_layers": 2, "emphasis": "No norm"},
    },
    "embedding of another width": {"prompt": "a big wide circle on a white background"},
    "hypernetwork": {"prompt": f"{_RED} <hypernet:wave:1>"},
    "hypernetworks": {"prompt": f"{_RED} <hypernet:wave:0.5><hypernet:ripple:0.7>"},
    "all at once": {
        "prompt": "a (sparkle:1.2) [red|green] circle <lora:style:0.5> <hypernet:ripple:0.4>",
        "override_settings": {"CLIP_stop_at_last_layers": 2},
    },
}  # fmt: skip


def fields_of(case: str) -> dict[str, Any]:
    """What is sent, to the WebUI and to the engine alike."""
    fields = _SMALL | CASES[case]
    fields["override_settings"] = _SETTINGS | fields.get("override_settings", {})
    if "init_images" in fields:
        stream = io.BytesIO()
        start = Image.radial_gradient("L").resize((SIDE, SIDE))
        Image.merge("RGB", (start, start.transpose(Image.Transpose.ROTATE_90), start)).save(
            stream, "PNG"
        )
        fields["init_images"] = [base64.b64encode(stream.getvalue()).decode()]
    return fields


def recorded() -> Iterator[tuple[str, Image.Image, str]]:
    """Each case's name, the WebUI's picture and its parameters text."""
    texts = json.loads(PARAMETERS.read_text())
    with Image.open(SHEET) as sheet:
        for i, case in enumerate(CASES):
            x, y = i % COLUMNS * SIDE, i // COLUMNS * SIDE
            yield case, sheet.crop((x, y, x + SIDE, y + SIDE)), texts[case]


def record(url: str) -> None:
    """Asks the WebUI at this address for every case."""
    sheet = Image.new("RGB", (COLUMNS * SIDE, -(-len(CASES) // COLUMNS) * SIDE))
    texts = {}
    for i, case in enumerate(CASES):
        fields = fields_of(case)
        task = "img2img" if "init_images" in fields else "txt2img"
        answer = httpx.post(f"{url}/sdapi/v1/{task}", json=fields, timeout=600)
        answer.raise_for_status()
        last = answer.json()["images"][-1]  # of a batch: the first is the grid
        picture = Image.open(io.BytesIO(base64.b64decode(last)))
        sheet.paste(picture, (i % COLUMNS * SIDE, i // COLUMNS * SIDE))
        texts[case] = json.loads(answer.json()["info"])["infotexts"][-1]
        print(case)
    sheet.save(SHEET, optimize=True)
    PARAMETERS.write_text(json.dumps(texts, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    record(sys.argv[1])
