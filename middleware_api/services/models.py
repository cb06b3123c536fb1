"""Dreambooth working models: uploaded weights, or a checkpoint, made into what training starts
from."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace

from middleware_api import contract
from middleware_api.contract import (
    MODEL_TRANSITIONS,
    SAFETENSORS,
    CheckpointState,
    CheckpointType,
    ModelOrder,
    ModelState,
    PartTag,
    TrainState,
    weights_name,
)
from middleware_api.errors import (
    Conflict,
    ContentDiffers,
    FileRefused,
    InvalidRequest,
    NotFound,
    ServiceError,
)
from middleware_api.ports import Objects, Page, Records, TrainingChanged, TrainingJobs
from middleware_api.records import Checkpoint, Model
from middleware_api.services.access import Principal
from middleware_api.services.checkpoints import CheckpointService
from middleware_api.services.examination import examine
from middleware_api.services.idempotency import claim_id
from middleware_api.services.orders import RECONCILE_SECONDS, Orders
from middleware_api.services.training_output import TrainingOutput
from middleware_api.services.uploads import (
    UPLOAD_DEADLINE_SECONDS,
    NewFile,
    Upload,
    Uploads,
    tags_by_file,
)

# What may lie beside the weights.
_DESCRIPTIONS = (".yaml", ".json")


@dataclass(frozen=True)
class NewModel:
    """A model to be: of `files` that follow, or of the Active checkpoint `checkpoint_id`."""

    name: str
    type: CheckpointType
    files: tuple[NewFile, ...]
    checkpoint_id: str
    params: dict[str, object]


class ModelService:
    """Models, which are their owner's alone."""

    def __init__(
        self,
        records: Records,
        objects: Objects,
        training_jobs: TrainingJobs,
        checkpoint_service: CheckpointService,
        clock: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self._records = records
        self._objects = objects
        self._uploads = Uploads(objects)
        self._output = TrainingOutput(objects)
        self._training_jobs = training_jobs
        self._orders = Orders(records, objects, training_jobs)
        self._checkpoint_service = checkpoint_service
        self._clock = clock
        self._new_id = new_id

    def create(
        self, caller: Principal, request: NewModel, idempotency_key: str | None
    ) -> tuple[Model, list[Upload]]:
        """Begin a model, and the upload of its files. The same key and body a second time answer
        with the first one, and fresh URLs for what it still lacks.

        Raises NotFound for a checkpoint that is not there, Conflict for one that is not Active
        or of another type.
        """
        model_id = claim_id(self._records, caller, idempotency_key, asdict(request), self._new_id())
        model = self._existing(model_id)
        if model is None:
            model = self._new_model(caller, model_id, request)
            self._records.add(model)
        if model.state is not ModelState.INITIAL:
            return model, []
        return model, self._uploads.missing_parts(model.files)

    def get(self, caller: Principal, model_id: str) -> Model:
        """Raises NotFound."""
        try:
            return caller.own(self._records.get(Model, model_id))
        except NotFound as absent:
            raise NotFound(
                f"You have no model with the id '{model_id}'. GET /models lists yours.",
                "model_not_found",
            ) from absent

    def page(
        self,
        caller: Principal,
        states: Collection[ModelState],
        kinds: Collection[CheckpointType],
        limit: int,
        cursor: str | None,
    ) -> Page[Model]:
        """Newest first."""
        return self._records.page(
            Model,
            owner=caller.listed_owner,
            states=[s.value for s in states],
            labels=[k.value for k in kinds],
            limit=limit,
            cursor=cursor,
        )

    def make(self, model: Model, tags: dict[str, list[PartTag]]) -> Model:
        """Complete the upload and begin to make the model (`Initial` → `Creating`).

        Raises Conflict for parts that are not there, or when the compute side refuses: the files
        stay then, and it can be asked for again.
        """
        if model.state is ModelState.CREATING:
            return model  # the caller did not hear our first answer
        _require(model, ModelState.CREATING)
        if model.checkpoint_id:
            self._checkpoint(model.checkpoint_id, model.type)
        by_file = tags_by_file(f"Model '{model.id}'", model.files, tags)
        try:
            for files in self._uploads.complete(model.files, by_file):
                model = self._records.update(replace(model, files=files))
            for file in model.files:
                if not file.name.endswith(_DESCRIPTIONS):
                    examine(self._objects, replace(file, name=weights_name(file.name)))
        except (ContentDiffers, FileRefused) as fault:
            # The latest: of several files some may have been put together.
            failed = self._end(self._records.get(Model, model.id), ModelState.FAILED, fault.message)
            self._objects.delete_all(_prefix(failed))
            raise
        creating = self._records.update(
            replace(model, state=ModelState.CREATING, check_at=self._clock() + RECONCILE_SECONDS)
        )
        try:
            return self._give_order(creating)
        except ServiceError:
            # Refused: nothing runs, and nothing has begun that could not be begun again.
            self._records.update(
                replace(creating, state=ModelState.INITIAL, check_at=model.check_at)
            )
            raise

    def progress(self, model: Model) -> float:
        """How far its making is, 0..1."""
        if model.state is not ModelState.CREATING:
            return float(model.state is ModelState.COMPLETE)
        output = contract.model_output_prefix(model.type, model.name, model.id)
        told = self._output.progress(output)
        return told["fraction"] if told else 0.0

    def give_up(self, model: Model) -> Model:
        """Abort the upload, or stop the making."""
        if model.state is ModelState.FAILED:
            return model
        _require(model, ModelState.FAILED)
        if model.state is ModelState.CREATING:
            self._training_jobs.stop(model)
            model = self._records.get(Model, model.id)  # the stop may have been told already
            if model.state is ModelState.FAILED:
                return model
        return self._end(model, ModelState.FAILED, "It was given up by its owner.")

    def delete(self, model: Model) -> None:
        """Forget a model with its files; training jobs that have not begun with it will fail."""
        if model.state is ModelState.CREATING:
            raise Conflict(
                f"Model '{model.id}' is being made. Wait for its end, or give it up first (PUT "
                "/model with status Fail).",
                "model_not_finished",
            )
        # The record goes last: a deletion that was cut short can be asked for again.
        self._uploads.abort(model.files)
        self._objects.delete_all(_prefix(model))
        self._records.remove(model)

    def changed(self, event: TrainingChanged) -> None:
        """Note what the compute side says; a late or second word, or one on a training job,
        changes nothing."""
        model = self._existing(event.job_id)
        if model is None or model.state is not ModelState.CREATING:
            return
        if event.state is TrainState.COMPLETE:
            self._end(model, ModelState.COMPLETE)
        elif event.state is TrainState.FAILED:
            self._end(model, ModelState.FAILED, event.error)
        elif event.state is TrainState.STOPPED:
            reason = event.error or "Its making was stopped on the compute side. Start it again."
            self._end(model, ModelState.FAILED, reason)

    def reconcile(self, model: Model) -> None:
        """End what was never finished; find out about what has been silent."""
        if model.state is ModelState.INITIAL:
            arrived = f": {self._uploads.told(model.files)}" if model.files else ""
            self._end(
                model,
                ModelState.FAILED,
                f"It was not made (PUT /model with status Creating) within "
                f"{UPLOAD_DEADLINE_SECONDS // 3600} hours{arrived}. Start it again.",
            )
            return
        if not model.compute_name:
            # The server died between writing the record and giving the order.
            try:
                self._give_order(model)
            except ServiceError as refusal:
                self._end(model, ModelState.FAILED, refusal.message)
            return
        status = self._orders.ask(model)
        if status.state is TrainState.TRAINING:
            self._records.update(replace(model, check_at=self._clock() + RECONCILE_SECONDS))
        else:
            self.changed(TrainingChanged(model.id, status.state, status.error))

    def _existing(self, model_id: str) -> Model | None:
        try:
            return self._records.get(Model, model_id)
        except NotFound:
            return None

    def _new_model(self, caller: Principal, model_id: str, request: NewModel) -> Model:
        if request.checkpoint_id:
            self._checkpoint(request.checkpoint_id, request.type)
        _require_tensors(request.files)
        now = self._clock()
        return Model(
            id=model_id,
            owner=caller.name,
            created_at=now,
            check_at=now + UPLOAD_DEADLINE_SECONDS,
            name=request.name,
            type=request.type,
            state=ModelState.INITIAL,
            files=tuple(
                self._uploads.start(
                    contract.model_file_key(request.type, request.name, model_id, file.name), file
                )
                for file in request.files
            ),
            checkpoint_id=request.checkpoint_id,
            params=request.params,
        )

    def _checkpoint(self, checkpoint_id: str, kind: CheckpointType) -> Checkpoint:
        checkpoint = self._checkpoint_service.get(checkpoint_id)
        if checkpoint.state is not CheckpointState.ACTIVE or checkpoint.type is not kind:
            raise Conflict(
                f"Checkpoint '{checkpoint_id}' is a {checkpoint.type.value} checkpoint in state "
                f"{checkpoint.state.value}; a model needs an Active {kind.value} one.",
                "checkpoint_not_usable",
            )
        return checkpoint

    def _give_order(self, model: Model) -> Model:
        files = model.files
        if model.checkpoint_id:
            files = self._checkpoint_service.get(model.checkpoint_id).files
        order = ModelOrder(
            model_id=model.id,
            type=model.type.value,
            name=model.name,
            sources=[file.key for file in files],
            params=model.params,
        )
        return self._orders.give(model, _prefix(model), order)

    def _end(self, model: Model, state: ModelState, error: str = "") -> Model:
        ended = self._records.update(replace(model, state=state, error=error, check_at=None))
        self._uploads.abort(ended.files)
        return ended


def _prefix(model: Model) -> str:
    return contract.model_prefix(model.type, model.name, model.id)


def _require_tensors(files: Collection[NewFile]) -> None:
    """Raises InvalidRequest: a training machine opens no pickles."""
    for place, file in enumerate(files):
        name = weights_name(file.name)
        if not name.endswith((SAFETENSORS, *_DESCRIPTIONS)):
            raise InvalidRequest(
                f"'{name}' is no .safetensors file, and none that describes one (.yaml, .json). "
                "Upload weights of torch as a checkpoint, which converts them, and name that by "
                "checkpoint_id.",
                ("body", "filenames", place, "filename"),
            )


def _require(model: Model, state: ModelState) -> None:
    if state not in MODEL_TRANSITIONS[model.state]:
        allowed = sorted(s.value for s in MODEL_TRANSITIONS[model.state])
        raise Conflict(
            f"Model '{model.id}' is {model.state.value} and cannot become {state.value}; from "
            f"here it can become: {', '.join(allowed) or 'nothing'}.",
            "state_not_allowed",
        )
