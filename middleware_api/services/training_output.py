"""What a training program has written: how far it is, and what has come of it."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

from middleware_api import contract
from middleware_api.contract import (
    SAFETENSORS,
    CheckpointType,
    TrainOutcome,
    TrainProgress,
)
from middleware_api.errors import NotFound
from middleware_api.ports import Objects
from middleware_api.records import TrainJob
from middleware_api.tensor_header import BadHeader, read_header

# How the tensors of a LoRA are named, in kohya's format.
_LORA = "lora_"
Weights = tuple[CheckpointType, dict[str, str]]
"""The type of finished weights, and their SHA-256 by their keys, empty where not known."""


class TrainingOutput:
    """The objects below a training job's `output/`."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def progress(self, output_prefix: str) -> TrainProgress | None:
        """The program's latest words; also one that makes a model writes them."""
        try:
            raw = self._objects.read(contract.train_progress_key(output_prefix))
        except NotFound:
            return None
        progress: TrainProgress = json.loads(raw)
        return progress

    def noted(self, job: TrainJob) -> TrainJob:
        """The job as its program tells it now; not stored."""
        told = self.progress(output_prefix(job))
        if told is None:
            return job
        left = told["steps"] - told["step"]
        return replace(
            job,
            progress=told["fraction"],
            loss=told["loss"],
            steps=told["steps"],
            step_seconds=told["seconds_left"] / left
            if told["seconds_left"] and told["step"] and left > 0
            else job.step_seconds,
        )

    def weights(self, job: TrainJob) -> Weights | None:
        """What can be used, of a job that has ended in any way."""
        output = output_prefix(job)
        try:
            outcome: TrainOutcome = json.loads(
                self._objects.read(contract.train_outcome_key(output))
            )
        except NotFound:  # it was killed
            pass
        else:
            if outcome["weights"]:
                kind = outcome["weights"][0]["type"]
                hashes = {
                    file["key"]: file["sha256"]
                    for file in outcome["weights"]
                    if file["type"] == kind
                }
                return CheckpointType(kind), hashes
        found = [
            key
            for key in self._objects.keys(output)
            if key.endswith(SAFETENSORS) and "/" not in key.removeprefix(output)
        ]
        return (self._kind(job, found[0]), dict.fromkeys(found, "")) if found else None

    def clear(self, job: TrainJob) -> None:
        """Delete all that a job has written and been told; a checkpoint that came of it stays."""
        if not job.checkpoint_id:
            self._objects.delete_all(_prefix(job))
            return
        output = output_prefix(job)
        self._objects.delete_all(f"{_prefix(job)}input/")
        for key in self._objects.keys(output):
            if not key.endswith(SAFETENSORS) or "/" in key.removeprefix(output):
                self._objects.delete(key)

    def clear_states(self, job: TrainJob) -> None:
        """Delete what only a job that goes on needs, which may be gigabytes."""
        output = output_prefix(job)
        self._objects.delete_all(contract.train_state_prefix(output))
        self._objects.delete_all(contract.class_picture_prefix(output))

    def _kind(self, job: TrainJob, key: str) -> CheckpointType:
        """Whether a killed program's weights are a LoRA or a whole checkpoint."""
        try:
            header = read_header(
                partial(self._objects.read_range, key), self._objects.size(key) or 0
            )
        except BadHeader:
            return job.type  # whoever examines it finds that too
        if any(name.startswith(_LORA) for name in header.tensors):
            return CheckpointType.LORA
        return job.type


def output_prefix(job: TrainJob) -> str:
    """Prefix of what a job's program writes."""
    return f"{_prefix(job)}output/"


def _prefix(job: TrainJob) -> str:
    return contract.train_prefix(job.type, job.model_name, job.id)
