"""Bodies on the wire: what is accepted, and how records are shown.

The contract's odd names (`InferenceJobId`, `taskType`, `s3PresignUrl`) live here and in
`contract` alone.
"""

from __future__ import annotations

import re
from datetime import datetime, timezone
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StrictBool,
    StrictInt,
    Tag,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)

from middleware_api.contract import (
    BATCH_SIZE_MAX,
    CFG_SCALE_MAX,
    DATASET_FILES_MAX,
    INSTANCE_COUNT_MAX,
    N_ITER_MAX,
    NAME_MAX_BYTES,
    NAME_SCHEMA_PATTERN,
    PARTS_MAX,
    PROMPT_MAX_BYTES,
    SAFETENSORS,
    SAMPLING_TASKS,
    SIZE_MAX,
    SIZE_MIN,
    STABLE_DIFFUSION_MAX,
    STEPS_MAX,
    SUBMITTABLE_TASKS,
    TENSORS_SCHEMA_PATTERN,
    WEIGHTS_SCHEMA_PATTERN,
    CheckpointState,
    CheckpointStep,
    CheckpointType,
    DatasetState,
    DeploymentState,
    EndpointState,
    EngineName,
    InferenceState,
    MergeMethod,
    ModelState,
    PartChecksum,
    Scope,
    TaskType,
    TrainState,
    is_valid_name,
    is_weights_name,
    weights_name,
)
from middleware_api.remote_files import UrlRefused, parse_url

# So many URLs of this length still fit into one record of a store that bounds them (400 KB).
IMPORT_FILES_MAX = 20
URL_MAX_LENGTH = 4096

NAME_RULE = (
    "a name may have letters, digits, space and ._-()+[], no leading dot, no space at either "
    "end, at most 255 bytes"
)


def _name(value: str) -> str:
    if not is_valid_name(value):
        raise ValueError(NAME_RULE)
    return value


def _weights_name(value: str) -> str:
    if not is_weights_name(value):
        raise ValueError(
            "weights are .safetensors, .ckpt, .pt, .pth or .bin files; unpack an archive, and "
            "upload the weights in it"
        )
    return weights_name(value)


def _tensors_name(value: str) -> str:
    if not value.endswith(SAFETENSORS):
        raise ValueError(f"the file is one of tensors: its name ends in {SAFETENSORS}")
    return value


def _first_alternative(value: object) -> object:
    """The source's examples send `"a | b | c"` as it stands: it means the first."""
    return value.split("|")[0].strip() if isinstance(value, str) else value


def _is_none(value: object) -> bool:
    return value is None


def _prompt(value: str) -> str:
    if len(value.encode(errors="surrogatepass")) > PROMPT_MAX_BYTES:
        raise ValueError(f"a prompt may have at most {PROMPT_MAX_BYTES // 1024} KiB")
    return value


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"it is no regular expression: {error}") from error
    return value


def _none_if_unset(value: object) -> object:
    """The WebUI's forms say "" and "None" where nothing is chosen."""
    return None if value in ("", "None") else value


def _submittable(value: TaskType) -> TaskType:
    if value not in SUBMITTABLE_TASKS:
        raise ValueError(f"{value.value} has a route of its own: POST /inference/run-model-merge")
    return value


def _source_url(value: str) -> str:
    try:
        parse_url(value)
    except UrlRefused as refusal:
        raise ValueError(refusal.message) from refusal
    return value


def _fit_the_task(
    models: dict[CheckpointType, list[str]], info: ValidationInfo
) -> dict[CheckpointType, list[str]]:
    count = len(models.get(CheckpointType.STABLE_DIFFUSION, []))
    least = 1 if info.data.get("task_type") in SAMPLING_TASKS else 0
    if not least <= count <= STABLE_DIFFUSION_MAX:
        raise ValueError(
            f"must name the Stable-diffusion checkpoint to sample with, and at most "
            f"{STABLE_DIFFUSION_MAX - 1} more that the request itself names, not {count}"
        )
    return models


