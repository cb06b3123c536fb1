"""The WebUI's own API (`/sdapi/v1`) in front of the queue, so that its clients work unchanged."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from datetime import datetime, timezone

from anyio import to_thread
from fastapi import APIRouter, Request

from middleware_api import catalogue
from middleware_api.api.body import StrictRoute
from middleware_api.api.common import IdempotencyKey, JobCaller, errors, needs
from middleware_api.api.waiting import Gateway, ended
from middleware_api.api.webui_wire import (
    EmbeddingsAnswer,
    ExtrasAnswer,
    ExtrasBatchAnswer,
    ExtrasBatchBody,
    ExtrasBody,
    ExtrasFields,
    ExtrasInfo,
    Img2ImgBody,
    InterrogateAnswer,
    InterrogateBody,
    InterrogateInfo,
    LatentUpscaleMode,
    MemoryAnswer,
    OptionsAnswer,
    OptionsBody,
    PictureInfoAnswer,
    PictureInfoBody,
    PicturesAnswer,
    ProgressAnswer,
    ProgressState,
    ScriptsAnswer,
    Txt2ImgBody,
    WebUiCheckpoint,
    WebUiEmbedding,
    WebUiHypernetwork,
    WebUiLora,
    WebUiSampler,
    WebUiScheduler,
    WebUiUpscaler,
    WebUiVae,
    extras_request,
    picture_request,
    unknown_options,
)
from middleware_api.contract import CheckpointType, Scope, TaskType
from middleware_api.errors import Conflict, InvalidRequest, NotAvailable
from middleware_api.records import InferenceJob
from middleware_api.services.access import Principal
from middleware_api.services.inference import InferenceService
from middleware_api.services.picture_text import NoPicture, parse_parameters, read_texts
from middleware_api.services.webui_api import Finished, Running, WebUiService

# What a picture grows by as base64, and the rest of an answer with room to spare.
_ENCODED, _AROUND_BYTES = 4 / 3, 256 * 1024
_NOTHING_TO_TELL = "The server cannot tell: pictures are made on other machines."


def webui_router(
    service: WebUiService,
    inference: InferenceService,
    stopping: Callable[[], bool] | None,
    gateway: Gateway | None,
) -> APIRouter:
    """The routes over one service; `gateway` is None where none stands before the server."""
    router = APIRouter(route_class=StrictRoute, tags=["webui"], prefix="/sdapi/v1")
    most_bytes = None if gateway is None else int((gateway.answer_bytes - _AROUND_BYTES) / _ENCODED)
    waits = needs(Scope.INFER, 404, 409, 413, 429, 501, 503, 504)

    async def finished(caller: Principal, request: Request, job: InferenceJob) -> Finished:
        done = await ended(
            job,
            lambda: inference.get(caller, job.id),
            request.is_disconnected,
            stopping,
            gateway,
        )
        return await to_thread.run_sync(service.finished, done, most_bytes)

    async def pictures(
        caller: Principal,
        request: Request,
        task: TaskType,
        body: Txt2ImgBody,
        idempotency_key: str | None,
    ) -> PicturesAnswer:
        asked = picture_request(task, body)
        job = await to_thread.run_sync(service.submit, caller, asked, idempotency_key)
        result = await finished(caller, request, job)
        images = [_encoded(picture) for picture in result.pictures] if body.send_images else []
        return PicturesAnswer(images=images, parameters=result.parameters, info=result.info)

    async def enlarged(
        caller: Principal,
        request: Request,
        task: TaskType,
        body: ExtrasFields,
        idempotency_key: str | None,
    ) -> tuple[str, list[str]]:
        """What is said of the pictures, and they themselves, at least one."""
        asked = extras_request(task, body)
        job = await to_thread.run_sync(service.submit_extras, caller, asked, idempotency_key)
        result = await finished(caller, request, job)
        if not result.pictures:
            raise Conflict(f"Job '{job.id}' was cancelled before it made a picture.", "interrupted")
        info = ExtrasInfo.model_validate_json(result.info)
        return info.html_info, [_encoded(picture) for picture in result.pictures]

    @router.post("/txt2img", **waits)
    async def webui_txt2img(
        caller: JobCaller,
        request: Request,
        body: Txt2ImgBody,
        idempotency_key: IdempotencyKey = None,
    ) -> PicturesAnswer:
        """Pictures of a prompt; answers when they are made."""
        return await pictures(caller, request, TaskType.TXT2IMG, body, idempotency_key)

    @router.post("/img2img", **waits)
    async def webui_img2img(
        caller: JobCaller,
        request: Request,
        body: Img2ImgBody,
        idempotency_key: IdempotencyKey = None,
    ) -> PicturesAnswer:
        """Pictures of a picture and a prompt; answers when they are made."""
        return await pictures(caller, request, TaskType.IMG2IMG, body, idempotency_key)

    @router.post("/extra-single-image", **waits)
    async def webui_extra_single_image(
        caller: JobCaller,
        request: Request,
        body: ExtrasBody,
        idempotency_key: IdempotencyKey = None,
    ) -> ExtrasAnswer:
        """A picture, enlarged; answers when it is."""
        task = TaskType.EXTRA_SINGLE_IMAGE
        words, images = await enlarged(caller, request, task, body, idempotency_key)
        return ExtrasAnswer(html_info=words, image=images[0])

    @router.post("/extra-batch-images", **waits)
    async def webui_extra_batch_images(
        caller: JobCaller,
        request: Request,
        body: ExtrasBatchBody,
        idempotency_key: IdempotencyKey = None,
    ) -> ExtrasBatchAnswer:
        """Pictures, enlarged; answers when all are."""
        task = TaskType.EXTRA_BATCH_IMAGES
        words, images = await enlarged(caller, request, task, body, idempotency_key)
        return ExtrasBatchAnswer(html_info=words, images=images)

    @router.post("/interrogate", **waits)
    async def webui_interrogate(
        caller: JobCaller,
        request: Request,
        body: InterrogateBody,
        idempotency_key: IdempotencyKey = None,
    ) -> InterrogateAnswer:
        """What is on a picture; answers when it is found."""
        document = body.model_dump(mode="json", exclude_unset=True)
        endpoint_name = body.sagemaker_endpoint_name
        job = await to_thread.run_sync(
            service.submit_interrogation, caller, document, endpoint_name, idempotency_key
        )
        info = (await finished(caller, request, job)).info
        caption = InterrogateInfo.model_validate_json(info).caption
        if caption is None:
            raise Conflict(f"Job '{job.id}' was cancelled before it was done.", "interrupted")
        return InterrogateAnswer(caption=caption)

    @router.get("/progress", **needs(Scope.INFER))
    async def webui_progress(caller: JobCaller, skip_current_image: bool = False) -> ProgressAnswer:
        """How far your latest job is that has not ended."""
        running = await to_thread.run_sync(service.running, caller, not skip_current_image)
        return _progress(running)

    @router.post("/interrupt", **needs(Scope.INFER))
    async def webui_interrupt(caller: JobCaller) -> dict[str, str]:
        """Stop your jobs that wait or run; pictures that are finished are kept."""
        await to_thread.run_sync(service.interrupt, caller)
        return {}

    @router.post("/skip", **needs(Scope.INFER))
    async def webui_skip(caller: JobCaller) -> None:
        """The same as interrupt: a job's pictures are one piece of work here."""
        await to_thread.run_sync(service.interrupt, caller)

    @router.post("/png-info", **needs(Scope.INFER))
    async def webui_png_info(body: PictureInfoBody) -> PictureInfoAnswer:
        """What a picture says of its making."""
        try:
            info, items = await to_thread.run_sync(lambda: read_texts(_decoded(body.image)))
        except NoPicture as error:
            raise InvalidRequest(
                "must be a PNG, JPEG or WebP picture in base64", ("body", "image")
            ) from error
        return PictureInfoAnswer(info=info, items=items, parameters=parse_parameters(info))

    _add_options(router, service)
    _add_weights(router, service)
    _add_catalogue(router, service)
    _add_what_is_not_here(router)
    return router


