"""The tasks extra-single-image and extra-batch-images: pictures enlarged, as in the Extras tab."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from PIL import Image

from middleware_api import contract
from middleware_api.container.engine import pictures
from middleware_api.container.engine.engine import Engine
from middleware_api.container.engine.ignored import NO_FACES
from middleware_api.container.engine.infotext import parameters_line
from middleware_api.container.engine.loading import CheckpointFile
from middleware_api.container.engine.roles import find_upscaler
from middleware_api.container.errors import BadRequest
from middleware_api.container.extras.picture_tiles import Tiles, parse_tiles
from middleware_api.container.extras.upscaler_models import ModelUpscaler
from middleware_api.container.extras.upscalers import (
    NO_UPSCALER,
    AnyPictureUpscaler,
    Look,
    PictureUpscaler,
    UpscalerFile,
    resolve_picture_upscaler,
)
from middleware_api.container.fields import PICTURE_SIDE_MAX, Fields, decode_image, read_fields
from middleware_api.container.job import Answer, Job
from middleware_api.container.progress import Step

# In the WebUI's API a picture of the batch comes with its file's name; `image` is the single one's.
_ONE, _MANY = "image", "imageList"
_USED = {
    *("resize_mode", "upscaling_resize", "upscaling_resize_w", "upscaling_resize_h"),
    *("upscaling_crop", "upscaler_1", "upscaler_2", "extras_upscaler_2_visibility"),
    *("gfpgan_visibility", "codeformer_visibility", "override_settings"),
    # without effect on the picture, the last two while no face is restored
    *("show_extras_results", "codeformer_weight", "upscale_first"),
    # the middleware's own, beside the WebUI's
    *("sagemaker_endpoint_name", "endpoint_name", "task_type", "models", "filters"),
}
_SETTINGS_USED = {"ESRGAN_tile", "ESRGAN_tile_overlap"}


@dataclass(frozen=True)
class Enlargement:
    """To `size` at least, cut down to it when `crop`; or by `scale` when `size` is None."""

    scale: float
    size: tuple[int, int] | None
    crop: bool

    def scale_of(self, image: Image.Image) -> float:
        """Of a picture that is to cover `size`."""
        if self.size is None:
            return self.scale
        return max(self.size[0] / image.width, self.size[1] / image.height)

    def apply(self, image: Image.Image, upscaler: PictureUpscaler, look: Look) -> Image.Image:
        """The enlarged picture, its middle where it is cropped."""
        large = upscaler.enlarge(image, self.scale_of(image), look)
        if self.size is None or not self.crop:
            return large
        cropped = Image.new("RGB", self.size)
        cropped.paste(
            large, (self.size[0] // 2 - large.width // 2, self.size[1] // 2 - large.height // 2)
        )
        return cropped


@dataclass(frozen=True)
class ExtrasRequest:
    """What to do with some pictures; `second` is laid over the first's, `visibility` opaque."""

    images: tuple[Image.Image, ...]
    enlargement: Enlargement
    first: AnyPictureUpscaler
    second: AnyPictureUpscaler
    visibility: float
    tiles: Tiles
    warnings: tuple[str, ...]

    @property
    def blends(self) -> bool:
        """Whether anything of the second upscaler's is seen."""
        return self.first is not NO_UPSCALER and self.visibility > 0


@dataclass(frozen=True)
class Upscalers:
    """The two of a request, whose models are loaded."""

    first: PictureUpscaler
    second: PictureUpscaler


def upscale(engine: Engine, job: Job) -> Answer:
    """PNGs, their parameters where the WebUI puts those of the Extras tab; those that are finished
    before a cancel are kept."""
    request = parse_extras(job.invocation["task_type"], job.content)
    files = _files(request, job.invocation["checkpoints"])
    keys: list[str] = []
    texts: list[str] = []
    with job.until_cancelled(), ExitStack() as lent:
        job.stop_if_asked()
        upscalers = _loaded(engine, job, request, files, lent)
        total = len(request.images)
        for number, picture in enumerate(request.images):
            job.progress.note("upscaling", Step(number, total, None))
            image, text = enlarged(picture, request, upscalers, job.stop_if_asked)
            sections = {"parameters": picture.info.get("parameters"), "postprocessing": text}
            content = pictures.encode_png(image, {k: v for k, v in sections.items() if v})
            keys.append(job.save_picture(number, "png", content))
            texts.append(text)
    told = files.values()
    unused = [
        f"{file['type']} file {file['name']} is not named by the request and was ignored."
        for file in job.invocation["checkpoints"]
        if file not in told
    ]
    info = {
        "html_info": "".join(f"<p>{html.escape(text)}</p>" for text in texts),
        "infotexts": texts,
        "warnings": [*unused, *request.warnings],
    }
    return Answer(tuple(keys), json.dumps(info, ensure_ascii=False))


def _files(
    request: ExtrasRequest, checkpoints: list[contract.ContainerCheckpoint]
) -> Mapping[UpscalerFile, contract.ContainerCheckpoint]:
    """Those of the upscalers that are models; raises BadRequest."""
    asked = [each for each in (request.first, request.second) if isinstance(each, UpscalerFile)]
    return {each: find_upscaler(each, checkpoints) for each in asked}


