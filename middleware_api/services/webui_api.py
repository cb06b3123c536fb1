"""The WebUI's own API in front of the queue: its requests become jobs, its options are kept."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from middleware_api.contract import PAGE_DEFAULT, CheckpointType, InferenceState, TaskType
from middleware_api.errors import Conflict, NotFound, TooLarge
from middleware_api.ports import Records
from middleware_api.records import InferenceJob
from middleware_api.services.access import Principal
from middleware_api.services.inference import (
    InferenceRequest,
    InferenceService,
    JobProgress,
)
from middleware_api.services.job_files import JobFiles
from middleware_api.services.webui_models import WebUiModels
from middleware_api.weights_name import WeightsName

CHECKPOINT_OPTION = "sd_model_checkpoint"
CLIP_SKIP_OPTION = "CLIP_stop_at_last_layers"
_OWN_VAE = ("", "None", "Automatic")


@dataclass(frozen=True)
class PictureRequest:
    """txt2img or img2img as asked; `body` is the whole of it.

    The other fields are what it says of weights: in `prompts` networks and embeddings may be named,
    `checkpoint` and `clip_skip` are None where the caller's options stand, `further_checkpoints`
    are the refiner's and the second pass's.
    """

    task_type: TaskType
    body: dict[str, object]
    settings: dict[str, object]
    prompts: tuple[str, ...]
    endpoint_name: str | None = None
    checkpoint: str | None = None
    clip_skip: int | None = None
    further_checkpoints: tuple[str, ...] = ()
    vae: str | None = None
    controlnet_models: tuple[str, ...] = ()
    upscalers: tuple[str, ...] = ()


@dataclass(frozen=True)
class ExtrasRequest:
    """Pictures to enlarge; `upscalers` are those that are models."""

    task_type: TaskType
    body: dict[str, object]
    endpoint_name: str | None
    upscalers: tuple[str, ...]


@dataclass(frozen=True)
class Options:
    """What a caller has set; `checkpoint` is None when nothing was, and the newest is taken."""

    checkpoint: str | None
    clip_skip: int


@dataclass(frozen=True)
class Running:
    """The caller's latest job that is not finished; `interrupted` once it was asked to stop."""

    job: InferenceJob
    progress: JobProgress
    interrupted: bool
    picture: bytes | None


@dataclass(frozen=True)
class Finished:
    """What a job came to. `info` is a JSON document in a text."""

    pictures: list[bytes]
    parameters: dict[str, object]
    info: str


