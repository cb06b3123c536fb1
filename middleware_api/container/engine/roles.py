"""A job's weights by what they are for: which files a request names, and how they are called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from middleware_api.container.engine.named import find_named
from middleware_api.container.engine.request import GenerationRequest
from middleware_api.container.errors import BadRequest
from middleware_api.container.extras.upscalers import (
    LATENT_UPSCALERS,
    PICTURE_UPSCALERS,
    UpscalerFile,
)
from middleware_api.container.prompts.networks import networks_of
from middleware_api.contract import CheckpointType, ContainerCheckpoint
from middleware_api.weights_name import WeightsName

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Roles(Generic[T]):
    """One thing for each part that weights play in a job; None where the request names none.

    LoRAs may go by a name inside of their files: all of a job's are here once its prompts name any.
    `controlnets` has one for each of ControlNet's units that are on, in their order.
    """

    main: T
    second_pass: T | None = None
    refiner: T | None = None
    vae: T | None = None
    upscaler: T | None = None
    loras: tuple[T, ...] = ()
    embeddings: tuple[T, ...] = ()
    hypernetworks: tuple[T, ...] = ()
    controlnets: tuple[T, ...] = ()

    def each(self, change: Callable[[T], U]) -> Roles[U]:
        """The same parts, each with what `change` makes of it."""

        def changed(thing: T | None) -> U | None:
            return None if thing is None else change(thing)

        return Roles(
            change(self.main),
            changed(self.second_pass),
            changed(self.refiner),
            changed(self.vae),
            changed(self.upscaler),
            *(
                tuple(map(change, things))
                for things in (
                    *(self.loras, self.embeddings, self.hypernetworks),
                    self.controlnets,
                )
            ),
        )


def choose_files(
    request: GenerationRequest, files: Sequence[ContainerCheckpoint]
) -> tuple[Roles[ContainerCheckpoint], list[str]]:
    """The files that a request names, and a warning for each that the pictures will not show.

    Raises BadRequest when a checkpoint that it cannot do without is not among the job's.
    """
    checkpoints = [f for f in files if f["type"] == CheckpointType.STABLE_DIFFUSION.value]
    vaes = [f for f in files if f["type"] == CheckpointType.VAE.value]
    if not checkpoints:
        raise BadRequest(
            "The job names no Stable-diffusion checkpoint. Choose one.", "missing_checkpoint"
        )
    # A WebUI that sends its own choice along may mean a file that only it has.
    main = find_named(request.checkpoint, checkpoints) or checkpoints[0]
    second_pass = refiner = None
    if request.hires is not None and request.hires.checkpoint:
        second_pass = _need("hr_checkpoint_name", request.hires.checkpoint, checkpoints)
    if request.refiner is not None:
        refiner = _need("refiner_checkpoint", request.refiner.checkpoint, checkpoints)
        if refiner is (second_pass or main):  # nothing to switch to
            refiner = None
    vae = find_named(request.vae, vaes)
    warnings = []
    if request.vae and vae is None:
        warnings.append(
            f"override_settings.sd_vae {request.vae!r} is not among the job's VAE files: the "
            "checkpoint's own was used."
        )
    upscaler = None
    if request.upscaler_file is not None:
        upscaler = find_upscaler(request.upscaler_file, files)
    networks = (*_named_in_prompts(request, files), _controlnets(request, files))
    single = (main, second_pass, refiner, vae, upscaler)
    used = [f for f in single if f is not None]
    used += [file for files_of_kind in networks for file in files_of_kind]
    warnings += [_unused(f) for f in files if f not in used]
    return Roles(*single, *networks), warnings


def find_upscaler(asked: UpscalerFile, files: Sequence[ContainerCheckpoint]) -> ContainerCheckpoint:
    """The file of the job's that an upscaler's name means; raises BadRequest."""
    models = [f for f in files if f["type"] == CheckpointType.ESRGAN.value]
    found = find_named(asked.name, models)
    if found is None:
        known = [each.name for each in LATENT_UPSCALERS] if asked.field == "hr_upscaler" else []
        known += [each.name for each in PICTURE_UPSCALERS]
        known += [WeightsName(f["name"]).stem for f in models]
        raise BadRequest(
            f"{asked.field} {asked.name!r} is not among the job's upscalers: {', '.join(known)}. "
            f"Choose one of these, or upload the upscaler's file as {CheckpointType.ESRGAN.value} "
            "and add it to the job's models.",
            "unknown_upscaler",
        )
    return found


_Files = tuple[ContainerCheckpoint, ...]


def _named_in_prompts(
    request: GenerationRequest, files: Sequence[ContainerCheckpoint]
) -> tuple[_Files, _Files, _Files]:
    """LoRAs, embeddings and hypernetworks."""

    def of(kind: CheckpointType, is_used: Callable[[str], bool]) -> _Files:
        return tuple(
            file
            for file in files
            if file["type"] == kind.value and is_used(WeightsName(file["name"], "").stem)
        )

    prompts = "\n".join(request.prompts).casefold()
    asked = [networks_of(prompt) for prompt in request.prompts_with_networks]
    has_loras = any(each.loras for each in asked)
    hypernetworks = {ask.name for each in asked for ask in each.hypernetworks}
    return (
        of(CheckpointType.LORA, lambda stem: has_loras),
        of(CheckpointType.EMBEDDINGS, lambda stem: stem.casefold() in prompts),
        of(CheckpointType.HYPERNETWORKS, lambda stem: stem in hypernetworks),
    )


def _controlnets(request: GenerationRequest, files: Sequence[ContainerCheckpoint]) -> _Files:
    """One for each unit that is on. Raises BadRequest when one is not among the job's."""
    there = [file for file in files if file["type"] == CheckpointType.CONTROLNET.value]
    found = []
    for unit in request.control.units:
        file = find_named(unit.model, there)
        if file is None:
            names = ", ".join(file["name"] for file in there) or "none"
            raise BadRequest(
                f"ControlNet {unit.model!r} is not among the job's ControlNet files ({names}). Add "
                "it to the job's models, or switch its unit off.",
                "missing_checkpoint",
            )
        found.append(file)
    return tuple(found)


def _need(field: str, wanted: str, files: Sequence[ContainerCheckpoint]) -> ContainerCheckpoint:
    found = find_named(wanted, files)
    if found is None:
        raise BadRequest(
            f"{field} {wanted!r} is not among the job's checkpoints "
            f"({', '.join(f['name'] for f in files)}). Add it to the job's models, or choose one "
            "of these.",
            "missing_checkpoint",
        )
    return found


def _unused(file: ContainerCheckpoint) -> str:
    return f"{file['type']} file {file['name']} is not named by the request and was ignored."
