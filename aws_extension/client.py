"""The HTTP API as typed calls; each names the row of the contract that it calls."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from aws_extension import http
from aws_extension.answers import (
    Endpoint,
    Fields,
    InferenceJob,
    InferenceOutput,
    Submission,
    parse_endpoint,
    parse_job,
    parse_list,
    parse_submission,
    parse_texts,
)
from aws_extension.calls import forget
from aws_extension.checkpoint_calls import CheckpointCalls
from aws_extension.dataset_calls import DatasetCalls
from aws_extension.errors import (
    Conflict,
    ConnectionLost,
    JobFailed,
    ServerFault,
    UnexpectedAnswer,
)
from aws_extension.training_calls import TrainingCalls
from middleware_api.contract import (
    BODY_MAX_BYTES,
    CURSOR_HEADER,
    MIB,
    CheckpointType,
    EngineName,
    InferenceState,
    MergeMethod,
    TaskType,
)

# The gateway counts its own envelope, and escapes, into the bound: leave it room.
DIRECT_BODY_MAX_BYTES = BODY_MAX_BYTES - MIB
# While a job's state cannot be read: how long to go on asking before the user is told.
LOST_PATIENCE_SECONDS = 120.0
# How long a cancelled job may take to say so.
CANCEL_PATIENCE_SECONDS = 30.0
CANCEL_CHECK_SECONDS = 0.1
# How long a job may have ended before it is noticed: a share of the time that it has taken.
POLL_SECONDS, POLL_SHARE, POLL_SECONDS_MOST = 0.1, 0.15, 1.0
QUEUED_POLL_SECONDS = 3.0


@dataclass(frozen=True)
class Autoscaling:
    """Bounds between which an endpoint's instances follow its work; 0 at least: it may sleep."""

    at_least: int
    at_most: int


@dataclass(frozen=True)
class Merge:
    """Checkpoints to make one of, in the words of the WebUI's merger; names are file names."""

    method: MergeMethod
    primary: str
    secondary: str = ""
    tertiary: str = ""
    multiplier: float = 0.3
    half_precision: bool = False
    name: str = ""
    vae: str = ""
    discard: str = ""

    def document(self) -> dict[str, object]:
        """Row 16's body; what was left empty is left out."""
        optional = {
            "secondary_model_name": self.secondary,
            "tertiary_model_name": self.tertiary,
            "custom_name": self.name,
            "bake_in_vae": self.vae,
            "discard_weights": self.discard,
        }
        return {
            "interp_method": self.method.value,
            "primary_model_name": self.primary,
            "multiplier": self.multiplier,
            "save_as_half": self.half_precision,
            **{name: value for name, value in optional.items() if value},
        }


@dataclass(frozen=True)
class Page:
    """One page of jobs, newest first; `next_cursor` is empty on the last."""

    jobs: tuple[InferenceJob, ...]
    next_cursor: str


@dataclass(frozen=True)
class WaitStatus:
    """What is known of a job that is waited for; `lost_seconds` > 0 while the server is silent."""

    job: InferenceJob
    lost_seconds: float = 0.0
    cancelling: bool = False

    def describe(self) -> str:
        """One line for the user."""
        if self.lost_seconds > 0:
            return f"No answer from the server for {self.lost_seconds:.0f} s, trying again…"
        if self.cancelling:
            return "Cancelling…"
        job = self.job
        if job.state is InferenceState.SUCCEEDED:
            return "Finished"
        if job.state is InferenceState.CANCELLED:
            return "Cancelled"
        if job.queue_position:
            ahead = "1 job" if job.queue_position == 1 else f"{job.queue_position} jobs"
            return f"Waiting in the queue, {ahead} ahead{_eta(job)}"
        if job.progress <= 0:
            return f"{(job.phase or 'waiting for the worker').capitalize()}…"
        return f"{(job.phase or 'generating').capitalize()} {job.progress:.0%}{_eta(job)}"


def _eta(job: InferenceJob) -> str:
    if job.eta_seconds is None:
        return ""
    if job.eta_seconds >= 120:
        return f", about {job.eta_seconds / 60:.0f} min left"
    return f", about {max(1, round(job.eta_seconds))} s left"