# The schema that the document shows says the same but for the bytes, which JSON Schema cannot.
_NAME_SCHEMA = {"type": "string", "pattern": NAME_SCHEMA_PATTERN, "maxLength": NAME_MAX_BYTES}
Name = Annotated[str, AfterValidator(_name), WithJsonSchema(_NAME_SCHEMA)]
_WEIGHTS_SCHEMA = {**_NAME_SCHEMA, "pattern": WEIGHTS_SCHEMA_PATTERN}
_TENSORS_SCHEMA = {**_NAME_SCHEMA, "pattern": TENSORS_SCHEMA_PATTERN}
WeightsName = Annotated[Name, AfterValidator(_weights_name), WithJsonSchema(_WEIGHTS_SCHEMA)]
TensorsName = Annotated[Name, AfterValidator(_tensors_name), WithJsonSchema(_TENSORS_SCHEMA)]
NameOrNone = Annotated[Name | None, BeforeValidator(_none_if_unset)]
Prompt = Annotated[str, AfterValidator(_prompt)]
SourceUrl = Annotated[
    str,
    Field(max_length=URL_MAX_LENGTH),
    AfterValidator(_source_url),
    WithJsonSchema({"type": "string", "pattern": "^https?://[^/]", "maxLength": URL_MAX_LENGTH}),
]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Models = Annotated[
    dict[CheckpointType, list[Name]],
    AfterValidator(_fit_the_task),
    WithJsonSchema(
        {
            "type": "object",
            "description": "Names of Active checkpoints by type. txt2img and img2img sample with "
            "the first Stable-diffusion one; more are those that refiner_checkpoint and "
            "hr_checkpoint_name name.",
            "properties": {
                kind.value: {"type": "array", "items": _NAME_SCHEMA}
                | (
                    {"maxItems": STABLE_DIFFUSION_MAX}
                    if kind is CheckpointType.STABLE_DIFFUSION
                    else {}
                )
                for kind in CheckpointType
            },
            "additionalProperties": False,
            "examples": [{"Stable-diffusion": ["v1-5-pruned-emaonly.safetensors"]}],
        }
    ),
]

# Numbers that the source writes as strings.
Count = Annotated[
    int,
    Field(ge=1, le=INSTANCE_COUNT_MAX),
    BeforeValidator(_first_alternative),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": INSTANCE_COUNT_MAX},
                {"type": "string", "pattern": f"^[1-{INSTANCE_COUNT_MAX}]$"},
            ]
        }
    ),
]


InstanceType = Annotated[
    str,
    Field(pattern=r"^(local|ml\.[a-z0-9]+\.[a-z0-9]+)$", max_length=64),
    BeforeValidator(_first_alternative),
]
# Scheme, host and port, and a folder when it is behind another server; no credentials, no query.
WebUiUrl = Annotated[
    str,
    Field(
        pattern=r"^https?://[A-Za-z0-9.\-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~/\-]*)?$", max_length=500
    ),
]
SubmittableTask = Annotated[
    TaskType,
    AfterValidator(_submittable),
    WithJsonSchema({"type": "string", "enum": [task.value for task in SUBMITTABLE_TASKS]}),
]
Kind = Annotated[CheckpointType, BeforeValidator(_first_alternative)]


class GenerationFields(BaseModel):
    """The WebUI API's fields. Only those with bounds are named; the rest is the engine's."""

    model_config = ConfigDict(extra="allow")

    sagemaker_endpoint_name: Name | None = None
    prompt: Prompt | list[Prompt] = ""
    negative_prompt: Prompt | list[Prompt] | None = ""
    width: int | None = Field(None, ge=SIZE_MIN, le=SIZE_MAX)
    height: int | None = Field(None, ge=SIZE_MIN, le=SIZE_MAX)
    steps: int | None = Field(None, ge=1, le=STEPS_MAX)
    batch_size: int | None = Field(None, ge=1, le=BATCH_SIZE_MAX)
    n_iter: int | None = Field(None, ge=1, le=N_ITER_MAX)
    cfg_scale: float | None = Field(None, ge=0, le=CFG_SCALE_MAX)
    denoising_strength: float | None = Field(None, ge=0, le=1)


