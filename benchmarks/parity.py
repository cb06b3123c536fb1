"""`python -m benchmarks.parity` compares the engine's pictures with a real WebUI's, case by case.

The bar: 40 dB in 95 % of the cases of `tests/parity/cases.py`. The WebUI (1.10.1) must have the
demo checkpoint and its .yaml loaded, the upscalers that `python -m tests.parity.files FOLDER`
writes in its models/ESRGAN, and serve its API (`--api --no-half --use-cpu all`). Its pictures
stay in a folder for the next run; `--keep` writes what the tests hold the engine to.

The WebUI's img2img is not its request's alone: it draws the picture's latent by the generator
that the generation before left, which is that of its last seed. The engine draws by the picture's
own seed: the same when a seed is used again, as here, where all cases have the same.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import requests
import torch
from PIL import Image

from middleware_api.container.engine.engine import Engine
from middleware_api.container.engine.request import parse_request
from middleware_api.container.prompts.encoder import PromptEncoder
from tests.parity.cases import CASES, Case
from tests.parity.files import roles_of, write_upscalers
from tests.parity.kept import KEPT, psnr, write_kept

BAR_DB, BAR_SHARE = 40.0, 0.95

# The WebUI does not restore settings that its configuration never held: each case sends them all.
DEFAULTS: dict[str, object] = {
    "randn_source": "GPU",
    "eta_ancestral": 1.0,
    "eta_ddim": 0.0,
    "s_churn": 0.0,
    "s_tmin": 0.0,
    "s_tmax": 0.0,
    "s_noise": 1.0,
    "sigma_min": 0.0,
    "sigma_max": 0.0,
    "rho": 0.0,
    "eta_noise_seed_delta": 0,
    "always_discard_next_to_last_sigma": False,
    "sgm_noise_multiplier": False,
    "uni_pc_variant": "bh1",
    "uni_pc_skip_type": "time_uniform",
    "uni_pc_order": 3,
    "uni_pc_lower_order_final": True,
    "skip_early_cond": 0.0,
    "beta_dist_alpha": 0.6,
    "beta_dist_beta": 0.6,
    "s_min_uncond": 0.0,
    "s_min_uncond_all": False,
    "use_old_karras_scheduler_sigmas": False,
    "tiling": False,
    "img2img_extra_noise": 0.0,
    "img2img_fix_steps": False,
    "enable_quantization": False,
    "upscaler_for_img2img": "None",
    "ESRGAN_tile": 192,
    "ESRGAN_tile_overlap": 8,
    "overlay_inpaint": True,
    "img2img_background_color": "#ffffff",
}


def of_the_webui(url: str, case: Case, folder: Path) -> Image.Image:
    """The WebUI's picture, from the folder where it was made before."""
    path = folder / f"{case.name}.png"
    if not path.is_file():
        body = case.body | {"override_settings": DEFAULTS | case.settings}
        answer = requests.post(f"{url}/sdapi/v1/{case.task}", json=body, timeout=600)
        answer.raise_for_status()
        path.write_bytes(base64.b64decode(answer.json()["images"][0]))
    return Image.open(path).convert("RGB")


def of_the_engine(engine: Engine, upscalers: Path, case: Case) -> Image.Image:
    request = parse_request(case.task, json.dumps(case.body).encode(), random.Random(0))
    with engine.loader.load(roles_of(request, upscalers)) as models:
        (picture,) = engine.generate(models, request, lambda step: None)
    return picture.image.convert("RGB")


def compared(url: str, folder: Path, only: str) -> Iterator[tuple[Case, Image.Image, float]]:
    """Each case with the WebUI's picture and the engine's likeness to it in dB."""
    torch.set_num_threads(1)
    engine = Engine(torch.device("cpu"), 10**9, PromptEncoder())
    with TemporaryDirectory() as upscalers:
        write_upscalers(Path(upscalers))
        for case in CASES:
            if only in case.name:
                theirs = of_the_webui(url, case, folder)
                ours = of_the_engine(engine, Path(upscalers), case)
                yield case, theirs, psnr(np.asarray(theirs), np.asarray(ours))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--webui", default="http://127.0.0.1:7860")
    parser.add_argument("--pictures", type=Path, required=True, help="folder for its pictures")
    parser.add_argument("--only", default="", help="cases with this in their names")
    parser.add_argument("--keep", action="store_true", help="write what the tests compare with")
    options = parser.parse_args(argv)
    options.pictures.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Image.Image] = {}
    likenesses = []
    started = time.monotonic()
    for case, theirs, likeness in compared(options.webui, options.pictures, options.only):
        print(f"{likeness:6.1f} dB{'' if likeness >= BAR_DB else '  <--'}  {case.name}")
        likenesses.append(likeness)
        if case.name in KEPT:
            kept[case.name] = theirs
    reached = sum(each >= BAR_DB for each in likenesses)
    print(
        f"{reached} of {len(likenesses)} cases reach {BAR_DB:g} dB; median "
        f"{np.median(likenesses):.1f} dB; {time.monotonic() - started:.0f} s"
    )
    if options.keep:
        write_kept(kept)
    return 0 if reached >= BAR_SHARE * len(likenesses) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
