"""The training half of the HTTP API: models and training jobs."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from aws_extension import http
from aws_extension.answers import Fields
from aws_extension.calls import Call, every_page, forget
from middleware_api.contract import (
    CURSOR_HEADER,
    CheckpointType,
    ModelState,
    TrainState,
)

_KIND = CheckpointType.STABLE_DIFFUSION.value
TRAIN_FINAL = frozenset({TrainState.COMPLETE, TrainState.FAILED, TrainState.STOPPED})


@dataclass(frozen=True)
class WorkingModel:
    """A model of row 19: what training starts from; `progress` of its making is 0..1."""

    id: str
    name: str
    state: ModelState
    checkpoint_id: str
    progress: float
    error: str


@dataclass(frozen=True)
class TrainJob:
    """A training job of row 25; `progress` is 0..1, `cost` in US dollars where it is known."""

    id: str
    model_name: str
    state: TrainState
    created_at: datetime
    ran_seconds: float | None
    instance_type: str
    progress: float
    loss: float | None
    steps: int
    step_seconds: float | None
    cost: float | None
    error: str
    checkpoint_id: str

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in TRAIN_FINAL


@dataclass(frozen=True)
class TrainPicture:
    """A sample picture that a training has made."""

    step: int
    prompt: str
    url: str


@dataclass(frozen=True)
class TrainLook:
    """A training job from near, as `GET /train` shows it."""

    job: TrainJob
    params: Mapping[str, Any]
    phase: str
    step: int
    learning_rate: float | None
    seconds_left: float | None
    losses: tuple[tuple[int, float], ...]
    samples: tuple[TrainPicture, ...]
    warnings: tuple[str, ...]
    checkpoint_type: str
    checkpoint_names: tuple[str, ...]

    @property
    def config(self) -> Mapping[str, Any]:
        """The program's settings, as they were sent."""
        found = self.params.get("config_params")
        return found if isinstance(found, dict) else {}


@dataclass(frozen=True)
class NewTrainJob:
    """What to train, on what: `params` as row 23 has them."""

    model_id: str
    params: Mapping[str, Any]


class TrainingCalls:
    """These rows of one client."""

    def __init__(self, call: Call) -> None:
        self._call = call

    # Models

    def list_models(self, states: Sequence[ModelState] = ()) -> list[WorkingModel]:
        """Row 19, all pages, newest first."""
        return [
            WorkingModel(
                id=fields.text("id"),
                name=fields.text("model_name"),
                state=fields.choice("status", ModelState),
                checkpoint_id=fields.optional_text("checkpoint_id"),
                progress=fields.optional_number("progress") or 0.0,
                error=fields.optional_text("error"),
            )
            for answer in every_page(self._call, "/models", {"status": [s.value for s in states]})
            for fields in Fields(http.decode(answer), "models").objects("models")
        ]

    def create_model(self, name: str, checkpoint_id: str) -> str:
        """Rows 17 and 18: begin to make a model of an Active checkpoint; returns its id."""
        made = self._fields(
            "POST",
            "/model",
            {"model_type": _KIND, "name": name, "checkpoint_id": checkpoint_id, "params": {}},
            idempotency_key=str(uuid.uuid4()),
        )
        model_id = made.object("job").text("id")
        self._call("PUT", "/model", {"model_id": model_id, "status": ModelState.CREATING.value})
        return model_id

    def delete_model(self, model_id: str) -> None:
        """Forget a model; one that is gone already is as good."""
        forget(self._call, "/model", {"id": model_id})

    # Training jobs

    def create(self, request: NewTrainJob) -> str:
        """`POST /train`; returns the id of a job that waits to be started."""
        body = {"train_type": _KIND, "model_id": request.model_id, "params": dict(request.params)}
        made = self._fields("POST", "/train", body, idempotency_key=str(uuid.uuid4()))
        return made.object("job").text("id")

    def set_state(self, job_id: str, state: TrainState) -> None:
        """Row 24: start it, or stop it."""
        self._call("PUT", "/train", {"train_job_id": job_id, "status": state.value})

    def delete(self, job_id: str) -> None:
        """Forget a job that does not run; one that is gone already is as good."""
        forget(self._call, "/train", {"id": job_id})

    def page(self, limit: int, cursor: str = "") -> tuple[tuple[TrainJob, ...], str]:
        """Row 25, one page, newest first; the next cursor is empty on the last."""
        params: dict[str, str | int | list[str]] = {"limit": limit}
        if cursor:
            params["cursor"] = cursor
        answer = self._call("GET", "/trains", params=params)
        fields = Fields(http.decode(answer), "training jobs")
        jobs = tuple(_job(item) for item in fields.objects("trainJobs"))
        return jobs, answer.headers.get(CURSOR_HEADER, "")

    def look(self, job_id: str) -> TrainLook:
        """`GET /train`."""
        answer = self._fields("GET", "/train", params={"train_job_id": job_id})
        fields = answer.object("job")
        return TrainLook(
            job=_job(fields),
            params=fields.mapping("params"),
            phase=fields.optional_text("phase"),
            step=fields.optional_integer("step") or 0,
            learning_rate=fields.optional_number("learning_rate"),
            seconds_left=fields.optional_number("seconds_left"),
            losses=fields.pairs("losses"),
            samples=tuple(
                TrainPicture(item.integer("step"), item.optional_text("prompt"), item.text("url"))
                for item in fields.objects("samples")
            ),
            warnings=fields.texts("warnings"),
            checkpoint_type=fields.optional_text("checkpoint_type"),
            checkpoint_names=fields.texts("checkpoint_names"),
        )

    def _fields(
        self,
        method: str,
        path: str,
        document: object = None,
        params: http.Params | None = None,
        idempotency_key: str = "",
    ) -> Fields:
        answer = self._call(method, path, document, params, idempotency_key)
        return Fields(http.decode(answer), path)


def _job(fields: Fields) -> TrainJob:
    started, completed = fields.optional_number("started"), fields.optional_number("completed")
    return TrainJob(
        id=fields.text("id"),
        model_name=fields.text("modelName"),
        state=fields.choice("status", TrainState),
        created_at=datetime.fromtimestamp(fields.optional_number("created") or 0, timezone.utc),
        ran_seconds=None if started is None or completed is None else completed - started,
        instance_type=fields.optional_text("instance_type"),
        progress=min(1.0, max(0.0, fields.optional_number("progress") or 0.0)),
        loss=fields.optional_number("loss"),
        steps=fields.optional_integer("steps") or 0,
        step_seconds=fields.optional_number("step_seconds"),
        cost=fields.optional_number("estimated_cost"),
        error=fields.optional_text("error"),
        checkpoint_id=fields.optional_text("checkpoint_id"),
    )
