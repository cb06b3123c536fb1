"""What a job has in the object store: its request, its worker's words, and its pictures."""

from __future__ import annotations

import json
from dataclasses import dataclass

from middleware_api import contract
from middleware_api.contract import (
    INFERENCE_FINAL,
    UPLOAD_URL_SECONDS,
    InvocationResult,
    Outcome,
    Progress,
)
from middleware_api.errors import Conflict, NotFound
from middleware_api.ports import InvocationFinished, Objects
from middleware_api.records import InferenceJob

RESULT_URL_SECONDS = 12 * 3600
PREVIEW_URL_SECONDS = 3600


@dataclass(frozen=True)
class Made:
    """How pictures were made: the fields of the request, and `info`, a JSON document in a text."""

    parameters: dict[str, object]
    info: str


class JobFiles:
    """Reads and writes a job's objects; what is asked of a job's end raises Conflict before it."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def write_params(self, job: InferenceJob, body: dict[str, object]) -> None:
        """The request, where the engine takes it from."""
        self._objects.write(_params_key(job), json.dumps(body).encode())

    def params_put_url(self, job: InferenceJob) -> str:
        """Where a caller puts a request that is too large to be sent to us."""
        return self._objects.presigned_put(_params_key(job), UPLOAD_URL_SECONDS)

    def uploaded_params(self, job: InferenceJob) -> bytes:
        """The body that was put for a prepared job. Raises Conflict when there is none."""
        if self._objects.size(_params_key(job)) is None:
            raise Conflict(
                f"The body of job '{job.id}' has not arrived. PUT it to the job's "
                "api_params_s3_upload_url first.",
                "params_missing",
            )
        return self._objects.read(_params_key(job))

    def stored_params(self, job: InferenceJob) -> bytes:
        """The body that a finished job was run with. Raises NotFound when it never had one."""
        require_final(job)
        try:
            return self._objects.read(_params_key(job))
        except NotFound as error:
            raise NotFound(
                f"Job '{job.id}' has ended without a request. Submit a new one.",
                "params_missing",
            ) from error

    def ask_to_cancel(self, job: InferenceJob) -> None:
        """The worker looks for this before each step."""
        self._objects.write(contract.cancel_key(job.id), b"")

    def is_cancelling(self, job: InferenceJob) -> bool:
        """Whether its worker has been asked to stop."""
        return self._objects.size(contract.cancel_key(job.id)) is not None

    def progress(self, job: InferenceJob) -> Progress | None:
        """What its worker last wrote; None when this run of it has written nothing."""
        try:
            progress: Progress = json.loads(self._objects.read(contract.progress_key(job.id)))
        except NotFound:
            return None
        # What an earlier, killed run of this job wrote says nothing of this one.
        if job.started_at is not None and progress["updated_at"] < job.started_at:
            return None
        return progress

    def preview_url(self, job: InferenceJob) -> str:
        """Where the small JPEG of its latest step is, once its progress says that there is one."""
        return self._objects.presigned_get(contract.preview_key(job.id), PREVIEW_URL_SECONDS)

    def preview(self, job: InferenceJob) -> bytes | None:
        """The small JPEG itself; None while there is none."""
        try:
            return self._objects.read(contract.preview_key(job.id))
        except NotFound:
            return None

    def outcome(self, job: InferenceJob) -> InvocationFinished | None:
        """How its worker has ended it; None while it has not."""
        try:
            outcome: Outcome = json.loads(self._objects.read(contract.outcome_key(job.id)))
        except NotFound:
            return None
        return InvocationFinished(job.id, result=outcome["result"], failure=outcome["failure"])

    def is_refused(self, job: InferenceJob) -> bool:
        """Whether its worker has refused the weights that it was given."""
        try:
            outcome: Outcome = json.loads(self._objects.read(contract.outcome_key(job.id)))
        except NotFound:
            return False
        return outcome.get("code") == contract.WEIGHTS_REFUSED

    def write_result(self, job: InferenceJob, result: InvocationResult) -> None:
        """What row 5 answers."""
        document = {
            "parameters": result["parameters"],
            "info": result["info"],
            "endpoint_name": job.endpoint_name,
            "inference_id": job.id,
            "sagemaker": {"status": result["status"], "images": result["images"]},
        }
        self._objects.write(contract.param_output_key(job.id), json.dumps(document).encode())

    def image_names(self, job: InferenceJob) -> tuple[str, ...]:
        """Of the pictures that are there, in order."""
        prefix = _result_prefix(job)
        names = [key.removeprefix(prefix) for key in self._objects.keys(prefix)]
        return tuple(sorted((n for n in names if not n.endswith(".json")), key=_image_index))

    def image_urls(self, job: InferenceJob) -> list[str]:
        """Where the pictures are; those made before a failure or a cancel too."""
        return [self._objects.presigned_get(key, RESULT_URL_SECONDS) for key in _image_keys(job)]

    def param_urls(self, job: InferenceJob) -> list[str]:
        """Where the job's parameters and info are; empty when it never made a picture."""
        require_final(job)
        key = contract.param_output_key(job.id)
        if self._objects.size(key) is None:
            return []
        return [self._objects.presigned_get(key, RESULT_URL_SECONDS)]

    def pictures_size(self, job: InferenceJob) -> int:
        """Bytes of all pictures."""
        return sum(self._objects.size(key) or 0 for key in _image_keys(job))

    def pictures(self, job: InferenceJob) -> list[bytes]:
        """All pictures, in order."""
        return [self._objects.read(key) for key in _image_keys(job)]

    def made(self, job: InferenceJob) -> Made:
        """What the pictures were made by; empty when the job never got that far."""
        require_final(job)
        try:
            document = json.loads(self._objects.read(contract.param_output_key(job.id)))
        except NotFound:
            return Made({}, "{}")
        return Made(document["parameters"], document["info"])

    def forget(self, job: InferenceJob) -> None:
        """Delete all of it; again is no error."""
        self._objects.delete_all(contract.output_prefix(job.id))
        self._objects.delete_all(_params_key(job).rpartition("/")[0] + "/")


def require_final(job: InferenceJob) -> None:
    """Raises Conflict for a job that has not ended."""
    if job.state not in INFERENCE_FINAL:
        raise Conflict(
            f"Job '{job.id}' is {job.state.value}. Its pictures can be fetched when it is "
            "finished; ask GET /inference/get-inference-job until then.",
            "job_not_finished",
        )


def _params_key(job: InferenceJob) -> str:
    return contract.params_key(job.task_type, job.id)


def _result_prefix(job: InferenceJob) -> str:
    return f"{contract.output_prefix(job.id)}result/"


def _image_keys(job: InferenceJob) -> list[str]:
    require_final(job)
    return [_result_prefix(job) + name for name in job.image_names]


def _image_index(name: str) -> tuple[int, str]:
    digits = "".join(ch for ch in name if ch.isdigit())
    return (int(digits or 0), name)
