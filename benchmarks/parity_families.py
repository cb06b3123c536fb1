"""`python -m benchmarks.parity_families` compares SD 2.x, SDXL and inpainting with a real WebUI.

The bar: 40 dB in 95 % of the cases of `tests/parity/families.py`. First `--write FOLDER` writes the
small random models, with .yaml files beside them, into a WebUI's data folder. Then the WebUI
(1.10.1, `--api --no-half --use-cpu all --data-dir FOLDER`, with the text encoder that the demo
checkpoint's .yaml names) makes its pictures; `--keep` writes what the tests hold the engine to.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import requests
import torch
from PIL import Image

from benchmarks.parity import BAR_DB, BAR_SHARE, DEFAULTS
from middleware_api.container.engine.engine import Engine
from middleware_api.container.engine.request import parse_request
from middleware_api.container.prompts.encoder import PromptEncoder
from tests.parity.families import CASES, FamilyCase, files_of, write_all
from tests.parity.kept import psnr, write_families

FAMILY_DEFAULTS: dict[str, object] = {
    "sd_noise_schedule": "Default",
    "emphasis": "Original",
    "CLIP_stop_at_last_layers": 1,
    "sdxl_clip_l_skip": False,
    "sdxl_crop_top": 0,
    "sdxl_crop_left": 0,
    "pad_cond_uncond": False,
    "inpainting_mask_weight": 1.0,
}


def of_the_webui(url: str, case: FamilyCase, folder: Path) -> Image.Image:
    """The WebUI's picture, from the folder where it was made before."""
    path = folder / f"{case.name}.png"
    if not path.is_file():
        chosen = {"sd_model_checkpoint": f"{case.model}.safetensors"}
        settings = DEFAULTS | FAMILY_DEFAULTS | case.settings | chosen
        body = case.body | {"override_settings": settings}
        answer = requests.post(f"{url}/sdapi/v1/{case.task}", json=body, timeout=600)
        answer.raise_for_status()
        path.write_bytes(base64.b64decode(answer.json()["images"][-1]))
    return Image.open(path).convert("RGB")


def of_the_engine(engine: Engine, case: FamilyCase, folder: Path) -> Image.Image:
    request = parse_request(case.task, json.dumps(case.body).encode(), random.Random(0))
    assert request.warnings == ()
    with engine.loader.load(files_of(case, folder)) as loaded:
        return [*engine.generate(loaded, request, lambda step: None)][-1].image


def compared(url: str, folder: Path, only: str) -> Iterator[tuple[FamilyCase, Image.Image, float]]:
    torch.set_num_threads(1)
    engine = Engine(torch.device("cpu"), 10**9, PromptEncoder())
    # Previews of SDXL would have the WebUI fetch a model for them.
    quiet = {"live_previews_enable": False}
    requests.post(f"{url}/sdapi/v1/options", json=quiet, timeout=60).raise_for_status()
    with tempfile.TemporaryDirectory() as files:
        write_all(Path(files))
        for case in sorted(CASES, key=lambda case: case.model):
            if only in case.name:
                theirs = of_the_webui(url, case, folder)
                ours = of_the_engine(engine, case, Path(files))
                yield case, theirs, psnr(np.asarray(theirs), np.asarray(ours))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--webui", default="http://127.0.0.1:7860")
    parser.add_argument("--pictures", type=Path, help="folder for its pictures")
    parser.add_argument("--only", default="", help="cases with this in their names")
    parser.add_argument("--keep", action="store_true", help="write what the tests compare with")
    parser.add_argument("--write", type=Path, help="only write the models into this folder")
    options = parser.parse_args(argv)
    if options.write:
        write_all(options.write)
        return 0
    if options.pictures is None:
        parser.error("--pictures is missing")
    options.pictures.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Image.Image] = {}
    likenesses = []
    for case, theirs, likeness in compared(options.webui, options.pictures, options.only):
        spread = np.asarray(theirs).std()
        mark = "" if likeness >= BAR_DB else "  <--"
        print(f"{likeness:6.1f} dB{mark}  {case.name} (spread {spread:.0f})", flush=True)
        likenesses.append(likeness)
        kept[case.name] = theirs
    reached = sum(each >= BAR_DB for each in likenesses)
    print(f"{reached} of {len(likenesses)} cases reach {BAR_DB:g} dB")
    if options.keep:
        write_families(kept)
    return 0 if reached >= BAR_SHARE * len(likenesses) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