class InferenceBody(GenerationFields):
    """A job: what to do, with which checkpoints, and the WebUI API's fields."""

    task_type: SubmittableTask
    models: Models
    sagemaker_endpoint: Name | None = Field(None, description="Alias of sagemaker_endpoint_name")
    upload_params: Literal[False] | None = None


class UploadParamsBody(BaseModel):
    """A job whose body is too large for the gateway and follows by PUT."""

    model_config = ConfigDict(extra="forbid")

    upload_params: Literal[True]
    task_type: SubmittableTask
    models: Models
    sagemaker_endpoint_name: Name | None = None
    sagemaker_endpoint: Name | None = None


class EndpointBody(BaseModel):
    """A new endpoint. `endpoint_name` is made up when it is absent."""

    model_config = ConfigDict(extra="forbid")

    instance_type: InstanceType
    initial_instance_count: Count = 1
    endpoint_name: Name | None = None
    autoscaling_enabled: bool = False
    min_instance_count: int = Field(0, ge=0, le=INSTANCE_COUNT_MAX)
    max_instance_count: int | None = Field(None, ge=1, le=INSTANCE_COUNT_MAX)
    engine: EngineName = EngineName.DIFFUSERS
    webui_url: WebUiUrl | None = Field(
        None, description="Where the WebUI of the engine webui is; on one machine only"
    )

    @model_validator(mode="after")
    def _url_goes_with_its_engine(self) -> EndpointBody:
        if self.webui_url is not None and self.engine is not EngineName.WEBUI:
            raise ValueError("webui_url goes with engine: webui")
        return self


class DeleteEndpointsBody(BaseModel):
    """Endpoints to delete, by name."""

    model_config = ConfigDict(extra="forbid")

    delete_endpoint_list: list[str] = Field(min_length=1, max_length=100)


def _has(key: str, there: str, absent: str) -> Discriminator:
    """Chooses between two bodies of one route by a key, so that errors speak of one of them."""

    def choose(body: object) -> str:
        given = body.get(key) if isinstance(body, dict) else getattr(body, key, None)
        return there if given else absent

    return Discriminator(choose)


# Parts of an error's place that come from choosing a body, not from the body itself.
UNION_TAGS = frozenset({"submit", "prepare", "deploy", "delete", "run", "train"})

InferenceOrUpload = Annotated[
    Annotated[InferenceBody, Tag("submit")] | Annotated[UploadParamsBody, Tag("prepare")],
    _has("upload_params", "prepare", "submit"),
]
DeployOrDelete = Annotated[
    Annotated[EndpointBody, Tag("deploy")] | Annotated[DeleteEndpointsBody, Tag("delete")],
    _has("delete_endpoint_list", "delete", "deploy"),
]


class CheckpointFileBody(BaseModel):
    """A weights file to upload; `size` in bytes."""

    filename: Name
    parts_number: int = Field(1, ge=1, le=PARTS_MAX)
    size: int | None = Field(None, ge=1, le=5 * 1024**4)
    sha256: Sha256 | None = None


class CheckpointWeightsBody(CheckpointFileBody):
    """A checkpoint's file: .safetensors, or .ckpt, .pt, .pth or .bin, which are converted."""

    filename: WeightsName


class _CheckpointParams(BaseModel):
    params: dict[str, Any] = Field(
        {}, description="Your own words; keep_original: true keeps files that are converted"
    )

    @property
    def keep_original(self) -> bool:
        return self.params.get("keep_original") is True


class CheckpointBody(_CheckpointParams):
    """A new checkpoint: one weights file, or several that belong together."""

    checkpoint_type: CheckpointType
    filenames: list[CheckpointWeightsBody] = Field(min_length=1, max_length=100)


class ImportBody(_CheckpointParams):
    """Weights files for the server to fetch; several are the files of one checkpoint."""

    checkpointType: Kind
    modelUrl: list[SourceUrl] = Field(min_length=1, max_length=IMPORT_FILES_MAX)


class PartTagBody(BaseModel):
    """What the store answered for a part."""

    PartNumber: int = Field(ge=1, le=PARTS_MAX)
    ETag: str = Field(min_length=1, max_length=200)


Tags = dict[str, Annotated[list[PartTagBody], Field(max_length=PARTS_MAX)]]


