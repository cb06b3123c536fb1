"""The tasks txt2img and img2img: checkpoints, the engine, and the pictures that come of them."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field

from middleware_api.container.engine import infotext, pictures
from middleware_api.container.engine.engine import Engine
from middleware_api.container.engine.loading import CheckpointFile
from middleware_api.container.engine.request import GenerationRequest, parse_request
from middleware_api.container.engine.roles import Roles, choose_files
from middleware_api.container.job import Answer, Job
from middleware_api.container.progress import Step
from middleware_api.contract import ContainerCheckpoint
from middleware_api.weights_name import WeightsName


def generate(engine: Engine, job: Job) -> Answer:
    """Pictures of a prompt; those finished before a cancel are kept."""
    request = parse_request(job.invocation["task_type"], job.content, random.Random())
    files, unused = choose_files(request, job.invocation["checkpoints"])
    names = files.each(lambda file: WeightsName(file["name"], file["sha256"]))
    made = _Made(names, [*unused, *request.warnings])
    with job.until_cancelled():
        _make(engine, job, request, files, made)
    info = infotext.info(
        request, made.names, made.texts, made.infotexts, made.warnings, job.started
    )
    return Answer(tuple(made.keys), json.dumps(info, ensure_ascii=False))


@dataclass
class _Made:
    """What a job has come to so far; a hash in `names` is "" while nobody knows it."""

    names: Roles[WeightsName]
    warnings: list[str]
    texts: dict[str, str] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    infotexts: list[str] = field(default_factory=list)


def _make(
    engine: Engine,
    job: Job,
    request: GenerationRequest,
    files: Roles[ContainerCheckpoint],
    made: _Made,
) -> None:
    """Fills `made`; raises JobCancelled with what was finished until then."""

    def fetch(file: ContainerCheckpoint) -> CheckpointFile:
        return CheckpointFile(job.weights(file), file["name"], file["key"], file["sha256"])

    fetched = files.each(fetch)
    job.progress.phase("loading checkpoint")
    with engine.loader.load(fetched) as models:
        made.names = models.names
        made.texts = engine.text_parameters(models, request)
        made.warnings += engine.warnings(models, request)
        job.progress.draw = lambda clean: pictures.encode_preview(engine.preview(models, clean))

        def on_step(step: Step) -> None:
            job.progress.step(step)
            job.stop_if_asked()

        for picture in engine.generate(models, request, on_step):
            encoded = pictures.encode(picture.image, request.image_format, picture.infotext)
            key = job.save_picture(picture.index, request.image_format, encoded)
            made.keys.append(key)
            if picture.infotext:
                made.infotexts.append(picture.infotext)
