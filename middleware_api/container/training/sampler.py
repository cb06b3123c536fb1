"""Sample and class pictures, made by the engine with the model as it is at the moment."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from PIL import Image

from middleware_api.container.engine.checkpoint import StableDiffusion
from middleware_api.container.engine.engine import Engine
from middleware_api.container.engine.loading import Models
from middleware_api.container.engine.request import parse_request
from middleware_api.container.engine.roles import Roles
from middleware_api.container.errors import BadRequest
from middleware_api.container.networks.job_networks import JobNetworks
from middleware_api.container.progress import Step
from middleware_api.container.prompts.encoder import PromptEncoder
from middleware_api.container.samplers.samplers import resolve_sampler
from middleware_api.container.training.buckets import Size
from middleware_api.contract import TaskType
from middleware_api.weights_name import WeightsName

# diffusers' names, which the extension uses, without what they have in common.
_SAMPLERS = {
    "ddim": "DDIM",
    "ddpm": "Euler a",
    "deis": "DPM++ 2M",
    "dpmsolver": "DPM++ 2M",
    "dpmsolversinglestep": "DPM++ 2S a",
    "euler": "Euler",
    "eulerancestral": "Euler a",
    "heun": "Heun",
    "kdpm2": "DPM2",
    "kdpm2ancestral": "DPM2 a",
    "lms": "LMS",
    "pndm": "PLMS",
    "unipc": "UniPC",
}


def sampler_of(scheduler: str) -> str | None:
    """The WebUI's name of what the extension, or the WebUI, calls so; None for no sampler."""
    plain = scheduler.casefold()
    for common in ("scheduler", "discrete", "multistep", " ", "_"):
        plain = plain.replace(common, "")
    if plain in _SAMPLERS:
        return _SAMPLERS[plain]
    try:
        return resolve_sampler(scheduler, "Automatic")[0].name
    except BadRequest:
        return None


@dataclass(frozen=True)
class Wish:
    """A picture to be made."""

    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    scale: float
    size: Size


class PictureMaker:
    """`precision` is entered around each call of the model; `stop_if_asked` may raise."""

    def __init__(
        self,
        device: torch.device,
        sampler: str,
        precision: Callable[[], AbstractContextManager[object]],
        stop_if_asked: Callable[[], None],
    ) -> None:
        self._device, self._sampler = device, sampler
        self._engine: Engine | None = None  # made when the first picture is wanted
        self._precision, self._stop_if_asked = precision, stop_if_asked

    def make(
        self, model: StableDiffusion, state: str, wish: Wish, count: int = 1
    ) -> list[Image.Image]:
        """`count` pictures at once, of seeds that follow each other. `state` tells the model as it
        is now from itself at another time."""
        asked = {
            "prompt": wish.prompt,
            "negative_prompt": wish.negative_prompt,
            "seed": wish.seed,
            "steps": wish.steps,
            "cfg_scale": wish.scale,
            "width": wish.size[0],
            "height": wish.size[1],
            "batch_size": count,
            "sampler_name": self._sampler,
            "disable_extra_networks": True,
        }
        content = json.dumps(asked).encode()
        request = parse_request(TaskType.TXT2IMG.value, content, random.Random(wish.seed))
        now = replace(model, sha256=f"{model.sha256} {state}")
        models = Models(now, now, None, Roles(WeightsName(model.name, "")), JobNetworks())

        def on_step(step: Step) -> None:
            self._stop_if_asked()

        if self._engine is None:
            self._engine = Engine(self._device, 0, PromptEncoder())
        with self._precision():
            return [each.image for each in self._engine.generate(models, request, on_step)]
