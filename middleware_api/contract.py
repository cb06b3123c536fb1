"""Wire names, states and bounds: the one truth that client, API and container share.

Standard library only, Python 3.10: the WebUI's process imports this module too. The odd
spellings of the HTTP contract (`InferenceJobId`, `taskType`, ...) stay on this page and in
`middleware_api.api.wire`; everywhere else the field's own words are used.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Literal, TypedDict


class InferenceState(str, Enum):
    """Life of an inference job."""

    CREATED = "created"
    IN_PROGRESS = "inprogress"
    SUCCEEDED = "succeed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class DeploymentState(str, Enum):
    """Outcome of the deployment that made an endpoint (the wire's `status`)."""

    IN_PROGRESS = "inprogress"
    SUCCEEDED = "success"
    FAILED = "failed"
    DELETED = "deleted"


class EndpointState(str, Enum):
    """What the endpoint itself does now (SageMaker's words; the wire's `endpoint_status`)."""

    CREATING = "Creating"
    IN_SERVICE = "InService"
    UPDATING = "Updating"
    FAILED = "Failed"
    DELETING = "Deleting"
    DELETED = "Deleted"


class EngineName(str, Enum):
    """What an endpoint makes its pictures with: our own engine, or a WebUI without a window."""

    DIFFUSERS = "diffusers"
    WEBUI = "webui"


class CheckpointState(str, Enum):
    """Life of an uploaded weights file."""

    INITIAL = "Initial"
    ACTIVE = "Active"
    DISABLED = "Disabled"
    FAILED = "Fail"


class CheckpointStep(str, Enum):
    """What an `Initial` checkpoint is at, on its way to `Active`."""

    UPLOADING = "uploading"
    IMPORTING = "importing"
    CHECKING = "checking"
    CONVERTING = "converting"


class CheckpointType(str, Enum):
    """Kinds of weights files; the values are also the first part of their object keys."""

    STABLE_DIFFUSION = "Stable-diffusion"
    EMBEDDINGS = "embeddings"
    LORA = "Lora"
    HYPERNETWORKS = "hypernetworks"
    CONTROLNET = "ControlNet"
    VAE = "VAE"
    # Added by us to those of the API's original document; named as the WebUI's folder.
    ESRGAN = "ESRGAN"  # upscalers that are models, also of other families
    DEEPDANBOORU = "torch_deepdanbooru"  # describes pictures by tags


class ModelState(str, Enum):
    """Life of a Dreambooth working model."""

    INITIAL = "Initial"
    CREATING = "Creating"
    COMPLETE = "Complete"
    FAILED = "Fail"


class TrainState(str, Enum):
    """Life of a training job."""

    INITIAL = "Initial"
    TRAINING = "Training"
    COMPLETE = "Complete"
    FAILED = "Fail"
    STOPPED = "Stopped"


class DatasetState(str, Enum):
    """Life of a data set."""

    INITIAL = "Initialed"
    ENABLED = "Enabled"
    DISABLED = "Disabled"


class Scope(str, Enum):
    """What a token may do; `admin` includes the others."""

    INFER = "infer"
    MODELS = "models"
    TRAIN = "train"
    ADMIN = "admin"


class TaskType(str, Enum):
    """What an inference job does."""

    TXT2IMG = "txt2img"
    IMG2IMG = "img2img"
    EXTRA_SINGLE_IMAGE = "extra-single-image"
    EXTRA_BATCH_IMAGES = "extra-batch-images"
    INTERROGATE = "interrogate"
    MERGE = "merge"
    CONVERT = "convert"
    PREFETCH = "prefetch"


# These have routes of their own, or begin unasked.
_OTHER_TASKS = (TaskType.MERGE, TaskType.CONVERT, TaskType.PREFETCH)
SUBMITTABLE_TASKS = tuple(task for task in TaskType if task not in _OTHER_TASKS)
# Those that sample, and so need a Stable-diffusion checkpoint.
SAMPLING_TASKS = (TaskType.TXT2IMG, TaskType.IMG2IMG)


class MergeMethod(str, Enum):
    """How checkpoints are merged, in the WebUI's words."""

    WEIGHTED_SUM = "Weighted sum"
    ADD_DIFFERENCE = "Add difference"
    NO_INTERPOLATION = "No interpolation"


class MergedKind(str, Enum):
    """Which kind of model a merge has made; the WebUI adds the value to its file's name."""

    PLAIN = ""
    INPAINTING = ".inpainting"
    INSTRUCT_PIX2PIX = ".instruct-pix2pix"


# A write is conditional on the old state; what is not listed here is refused with 409.
INFERENCE_TRANSITIONS: dict[InferenceState, frozenset[InferenceState]] = {
    InferenceState.CREATED: frozenset(
        {InferenceState.IN_PROGRESS, InferenceState.FAILED, InferenceState.CANCELLED}
    ),
    InferenceState.IN_PROGRESS: frozenset(
        {InferenceState.SUCCEEDED, InferenceState.FAILED, InferenceState.CANCELLED}
    ),
    InferenceState.SUCCEEDED: frozenset(),
    InferenceState.FAILED: frozenset(),
    InferenceState.CANCELLED: frozenset(),
}
INFERENCE_FINAL = frozenset(s for s, after in INFERENCE_TRANSITIONS.items() if not after)

ENDPOINT_TRANSITIONS: dict[EndpointState, frozenset[EndpointState]] = {
    EndpointState.CREATING: frozenset(
        {EndpointState.IN_SERVICE, EndpointState.FAILED, EndpointState.DELETING}
    ),
    EndpointState.IN_SERVICE: frozenset(
        {EndpointState.UPDATING, EndpointState.FAILED, EndpointState.DELETING}
    ),
    EndpointState.UPDATING: frozenset(
        {EndpointState.IN_SERVICE, EndpointState.FAILED, EndpointState.DELETING}
    ),
    EndpointState.FAILED: frozenset({EndpointState.IN_SERVICE, EndpointState.DELETING}),
    EndpointState.DELETING: frozenset({EndpointState.DELETED}),
    EndpointState.DELETED: frozenset(),
}

CHECKPOINT_TRANSITIONS: dict[CheckpointState, frozenset[CheckpointState]] = {
    CheckpointState.INITIAL: frozenset({CheckpointState.ACTIVE, CheckpointState.FAILED}),
    CheckpointState.ACTIVE: frozenset({CheckpointState.DISABLED}),
    CheckpointState.DISABLED: frozenset({CheckpointState.ACTIVE}),
    # Only where the bytes are kept, for another try at what became of them.
    CheckpointState.FAILED: frozenset({CheckpointState.INITIAL}),
}

MODEL_TRANSITIONS: dict[ModelState, frozenset[ModelState]] = {
    ModelState.INITIAL: frozenset({ModelState.CREATING, ModelState.FAILED}),
    ModelState.CREATING: frozenset({ModelState.COMPLETE, ModelState.FAILED}),
    ModelState.COMPLETE: frozenset(),
    ModelState.FAILED: frozenset(),
}

TRAIN_TRANSITIONS: dict[TrainState, frozenset[TrainState]] = {
    TrainState.INITIAL: frozenset({TrainState.TRAINING, TrainState.FAILED, TrainState.STOPPED}),
    TrainState.TRAINING: frozenset({TrainState.COMPLETE, TrainState.FAILED, TrainState.STOPPED}),
    TrainState.COMPLETE: frozenset(),
    TrainState.FAILED: frozenset(),
    TrainState.STOPPED: frozenset(),
}

DATASET_TRANSITIONS: dict[DatasetState, frozenset[DatasetState]] = {
    DatasetState.INITIAL: frozenset({DatasetState.ENABLED, DatasetState.DISABLED}),
    DatasetState.ENABLED: frozenset({DatasetState.DISABLED}),
    DatasetState.DISABLED: frozenset({DatasetState.ENABLED}),
}

# Letters and digits of any script, so that an artist's own file names pass; no separator, no
# leading dot, no control character. The second check bounds the name as file systems do.
NAME_PATTERN = r"^(?!\.)[\w .\-()+\[\]]{1,255}$"
NAME_MAX_BYTES = 255
# The same, the spaces at either end included, for readers of the OpenAPI document.
NAME_SCHEMA_PATTERN = r"^[\w\-()+\[\]]([\w .\-()+\[\]]*[\w.\-()+\[\]])?$"
_NAME = re.compile(NAME_PATTERN)


def is_valid_name(name: str) -> bool:
    """Whether `name` may name a file, model, data set or endpoint."""
    return (
        _NAME.fullmatch(name) is not None
        and "\n" not in name
        and len(name.encode()) <= NAME_MAX_BYTES
        and name == name.strip()
    )


SAFETENSORS = ".safetensors"
# Files of torch are pickles, which can run programs: they are only ever converted.
PICKLED = (".ckpt", ".pt", ".pth", ".bin")
_ENDING = r"\.(safetensors|ckpt|pt|pth|bin)(\.tar)?$"
_WEIGHTS = re.compile(_ENDING, re.IGNORECASE)
# The same for readers of the OpenAPI document.
_BEFORE_ENDING = r"^[\w\-()+\[\]][\w .\-()+\[\]]*"
WEIGHTS_SCHEMA_PATTERN = rf"{_BEFORE_ENDING}{_ENDING}"
TENSORS_SCHEMA_PATTERN = rf"{_BEFORE_ENDING}\.safetensors$"


def is_weights_name(name: str) -> bool:
    """Whether a checkpoint's file may be named so."""
    return _WEIGHTS.search(name) is not None


def weights_name(name: str) -> str:
    """The name of a checkpoint's file; an old client's `.tar` behind it is none of it."""
    return name.removesuffix(".tar")


def is_pickled(name: str) -> bool:
    """Whether a file of that name has to be converted before it is a checkpoint's."""
    return name.lower().endswith(PICKLED)


# Bounds of one request; beyond them the API answers 422 (413 for the body).
SIZE_MIN, SIZE_MAX = 8, 4096
STEPS_MAX = 500
BATCH_SIZE_MAX = 16
N_ITER_MAX = 100
CFG_SCALE_MAX = 100
PROMPT_MAX_BYTES = 32 * 1024
BODY_MAX_BYTES = 6 * 1024 * 1024
INSTANCE_COUNT_MAX = 6
DATASET_FILES_MAX = 1000
CONTROL_UNITS_MAX = 10
EXTRAS_MAX = 100
# The one that samples, the refiner, and the one of the second pass (hires fix).
STABLE_DIFFUSION_MAX = 3

PAGE_DEFAULT, PAGE_MAX = 100, 1000

# Points of a training's loss curve.
TRAIN_LOSSES_MAX = 500

MIB = 1024 * 1024
PART_MIN_BYTES = 5 * MIB
PARTS_MAX = 10_000
UPLOAD_URL_SECONDS = 12 * 3600

TOKEN_HEADER = "x-api-key"
# The user of a shared host whom the token's owner acts for; no `/` and no `#`, so that the owner
# of a job and its keys can be told from any other's.
ON_BEHALF_HEADER = "X-On-Behalf-Of"
ON_BEHALF_PATTERN = r"^[A-Za-z0-9._@-]{1,64}$"
CURSOR_HEADER = "X-Next-Cursor"
IDEMPOTENCY_HEADER = "Idempotency-Key"
REQUEST_ID_HEADER = "X-Request-Id"


class UploadPartUrl(TypedDict):
    """One presigned part of a multipart upload."""

    PartNumber: int
    url: str


# What a part's PUT may carry for the store to check, each in base64: the CRC-32 (big endian) in the
# header x-amz-checksum-crc32, or the MD5 in Content-MD5.
PartChecksum = Literal["crc32", "md5"]


class FileUpload(TypedDict):
    """Where one file's bytes go: an entry of `s3PresignUrl` (rows 17, 20 and 20b)."""

    filename: str
    upload_id: str
    bucket: str
    key: str
    part_size: int
    checksum: PartChecksum
    parts: list[UploadPartUrl]


class PartTag(TypedDict):
    """What the store answered for one part (rows 18 and 21, `multi_parts_tags`)."""

    PartNumber: int
    ETag: str


class ContainerCheckpoint(TypedDict):
    """A weights file that a job needs, as the container is told of it."""

    type: str
    name: str
    key: str
    size: int
    sha256: str


class Invocation(TypedDict):
    """Body of the container's POST `/invocations`.

    `params_key` names the object that holds the caller's own request (the WebUI API's fields);
    pictures go under `output_prefix`.
    """

    job_id: str
    task_type: str
    params_key: str
    checkpoints: list[ContainerCheckpoint]
    output_prefix: str


class InvocationResult(TypedDict):
    """Answer of POST `/invocations`: `/sdapi/v1/txt2img`'s, its images as object keys.

    `info` is a JSON document in a string, as the WebUI's API answers it. `status` is `succeed`,
    or `cancelled` when a cancel marker stopped the sampler. `checkpoints` are those that a merge
    has made; what containers before merges answered has no such field.
    """

    job_id: str
    status: str
    images: list[str]
    parameters: dict[str, object]
    info: str
    checkpoints: list[ContainerCheckpoint]


class Progress(TypedDict):
    """Contents of a running job's progress object.

    `step` counts sampler steps over all batches of the job, `fraction` is 0..1, `phase` is a
    word or two for people ("loading checkpoint", "sampling", "saving"), `started_at` and
    `updated_at` are epoch seconds. `has_preview` tells whether the preview object exists.
    """

    step: int
    total_steps: int
    fraction: float
    phase: str
    started_at: float
    updated_at: float
    has_preview: bool


class Outcome(TypedDict):
    """Contents of a job's outcome object: how the container ended it.

    The last thing that a container writes for a job, so that the end is known even when the
    answer to its caller is lost. One of the two is None. `code` is the kind of failure, empty
    where there is none; older containers did not write it.
    """

    result: InvocationResult | None
    failure: str | None
    code: str


# The `code` of a failure that lies in the weights themselves: no other try will end otherwise.
WEIGHTS_REFUSED = "checkpoint_unreadable"


class MergeOrder(TypedDict):
    """The request of a merge, as its container reads it: the fields of the WebUI's merger.

    The names are those of the job's checkpoints, the VAE's too; None or empty where there is
    none. `file_stem` is what `merged_file_name` makes the result's name of.
    """

    primary_model_name: str
    secondary_model_name: str | None
    tertiary_model_name: str | None
    interp_method: str
    multiplier: float
    save_as_half: bool
    custom_name: str
    bake_in_vae: str | None
    discard_weights: str
    file_stem: str


class ModelOrder(TypedDict):
    """What the program that creates a Dreambooth working model is told.

    `sources` are the object keys of the weights to make it of; the model goes under the job's
    output prefix.
    """

    model_id: str
    type: str
    name: str
    sources: list[str]
    params: dict[str, object]


class TrainOrder(TypedDict):
    """What the training program is told, and all that it may read.

    `model_prefix` is where the working model lies, `datasets` are the prefixes of the pictures
    by the data sets' names. `params` are the caller's own words. The weights that come of it go
    under the job's output prefix as `*.safetensors`.
    """

    job_id: str
    type: str
    model_prefix: str
    datasets: dict[str, str]
    params: dict[str, object]


class TrainSample(TypedDict):
    """A sample picture that a training has made: after so many steps, under that object key."""

    step: int
    key: str
    prompt: str


class TrainSavedState(TypedDict):
    """What a training can go on from after a kill: after so many steps, under that object key."""

    step: int
    key: str


class TrainProgress(TypedDict):
    """Contents of `train_progress_key`: written by the program about once a second.

    `phase` is a word or two for people ("fetching pictures", "making class pictures",
    "preparing", "training", "sampling", "saving"), `fraction` is 0..1 over the whole job, `steps`
    is 0 until it is known. `loss` is a running mean and, with `learning_rate` and `seconds_left`,
    None until there is one. `losses` are `(step, loss)`, thinned to `TRAIN_LOSSES_MAX`. `warnings`
    name what of the request is not done, or otherwise; `updated_at` is in epoch seconds.
    """

    phase: str
    fraction: float
    step: int
    steps: int
    loss: float | None
    learning_rate: float | None
    seconds_left: float | None
    losses: list[tuple[int, float]]
    samples: list[TrainSample]
    checkpoints: list[TrainSavedState]
    warnings: list[str]
    updated_at: float


class TrainOutcome(TypedDict):
    """Contents of `train_outcome_key`: the last thing that a training program writes.

    `state` is a final `TrainState`'s value; the creation of a model ends Complete or Fail.
    `error` is one sentence, and empty unless the state is Fail; then, and where there is no
    outcome, the weights of the last saved state may lie under `trained_weights_key`. `weights` are
    the finished files, each with the type of checkpoint that it is (a LoRA's is not the job's);
    there are some for Stopped too, if a step was done, and none for a model. `warnings` are as in
    `TrainProgress`.
    """

    state: str
    error: str
    weights: list[ContainerCheckpoint]
    warnings: list[str]


# Object keys. One place, so that the API, the container and the AWS roles agree.


def checkpoint_key(kind: CheckpointType, checkpoint_id: str, file_name: str) -> str:
    """Object key of one file of a checkpoint."""
    return f"{kind.value}/checkpoint/{checkpoint_id}/{file_name}"


def is_in_checkpoint_folder(key: str) -> bool:
    """Whether an object lies where nothing but its checkpoint does."""
    return key.split("/")[1:2] == ["checkpoint"]


def merged_checkpoint_id(merge_job_id: str) -> str:
    """Id of the checkpoint that a merge makes."""
    return f"merge-{merge_job_id}"


def merged_file_name(stem: str, kind: MergedKind) -> str:
    """Name of the file that a merge makes."""
    return f"{stem}{kind.value}{SAFETENSORS}"


_CONVERSION = "convert-"


def conversion_id(checkpoint_id: str, attempt: int = 1) -> str:
    """Id of the job that converts a checkpoint's files, and of the folder that they go to: with
    merges' the only ones whose keys containers write. Each attempt has its own, so that a late
    word on one is none on the next."""
    return f"{_CONVERSION}{checkpoint_id}" + (f".{attempt}" if attempt > 1 else "")


def converted_checkpoint_id(job_id: str) -> str | None:
    """Whose files a job converts; None for any other job."""
    if not job_id.startswith(_CONVERSION):
        return None
    return job_id.removeprefix(_CONVERSION).partition(".")[0]


def converted_name(name: str) -> str:
    """Name of the file that a pickled one is converted to."""
    return f"{name.rpartition('.')[0]}{SAFETENSORS}"


def model_prefix(kind: CheckpointType, name: str, model_id: str) -> str:
    """Prefix of everything of a Dreambooth working model: `files/`, `input/` and `output/`."""
    return f"{kind.value}/model/{name}/{model_id}/"


def model_output_prefix(kind: CheckpointType, name: str, model_id: str) -> str:
    """Prefix of what the creation of a Dreambooth working model writes."""
    return f"{model_prefix(kind, name, model_id)}output/"


def model_file_key(kind: CheckpointType, name: str, model_id: str, file_name: str) -> str:
    """Object key of a file that was uploaded to make a model of."""
    return f"{model_prefix(kind, name, model_id)}files/{file_name}"


def train_prefix(kind: CheckpointType, model_name: str, job_id: str) -> str:
    """Prefix of a training job's `input/` and `output/`."""
    return f"{kind.value}/train/{model_name}/{job_id}/"


def order_key(input_prefix: str) -> str:
    """Object key of the `ModelOrder` or `TrainOrder` under an `input/`."""
    return f"{input_prefix}order.json"


def working_model_key(output_prefix: str) -> str:
    """Object key of the weights that training starts from, under a model's `output/`."""
    return f"{output_prefix}model{SAFETENSORS}"


def train_progress_key(output_prefix: str) -> str:
    """Object key of the `TrainProgress` under an `output/`, a model's or a training's."""
    return f"{output_prefix}progress.json"


def train_outcome_key(output_prefix: str) -> str:
    """Object key of the `TrainOutcome` under an `output/`, a model's or a training's."""
    return f"{output_prefix}outcome.json"


def trained_weights_key(output_prefix: str, stem: str) -> str:
    """Object key of finished weights; nothing else with this ending lies so high."""
    return f"{output_prefix}{stem}{SAFETENSORS}"


def train_sample_key(output_prefix: str, step: int, index: int) -> str:
    """Object key of the `index`-th sample picture after so many steps."""
    return f"{output_prefix}samples/{step:07d}-{index}.png"


def class_picture_prefix(output_prefix: str) -> str:
    """Prefix of the class pictures that a training has made, for itself to find when resumed."""
    return f"{output_prefix}classes/"


def train_state_prefix(output_prefix: str) -> str:
    """Prefix of the states that a training can go on from."""
    return f"{output_prefix}checkpoints/"


def dataset_prefix(dataset_name: str) -> str:
    """Prefix of a data set's files."""
    return f"dataset/{dataset_name}/"


# What a data set is read as: pictures, and beside each of them its caption.
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
CAPTION_ENDING = ".txt"

UPLOADS_PREFIX = "uploads/"


# The training program (`python -m middleware_api.container.train`) is told by its environment where
# the objects are (as a worker is: SDAWS_BUCKET or SDAWS_OBJECTS), and by SageMaker's own folders
# what to do: it reads TRAIN_ORDER_FILE, and writes a failure's reason to TRAIN_FAILURE_FILE; both
# under TRAIN_ROOT, or under the folder that TRAIN_ROOT_VARIABLE names. SIGTERM stops it: it
# finishes its step, keeps what it has, and exits with 0.
TRAIN_ROOT = "/opt/ml"
TRAIN_ROOT_VARIABLE = "SDAWS_TRAIN_ROOT"
TRAIN_OUTPUT_VARIABLE = "SDAWS_OUTPUT_PREFIX"
TRAIN_ORDER_FILE = "input/data/order/order.json"
TRAIN_FAILURE_FILE = "output/failure"
# What it prints for every step that it tells of, and what SageMaker reads in it.
TRAIN_METRICS = {
    "progress": r"progress=([0-9.]+)",
    "loss": r"loss=([0-9.eE+-]+)",
    "learning_rate": r"learning_rate=([0-9.eE+-]+)",
}


def params_key(task: TaskType, job_id: str) -> str:
    """Object key of the request that a job runs."""
    return f"{task.value}/infer_v2/{job_id}/api_param.json"


def output_prefix(job_id: str) -> str:
    """Prefix under which everything that a job writes is found."""
    return f"out/{job_id}/"


def invocation_key(job_id: str) -> str:
    """Object key of a job's `Invocation`, where the queue takes it from."""
    return f"{output_prefix(job_id)}invocation.json"


def image_key(job_id: str, index: int, extension: str = "png") -> str:
    """Object key of a job's n-th picture."""
    return f"{output_prefix(job_id)}result/image_{index}.{extension}"


def param_output_key(job_id: str) -> str:
    """Object key of what row 5 answers for a job."""
    return f"{output_prefix(job_id)}result/{job_id}_param.json"


def outcome_key(job_id: str) -> str:
    """Object key of a job's `Outcome`."""
    return f"{output_prefix(job_id)}outcome.json"


def progress_key(job_id: str) -> str:
    """Object key of a running job's `Progress`."""
    return f"{output_prefix(job_id)}progress.json"


def preview_key(job_id: str) -> str:
    """Object key of a running job's latest small JPEG preview."""
    return f"{output_prefix(job_id)}preview.jpg"


def cancel_key(job_id: str) -> str:
    """Object key whose existence asks the container to stop the job."""
    return f"{output_prefix(job_id)}cancel"
