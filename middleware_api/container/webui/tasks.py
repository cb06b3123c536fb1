"""What the engine `webui` does for each task: the request goes to the WebUI as it was asked."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from PIL import Image

from middleware_api.container.engine.named import find_named
from middleware_api.container.errors import BadRequest, EngineFailed, JobCancelled, WorkerStopping
from middleware_api.container.fields import Fields, read_fields
from middleware_api.container.job import Answer, Job, Task
from middleware_api.container.webui.driven import DrivenWebUi
from middleware_api.container.webui.watch import Watch
from middleware_api.contract import CheckpointType, ContainerCheckpoint, TaskType

# The middleware's own, beside the WebUI's; the last would hold the pictures back.
_OURS = {"sagemaker_endpoint_name", "sagemaker_endpoint", "endpoint_name", "task_type", "models"}
_OURS |= {"filters", "upload_params"}
_OTHER_CHECKPOINTS = ("refiner_checkpoint", "hr_checkpoint_name")
_UPSCALERS = ("hr_upscaler", "upscaler_1", "upscaler_2")
_OWN_VAE = ("", "None", "Automatic")
_ENDINGS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}


def tasks_of(webui: DrivenWebUi) -> Mapping[str, Task]:
    """The table that the job runner looks a job's task up in."""
    return {
        TaskType.TXT2IMG.value: partial(generate, webui),
        TaskType.IMG2IMG.value: partial(generate, webui),
        TaskType.EXTRA_SINGLE_IMAGE.value: partial(process, webui),
        TaskType.EXTRA_BATCH_IMAGES.value: partial(process, webui),
        TaskType.INTERROGATE.value: partial(interrogate, webui),
        TaskType.PREFETCH.value: partial(prefetch, webui),
        TaskType.MERGE.value: _merge,
        TaskType.CONVERT.value: _convert,
    }


# Weights' own tasks are the same at every engine. Their torch takes seconds to import, and few
# workers ever need it.


def _merge(job: Job) -> Answer:
    from middleware_api.container.weights.merge import merge

    return merge(job)


def _convert(job: Job) -> Answer:
    from middleware_api.container.weights.convert import convert

    return convert(job)


@dataclass
class _Answered:
    """What the WebUI has answered; None for a job that was cancelled before it was asked."""

    document: dict[str, Any] | None = None
    warnings: list[str] = field(default_factory=list)


def generate(webui: DrivenWebUi, job: Job) -> Answer:
    """txt2img and img2img, with everything that the WebUI's extensions add."""
    task_id = f"task(sdaws-{job.invocation['job_id']})"
    answered = _Answered()
    with _asking(webui, job, task_id) as watch:
        watch.begin()
        body = dict(read_fields(job.content).raw)
        placed = _place(webui, job, watch, answered)
        body = _named_as_placed(body, placed)
        body = webui.fitting(job.invocation["task_type"], _without_ours(body), answered.warnings)
        body |= {"force_task_id": task_id, "send_images": True}
        body["override_settings_restore_afterwards"] = True
        job.stop_if_asked()
        job.progress.phase("waiting for the WebUI")
        route = f"/sdapi/v1/{job.invocation['task_type']}"
        answered.document = webui.work(route, body, watch)
    if answered.document is None:
        return _answer((), {"infotexts": []}, answered)
    keys = _save(job, _list_in(answered.document, "images"))
    try:
        info = json.loads(answered.document["info"])
    except (KeyError, TypeError, ValueError) as error:
        raise EngineFailed("The WebUI's answer has no readable info.") from error
    return _answer(keys, info, answered)


def process(webui: DrivenWebUi, job: Job) -> Answer:
    """The Extras tab: one picture, or several."""
    kind = job.invocation["task_type"]
    answered = _Answered()
    with _asking(webui, job, "") as watch:
        watch.begin()
        body = dict(read_fields(job.content).raw)
        body = _with_upscalers(body, _place(webui, job, watch, answered))
        body = webui.fitting(kind, _without_ours(body), answered.warnings)
        job.stop_if_asked()
        job.progress.phase("upscaling")
        answered.document = webui.work(f"/sdapi/v1/{kind}", body, watch)
    if answered.document is None:
        return _answer((), {"html_info": "", "infotexts": []}, answered)
    if kind == TaskType.EXTRA_SINGLE_IMAGE.value:
        pictures = [answered.document.get("image")]
    else:
        pictures = _list_in(answered.document, "images")
    texts = [_text_of(_decoded(each)) for each in pictures]
    info = {"html_info": answered.document.get("html_info", ""), "infotexts": texts}
    return _answer(_save(job, pictures), info, answered)


def interrogate(webui: DrivenWebUi, job: Job) -> Answer:
    """A picture's description in words; no picture."""
    answered = _Answered()
    with _asking(webui, job, "") as watch:
        watch.begin()
        body = _without_ours(read_fields(job.content).raw)
        body = webui.fitting(TaskType.INTERROGATE.value, body, answered.warnings)
        job.progress.phase("interrogating")
        answered.document = webui.work("/sdapi/v1/interrogate", body, watch)
    caption = (answered.document or {}).get("caption", "")
    return _answer((), {"caption": caption, "infotexts": []}, answered)


def prefetch(webui: DrivenWebUi, job: Job) -> Answer:
    """Puts the files where the WebUI finds them, and has one of ours load the last of them."""
    answered = _Answered()
    with _asking(webui, job, "") as watch:
        watch.begin()
        for _, word in _place(webui, job, watch, answered):
            webui.load(job, word, watch)
    return Answer(images=(), info="{}")