class CheckpointStateBody(BaseModel):
    """What becomes of a checkpoint; the parts' tags by file name, with `Active` alone.

    With them may go a file's `sha256` that was not known yet when the upload began.
    """

    checkpoint_id: str
    status: Literal["Active", "Disabled", "Fail"]
    multi_parts_tags: Tags = {}
    sha256: dict[str, Sha256] = Field({}, description="By file name")


class CheckpointRenameBody(BaseModel):
    """Another name for a file of a checkpoint; `filename` is the one it has now, and can be left
    out where it has but one."""

    checkpoint_id: str
    filename: str = ""
    new_name: TensorsName


class PrefetchBody(BaseModel):
    """Where a checkpoint is to be loaded; without a name where the next job would go."""

    endpoint_name: NameOrNone = None


class ModelBody(BaseModel):
    """A new model, of files that will be uploaded or of an Active checkpoint."""

    model_type: Kind
    name: Name
    filenames: list[CheckpointFileBody] = Field([], max_length=100)
    checkpoint_id: str = Field("", description="Instead of filenames: an Active checkpoint")
    params: dict[str, Any] = {}

    @model_validator(mode="after")
    def _one_source(self) -> ModelBody:
        if bool(self.filenames) == bool(self.checkpoint_id):
            raise ValueError("name either the files to upload (filenames) or a checkpoint_id")
        return self


class ModelStateBody(BaseModel):
    """`Creating` completes the upload and makes the model; `Fail` gives it up."""

    model_id: str
    status: Annotated[Literal["Creating", "Fail"], BeforeValidator(_first_alternative)]
    multi_parts_tags: Tags = {}


Location = Annotated[str, Field(pattern="^(s3://[^/]*/dataset/[^/]*/?)?$")]
Locations = Annotated[list[Location], Field(max_length=100)]


class TrainingParams(BaseModel):
    """Where to train, and on which data sets (`s3://<bucket>/dataset/<name>`)."""

    model_config = ConfigDict(extra="allow")

    data_tar_list: Locations = []
    class_data_tar_list: Locations = []
    training_instance_type: InstanceType | None = None


class Concept(BaseModel):
    """One thing to learn; the two folders may be data sets (`s3://<bucket>/dataset/<name>`)."""

    model_config = ConfigDict(extra="allow")

    instance_data_dir: str = ""
    class_data_dir: str = ""


class ConfigParams(BaseModel):
    """The training program's own settings; those that are not named here are handed on too."""

    model_config = ConfigDict(extra="allow")

    concepts_list: Annotated[list[Concept], Field(max_length=100)] = []
    num_train_epochs: Annotated[StrictInt, Field(ge=1, le=1_000_000)] | None = None
    use_lora: StrictBool | None = None


class TrainParams(BaseModel):
    """What a training job is told."""

    model_config = ConfigDict(extra="allow")

    training_params: TrainingParams = TrainingParams()
    config_params: ConfigParams = ConfigParams()


class TrainBody(BaseModel):
    """A new training job of a model."""

    train_type: Kind
    model_id: str
    params: TrainParams


class TrainStateBody(BaseModel):
    """Start a training job, or stop it."""

    train_job_id: str
    status: Annotated[Literal["Training", "Stopped"], BeforeValidator(_first_alternative)]


class RunBody(BaseModel):
    """Nothing is needed to run a prepared inference job: its body was uploaded."""

    model_config = ConfigDict(extra="allow")


RunOrTrain = Annotated[
    Annotated[RunBody, Tag("run")] | Annotated[TrainBody, Tag("train")],
    _has("train_type", "train", "run"),
]


class DatasetFileBody(BaseModel):
    """A file of a new data set: `filename` is the caller's own path, `name` what is stored."""

    filename: str = Field(max_length=4096)
    name: Name
    type: str = Field("", max_length=100)


class DatasetBody(BaseModel):
    """A new data set."""

    dataset_name: Name
    content: list[DatasetFileBody] = Field(min_length=1, max_length=DATASET_FILES_MAX)
    params: dict[str, Any] = {}


