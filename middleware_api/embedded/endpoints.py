"""Endpoints as worker processes of this machine, fed from the durable queue."""

from __future__ import annotations

import logging
import math
import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

from middleware_api.contract import EndpointState, EngineName, Invocation
from middleware_api.embedded.queue import JobQueue, QueuedJob
from middleware_api.embedded.worker import (
    Worker,
    WorkerDied,
    WorkerRefused,
    WorkerSettings,
    WorkerStopping,
)
from middleware_api.errors import Conflict
from middleware_api.ports import (
    EndpointChanged,
    EndpointStatus,
    EventSink,
    InvocationFinished,
)
from middleware_api.records import Endpoint

logger = logging.getLogger(__name__)

# A job that has cost two workers their lives is taken for the cause.
DEATHS_ALLOWED = 1
STARTS_ALLOWED = 3

_DELETED = "The endpoint was deleted before the job was done. Submit it to another one."
_FAILED = "The endpoint has failed. GET /endpoints tells why; submit to another one."


@dataclass
class _Running:
    """The moving parts of one endpoint; `gpus` are its workers', in order. `settled` is the last
    state that was told."""

    endpoint: Endpoint
    slots: list[_Slot] = field(default_factory=list)
    gpus: list[str] = field(default_factory=list)
    settled: EndpointState = EndpointState.CREATING


