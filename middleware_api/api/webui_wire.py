"""Bodies of the WebUI's own API, as its version 1.10.1 has them.

The field names are the WebUI's. What has bounds in our own API has the same ones here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from middleware_api import catalogue
from middleware_api.api.wire import Answer, GenerationFields, Name, Prompt
from middleware_api.contract import EXTRAS_MAX, SIZE_MAX, TaskType
from middleware_api.services.webui_api import (
    CHECKPOINT_OPTION,
    CLIP_SKIP_OPTION,
    ExtrasRequest,
    PictureRequest,
)

CLIP_SKIP_MAX = 12
# Pixels of a side; the engine has the same bound for the picture that comes of it.
_ENLARGED_MAX = 4 * SIZE_MAX

# A name, or a title with its hash.
Wording = Annotated[str, Field(max_length=300)]


def _no_script(title: str) -> str:
    if title:
        raise ValueError(
            "scripts run inside a WebUI, not here: leave it empty, and send the requests that the "
            "script would make one by one"
        )
    return title


NoScript = Annotated[
    str, AfterValidator(_no_script), WithJsonSchema({"type": "string", "maxLength": 0})
]
ClipSkip = Annotated[int, Field(ge=1, le=CLIP_SKIP_MAX)]


class OverrideSettings(BaseModel):
    """Settings for this request alone. Those that are not named here are handed to the engine."""

    model_config = ConfigDict(extra="allow")

    sd_model_checkpoint: Wording | None = None
    sd_vae: Wording | None = None
    upscaler_for_img2img: Wording | None = None
    CLIP_stop_at_last_layers: ClipSkip | None = None


class AlwaysOnScript(BaseModel):
    """Arguments of a script that runs in every generation, as ControlNet."""

    model_config = ConfigDict(extra="allow")

    args: list[Any] = []


class Txt2ImgBody(GenerationFields):
    """The WebUI's fields for txt2img. Unknown ones are handed to the engine, which names in `info`
    those that it could not honour."""

    hr_prompt: Prompt | None = None
    hr_negative_prompt: Prompt | None = None
    refiner_checkpoint: Wording | None = None
    hr_checkpoint_name: Wording | None = None
    hr_upscaler: Wording | None = None
    override_settings: OverrideSettings | None = None
    alwayson_scripts: dict[str, AlwaysOnScript] | None = None
    script_name: NoScript | None = None
    send_images: bool = True


class Img2ImgBody(Txt2ImgBody):
    """The same, and the picture (base64) to start from; `mask` for inpainting."""

    init_images: list[str] = Field(min_length=1)
    mask: str | None = None


class ExtrasFields(BaseModel):
    """How to enlarge pictures. `override_settings` may have ESRGAN_tile and ESRGAN_tile_overlap."""

    model_config = ConfigDict(extra="allow")

    resize_mode: Literal[0, 1] = 0
    upscaling_resize: float = Field(2, gt=0, le=_ENLARGED_MAX)
    upscaling_resize_w: int = Field(512, ge=1, le=_ENLARGED_MAX)
    upscaling_resize_h: int = Field(512, ge=1, le=_ENLARGED_MAX)
    upscaling_crop: bool = True
    upscaler_1: Wording = "None"
    upscaler_2: Wording = "None"
    extras_upscaler_2_visibility: float = Field(0, ge=0, le=1)
    sagemaker_endpoint_name: Name | None = None


class ExtrasBody(ExtrasFields):
    """A picture (base64) to enlarge."""

    image: str = Field(min_length=1)


class ExtrasPicture(BaseModel):
    """A picture (base64) and its file's name."""

    data: str = Field(min_length=1)
    name: str = ""


class ExtrasBatchBody(ExtrasFields):
    """Pictures to enlarge."""

    imageList: list[ExtrasPicture] = Field(min_length=1, max_length=EXTRAS_MAX)