class DatasetFilesBody(BaseModel):
    """Files of a data set to write: ones that it has, or further ones."""

    content: list[DatasetFileBody] = Field(min_length=1, max_length=DATASET_FILES_MAX)


class DatasetStateBody(BaseModel):
    """Enable a data set, or disable it."""

    dataset_name: Name
    status: Annotated[Literal["Enabled", "Disabled"], BeforeValidator(_first_alternative)]


class MergeBody(BaseModel):
    """The WebUI's checkpoint merger.

    "Weighted sum" needs a secondary model, "Add difference" a tertiary one too.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    primary_model_name: Name
    secondary_model_name: NameOrNone = None
    tertiary_model_name: NameOrNone = None
    interp_method: MergeMethod = MergeMethod.WEIGHTED_SUM
    multiplier: float = Field(0.3, ge=0, le=1)
    save_as_half: bool = False
    custom_name: NameOrNone = None
    bake_in_vae: NameOrNone = None
    discard_weights: Annotated[str, Field(max_length=1000), AfterValidator(_pattern)] = ""

    @model_validator(mode="after")
    def _models_fit_the_method(self) -> MergeBody:
        method = self.interp_method
        if method is not MergeMethod.NO_INTERPOLATION and self.secondary_model_name is None:
            raise ValueError(f"{method.value} needs a secondary_model_name")
        if method is MergeMethod.ADD_DIFFERENCE and self.tertiary_model_name is None:
            raise ValueError("Add difference needs a tertiary_model_name")
        return self


class Answer(BaseModel):
    """What is sent back. Made ready at its first use: a cold start waits for what its request
    needs, not for all of them. What is read cannot wait so: FastAPI warns of its names then.
    """

    model_config = ConfigDict(defer_build=True)


class MessageAnswer(Answer):
    """A sentence."""

    message: str


class ErrorAnswer(Answer):
    """Every error but 422."""

    statusCode: int
    error: str
    code: str
    request_id: str


class InferenceJobAnswer(Answer):
    """An inference job; `progress` is 0..1, `eta_seconds` an estimate.

    `run_seconds` is the time on an instance, null before one has begun it; `estimated_cost` is that
    time in US dollars, null when the instance's price is not known.
    """

    inference_info_name: str
    startTime: str
    taskType: TaskType
    completeTime: str | None
    InferenceJobId: str
    status: InferenceState
    sagemakerRaw: str
    image_names: list[str]
    endpoint_name: str
    progress: float
    queue_position: int | None
    eta_seconds: float | None
    preview_url: str | None
    phase: str
    error: str
    instance_type: str
    run_seconds: float | None
    estimated_cost: float | None
    checkpoint_names: list[str]


class SubmittedAnswer(Answer):
    """A submitted job; the URL is there for one that waits for its body."""

    inference_id: str
    status: InferenceState
    endpoint_name: str
    output_path: str
    api_params_s3_upload_url: str | None = Field(None, exclude_if=_is_none)


class MergeAnswer(Answer):
    """A merge that has begun; its job makes an Active checkpoint."""

    primary_model_name: str
    secondary_model_name: str | None
    tertiary_model_name: str | None
    inference_id: str


class EndpointAnswer(Answer):
    """An endpoint and the deployment that made it.

    `price_per_hour` is one instance's list price in US dollars, 0 for `local`; `cost_since_start`
    is the most that the endpoint can have cost. Both are null when the price is not known.
    """

    EndpointDeploymentJobId: str
    startTime: str
    endTime: str | None
    endpoint_name: str
    endpoint_status: EndpointState
    status: DeploymentState
    error: str
    instance_type: str
    initial_instance_count: int
    current_instance_count: int
    autoscaling_enabled: bool
    min_instance_count: int
    max_instance_count: int
    engine: EngineName
    webui_url: str | None
    price_per_hour: float | None
    cost_since_start: float | None


class CheckpointSummary(Answer):
    """A checkpoint in short.

    `sources` are the URLs that it is imported from, without their queries; `progress` is 0..1 of
    such an import, null for an upload or where a host does not tell its file's size. `step` is
    what an `Initial` one is at, else null; `message` says what it waits for once its bytes are all
    here. `can_retry`: its conversion failed, and `POST /checkpoint/{id}/retry` begins another one.
    """

    id: str
    type: CheckpointType
    s3_location: str
    status: CheckpointState
    params: dict[str, Any]
    sources: list[str]
    progress: float | None
    step: CheckpointStep | None
    message: str
    error: str
    can_retry: bool


class OriginalFile(Answer):
    """What a file of torch was before its conversion made it the file `became`; `size` in bytes
    and `sha256` are null and empty where they are not known."""

    name: str
    size: int | None
    sha256: str
    became: str


class ArrivedPart(Answer):
    """A part that need not be sent again."""

    PartNumber: int
    ETag: str
    size: int


class FileUploadAnswer(Answer):
    """An entry of `s3PresignUrl`: URLs for the parts that are missing, and those that are not.

    A part's PUT may carry a checksum in base64, which the store then checks: its CRC-32 (big
    endian) in `x-amz-checksum-crc32` where `checksum` is `crc32`, its MD5 in `Content-MD5` where
    it is `md5`.
    """

    filename: str
    upload_id: str
    bucket: str
    key: str
    part_size: int
    checksum: PartChecksum
    parts: list[dict[str, int | str]]
    arrived: list[ArrivedPart]


class CheckpointAnswer(Answer):
    """One checkpoint."""

    statusCode: int = 200
    checkpoint: CheckpointSummary


class CheckpointUploadAnswer(CheckpointAnswer):
    """A checkpoint, and where what is missing of it goes."""

    s3PresignUrl: list[FileUploadAnswer]


class PrefetchAnswer(Answer):
    """The job that loads the checkpoint; without one, "", `message` says why."""

    statusCode: int = 200
    endpoint_name: str
    inference_id: str
    message: str


class CheckpointListItem(Answer):
    """A checkpoint; `created` in epoch seconds, `size` in bytes of all its files.

    `sha256` has its file's at the place that `name` has its name, empty where it is not known; of
    a converted file it is the one of what was uploaded, which `originals` tell more of. The others
    are as in CheckpointSummary.
    """

    id: str
    s3Location: str
    type: CheckpointType
    status: CheckpointState
    name: list[str]
    created: float
    params: dict[str, Any]
    size: int
    sha256: list[str]
    sources: list[str]
    progress: float | None
    step: CheckpointStep | None
    message: str
    error: str
    can_retry: bool
    originals: list[OriginalFile]


class CheckpointListAnswer(Answer):
    """A page of checkpoints."""

    statusCode: int = 200
    checkpoints: list[CheckpointListItem]
    next_cursor: str | None


class ModelSummary(Answer):
    """A new model, and where its files go: nowhere when it is made of a checkpoint."""

    id: str
    status: ModelState
    s3_base: str
    model_type: CheckpointType
    params: dict[str, Any]
    s3PresignUrl: list[FileUploadAnswer]


class ModelUploadAnswer(Answer):
    """A new model."""

    statusCode: int = 200
    job: ModelSummary


class ModelJob(Answer):
    """The making of a model; `endpointName` is the compute side's name for it."""

    output_path: str
    id: str
    endpointName: str
    jobStatus: ModelState
    jobType: CheckpointType
    error: str