@contextmanager
def _asking(webui: DrivenWebUi, job: Job, task_id: str) -> Iterator[Watch]:
    """Notes whether the job was cancelled meanwhile, and then ends the block early."""
    watch = Watch(webui, job, task_id)
    try:
        yield watch
    except JobCancelled:
        watch.cancelled = True
    except WorkerStopping:
        watch.interrupt()
        raise
    job.cancelled = watch.cancelled


_Placed = list[tuple[ContainerCheckpoint, str]]

# Those first for which the WebUI may have to be started again. Embeddings it reads for the
# checkpoint that it has loaded, and not without one.
_PLACED_FIRST = (CheckpointType.HYPERNETWORKS.value, CheckpointType.STABLE_DIFFUSION.value)
_PLACED_LAST = (CheckpointType.EMBEDDINGS.value,)


def _place(webui: DrivenWebUi, job: Job, watch: Watch, answered: _Answered) -> _Placed:
    """All the job's files, each with the WebUI's word for it."""
    files = job.invocation["checkpoints"]
    words: dict[str, str] = {}
    kinds = dict.fromkeys((*_PLACED_FIRST, *(file["type"] for file in files)))
    for kind in sorted(kinds, key=lambda kind: kind in _PLACED_LAST):
        for file in files:
            if file["type"] != kind:
                continue
            if kind in _PLACED_LAST and (loaded := _checkpoint_words(files, words)):
                webui.load(job, loaded[0], watch)
            placed = webui.place(job, file, watch)
            answered.warnings += [placed.warning] if placed.warning else []
            words[file["key"]] = placed.word
    return [(file, words[file["key"]]) for file in files]


def _checkpoint_words(files: list[ContainerCheckpoint], words: Mapping[str, str]) -> list[str]:
    kind = CheckpointType.STABLE_DIFFUSION.value
    return [words[file["key"]] for file in files if file["type"] == kind and file["key"] in words]


def _named_as_placed(body: dict[str, Any], placed: _Placed) -> dict[str, Any]:
    """The request with the WebUI's words for the files that it names by others'."""
    kind = CheckpointType.STABLE_DIFFUSION
    checkpoints = [word for file, word in placed if file["type"] == kind.value]
    if not checkpoints:
        raise BadRequest(
            "The job names no Stable-diffusion checkpoint. Choose one.", "missing_checkpoint"
        )
    settings = dict(Fields(body).mapping("override_settings"))
    # A WebUI that sends its own choice along may mean a file that only it has.
    named = _word(placed, kind, settings.get("sd_model_checkpoint"))
    settings["sd_model_checkpoint"] = named or checkpoints[0]
    vae = settings.get("sd_vae")
    if vae not in _OWN_VAE and (found := _word(placed, CheckpointType.VAE, vae)):
        settings["sd_vae"] = found
    renamed = {name: _word(placed, kind, body.get(name)) for name in _OTHER_CHECKPOINTS}
    body = {**body, **{name: found for name, found in renamed.items() if found}}
    return _with_upscalers({**body, "override_settings": settings}, placed)


def _with_upscalers(body: dict[str, Any], placed: _Placed) -> dict[str, Any]:
    kind = CheckpointType.ESRGAN
    renamed = {name: _word(placed, kind, body.get(name)) for name in _UPSCALERS}
    return {**body, **{name: found for name, found in renamed.items() if found}}


def _word(placed: _Placed, kind: CheckpointType, wanted: object) -> str | None:
    """The WebUI's for the job's file that somebody else's word means."""
    words = {file["key"]: word for file, word in placed}
    files = [file for file, _ in placed if file["type"] == kind.value]
    found = find_named(wanted, files) if isinstance(wanted, str) else None
    return None if found is None else words[found["key"]]


def _without_ours(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in _OURS}


def _answer(keys: tuple[str, ...], info: dict[str, Any], answered: _Answered) -> Answer:
    info = {**info, "warnings": [*info.get("warnings", ()), *answered.warnings]}
    return Answer(keys, json.dumps(info, ensure_ascii=False))


def _save(job: Job, pictures: list[Any]) -> tuple[str, ...]:
    """As the WebUI has encoded them, with the text that it has written into them."""
    job.progress.phase("saving")
    keys = []
    for index, picture in enumerate(pictures):
        content = _decoded(picture)
        keys.append(job.save_picture(index, _ENDINGS[_opened(content).format or ""], content))
    return tuple(keys)


def _decoded(picture: object) -> bytes:
    try:
        return base64.b64decode(picture, validate=True)  # type: ignore[arg-type]
    except (binascii.Error, ValueError, TypeError) as error:
        raise EngineFailed("The WebUI has answered a picture that is not base64.") from error


def _opened(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=tuple(_ENDINGS))
    except (OSError, ValueError) as error:
        raise EngineFailed(
            "The WebUI has answered a picture that is no PNG, JPEG or WebP. Choose one of these "
            "formats in its settings."
        ) from error


def _text_of(content: bytes) -> str:
    told = _opened(content).info
    return str(told.get("postprocessing") or told.get("extras") or "")


def _list_in(document: Any, name: str) -> list[Any]:
    found = document.get(name) if isinstance(document, dict) else None
    if not isinstance(found, list):
        raise EngineFailed(f"The WebUI's answer has no list of {name}.")
    return found