class ExtrasInfo(BaseModel):
    """What the engine's `info` has for ExtrasAnswer; a cancelled job's has nothing."""

    html_info: str = ""


class PictureInfoBody(BaseModel):
    """A PNG, JPEG or WebP picture in base64."""

    image: str = Field(min_length=1)


class InterrogateBody(BaseModel):
    """A picture to describe; `override_settings` may have those of the WebUI for DeepDanbooru."""

    model_config = ConfigDict(extra="allow")

    image: str = ""
    model: Wording = "clip"
    sagemaker_endpoint_name: Name | None = None


class OptionsBody(BaseModel):
    """The options that are kept for you. Others are refused: send them with each request, in
    `override_settings`."""

    # Whatever else is sent gets a refusal of ours, which says what to do instead.
    model_config = ConfigDict(extra="allow", json_schema_extra={"additionalProperties": False})

    sd_model_checkpoint: Wording | None = None
    CLIP_stop_at_last_layers: ClipSkip | None = None


class PicturesAnswer(Answer):
    """Pictures in base64; `info` is a JSON document in a text."""

    images: list[str]
    parameters: dict[str, Any]
    info: str


class ExtrasAnswer(Answer):
    """The picture in base64."""

    html_info: str
    image: str


class ExtrasBatchAnswer(Answer):
    """The pictures in base64, in the request's order."""

    html_info: str
    images: list[str]


class InterrogateInfo(BaseModel):
    """What the engine's `info` has of a description; a cancelled job's has none."""

    caption: str | None = None


class InterrogateAnswer(Answer):
    """What is on the picture; tags with commas between."""

    caption: str


class PictureInfoAnswer(Answer):
    """The text that the WebUI wrote into a picture, the other texts in it, and the first one's
    fields."""

    info: str
    items: dict[str, str]
    parameters: dict[str, str | int]


class ProgressState(Answer):
    """Where the job stands: `sampling_step` of `sampling_steps` over all its batches."""

    skipped: bool = False
    interrupted: bool = False
    stopping_generation: bool = False
    job: str = ""
    job_count: int = 0
    job_timestamp: str = "0"
    job_no: int = 0
    sampling_step: int = 0
    sampling_steps: int = 0


class ProgressAnswer(Answer):
    """0..1, an estimate in seconds, and a JPEG in base64."""

    progress: float
    eta_relative: float
    state: ProgressState
    current_image: str | None
    textinfo: str | None


class OptionsAnswer(Answer):
    """The options that have a meaning here."""

    sd_model_checkpoint: str
    sd_checkpoint_hash: str
    sd_vae: str
    CLIP_stop_at_last_layers: int
    samples_format: str


class WebUiCheckpoint(Answer):
    """An Active checkpoint; `filename` is its name, there is no path."""

    model_config = ConfigDict(protected_namespaces=())

    title: str
    model_name: str
    hash: str | None
    sha256: str | None
    filename: str
    config: str | None = None


class WebUiVae(Answer):
    """An Active VAE."""

    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    filename: str


class WebUiLora(Answer):
    """An Active LoRA: `<lora:name:1>` in a prompt."""

    name: str
    alias: str
    path: str
    metadata: dict[str, Any] = Field(default={})


class WebUiHypernetwork(Answer):
    """An Active hypernetwork: `<hypernet:name:1>` in a prompt."""

    name: str
    path: str


class WebUiEmbedding(Answer):
    """An Active embedding; what only its file knows is null."""

    step: int | None = None
    sd_checkpoint: str | None = None
    sd_checkpoint_name: str | None = None
    shape: int | None = None
    vectors: int | None = None


class EmbeddingsAnswer(Answer):
    """Embeddings by the word that names them in a prompt."""

    loaded: dict[str, WebUiEmbedding]
    skipped: dict[str, WebUiEmbedding] = Field(default={})


class WebUiSampler(Answer):
    """A sampler, the other names that it is known by, and what is usual with it."""

    name: str
    aliases: list[str]
    options: dict[str, str]


