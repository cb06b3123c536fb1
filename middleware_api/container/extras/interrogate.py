"""The task interrogate: a picture described by its tags, as the WebUI's "Interrogate DeepBooru"."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from PIL import Image

from middleware_api.container.engine.engine import Engine
from middleware_api.container.engine.loading import CheckpointFile
from middleware_api.container.errors import BadRequest
from middleware_api.container.fields import Fields, decode_image, read_fields
from middleware_api.container.job import Answer, Job
from middleware_api.contract import CheckpointType, ContainerCheckpoint

# What the WebUI calls the describing by tags.
_BY_TAGS = ("deepdanbooru", "deepbooru")
_TYPE = CheckpointType.DEEPDANBOORU.value
_SPECIAL = re.compile(r"([\\()])")
_USED = {
    *("image", "model", "override_settings"),
    *("sagemaker_endpoint_name", "endpoint_name", "task_type", "models", "filters"),
}
_SETTINGS_USED = {
    *("interrogate_deepbooru_score_threshold", "deepbooru_sort_alpha", "deepbooru_use_spaces"),
    *("deepbooru_escape", "deepbooru_filter_tags", "interrogate_return_ranks"),
}


@dataclass(frozen=True)
class TagSettings:
    """How tags become a text. Those below `threshold`, and `hidden` ones, are left out."""

    threshold: float
    by_name: bool
    with_spaces: bool
    escaped: bool
    hidden: frozenset[str]
    with_scores: bool

    def text(self, scores: dict[str, float]) -> str:
        """Tags with commas between."""
        kept = {
            tag: score
            for tag, score in scores.items()
            if score >= self.threshold and not tag.startswith("rating:") and tag not in self.hidden
        }
        order = sorted(kept) if self.by_name else sorted(kept, key=lambda tag: -kept[tag])
        return ", ".join(self._shown(tag, kept[tag]) for tag in order)

    def _shown(self, tag: str, score: float) -> str:
        if self.with_spaces:
            tag = tag.replace("_", " ")
        if self.escaped:
            tag = _SPECIAL.sub(r"\\\1", tag)
        return f"({tag}:{score:.3f})" if self.with_scores else tag


def interrogate(engine: Engine, job: Job) -> Answer:
    """No picture: the description is the `caption` of its info."""
    fields = read_fields(job.content)
    settings = Fields(fields.mapping("override_settings"), "override_settings.")
    _require_tags(fields)
    shown = _tag_settings(settings)
    image = _image(fields)
    told = _file(job.invocation["checkpoints"])
    caption = None
    with job.until_cancelled():
        file = CheckpointFile(job.weights(told), told["name"], told["key"], told["sha256"])
        job.progress.phase("interrogating")
        with engine.loader.tagger(file) as tagger:
            job.stop_if_asked()
            caption = shown.text(tagger.scores(image))
    info = {"caption": caption, "warnings": _warnings(fields, settings)}
    return Answer((), json.dumps(info, ensure_ascii=False))


def _require_tags(fields: Fields) -> None:
    model = fields.text("model") or "clip"
    if model.casefold() not in _BY_TAGS:
        raise BadRequest(
            f"model {model!r} is not available: this engine describes pictures by DeepDanbooru's "
            f"tags alone. Set model to {_BY_TAGS[0]}, or choose an endpoint of the engine webui.",
            "unsupported_field",
        )


def _image(fields: Fields) -> Image.Image:
    if not fields.raw.get("image"):
        raise BadRequest("interrogate needs a picture in image (base64).", "missing_image")
    return decode_image(fields.raw["image"], "image")


def _file(files: list[ContainerCheckpoint]) -> ContainerCheckpoint:
    for file in files:
        if file["type"] == _TYPE:
            return file
    raise BadRequest(
        f"The job names no {_TYPE} model. Upload model-resnet_custom_v3.pt of TorchDeepDanbooru "
        f"as {_TYPE}, and add it to the job's models.",
        "missing_checkpoint",
    )


def _tag_settings(settings: Fields) -> TagSettings:
    hidden = settings.text("deepbooru_filter_tags").split(",")
    return TagSettings(
        settings.number("interrogate_deepbooru_score_threshold", 0.5, 0, 1),
        settings.flag("deepbooru_sort_alpha", True),
        settings.flag("deepbooru_use_spaces", True),
        settings.flag("deepbooru_escape", True),
        frozenset(tag.strip().replace(" ", "_") for tag in hidden),
        settings.flag("interrogate_return_ranks"),
    )


def _warnings(fields: Fields, settings: Fields) -> list[str]:
    unknown = [name for name in fields.raw if name not in _USED]
    unknown += [f"override_settings.{n}" for n in settings.raw if n not in _SETTINGS_USED]
    return [f"{name} is not a field of this engine and was ignored." for name in unknown]