class WebUiService:
    """What the routes under `/sdapi/v1` do."""

    def __init__(
        self,
        records: Records,
        inference_service: InferenceService,
        job_files: JobFiles,
        models: WebUiModels,
    ) -> None:
        self.models = models
        self._records = records
        self._inference = inference_service
        self._files = job_files

    def submit(
        self, caller: Principal, request: PictureRequest, idempotency_key: str | None
    ) -> InferenceJob:
        """Queue a request for pictures with the caller's options and all weights that it names.

        Raises NotFound when there is no such checkpoint or none at all, and what
        `InferenceService.submit` raises.
        """
        options = self.options(caller)
        checkpoint = self._checkpoint(request.checkpoint or options.checkpoint)
        settings = dict(request.settings)
        if request.clip_skip is None and options.clip_skip > 1:
            settings[CLIP_SKIP_OPTION] = options.clip_skip
        body = {**request.body, "override_settings": settings}
        return self._inference.submit(
            caller,
            InferenceRequest(
                task_type=request.task_type,
                models=self._weights(request, checkpoint),
                endpoint_name=request.endpoint_name,
                body=body,
                asked={"task_type": request.task_type.value, **request.body},
            ),
            idempotency_key,
        )

    def submit_extras(
        self, caller: Principal, request: ExtrasRequest, idempotency_key: str | None
    ) -> InferenceJob:
        """Queue the enlarging of pictures, which needs no checkpoint.

        Raises NotFound for an upscaler that is not here.
        """
        kind = CheckpointType.ESRGAN
        names = [self.models.find(kind, wording).name for wording in request.upscalers]
        return self._inference.submit(
            caller,
            InferenceRequest(
                task_type=request.task_type,
                models={kind: [*dict.fromkeys(names)]} if names else {},
                endpoint_name=request.endpoint_name,
                body=request.body,
            ),
            idempotency_key,
        )

    def submit_interrogation(
        self,
        caller: Principal,
        body: dict[str, object],
        endpoint_name: str | None,
        idempotency_key: str | None,
    ) -> InferenceJob:
        """Queue the describing of a picture, with the model for tags that became Active last.

        Without one it is the endpoint's engine that knows whether it can do without.
        """
        kind = CheckpointType.DEEPDANBOORU
        newest = self.models.newest(kind)
        models = {} if newest is None else {kind: [newest.name]}
        request = InferenceRequest(TaskType.INTERROGATE, models, endpoint_name, body)
        return self._inference.submit(caller, request, idempotency_key)

    def finished(self, job: InferenceJob, most_bytes: int | None) -> Finished:
        """What a job has come to, with the pictures made before it was interrupted.

        Raises Conflict for a job that has failed, TooLarge when its pictures have more than
        `most_bytes`.
        """
        if job.state is InferenceState.FAILED:
            some = " Pictures that it made before are kept" if job.image_names else ""
            where = f"{some}: {_where(job)}." if some else ""
            raise Conflict(f"Job '{job.id}' has failed. {job.error}{where}", "job_failed")
        if most_bytes is not None and self._files.pictures_size(job) > most_bytes:
            raise TooLarge(
                f"The pictures of job '{job.id}' are larger than an answer may be here. They are "
                f"kept: {_where(job)}.",
                "answer_too_large",
            )
        made = self._files.made(job)
        return Finished(self._files.pictures(job), made.parameters, made.info)

    def running(self, caller: Principal, with_picture: bool) -> Running | None:
        """The caller's latest job that waits or runs; None when there is none."""
        jobs = self._inference.running(caller, 1)
        if not jobs:
            return None
        job = jobs[0]
        progress = self._inference.progress(job)
        return Running(
            job,
            progress,
            self._files.is_cancelling(job),
            self._files.preview(job) if with_picture and progress.step else None,
        )

    def interrupt(self, caller: Principal) -> None:
        """Stop the caller's jobs that wait or run, the hundred latest at once."""
        for job in self._inference.running(caller, PAGE_DEFAULT):
            self._inference.cancel(job)

    def options(self, caller: Principal) -> Options:
        """What the caller has set, or what stands for everybody."""
        clip_skip = self._records.lookup(_option_key(caller, CLIP_SKIP_OPTION))
        return Options(
            checkpoint=self._records.lookup(_option_key(caller, CHECKPOINT_OPTION)),
            clip_skip=int(clip_skip or 1),
        )

    def set_options(self, caller: Principal, checkpoint: str | None, clip_skip: int | None) -> None:
        """Keep them for the caller's requests from now on; None leaves one as it is.

        Raises NotFound for a checkpoint that is not here.
        """
        if checkpoint is not None:
            name = self.models.find(CheckpointType.STABLE_DIFFUSION, checkpoint).name
            self._records.bind(_option_key(caller, CHECKPOINT_OPTION), name)
        if clip_skip is not None:
            self._records.bind(_option_key(caller, CLIP_SKIP_OPTION), str(clip_skip))

    def shown_checkpoint(self, options: Options) -> WeightsName | None:
        """The checkpoint that requests take which name none; None when there is none (any more)."""
        with suppress(NotFound):
            return self._checkpoint(options.checkpoint)
        return None

    def _checkpoint(self, wording: str | None) -> WeightsName:
        kind = CheckpointType.STABLE_DIFFUSION
        if wording is not None:
            return self.models.find(kind, wording)
        newest = self.models.newest(kind)
        if newest is None:
            raise NotFound(
                "There is no Active Stable-diffusion checkpoint yet. Upload one first.",
                "checkpoint_not_found",
            )
        return newest

    def _weights(
        self, request: PictureRequest, checkpoint: WeightsName
    ) -> dict[CheckpointType, list[str]]:
        """The checkpoint, and whatever else the request names and is here.

        Raises NotFound for a ControlNet that is not: without it there is no picture.
        """
        models = self.models.mentioned(request.prompts)
        named = [(CheckpointType.STABLE_DIFFUSION, name) for name in request.further_checkpoints]
        named += [(CheckpointType.ESRGAN, name) for name in request.upscalers]
        if request.vae is not None and request.vae not in _OWN_VAE:
            named.append((CheckpointType.VAE, request.vae))
        models[CheckpointType.STABLE_DIFFUSION] = [checkpoint.name]
        for kind, wording in named:
            with suppress(NotFound):  # the engine warns of what it does not get
                name = self.models.find(kind, wording).name
                if name not in models.setdefault(kind, []):
                    models[kind].append(name)
        kind = CheckpointType.CONTROLNET
        nets = [self.models.find(kind, wording).name for wording in request.controlnet_models]
        return models | ({kind: list(dict.fromkeys(nets))} if nets else {})


def _where(job: InferenceJob) -> str:
    return f"GET /inference/get-inference-job-image-output?jobID={job.id}"


def _option_key(caller: Principal, option: str) -> str:
    return f"webui-option/{caller.key_name}/{option}"
