"""`python -m benchmarks.engine`: how fast pictures are made, against what others take for them.

In one process and in turn: the engine, and diffusers' own StableDiffusionPipeline with the same
weights, scheduler (Euler), steps and precision, for the demo checkpoint and for random weights of
the size of SD 1.5. Then whole jobs: an embedded server with one warm worker, asked by HTTP for the
same picture as the engine alone and, with `--webui URL`, as a WebUI 1.10.1 that has the demo
checkpoint loaded. The bars, of time a picture, medians of the rounds' ratios:

    demo checkpoint : diffusers     at most 0.9
    SD 1.5's size : diffusers       at most 1.0
    a job : the WebUI's             at most 0.9
    a job without its sampling      at most 120 ms

`--threads` is torch's against diffusers; a worker that is alone has all cores.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import requests
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
from torch import nn
from transformers import CLIPTokenizer

from aws_extension.client import CloudClient
from aws_extension.uploader import upload_checkpoint
from benchmarks.switch import write_random
from benchmarks.timing import program
from middleware_api.container.engine import pictures
from middleware_api.container.engine.engine import Engine
from middleware_api.container.engine.lean_attention import LeanAttention
from middleware_api.container.engine.loading import CheckpointFile, Models
from middleware_api.container.engine.packed import PackedConv2d
from middleware_api.container.engine.request import parse_request
from middleware_api.container.engine.roles import Roles
from middleware_api.container.prompts.encoder import TOKENIZER_FOLDER, PromptEncoder
from middleware_api.contract import CheckpointType
from middleware_api.demo.train import CHECKPOINT

TOKEN = "benchmark-token-0123456789abcdef"
PROMPT, NEGATIVE = "a large red circle on a blue background", "green"
DEMO = {"width": 64, "height": 64, "steps": 20, "cfg_scale": 5.0}
LARGE = {"width": 128, "height": 128, "steps": 4, "cfg_scale": 5.0}
OVERHEAD_SECONDS = 0.12
CACHE_BYTES = 6 * 1024**3


class Ours:
    """The engine with one checkpoint, as a worker has it."""

    def __init__(self, path: Path) -> None:
        self._engine = Engine(torch.device("cpu"), CACHE_BYTES, PromptEncoder())
        self._file = CheckpointFile(path, path.name, path.name, path.name)

    def make(self, body: dict[str, Any]) -> None:
        """Pictures, up to the encoded file."""
        request = parse_request("txt2img", json.dumps(body).encode(), random.Random())
        with self._engine.loader.load(Roles(self._file)) as models:
            for picture in self._engine.generate(models, request, lambda step: None):
                pictures.encode(picture.image, "png", picture.infotext)

    def models(self) -> Models:
        """The loaded modules."""
        with self._engine.loader.load(Roles(self._file)) as models:
            return models


class Pipeline:
    """Diffusers' own, on modules of its own of the same weights."""

    def __init__(self, path: Path) -> None:
        model = Ours(path).models().main
        _undo(model.unet)
        _undo(model.vae)
        self._pipe: Any = StableDiffusionPipeline(
            vae=model.vae,
            text_encoder=model.text_encoders[0].module,
            tokenizer=CLIPTokenizer.from_pretrained(TOKENIZER_FOLDER, model_max_length=77),
            unet=model.unet,
            scheduler=EulerDiscreteScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                timestep_spacing="linspace",
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        self._pipe.set_progress_bar_config(disable=True)

    def make(self, body: dict[str, Any]) -> None:
        """The same pictures, encoded too."""
        made = self._pipe(
            body["prompt"],
            negative_prompt=body["negative_prompt"],
            width=body["width"],
            height=body["height"],
            num_inference_steps=body["steps"],
            guidance_scale=body["cfg_scale"],
            num_images_per_prompt=body.get("batch_size", 1),
            generator=torch.Generator().manual_seed(body["seed"]),
        )
        for picture in made.images:
            pictures.encode(picture, "png", "")


def _undo(module: nn.Module) -> None:
    """Takes the engine's own layers out of a module that has not been used."""
    for layer in module.modules():
        if isinstance(layer, (PackedConv2d, LeanAttention)):
            layer.__class__ = type(layer).__base__


def body_of(settings: dict[str, Any], seed: int) -> dict[str, Any]:
    """A request; the prompts stay, the seed does not, as when somebody looks for a picture."""
    words = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "sampler_name": "Euler"}
    return {**settings, **words, "scheduler": "Automatic", "seed": seed}