class WebUiScheduler(Answer):
    """A schedule of noise levels."""

    name: str
    label: str
    aliases: list[str] | None
    default_rho: float
    need_inner_model: bool


class WebUiUpscaler(Answer):
    """A way to enlarge a picture."""

    model_config = ConfigDict(protected_namespaces=())

    name: str
    model_name: str | None = None
    model_path: str | None = None
    model_url: str | None = None
    scale: float


class LatentUpscaleMode(Answer):
    """A way to enlarge a latent, for hires fix."""

    name: str


class ScriptsAnswer(Answer):
    """Titles of the WebUI's scripts: there are none here."""

    txt2img: list[str] = Field(default=[])
    img2img: list[str] = Field(default=[])


class MemoryAnswer(Answer):
    """What the WebUI says where it cannot tell."""

    ram: dict[str, str]
    cuda: dict[str, str]


def picture_request(task: TaskType, body: Txt2ImgBody) -> PictureRequest:
    """What the service has to know of a body."""
    settings = body.override_settings or OverrideSettings()
    prompts = (body.prompt, body.negative_prompt, body.hr_prompt, body.hr_negative_prompt)
    further = (body.refiner_checkpoint, body.hr_checkpoint_name)
    document = body.model_dump(mode="json", exclude_unset=True)
    return PictureRequest(
        task_type=task,
        body=document,
        settings=document.get("override_settings") or {},
        prompts=tuple(text for prompt in prompts for text in _texts(prompt)),
        endpoint_name=body.sagemaker_endpoint_name,
        checkpoint=settings.sd_model_checkpoint or None,
        clip_skip=settings.CLIP_stop_at_last_layers,
        further_checkpoints=tuple(name for name in further if name not in (None, "", "None")),
        vae=settings.sd_vae,
        controlnet_models=tuple(_controlnet_models(body.alwayson_scripts or {})),
        upscalers=tuple(_upscalers(task, body, settings)),
    )


def unknown_options(body: OptionsBody) -> list[str]:
    """The options of a body that are not kept here."""
    return sorted(set(body.model_extra or {}) - {CHECKPOINT_OPTION, CLIP_SKIP_OPTION})


def _texts(prompt: str | list[str] | None) -> list[str]:
    if prompt is None:
        return []
    return prompt if isinstance(prompt, list) else [prompt]


def extras_request(task: TaskType, body: ExtrasFields) -> ExtrasRequest:
    """What the service has to know of a body."""
    upscalers = [name for name in (body.upscaler_1, body.upscaler_2) if _is_model(name)]
    return ExtrasRequest(
        task, body.model_dump(mode="json"), body.sagemaker_endpoint_name, tuple(upscalers)
    )


def _upscalers(task: TaskType, body: Txt2ImgBody, settings: OverrideSettings) -> list[str]:
    """Names of those that are models and that the request uses."""
    if task is TaskType.IMG2IMG:
        asked = settings.upscaler_for_img2img
    else:
        asked = body.hr_upscaler if (body.model_extra or {}).get("enable_hr") else None
    return [asked] if asked and _is_model(asked) else []


def _is_model(upscaler: str) -> bool:
    always = (*catalogue.UPSCALERS, *catalogue.LATENT_UPSCALE_MODES, "")
    return upscaler.strip().casefold() not in [name.casefold() for name in always]


def _controlnet_models(scripts: dict[str, AlwaysOnScript]) -> list[str]:
    """The `model` of each of ControlNet's units that is on."""
    units = [
        unit
        for title, script in scripts.items()
        if title.lower() == "controlnet"
        for unit in script.args
    ]
    on = [unit for unit in units if isinstance(unit, dict) and unit.get("enabled", True)]
    names = [unit.get("model") for unit in on]
    return [name[:300] for name in names if isinstance(name, str) and name not in ("", "None")]