def _add_options(router: APIRouter, service: WebUiService) -> None:
    @router.get("/options", **needs(Scope.INFER))
    async def webui_options(caller: JobCaller) -> OptionsAnswer:
        """Your options."""
        options = service.options(caller)
        checkpoint = service.shown_checkpoint(options)
        return OptionsAnswer(
            sd_model_checkpoint=checkpoint.title if checkpoint else options.checkpoint or "",
            sd_checkpoint_hash=checkpoint.sha256 if checkpoint else "",
            sd_vae="Automatic",
            CLIP_stop_at_last_layers=options.clip_skip,
            samples_format="png",
        )

    @router.post("/options", **needs(Scope.INFER, 404))
    async def webui_set_options(caller: JobCaller, body: OptionsBody) -> None:
        """Keep the checkpoint and the clip skip for your requests from now on."""
        if unknown := unknown_options(body):
            raise InvalidRequest(
                "is not kept here: only sd_model_checkpoint and CLIP_stop_at_last_layers are. Send "
                "it with each request, in override_settings",
                ("body", unknown[0]),
            )
        service.set_options(caller, body.sd_model_checkpoint, body.CLIP_stop_at_last_layers)


def _add_weights(router: APIRouter, service: WebUiService) -> None:
    files = service.models.files

    @router.get("/sd-models", responses=errors())
    async def webui_sd_models() -> list[WebUiCheckpoint]:
        """Checkpoints, newest first."""
        return [
            WebUiCheckpoint(
                title=file.title,
                model_name=file.stem,
                hash=file.short_hash or None,
                sha256=file.sha256 or None,
                filename=file.name,
            )
            for file in files(CheckpointType.STABLE_DIFFUSION)
        ]

    @router.get("/sd-vae", responses=errors())
    async def webui_sd_vae() -> list[WebUiVae]:
        """VAEs."""
        found = files(CheckpointType.VAE)
        return [WebUiVae(model_name=file.name, filename=file.name) for file in found]

    @router.get("/loras", responses=errors())
    async def webui_loras() -> list[WebUiLora]:
        """LoRAs."""
        found = files(CheckpointType.LORA)
        return [WebUiLora(name=file.stem, alias=file.stem, path=file.name) for file in found]

    @router.get("/hypernetworks", responses=errors())
    async def webui_hypernetworks() -> list[WebUiHypernetwork]:
        """Hypernetworks."""
        found = files(CheckpointType.HYPERNETWORKS)
        return [WebUiHypernetwork(name=file.stem, path=file.name) for file in found]

    @router.get("/embeddings", responses=errors())
    async def webui_embeddings() -> EmbeddingsAnswer:
        """Embeddings."""
        found = files(CheckpointType.EMBEDDINGS)
        return EmbeddingsAnswer(loaded={file.stem: WebUiEmbedding() for file in found})

    def add_refresh(what: str) -> None:
        async def refresh() -> None:
            return None

        router.add_api_route(
            f"/refresh-{what}",
            refresh,
            methods=["POST"],
            name=f"webui_refresh_{what}",
            description="Does nothing: the lists are always fresh.",
            responses=errors(),
        )

    for what in ("checkpoints", "vae", "embeddings", "loras"):
        add_refresh(what)