class ModelAnswer(Answer):
    """A model's state."""

    statusCode: int = 200
    job: ModelJob


class ModelListItem(Answer):
    """One model; `created` in epoch seconds, `progress` of its making 0..1."""

    id: str
    model_name: str
    created: float
    params: dict[str, Any]
    status: ModelState
    output_s3_location: str
    model_type: CheckpointType
    checkpoint_id: str
    progress: float
    error: str


class ModelListAnswer(Answer):
    """A page of models."""

    statusCode: int = 200
    models: list[ModelListItem]
    next_cursor: str | None


class TrainSummary(Answer):
    """A training job; `created` in epoch seconds."""

    id: str
    status: TrainState
    created: float
    trainType: CheckpointType
    params: dict[str, Any]
    input_location: str
    error: str


class TrainAnswer(Answer):
    """A training job's state."""

    statusCode: int = 200
    job: TrainSummary


class NewTrainAnswer(TrainAnswer):
    """A new training job; it has nothing to upload."""

    s3PresignUrl: None = None


class TrainListItem(Answer):
    """One training job; `progress` is 0..1, `checkpoint_id` the checkpoint that came of it.

    `created`, `started` and `completed` are in epoch seconds. `step_seconds` is what a step took
    when the program last told; `estimated_cost` in US dollars is that of the time until now or
    until its end, null where the machine's price is not known.
    """

    id: str
    modelName: str
    status: TrainState
    trainType: CheckpointType
    created: float
    started: float | None
    completed: float | None
    sagemakerTrainName: str
    instance_type: str
    progress: float
    loss: float | None
    steps: int
    step_seconds: float | None
    estimated_cost: float | None
    error: str
    checkpoint_id: str