class CloudClient(CheckpointCalls):
    """The whole API of one server."""

    def test_connection(self) -> None:
        """Row 1."""
        Fields(http.decode(self._call("GET", "/inference/test-connection")), "Success").text(
            "message"
        )

    @property
    def training(self) -> TrainingCalls:
        """The rows of models and training jobs."""
        return TrainingCalls(self._call)

    @property
    def datasets(self) -> DatasetCalls:
        """The rows of data sets."""
        return DatasetCalls(self._call)

    # Endpoints

    def list_endpoints(self) -> list[Endpoint]:
        """Row 9."""
        raw = http.decode(self._call("GET", "/endpoints"))
        return [parse_endpoint(item) for item in parse_list(raw, "endpoints")]

    def create_endpoint(
        self,
        instance_type: str,
        instance_count: int = 1,
        name: str = "",
        autoscaling: Autoscaling | None = None,
        engine: EngineName = EngineName.DIFFUSERS,
        webui_url: str = "",
    ) -> Endpoint:
        """Row 7; `webui_url` is where the WebUI of the engine `webui` is, "" for one of the cloud's
        own. Not repeated by itself: a lost answer would start, and bill, a second one."""
        document: dict[str, object] = {
            "instance_type": instance_type,
            "initial_instance_count": instance_count,
        }
        if name:
            document["endpoint_name"] = name
        if autoscaling is not None:
            document["autoscaling_enabled"] = True
            document["min_instance_count"] = autoscaling.at_least
            document["max_instance_count"] = autoscaling.at_most
        if engine is not EngineName.DIFFUSERS:  # servers before engines refuse the field
            document["engine"] = engine.value
            if webui_url:
                document["webui_url"] = webui_url
        return parse_endpoint(
            http.decode(self._call("POST", "/endpoints", document, may_repeat=False))
        )

    def delete_endpoints(self, names: Sequence[str]) -> None:
        """Row 8."""
        self._call("DELETE", "/endpoints", {"delete_endpoint_list": list(names)})

    # Inference

    def submit(
        self,
        task: TaskType,
        models: Mapping[CheckpointType, Sequence[str]],
        fields: Mapping[str, Any],
        endpoint_name: str = "",
        idempotency_key: str = "",
    ) -> Submission:
        """Rows 6 and 6b: start a job; `fields` are the WebUI API's own.

        Each call is one job however often it is sent, by its Idempotency-Key. Without an
        `endpoint_name` the server chooses.
        """
        head: dict[str, object] = {
            "task_type": task.value,
            "models": {kind.value: list(names) for kind, names in models.items()},
        }
        if endpoint_name:
            head["sagemaker_endpoint_name"] = endpoint_name
        key = idempotency_key or str(uuid.uuid4())
        body = http.encode({**fields, **head})
        if len(body) <= DIRECT_BODY_MAX_BYTES:
            return parse_submission(
                http.decode(self._call("POST", "/inference/v2", body, idempotency_key=key))
            )
        return self._submit_large(head, body, key)

    def _submit_large(self, head: Mapping[str, object], body: bytes, key: str) -> Submission:
        """Row 6b: create the job, put its body into the store, run it."""
        prepared = parse_submission(
            http.decode(
                self._call(
                    "POST", "/inference/v2", {**head, "upload_params": True}, idempotency_key=key
                )
            )
        )
        if not prepared.upload_url:
            raise UnexpectedAnswer(
                "The request is too large to send directly, and the server offers no place to "
                "put it. Update the server, or use smaller pictures."
            )
        self.storage.send(
            "PUT",
            prepared.upload_url,
            body=body,
            headers={"Content-Type": "application/json"},
        )
        try:
            self._call("PUT", f"/inference/v2/{quote(prepared.job_id, safe='')}/run", {})
        except Conflict:
            # Our first try may have started it and its answer got lost.
            job = self.get_job(prepared.job_id)
            if job.state is InferenceState.CREATED:
                raise
        return Submission(
            prepared.job_id, InferenceState.IN_PROGRESS, prepared.endpoint_name, upload_url=""
        )

    def get_job(self, job_id: str) -> InferenceJob:
        """Row 3."""
        answer = self._call("GET", "/inference/get-inference-job", params={"jobID": job_id})
        return parse_job(http.decode(answer))

    def list_jobs(
        self,
        limit: int = 20,
        cursor: str = "",
        states: Sequence[InferenceState] = (),
        tasks: Sequence[TaskType] = (),
    ) -> Page:
        """Row 2, one page, newest first; no `states` or `tasks` means all."""
        params: dict[str, str | int | list[str]] = {
            "limit": limit,
            "status": [state.value for state in states],
            "task_type": [task.value for task in tasks],
        }
        if cursor:
            params["cursor"] = cursor
        answer = self._call("GET", "/inference/list-inference-jobs", params=params)
        jobs = tuple(parse_job(item) for item in parse_list(http.decode(answer), "jobs"))
        return Page(jobs, answer.headers.get(CURSOR_HEADER, ""))

    def cancel_job(self, job_id: str) -> None:
        """Stop a job; one that has finished meanwhile is left as it is."""
        try:
            self._call("POST", f"/inference/v2/{quote(job_id, safe='')}/cancel", {})
        except Conflict:
            if not self.get_job(job_id).is_final:
                raise

    def rerun_job(self, job_id: str) -> Submission:
        """The same request again, as a new job; one however often the call is sent."""
        path = f"/inference/v2/{quote(job_id, safe='')}/rerun"
        return parse_submission(
            http.decode(self._call("POST", path, {}, idempotency_key=str(uuid.uuid4())))
        )

    def delete_job(self, job_id: str) -> None:
        """Forget a job and its pictures; one that is gone already is as good."""
        forget(self._call, f"/inference/v2/{quote(job_id, safe='')}")

    def run_merge(self, merge: Merge) -> str:
        """Row 16: begin to merge checkpoints; the id of the job that does it."""
        key = str(uuid.uuid4())
        answer = self._call(
            "POST", "/inference/run-model-merge", merge.document(), idempotency_key=key
        )
        return Fields(http.decode(answer), "a merge").text("inference_id")

    def image_urls(self, job_id: str) -> tuple[str, ...]:
        """Row 4: presigned URLs of a finished job's pictures."""
        answer = self._call(
            "GET", "/inference/get-inference-job-image-output", params={"jobID": job_id}
        )
        return parse_texts(http.decode(answer), "a list of picture URLs")

    def download_images(self, job_id: str) -> list[bytes]:
        """The files of a finished job's pictures, in order."""
        return [self.download(url) for url in self.image_urls(job_id)]

    def get_output(self, job_id: str) -> InferenceOutput:
        """Row 5: a finished job's parameters and infotexts."""
        answer = self._call(
            "GET", "/inference/get-inference-job-param-output", params={"jobID": job_id}
        )
        urls = parse_texts(http.decode(answer), "a list of one URL")
        if not urls:
            raise UnexpectedAnswer(f"The server has no parameters for job {job_id}.")
        fields = Fields(_json(self.download(urls[0])), "a job's parameters")
        info = Fields(_json(fields.optional_text("info") or "{}"), "a job's info")
        return InferenceOutput(
            parameters=fields.mapping("parameters"),
            infotexts=info.texts("infotexts"),
            warnings=info.texts("warnings") or info.texts("comments"),
        )

    def download(self, url: str) -> bytes:
        """The bytes behind a presigned URL."""
        return self.storage.send("GET", url).content

    # Waiting

    def watch(
        self, job_id: str, should_cancel: Callable[[], bool] = lambda: False
    ) -> Iterator[WaitStatus]:
        """A job's states as they come, the last one final; cancels it when asked to.

        Raises JobFailed with the compute side's reason, and ConnectionLost when the server
        stays silent for LOST_PATIENCE_SECONDS (the job goes on there).
        """
        job: InferenceJob | None = None
        lost_since = cancelled_at = None
        began = self._clock()
        while True:
            try:
                job = self.get_job(job_id)
                lost_since = None
            except (ConnectionLost, ServerFault) as fault:
                now = self._clock()
                lost_since = now if lost_since is None else lost_since
                if job is None or now - lost_since >= LOST_PATIENCE_SECONDS:
                    raise ConnectionLost(
                        f"The server has stopped answering while job {job_id[:8]} ran ({fault}) "
                        "The job goes on there: its pictures will be on the Jobs page."
                    ) from fault
            now = self._clock()
            if job.state is InferenceState.FAILED:
                raise JobFailed(job.id, job.error)
            yield WaitStatus(
                job,
                lost_seconds=0.0 if lost_since is None else max(1.0, now - lost_since),
                cancelling=cancelled_at is not None and not job.is_final,
            )
            if job.is_final:
                return
            if cancelled_at is not None and now - cancelled_at >= CANCEL_PATIENCE_SECONDS:
                raise ConnectionLost(
                    f"Job {job_id[:8]} was told to stop but has not said that it did. Look at "
                    "the Jobs page, and cancel it there if it still runs."
                )
            # Brisk for short jobs, gentle to the server in a long queue.
            longest = QUEUED_POLL_SECONDS if job.queue_position else POLL_SECONDS_MOST
            interval = min(longest, max(POLL_SECONDS, POLL_SHARE * (now - began)))
            if self._pause(interval, should_cancel, cancelled_at is not None):
                self.cancel_job(job_id)
                cancelled_at = self._clock()

    def _pause(self, seconds: float, should_cancel: Callable[[], bool], cancelled: bool) -> bool:
        """Wait for the next poll; True as soon as the user wants to cancel."""
        end = self._clock() + seconds
        while True:
            if not cancelled and should_cancel():
                return True
            left = end - self._clock()
            if left <= 0:
                return False
            self.retries.sleep(min(CANCEL_CHECK_SECONDS, left))

    def wait_for(
        self,
        job_id: str,
        on_progress: Callable[[WaitStatus], None] = lambda status: None,
        should_cancel: Callable[[], bool] = lambda: False,
    ) -> InferenceJob:
        """The final job, succeeded or cancelled. Raises as `watch` does."""
        for status in self.watch(job_id, should_cancel):
            on_progress(status)
        return status.job


def _json(text: str | bytes) -> object:
    try:
        return json.loads(text)
    except ValueError as fault:
        raise UnexpectedAnswer("A stored answer of the server is not JSON.") from fault
