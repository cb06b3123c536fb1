"""The tasks txt2img and img2img: a checkpoint, the engine, and the pictures that come of them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field

from middleware_api import contract
from middleware_api.container import infotext, pictures
from middleware_api.container.engine import CheckpointFile, Engine
from middleware_api.container.errors import BadRequest
from middleware_api.container.job import Answer, Job
from middleware_api.container.progress import Step
from middleware_api.container.request import GenerationRequest, parse_request


def generate(engine: Engine, job: Job) -> Answer:
    """Pictures of a prompt; those finished before a cancel are kept."""
    request = parse_request(job.invocation["task_type"], job.content, random.Random())
    checkpoint, ignored = _choose_checkpoint(job.invocation["checkpoints"])
    made = _Made(checkpoint["sha256"])
    with job.until_cancelled():
        _make(engine, job, request, checkpoint, made)
    warnings = [*ignored, *engine.warnings(request)]
    info = infotext.info(
        request, checkpoint["name"], made.model_sha256, made.infotexts, warnings, job.started
    )
    return Answer(tuple(made.keys), json.dumps(info, ensure_ascii=False))


@dataclass
class _Made:
    """What a job has come to so far; the model's hash is "" when nobody knows it yet."""

    model_sha256: str
    keys: list[str] = field(default_factory=list)
    infotexts: list[str] = field(default_factory=list)


def _make(
    engine: Engine,
    job: Job,
    request: GenerationRequest,
    checkpoint: contract.ContainerCheckpoint,
    made: _Made,
) -> None:
    """Fills `made`; raises JobCancelled with what was finished until then."""
    path = job.weights(checkpoint)
    job.progress.phase("loading checkpoint")
    file = CheckpointFile(path, checkpoint["name"], checkpoint["key"], checkpoint["sha256"])
    with engine.load(file) as model:
        made.model_sha256 = model.sha256
        job.progress.draw = lambda clean: pictures.encode_preview(engine.preview(model, clean))

        def on_step(step: Step) -> None:
            job.progress.step(step)
            job.stop_if_asked()

        for picture in engine.generate(model, request, on_step):
            encoded = pictures.encode(picture.image, request.image_format, picture.infotext)
            key = job.save_picture(picture.index, request.image_format, encoded)
            made.keys.append(key)
            made.infotexts.append(picture.infotext)


def _choose_checkpoint(
    checkpoints: list[contract.ContainerCheckpoint],
) -> tuple[contract.ContainerCheckpoint, list[str]]:
    """The checkpoint to sample with, and a warning for each file the engine cannot use yet."""
    wanted = contract.CheckpointType.STABLE_DIFFUSION.value
    chosen = next((c for c in checkpoints if c["type"] == wanted), None)
    if chosen is None:
        raise BadRequest(
            "The job names no Stable-diffusion checkpoint. Choose one.", "missing_checkpoint"
        )
    others = [
        f"{c['type']} file {c['name']} is not supported yet and was ignored."
        for c in checkpoints
        if c is not chosen
    ]
    return chosen, others
