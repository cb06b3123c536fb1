"""The task extra-single-image: one picture enlarged, as the WebUI's Extras tab does it."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass

from PIL import Image

from middleware_api.container import pictures
from middleware_api.container.errors import BadRequest
from middleware_api.container.fields import PICTURE_SIDE_MAX, Fields, decode_image, read_fields
from middleware_api.container.infotext import parameters_line
from middleware_api.container.job import Answer, Job
from middleware_api.container.upscalers import PictureUpscaler, resolve_picture_upscaler

_USED = {
    *("image", "resize_mode", "upscaling_resize", "upscaling_resize_w", "upscaling_resize_h"),
    *("upscaling_crop", "upscaler_1", "upscaler_2", "extras_upscaler_2_visibility"),
    *("gfpgan_visibility", "codeformer_visibility"),
    # without effect on the picture, the last two while no face is restored
    *("show_extras_results", "codeformer_weight", "upscale_first"),
    # the middleware's own, beside the WebUI's
    *("sagemaker_endpoint_name", "endpoint_name", "task_type", "models", "filters"),
}


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

    def apply(self, image: Image.Image, upscaler: PictureUpscaler) -> Image.Image:
        """The enlarged picture, its middle where it is cropped."""
        large = upscaler.enlarge(image, self.scale_of(image))
        if self.size is None or not self.crop:
            return large
        cropped = Image.new("RGB", self.size)
        cropped.paste(
            large, (self.size[0] // 2 - large.width // 2, self.size[1] // 2 - large.height // 2)
        )
        return cropped


@dataclass(frozen=True)
class ExtrasRequest:
    """What to do with one picture; `second` is laid over the first's, `visibility` opaque."""

    image: Image.Image
    enlargement: Enlargement
    first: PictureUpscaler
    second: PictureUpscaler
    visibility: float
    warnings: tuple[str, ...]


def upscale(job: Job) -> Answer:
    """One PNG, its parameters where the WebUI puts those of the Extras tab."""
    request = parse_extras(job.content)
    keys: list[str] = []
    texts: list[str] = []
    with job.until_cancelled():
        job.stop_if_asked()
        job.progress.phase("upscaling")
        image, text = enlarged(request)
        sections = {"parameters": request.image.info.get("parameters"), "postprocessing": text}
        content = pictures.encode_png(image, {k: v for k, v in sections.items() if v})
        keys.append(job.save_picture(0, "png", content))
        texts.append(text)
    info = {
        "html_info": "".join(f"<p>{html.escape(text)}</p>" for text in texts),
        "infotexts": texts,
        "warnings": list(request.warnings),
    }
    return Answer(tuple(keys), json.dumps(info, ensure_ascii=False))


def parse_extras(content: bytes) -> ExtrasRequest:
    """Raises BadRequest naming the field."""
    fields = read_fields(content)
    for name in ("gfpgan_visibility", "codeformer_visibility"):
        if fields.number(name, 0, 0, 1) > 0:
            raise BadRequest(
                f"{name}: this engine has no model that restores faces. Set it to 0.",
                "unsupported_field",
            )
    if not fields.raw.get("image"):
        raise BadRequest("extra-single-image needs a picture in image (base64).", "missing_image")
    image = decode_image(fields.raw["image"], "image")
    enlargement = _enlargement(fields)
    scale = enlargement.scale_of(image)
    if max(image.size) * scale > PICTURE_SIDE_MAX:
        raise BadRequest(
            f"The picture would be {int(image.width * scale)}x{int(image.height * scale)}. "
            f"Choose a size of at most {PICTURE_SIDE_MAX} pixels a side.",
            "bad_field",
        )
    return ExtrasRequest(
        image=image,
        enlargement=enlargement,
        first=_upscaler(fields, "upscaler_1"),
        second=_upscaler(fields, "upscaler_2"),
        visibility=fields.number("extras_upscaler_2_visibility", 0, 0, 1),
        warnings=tuple(
            f"{name} is not a field of this engine and was ignored."
            for name in fields.raw
            if name not in _USED
        ),
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


def _upscaler(fields: Fields, name: str) -> PictureUpscaler:
    return resolve_picture_upscaler(fields.text(name) or "None", name)


def enlarged(request: ExtrasRequest) -> tuple[Image.Image, str]:
    """The picture and its parameters. Without a first upscaler nothing happens to it."""
    image = request.image if request.image.mode in ("RGB", "RGBA") else request.image.convert("RGB")
    if request.first.filter is None:
        return image, ""
    enlargement = request.enlargement
    large = enlargement.apply(image, request.first)
    pairs: dict[str, object] = {}
    if enlargement.size is None:
        pairs["Postprocess upscale by"] = f"{enlargement.scale:g}"
    else:
        width, height = enlargement.size
        pairs["Postprocess upscale to"] = f"{width}x{height}"
        if enlargement.crop:
            pairs["Postprocess crop to"] = f"{width}x{height}"
    pairs["Postprocess upscaler"] = request.first.name
    if request.second.filter is not None and request.visibility > 0:
        second = enlargement.apply(image, request.second)
        large = Image.blend(large, second, request.visibility)
        pairs["Postprocess upscaler 2"] = request.second.name
    return large, parameters_line(pairs)