class ProcessEndpoints:
    """`ports.Endpoints` with one worker process an instance."""

    # Its own queue loses nothing: an overnight backlog may take as long as it takes.
    patience_seconds = math.inf

    def __init__(
        self,
        queue: JobQueue,
        settings_for: Callable[[int], WorkerSettings],
        max_workers: int,
        gpus: Sequence[str] = (),
    ) -> None:
        """`settings_for` gets the number of workers on this machine. Of its `gpus` each worker
        gets one to itself, until there are more workers than GPUs."""
        self._queue = queue
        self._settings_for = settings_for
        self._max_workers = max_workers
        self._gpus = gpus
        self._running: dict[str, _Running] = {}
        self._lock = threading.Lock()
        self._sink: EventSink

    def tell(self, sink: EventSink) -> None:
        """Who hears the events; called once, before anything else."""
        self._sink = sink

    def create(self, endpoint: Endpoint) -> None:
        """See `ports.Endpoints`."""
        if endpoint.engine is EngineName.WEBUI:
            _require_webui(endpoint)
        self._start(endpoint, self._max_workers)

    def resume(self, endpoint: Endpoint) -> None:
        """Take an endpoint up again after a restart, also if fewer workers are allowed now."""
        self._start(endpoint, None)

    def _start(self, endpoint: Endpoint, max_workers: int | None) -> None:
        running = _Running(endpoint, settled=endpoint.state)
        with self._lock:
            others = sum(r.endpoint.initial_instance_count for r in self._running.values())
            workers = others + endpoint.initial_instance_count
            if max_workers is not None and workers > max_workers:
                raise Conflict(
                    f"This machine runs {others} worker(s), and may run {max_workers} in all. "
                    "Delete an endpoint first, ask for fewer instances, or raise "
                    "SDAWS_MAX_WORKERS.",
                    "too_many_workers",
                )
            self._take_gpus(running)
            self._running[endpoint.id] = running
        settings = replace(
            self._settings_for(workers), engine=endpoint.engine, webui_url=endpoint.webui_url
        )
        for number, gpu in enumerate(running.gpus):
            own = replace(settings, gpu=gpu)
            slot = _Slot(f"{endpoint.name}/{number}", self, running, self._queue, own)
            running.slots.append(slot)
        for slot in running.slots:
            slot.start()

    def _take_gpus(self, running: _Running) -> None:
        """One for each of its workers, of those that the fewest have; "" where there is none."""
        taken = Counter(gpu for other in self._running.values() for gpu in other.gpus)
        for _ in range(running.endpoint.initial_instance_count):
            # A WebUI at a URL has chosen for itself.
            is_ours = running.endpoint.engine is EngineName.DIFFUSERS
            gpu = min(self._gpus, key=lambda gpu: taken[gpu], default="") if is_ours else ""
            taken[gpu] += 1
            running.gpus.append(gpu)

    def delete(self, endpoint: Endpoint) -> None:
        """See `ports.Endpoints`. Returns at once; stopping goes on in a thread."""
        thread = threading.Thread(
            target=self._delete, args=(endpoint,), name=f"delete {endpoint.name}"
        )
        thread.start()

    def entered_service(self, endpoint: Endpoint) -> None:
        """See `ports.Endpoints`. Nothing: the number of worker processes stays what it is."""

    def left_service(self, endpoint: Endpoint) -> None:
        """See `ports.Endpoints`. Nothing: no process, no trace."""

    def statuses(self, endpoints: Collection[Endpoint]) -> dict[str, EndpointStatus]:
        """See `ports.Endpoints`."""
        with self._lock:
            found = {endpoint.id: self._running.get(endpoint.id) for endpoint in endpoints}
        return {
            endpoint_id: EndpointStatus(EndpointState.DELETED)
            if running is None
            else EndpointStatus(
                state=running.settled,
                instance_count=sum(slot.ready for slot in running.slots),
                load=self._queue.load(endpoint_id),
            )
            for endpoint_id, running in found.items()
        }

    def invoke(self, endpoint_id: str, invocation: Invocation) -> None:
        """See `ports.Endpoints`."""
        self._queue.put(endpoint_id, invocation)
        with self._lock:
            running = self._running.get(endpoint_id)
        if running is None:
            self._fail(invocation["job_id"], _DELETED)
            return
        if running.settled is EndpointState.FAILED:
            self._fail(invocation["job_id"], _FAILED)
            return
        for slot in running.slots:
            slot.wake()

    def accepted(self, job_id: str) -> bool:
        """See `ports.Endpoints`."""
        return self._queue.position(job_id) is not None

    def queue_position(self, job_id: str) -> int | None:
        """See `ports.Endpoints`."""
        return self._queue.position(job_id)

    def withdraw(self, job_id: str) -> bool:
        """See `ports.Endpoints`."""
        return self._queue.withdraw(job_id)

    def stop(self) -> None:
        """Stop all workers; their jobs stay queued for the next start."""
        with self._lock:
            slots = [slot for running in self._running.values() for slot in running.slots]
            self._running.clear()
        for slot in slots:
            slot.ask_to_stop()
        for slot in slots:
            slot.join()

    def became_ready(self, running: _Running) -> None:
        """A slot's first worker is up."""
        self._settle(running, EndpointState.IN_SERVICE, "")

    def cannot_start(self, running: _Running, reason: str) -> None:
        """A slot has tried often enough; the endpoint fails when no other slot works."""
        if any(slot.ready for slot in running.slots):
            return
        self._settle(running, EndpointState.FAILED, reason)
        for job_id in self._queue.waiting(running.endpoint.id):
            self._fail(job_id, _FAILED)

    def run(self, job: QueuedJob, worker: Worker) -> None:
        """Run one leased job on a worker and record its end, whatever it is.

        Raises WorkerDied when the worker is gone; the job has been dealt with then too.
        """
        if not self._sink.invocation_starting(job.job_id):
            self._queue.remove(job.job_id)
            return
        try:
            result = worker.invoke(job.invocation)
        except WorkerStopping:
            self._queue.give_back(job.job_id, died=False)
            return
        except WorkerRefused as error:
            self._fail(job.job_id, str(error))
            return
        except WorkerDied as error:
            if job.deaths < DEATHS_ALLOWED:
                logger.warning("job %s: worker %s; trying once more", job.job_id, error)
                self._queue.give_back(job.job_id, died=True)
            else:
                self._fail(
                    job.job_id,
                    f"The worker process died twice over this job ({error}). It may need more "
                    "memory than there is: ask for something smaller, or run it on a machine "
                    "with more.",
                )
            raise
        self._sink.invocation_finished(InvocationFinished(job.job_id, result=result))
        self._queue.remove(job.job_id)

    def give_up(self, job: QueuedJob, fault: Exception) -> None:
        """End a job over which this server itself stumbled."""
        kind = type(fault).__name__
        self._fail(job.job_id, f"A fault in the server ({kind}: {fault}); see its log.")

    def _delete(self, endpoint: Endpoint) -> None:
        with self._lock:
            running = self._running.pop(endpoint.id, None)
        slots = running.slots if running else []
        for slot in slots:
            slot.ask_to_stop()
        for slot in slots:
            slot.join()
        for job_id in self._queue.waiting(endpoint.id):
            self._fail(job_id, _DELETED)
        self._sink.endpoint_changed(EndpointChanged(endpoint.id, EndpointState.DELETED))

    def _fail(self, job_id: str, reason: str) -> None:
        self._sink.invocation_finished(InvocationFinished(job_id, failure=reason))
        self._queue.remove(job_id)

    def _settle(self, running: _Running, state: EndpointState, error: str) -> None:
        with self._lock:
            if running.settled is state:
                return
            running.settled = state
        self._sink.endpoint_changed(EndpointChanged(running.endpoint.id, state, error))