def _add_catalogue(router: APIRouter, service: WebUiService) -> None:
    @router.get("/samplers", responses=errors())
    async def webui_samplers() -> list[WebUiSampler]:
        """Samplers."""
        return [
            WebUiSampler(name=entry.name, aliases=[*entry.aliases], options=entry.options)
            for entry in catalogue.SAMPLERS
        ]

    @router.get("/schedulers", responses=errors())
    async def webui_schedulers() -> list[WebUiScheduler]:
        """Schedules of noise levels."""
        return [
            WebUiScheduler(
                name=entry.name,
                label=entry.label,
                aliases=None if entry.aliases is None else [*entry.aliases],
                default_rho=entry.default_rho,
                need_inner_model=entry.needs_inner_model,
            )
            for entry in catalogue.SCHEDULERS
        ]

    @router.get("/upscalers", responses=errors())
    async def webui_upscalers() -> list[WebUiUpscaler]:
        """Ways to enlarge a picture: those that are always there, and Active ESRGAN files."""
        scale = catalogue.UPSCALER_SCALE
        models = service.models.files(CheckpointType.ESRGAN)
        return [
            *(WebUiUpscaler(name=name, scale=scale) for name in catalogue.UPSCALERS),
            *(WebUiUpscaler(name=f.stem, model_path=f.name, scale=scale) for f in models),
        ]

    @router.get("/latent-upscale-modes", responses=errors())
    async def webui_latent_upscale_modes() -> list[LatentUpscaleMode]:
        """Ways to enlarge a latent."""
        return [LatentUpscaleMode(name=name) for name in catalogue.LATENT_UPSCALE_MODES]


def _add_what_is_not_here(router: APIRouter) -> None:
    """Lists that clients ask for at their start, and of which there is nothing here."""

    @router.get("/scripts", responses=errors())
    async def webui_scripts() -> ScriptsAnswer:
        """None: the WebUI's scripts run inside a WebUI."""
        return ScriptsAnswer()

    def add_empty_list(path: str) -> None:
        async def nothing() -> list[dict[str, str]]:
            return []

        router.add_api_route(
            f"/{path}",
            nothing,
            name=f"webui_{path.replace('-', '_')}",
            description="None here.",
            responses=errors(),
        )

    for path in (
        "script-info",
        "extensions",
        "face-restorers",
        "realesrgan-models",
        "prompt-styles",
    ):
        add_empty_list(path)

    @router.get("/memory", responses=errors())
    async def webui_memory() -> MemoryAnswer:
        """Not known: the memory that counts is other machines'."""
        return MemoryAnswer(ram={"error": _NOTHING_TO_TELL}, cuda={"error": _NOTHING_TO_TELL})

    @router.get("/cmd-flags", responses=errors(501))
    async def webui_cmd_flags() -> None:
        """Not available: there is no WebUI that was started with any."""
        raise NotAvailable("No WebUI runs here, so there are no flags that it was started with.")


def _progress(running: Running | None) -> ProgressAnswer:
    if running is None:
        return ProgressAnswer(
            progress=0, eta_relative=0, state=ProgressState(), current_image=None, textinfo=None
        )
    job, progress = running.job, running.progress
    began = datetime.fromtimestamp(job.created_at, timezone.utc)
    return ProgressAnswer(
        progress=progress.fraction,
        eta_relative=progress.eta_seconds or 0,
        state=ProgressState(
            skipped=running.interrupted,
            interrupted=running.interrupted,
            job=job.id,
            job_count=1,
            job_timestamp=began.strftime("%Y%m%d%H%M%S"),
            sampling_step=progress.step,
            sampling_steps=progress.total_steps,
        ),
        current_image=None if running.picture is None else _encoded(running.picture),
        textinfo=progress.phase,
    )


def _encoded(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def _decoded(text: str) -> bytes:
    """A picture in base64, with or without `data:...,` before it. Raises NoPicture."""
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode(encoded.strip())
    except (binascii.Error, ValueError) as error:
        raise NoPicture from error
