"""Several jobs at a time for one generation; each ends in a result, whatever comes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from aws_extension.answers import Endpoint, InferenceJob, InferenceOutput
from aws_extension.client import CloudClient, WaitStatus
from aws_extension.errors import Cancelled, CloudError, JobFailed
from aws_extension.http import POOL_SIZE
from middleware_api.contract import CheckpointType, InferenceState, TaskType

# One that runs and one that waits, so that no instance idles between two jobs.
JOBS_AN_INSTANCE = 2


@dataclass(frozen=True)
class Order:
    """What one job is asked for; an empty endpoint leaves the choice to the server."""

    task: TaskType
    models: Mapping[CheckpointType, Sequence[str]]
    fields: Mapping[str, Any]
    endpoint_name: str = ""


@dataclass(frozen=True)
class Result:
    """What came of a job: pictures, also those made before a failure or a stop, and the reason.

    `job` is None when nothing was heard of it, `output` unless the job was finished. `failure` is
    None for a job that was finished, or stopped by us.
    """

    files: tuple[bytes, ...] = ()
    output: InferenceOutput | None = None
    job: InferenceJob | None = None
    failure: CloudError | None = None


OnStatus = Callable[["Job", WaitStatus], None]


class Job:
    """One order on its way; `status` is what was heard of it last."""

    def __init__(self, order: Order, after: threading.Event) -> None:
        self.order = order
        self.status: WaitStatus | None = None
        self.sent = threading.Event()
        self._after = after
        self._stop = threading.Event()
        self._future: Future[Result]

    @property
    def is_done(self) -> bool:
        """Whether `result` answers at once."""
        return self._future.done()

    @property
    def has_begun(self) -> bool:
        """Whether an instance works on it, as far as is known."""
        job = self.status.job if self.status else None
        return job is not None and (job.progress > 0 or job.queue_position == 0)

    @property
    def progress(self) -> float:
        """0..1; what has ended counts as done."""
        if self.is_done:
            return 1.0
        return self.status.job.progress if self.status else 0.0

    def stop(self) -> None:
        """Have it cancelled; one that was not sent yet never is."""
        self._stop.set()

    def wait(self, seconds: float) -> bool:
        """Whether it has ended within that time."""
        return bool(wait([self._future], seconds).done)

    def result(self) -> Result:
        """Its end, waited for."""
        return self._future.result()


class FanOut:
    """Runs orders, at most `at_once` of them, sent in their order; a thread follows each.

    `on_status` is called in that thread.
    """

    def __init__(
        self, client: CloudClient, at_once: int, on_status: OnStatus = lambda job, status: None
    ) -> None:
        self._client = client
        self._on_status = on_status
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="sdaws-job")
        self._last_sent = threading.Event()
        self._last_sent.set()

    def add(self, order: Order) -> Job:
        """Send it as soon as there is room."""
        job = Job(order, self._last_sent)
        self._last_sent = job.sent
        job._future = self._pool.submit(self._run, job)
        return job

    def close(self) -> None:
        """Take no more. Threads end with the jobs that they follow."""
        self._pool.shutdown(wait=False)

    def _run(self, job: Job) -> Result:
        try:
            job._after.wait()
            if job._stop.is_set():
                return Result()
            order = job.order
            submission = self._client.submit(
                order.task, order.models, order.fields, order.endpoint_name
            )
        except CloudError as failure:
            return Result(failure=failure)
        finally:
            job.sent.set()
        try:
            final = self._client.wait_for(
                submission.job_id, lambda status: self._note(job, status), job._stop.is_set
            )
            cancelled = final.state is InferenceState.CANCELLED
            if cancelled and not job._stop.is_set():
                return self._what_there_is(submission.job_id, _cancelled_elsewhere(final))
            return self._fetch(final, None)
        except JobFailed as failure:
            return self._what_there_is(submission.job_id, failure)
        except CloudError as failure:
            return Result(failure=failure)

    def _note(self, job: Job, status: WaitStatus) -> None:
        job.status = status
        self._on_status(job, status)

    def _what_there_is(self, job_id: str, failure: CloudError) -> Result:
        """The pictures that a failed job had made; its own reason stands if they cannot be had."""
        try:
            return self._fetch(self._client.get_job(job_id), failure)
        except CloudError:
            return Result(failure=failure)

    def _fetch(self, job: InferenceJob, failure: CloudError | None) -> Result:
        if not job.image_names:
            return Result(job=job, failure=failure)
        files = tuple(self._client.download_images(job.id))
        finished = job.state is InferenceState.SUCCEEDED
        output = self._client.get_output(job.id) if finished else None
        return Result(files, output, job, failure)


def _cancelled_elsewhere(job: InferenceJob) -> Cancelled:
    return Cancelled(f"Job {job.id[:8]} was cancelled from elsewhere. Generate again.")


@dataclass(frozen=True)
class Capacity:
    """What the chosen endpoint, or without a choice all that are ready, can do at a time.

    `is_asleep` where no machine runs now: the first takes minutes to come.
    """

    jobs_at_once: int
    is_asleep: bool

    @staticmethod
    def of(endpoints: Sequence[Endpoint], chosen: str) -> Capacity:
        """`chosen` is an endpoint's name or empty."""
        used = [e for e in endpoints if (e.name == chosen if chosen else e.is_ready)]
        instances = sum(max(e.instance_count, e.max_instances) for e in used)
        return Capacity(
            min(POOL_SIZE, JOBS_AN_INSTANCE * max(1, instances)),
            bool(used) and not any(e.instance_count for e in used),
        )