def _require_webui(endpoint: Endpoint) -> None:
    if not endpoint.webui_url:
        raise Conflict(
            "Here the engine webui works with a WebUI that runs already: name its address in "
            "webui_url, for example http://127.0.0.1:7860, and start it with --api.",
            "webui_url_missing",
        )
    if endpoint.initial_instance_count > 1:
        raise Conflict(
            "One WebUI does one thing at a time: an endpoint with a webui_url has one instance.",
            "webui_is_one_instance",
        )


class _Slot:
    """One instance: a thread that keeps a worker alive and feeds it."""

    def __init__(
        self,
        name: str,
        endpoints: ProcessEndpoints,
        running: _Running,
        queue: JobQueue,
        settings: WorkerSettings,
    ) -> None:
        self.ready = False
        self._name = name
        self._endpoints = endpoints
        self._running = running
        self._queue = queue
        self._settings = settings
        self._worker: Worker | None = None
        self._condition = threading.Condition()
        self._stopping = False
        self._woken = False
        self._thread = threading.Thread(target=self._live, name=f"slot {name}")

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """There may be a job."""
        with self._condition:
            self._woken = True
            self._condition.notify()

    def ask_to_stop(self) -> None:
        """Stop soon; a running job is handed back at its next step."""
        with self._condition:
            self._stopping = True
            self._condition.notify()
            if self._worker is not None and self._worker.is_alive():
                self._worker.process.terminate()

    def join(self) -> None:
        """Wait until the worker is gone."""
        self._thread.join()

    def _live(self) -> None:
        failed_starts = 0
        while not self._stopping and failed_starts < STARTS_ALLOWED:
            try:
                worker = self._start_worker()
                if worker is None:
                    return
                failed_starts = 0
                self._serve(worker)
            except WorkerDied as error:
                if not self.ready:
                    failed_starts += 1
                    reason = str(error)
                logger.warning("worker %s: %s", self._name, error)
            except Exception as fault:  # the thread's edge: an instance must not vanish silently
                failed_starts += 1
                reason = f"A fault in the server ({type(fault).__name__}: {fault}); see its log."
                logger.exception("worker %s", self._name)
            finally:
                self._put_worker_away()
        if not self._stopping:
            self._endpoints.cannot_start(self._running, reason)

    def _start_worker(self) -> Worker | None:
        with self._condition:
            if self._stopping:
                return None
            self._worker = Worker(self._settings, self._name)
        self._worker.wait_until_ready()
        self.ready = True
        self._endpoints.became_ready(self._running)
        return self._worker

    def _serve(self, worker: Worker) -> None:
        while not self._stopping:
            if not worker.is_alive():
                raise WorkerDied("it died while it was idle")
            job = self._queue.lease(self._running.endpoint.id)
            if job is not None:
                self._run(job, worker)
                continue
            with self._condition:
                if not self._woken and not self._stopping:
                    # The time bounds how long a worker that died idle goes unnoticed.
                    self._condition.wait(timeout=1.0)
                self._woken = False

    def _run(self, job: QueuedJob, worker: Worker) -> None:
        try:
            self._endpoints.run(job, worker)
        except WorkerDied:
            raise
        except Exception as fault:
            logger.exception("job %s", job.job_id)
            self._endpoints.give_up(job, fault)

    def _put_worker_away(self) -> None:
        with self._condition:
            worker, self._worker = self._worker, None
        self.ready = False
        if worker is not None:
            worker.stop()
