"""Merging checkpoints: an inference job that makes weights instead of pictures."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import PurePath

from middleware_api.contract import (
    INFERENCE_FINAL,
    SAFETENSORS,
    CheckpointType,
    MergedKind,
    MergeMethod,
    MergeOrder,
    TaskType,
    is_valid_name,
    merged_file_name,
)
from middleware_api.errors import Conflict, InvalidRequest
from middleware_api.ports import Records
from middleware_api.records import InferenceJob
from middleware_api.services.access import Principal
from middleware_api.services.checkpoints import CheckpointService
from middleware_api.services.idempotency import claim_id
from middleware_api.services.inference import InferenceRequest, InferenceService
from middleware_api.services.names import taking_name


@dataclass(frozen=True)
class MergeRequest:
    """The fields of the WebUI's merger, checked at the edge.

    Those that the method does not use may be there; it does not look at them.
    """

    primary_model_name: str
    secondary_model_name: str | None
    tertiary_model_name: str | None
    interp_method: MergeMethod
    multiplier: float
    save_as_half: bool
    custom_name: str
    bake_in_vae: str | None
    discard_weights: str

    def used(self) -> list[tuple[str, CheckpointType, str]]:
        """The files that it takes: field, type, name."""
        fields = [("primary_model_name", self.primary_model_name)]
        if self.interp_method is not MergeMethod.NO_INTERPOLATION:
            fields.append(("secondary_model_name", self.secondary_model_name or ""))
        if self.interp_method is MergeMethod.ADD_DIFFERENCE:
            fields.append(("tertiary_model_name", self.tertiary_model_name or ""))
        models = [(field, CheckpointType.STABLE_DIFFUSION, name) for field, name in fields]
        if self.bake_in_vae is None:
            return models
        return [*models, ("bake_in_vae", CheckpointType.VAE, self.bake_in_vae)]

    @property
    def file_stem(self) -> str:
        """The result's name without its ending; without a `custom_name` what the WebUI makes."""
        if self.custom_name:
            return self.custom_name.removesuffix(SAFETENSORS)
        if self.interp_method is MergeMethod.NO_INTERPOLATION:
            return _stem(self.primary_model_name)
        a, b = _stem(self.primary_model_name), _stem(self.secondary_model_name or "")
        part = round(self.multiplier, 2)
        if self.interp_method is MergeMethod.WEIGHTED_SUM:
            return f"{round(1 - self.multiplier, 2)}({a}) + {part}({b})"
        return f"{a} + {part}({b} - {_stem(self.tertiary_model_name or '')})"

    def order(self) -> MergeOrder:
        """What the container is told."""
        return MergeOrder(
            primary_model_name=self.primary_model_name,
            secondary_model_name=self.secondary_model_name,
            tertiary_model_name=self.tertiary_model_name,
            interp_method=self.interp_method.value,
            multiplier=self.multiplier,
            save_as_half=self.save_as_half,
            custom_name=self.custom_name,
            bake_in_vae=self.bake_in_vae,
            discard_weights=self.discard_weights,
            file_stem=self.file_stem,
        )


class MergingService:
    """Merges, up to the queue; from there on they are inference jobs like any other."""

    def __init__(
        self,
        records: Records,
        inference_service: InferenceService,
        checkpoint_service: CheckpointService,
        new_id: Callable[[], str],
    ) -> None:
        self._records = records
        self._inference_service = inference_service
        self._checkpoint_service = checkpoint_service
        self._new_id = new_id

    def submit(
        self, caller: Principal, request: MergeRequest, idempotency_key: str | None
    ) -> InferenceJob:
        """Queue a merge. The same key and body a second time answer with the first job.

        Raises NotFound for a checkpoint that is not there, InvalidRequest for one that is no
        safetensors file, Conflict for a result's name that is in use, and what the submission of
        any inference job raises.
        """
        body: dict[str, object] = {**request.order()}
        job_id = claim_id(self._records, caller, idempotency_key, body, self._new_id())
        if (first := self._inference_service.existing(job_id)) is not None:
            return first
        models = self._require_mergeable(request)
        names = self._free_names(request)
        job = self._inference_service.new_job(
            caller, job_id, InferenceRequest(TaskType.MERGE, models, None, body)
        )
        with ExitStack() as taking:
            for name in names:
                taking.enter_context(self._taking(name, job))
            return self._inference_service.start(job, body)

    def _require_mergeable(self, request: MergeRequest) -> dict[CheckpointType, list[str]]:
        models: dict[CheckpointType, list[str]] = {}
        for field, kind, name in request.used():
            used = self._checkpoint_service.resolve(kind, name)
            if not used.key.endswith(SAFETENSORS):
                raise InvalidRequest(
                    f"only {SAFETENSORS} files can be merged; convert '{name}' and upload it again",
                    ("body", field),
                )
            models.setdefault(kind, []).append(name)
        return models

    def _free_names(self, request: MergeRequest) -> list[str]:
        """All names that the result may get: only the worker sees which kind of model it is."""
        stem = request.file_stem
        is_plain = request.interp_method is MergeMethod.NO_INTERPOLATION
        kinds = [MergedKind.PLAIN] if is_plain else list(MergedKind)
        names = [merged_file_name(stem, kind) for kind in kinds]
        for name in names:
            if not is_valid_name(name):
                raise InvalidRequest(
                    f"the result would be named '{name}', which is too long or not a valid name; "
                    "give another custom_name",
                    ("body", "custom_name"),
                )
            if self._checkpoint_service.find(CheckpointType.STABLE_DIFFUSION, name) is not None:
                raise _name_taken(name, "There is a checkpoint of that name.")
        return names

    def _taking(self, name: str, job: InferenceJob) -> AbstractContextManager[None]:
        return taking_name(
            self._records,
            f"merge-name/{name}",
            job,
            lambda: _name_taken(name, "Another merge is making it at the moment."),
            lambda holder: holder.state not in INFERENCE_FINAL,
        )


def _name_taken(name: str, why: str) -> Conflict:
    return Conflict(
        f"The merged checkpoint cannot be named '{name}'. {why} Choose another custom_name.",
        "checkpoint_name_taken",
    )


def _stem(name: str) -> str:
    return PurePath(name).stem