def seconds_of(act: Callable[..., object], *arguments: object) -> float:
    """On the clock."""
    began = time.perf_counter()
    act(*arguments)
    return time.perf_counter() - began


def against_diffusers(
    what: str, path: Path, settings: dict[str, Any], rounds: int, bar: float
) -> bool:
    """Whether the bar is held."""
    ours, theirs = Ours(path), Pipeline(path)
    found: list[tuple[float, float]] = []
    for seed in range(rounds + 1):
        body = body_of(settings, seed)
        found.append((seconds_of(ours.make, body), seconds_of(theirs.make, body)))
    return tell(f"{what} : diffusers", found[1:], bar)


def tell(what: str, found: list[tuple[float, float]], bar: float) -> bool:
    """One row: ours over theirs."""
    ratio = statistics.median(a / b for a, b in found)
    ours, theirs = (statistics.median(side) for side in zip(*found, strict=True))
    verdict = "holds" if ratio <= bar else "MISSED"
    print(f"{what:<34}{ratio:5.2f} of at most {bar:.2f}  {verdict}  ours {ours * 1e3:.0f} ms, "
          f"theirs {theirs * 1e3:.0f} ms", flush=True)  # fmt: skip
    return ratio <= bar


def jobs(rounds: int, webui: str | None) -> bool:
    """Whole jobs of one warm worker; the engine alone makes each picture in between."""
    alone = Ours(CHECKPOINT)
    torch.set_num_threads(os.cpu_count() or 1)  # as the server gives them to its only worker
    with (
        tempfile.TemporaryDirectory() as folder,
        program("middleware_api", "serve", "--port=0", SDAWS_DATA_DIR=folder,
                SDAWS_API_TOKEN=TOKEN) as url,
    ):  # fmt: skip
        client = CloudClient(url, TOKEN)
        client.create_endpoint("local", 1, "one")
        upload_checkpoint(client, CHECKPOINT, CheckpointType.STABLE_DIFFUSION)
        while not all(endpoint.is_ready for endpoint in client.list_endpoints()):
            time.sleep(0.2)
        session = requests.Session()
        more, pairs = [], []
        for seed in range(rounds + 1):
            body = body_of(DEMO, seed)
            job = seconds_of(ask, session, url, body, ("me", TOKEN))
            more.append(job - seconds_of(alone.make, body))
            if webui:
                pairs.append((job, seconds_of(ask, session, webui, body, None)))
    overhead = statistics.median(more[1:])
    holds = overhead <= OVERHEAD_SECONDS
    verdict = "holds" if holds else "MISSED"
    most = f"of at most {OVERHEAD_SECONDS * 1e3:.0f}"
    print(f"{'a job without its sampling':<34}{overhead * 1e3:5.0f} ms {most}  {verdict}")
    return (not pairs or tell("a job : the WebUI's", pairs[1:], 0.9)) and holds


def ask(
    session: requests.Session, url: str, body: dict[str, Any], auth: tuple[str, str] | None
) -> bytes:
    """One picture by the WebUI's API, which both have."""
    answer = session.post(f"{url}/sdapi/v1/txt2img", json=body, auth=auth, timeout=600)
    answer.raise_for_status()
    return base64.b64decode(answer.json()["images"][0])


def main() -> int:
    """0 when every bar is held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--webui", help="URL of a WebUI with the demo checkpoint loaded")
    parser.add_argument("--only", choices=("demo", "large", "jobs"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    held = []
    if options.only in (None, "demo"):
        held.append(against_diffusers("demo checkpoint", CHECKPOINT, DEMO, options.rounds, 0.9))
    if options.only in (None, "large"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "large.safetensors"
            write_random(path, 0)
            rounds = max(3, options.rounds // 3)
            held.append(against_diffusers("SD 1.5's size", path, LARGE, rounds, 1.0))
    if options.only in (None, "jobs"):
        held.append(jobs(options.rounds, options.webui))
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