def _loaded(
    engine: Engine,
    job: Job,
    request: ExtrasRequest,
    files: Mapping[UpscalerFile, contract.ContainerCheckpoint],
    lent: ExitStack,
) -> Upscalers:
    """Both of them, until `lent` closes."""

    def ready(upscaler: AnyPictureUpscaler) -> PictureUpscaler:
        if not isinstance(upscaler, UpscalerFile):
            return upscaler
        told = files[upscaler]
        file = CheckpointFile(job.weights(told), told["name"], told["key"], told["sha256"])
        job.progress.phase("loading upscaler")
        return ModelUpscaler(lent.enter_context(engine.loader.upscaler(file)), request.tiles)

    return Upscalers(ready(request.first), ready(request.second) if request.blends else NO_UPSCALER)


def parse_extras(task: str, content: bytes) -> ExtrasRequest:
    """Raises BadRequest naming the field."""
    fields = read_fields(content)
    settings = Fields(fields.mapping("override_settings"), "override_settings.")
    for name in ("gfpgan_visibility", "codeformer_visibility"):
        if fields.number(name, 0, 0, 1) > 0:
            raise BadRequest(f"{name}: {NO_FACES} Set it to 0.", "unsupported_field")
    of_one = task == contract.TaskType.EXTRA_SINGLE_IMAGE.value
    images = (_single(fields),) if of_one else _batch(fields)
    enlargement = _enlargement(fields)
    for image in images:
        _check_size(image, enlargement)
    return ExtrasRequest(
        images=images,
        enlargement=enlargement,
        first=_upscaler(fields, "upscaler_1"),
        second=_upscaler(fields, "upscaler_2"),
        visibility=fields.number("extras_upscaler_2_visibility", 0, 0, 1),
        tiles=parse_tiles(settings),
        warnings=tuple(_warnings(fields, _ONE if of_one else _MANY)),
    )


def _warnings(fields: Fields, pictures_field: str) -> list[str]:
    used = {*_USED, pictures_field}
    unknown = [name for name in fields.raw if name not in used]
    settings = fields.mapping("override_settings")
    unknown += [f"override_settings.{name}" for name in settings if name not in _SETTINGS_USED]
    return [f"{name} is not a field of this engine and was ignored." for name in unknown]


def _single(fields: Fields) -> Image.Image:
    if not fields.raw.get(_ONE):
        raise BadRequest("extra-single-image needs a picture in image (base64).", "missing_image")
    return decode_image(fields.raw[_ONE], _ONE)


def _batch(fields: Fields) -> tuple[Image.Image, ...]:
    entries = fields.items(_MANY)
    if not 0 < len(entries) <= contract.EXTRAS_MAX:
        raise BadRequest(
            f"extra-batch-images needs 1 to {contract.EXTRAS_MAX} pictures in imageList, each as "
            '{"data": <base64>, "name": <file name>}, '
            f"not {len(entries)}.",
            "missing_image" if not entries else "bad_field",
        )
    images: list[Image.Image] = []
    for number, entry in enumerate(entries):
        images.append(_entry(entry, f"imageList[{number}]"))
        if sum(image.width * image.height for image in images) > PICTURE_SIDE_MAX**2:
            raise BadRequest(
                "The pictures in imageList are too large to be held at once. Send them in several "
                "jobs.",
                "too_large",
            )
    return tuple(images)


def _entry(entry: object, field: str) -> Image.Image:
    if not isinstance(entry, dict):
        raise BadRequest(f"{field} must be an object with data (base64) and name.", "bad_field")
    return decode_image(entry.get("data"), f"{field}.data")


def _check_size(image: Image.Image, enlargement: Enlargement) -> None:
    scale = enlargement.scale_of(image)
    if max(image.size) * scale > PICTURE_SIDE_MAX:
        raise BadRequest(
            f"The picture would be {int(image.width * scale)}x{int(image.height * scale)}. "
            f"Choose a size of at most {PICTURE_SIDE_MAX} pixels a side.",
            "bad_field",
        )


def _enlargement(fields: Fields) -> Enlargement:
    to_size = fields.integer("resize_mode", 0, 0, 1) == 1
    width = fields.integer("upscaling_resize_w", 512, 1, PICTURE_SIDE_MAX)
    height = fields.integer("upscaling_resize_h", 512, 1, PICTURE_SIDE_MAX)
    scale = fields.number("upscaling_resize", 2, 0, PICTURE_SIDE_MAX)
    if scale == 0:
        raise BadRequest("upscaling_resize must be above 0.", "bad_field")
    crop = fields.flag("upscaling_crop", True)
    return Enlargement(scale, (width, height) if to_size else None, crop)


def _upscaler(fields: Fields, name: str) -> AnyPictureUpscaler:
    return resolve_picture_upscaler(fields.text(name) or "None", name)


def enlarged(
    image: Image.Image, request: ExtrasRequest, upscalers: Upscalers, look: Look
) -> tuple[Image.Image, str]:
    """The picture and its parameters. Without a first upscaler nothing happens to it."""
    image = image if image.mode in ("RGB", "RGBA") else image.convert("RGB")
    if upscalers.first is NO_UPSCALER:
        return image, ""
    enlargement = request.enlargement
    large = enlargement.apply(image, upscalers.first, look)
    pairs: dict[str, object] = {}
    if enlargement.size is None:
        pairs["Postprocess upscale by"] = f"{enlargement.scale:g}"
    else:
        width, height = enlargement.size
        pairs["Postprocess upscale to"] = f"{width}x{height}"
        if enlargement.crop:
            pairs["Postprocess crop to"] = f"{width}x{height}"
    pairs["Postprocess upscaler"] = upscalers.first.name
    if upscalers.second is not NO_UPSCALER:
        second = enlargement.apply(image, upscalers.second, look)
        large = Image.blend(large, second.convert(large.mode), request.visibility)
        pairs["Postprocess upscaler 2"] = upscalers.second.name
    return large, parameters_line(pairs)