class TrainSampleShown(Answer):
    """A sample picture that the training has made; `url` is presigned."""

    step: int
    prompt: str
    url: str


class TrainDetail(TrainListItem):
    """One training job from near. `phase` says what is done now, `losses` are `[step, loss]`,
    `warnings` name what of the request is not done, or otherwise. `checkpoint_type` and
    `checkpoint_names` are those of `checkpoint_id`."""

    model_id: str
    params: dict[str, Any]
    phase: str
    step: int
    learning_rate: float | None
    seconds_left: float | None
    losses: list[tuple[int, float]]
    samples: list[TrainSampleShown]
    warnings: list[str]
    checkpoint_type: CheckpointType | None
    checkpoint_names: list[str]


class TrainDetailAnswer(Answer):
    """A training job from near."""

    statusCode: int = 200
    job: TrainDetail


class TrainListAnswer(Answer):
    """A page of training jobs."""

    statusCode: int = 200
    trainJobs: list[TrainListItem]
    next_cursor: str | None


class DatasetFileUrl(Answer):
    """Where one file of a data set goes: PUT its bytes to `url`."""

    filename: str
    s3: str
    url: str


class DatasetUploadAnswer(Answer):
    """A new data set's URLs, in the order of its files."""

    statusCode: int = 200
    datasetName: str
    s3PresignUrl: list[DatasetFileUrl]


class DatasetAnswer(Answer):
    """A data set's state."""

    statusCode: int = 200
    datasetName: str
    status: DatasetState


class DatasetListItem(Answer):
    """One data set; `timestamp` is when it was made, in epoch seconds, `files` their number."""

    datasetName: str
    s3: str
    status: DatasetState
    timestamp: float
    files: int


class DatasetListAnswer(Answer):
    """A page of data sets."""

    statusCode: int = 200
    datasets: list[DatasetListItem]
    next_cursor: str | None


class DatasetData(Answer):
    """One file of a data set; `size` in bytes, null where it has not arrived."""

    key: str
    name: str
    type: str
    size: int | None
    preview_url: str
    dataStatus: DatasetState


class DatasetDataAnswer(Answer):
    """The files of a data set."""

    statusCode: int = 200
    dataset_name: str
    data: list[DatasetData]


class TokenBody(BaseModel):
    """A new token: whose it is, what it may do, and how many jobs a UTC day."""

    model_config = ConfigDict(extra="forbid")

    user: Name
    scopes: list[Scope] = Field(min_length=1, max_length=len(Scope))
    daily_jobs: int | None = Field(None, ge=1, le=1_000_000)


class TokenShown(Answer):
    """A token without its text; `created` and `revoked` in epoch seconds."""

    id: str
    user: str
    scopes: list[Scope]
    daily_jobs: int | None
    created: float
    revoked: float | None


class NewTokenAnswer(TokenShown):
    """A new token with its text."""

    statusCode: int = 200
    token: str


class TokenAnswer(Answer):
    """One token."""

    statusCode: int = 200
    token: TokenShown


class TokenListAnswer(Answer):
    """A page of tokens."""

    statusCode: int = 200
    tokens: list[TokenShown]
    next_cursor: str | None


def time_text(seconds: float) -> str:
    """`YYYY-MM-DD HH:MM:SS.ffffff` UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f")


def complete_time_text(seconds: float) -> str:
    """`YYYY-MM-DD-HH-MM-SS` UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d-%H-%M-%S")
