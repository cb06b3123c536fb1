"""Training jobs, and the making of models, as processes of this machine."""

from __future__ import annotations

import json
import logging
import shutil
import threading

from middleware_api import contract
from middleware_api.contract import TrainOutcome, TrainState
from middleware_api.embedded.trainer import Ended, Trainer, TrainerSettings
from middleware_api.embedded.training_queue import QueuedTraining, TrainingQueue
from middleware_api.errors import NotFound
from middleware_api.ports import EventSink, Objects, TrainingChanged, TrainingStatus
from middleware_api.records import Model, TrainJob

logger = logging.getLogger(__name__)

# A job that has cost so many processes their lives, and then another, is taken for the cause.
DEATHS_ALLOWED = 2
# How long a server that stops waits for its programs to save what they have.
SHUTDOWN_SECONDS = 15.0


class ProcessTrainingJobs:
    """`ports.TrainingJobs` with a bounded number of processes at once; the others wait.

    A job outlives its process, and this server: it goes on from what the program saved last.
    """

    def __init__(
        self,
        queue: TrainingQueue,
        objects: Objects,
        settings: TrainerSettings,
        at_once: int = 1,
    ) -> None:
        self._queue = queue
        self._objects = objects
        self._settings = settings
        self._running: dict[str, Trainer] = {}
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._work, name=f"training {number}")
            for number in range(at_once)
        ]
        self._sink: EventSink

    def tell(self, sink: EventSink) -> None:
        """Who hears the events; called once, before anything else."""
        self._sink = sink

    def begin(self) -> None:
        """Go on with what the last server left, and take new jobs."""
        self._queue.recover()
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        """Have the programs save what they have and end; the next server goes on with it."""
        with self._lock:
            self._stopping = True
            self._news.notify_all()
            for trainer in self._running.values():
                trainer.ask_to_stop(min(SHUTDOWN_SECONDS, self._settings.stop_seconds))
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def start(self, job: TrainJob | Model, input_prefix: str, output_prefix: str) -> str:
        """See `ports.TrainingJobs`."""
        self._queue.put(job.id, input_prefix, output_prefix)
        with self._lock:
            self._news.notify()
        return f"{job.KIND}-{job.id}"

    def stop(self, job: TrainJob | Model) -> None:
        """See `ports.TrainingJobs`."""
        if self._queue.ask_to_stop(job.id):
            self._sink.training_changed(TrainingChanged(job.id, TrainState.STOPPED))
            return
        with self._lock:
            trainer = self._running.get(job.id)
            if trainer is not None:
                trainer.ask_to_stop(self._settings.stop_seconds)

    def status(self, job: TrainJob | Model) -> TrainingStatus | None:
        """See `ports.TrainingJobs`."""
        found = self._queue.find(job.id)
        if found is None:
            return None
        ahead = self._queue.waits(job.id)
        phase = "" if ahead is None else f"waiting for its turn, {ahead + 1} before it"
        return TrainingStatus(found.state, found.error, phase)

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._run(job)
            except Exception as fault:  # the thread's edge: a job must not vanish silently
                logger.exception("training job %s", job.job_id)
                kind = type(fault).__name__
                self._end(
                    job, TrainState.FAILED, f"A fault in the server ({kind}: {fault}); see its log."
                )

    def _next(self) -> QueuedTraining | None:
        with self._lock:
            while not self._stopping:
                if (job := self._queue.lease()) is not None:
                    return job
                self._news.wait()
            return None

    def _run(self, job: QueuedTraining) -> None:
        if self._ended_before(job):
            return
        order = self._objects.read(contract.order_key(job.input_prefix))
        with self._lock:
            if self._stopping:
                return
            trainer = self._running[job.job_id] = Trainer(self._settings, job, order)
            found = self._queue.find(job.job_id)
            if found is not None and found.stop_asked:
                trainer.ask_to_stop(self._settings.stop_seconds)
        try:
            ended = trainer.wait(self._settings.train_seconds - job.seconds)
        finally:
            with self._lock:
                del self._running[job.job_id]
        self._settle(job, ended)

    def _ended_before(self, job: QueuedTraining) -> bool:
        """Whether its last process came to its end after the server that had started it."""
        outcome = self._outcome(job)
        if outcome is None:
            return False
        if outcome["state"] == TrainState.STOPPED.value and not job.stop_asked:
            # Only that server wanted it to stop.
            self._objects.delete(contract.train_outcome_key(job.output_prefix))
            return False
        self._end(job, TrainState(outcome["state"]), outcome["error"])
        return True

    def _settle(self, job: QueuedTraining, ended: Ended) -> None:
        """End a job whose process has ended, or have it run again."""
        outcome = self._outcome(job)
        found = self._queue.find(job.job_id)
        stop_asked = found is not None and found.stop_asked
        if outcome is not None and outcome["state"] != TrainState.STOPPED.value:
            self._end(job, TrainState(outcome["state"]), outcome["error"])
        elif stop_asked:
            self._end(job, TrainState.STOPPED, self._not_in_time() if ended.stubborn else "")
        elif ended.overran:
            self._end(job, TrainState.FAILED, self._overran())
        elif self._stopping:
            self._queue.give_back(job.job_id, ended.seconds, died=False)
        elif outcome is not None:
            self._end(job, TrainState.STOPPED, "It was stopped from outside.")
        elif ended.code >= 0:
            self._end(
                job, TrainState.FAILED, f"The training program {ended.how}. Its log may say more."
            )
        elif job.deaths < DEATHS_ALLOWED:
            logger.warning("training job %s: %s; it goes on", job.job_id, ended.how)
            self._queue.give_back(job.job_id, ended.seconds, died=True)
        else:
            self._end(job, TrainState.FAILED, self._died(ended))

    def _outcome(self, job: QueuedTraining) -> TrainOutcome | None:
        try:
            outcome: TrainOutcome = json.loads(
                self._objects.read(contract.train_outcome_key(job.output_prefix))
            )
        except NotFound:
            return None
        return outcome

    def _end(self, job: QueuedTraining, state: TrainState, error: str) -> None:
        self._queue.end(job.job_id, state, error)
        shutil.rmtree(self._settings.folder / job.job_id, ignore_errors=True)
        self._sink.training_changed(TrainingChanged(job.job_id, state, error))

    def _not_in_time(self) -> str:
        return (
            f"It did not end within {self._settings.stop_seconds:.0f} s and was killed: what it "
            "had learned since its last checkpoint is lost."
        )

    def _overran(self) -> str:
        return (
            f"It ran longer than {self._settings.train_seconds / 3600:.3g} hours and was stopped. "
            "Ask for fewer steps, or raise SDAWS_TRAIN_SECONDS."
        )

    def _died(self, ended: Ended) -> str:
        return (
            f"The training program died {DEATHS_ALLOWED + 1} times over this job ({ended.how}). "
            "It may need more memory than there is: ask for a smaller batch or resolution, or "
            "train on a machine with more."
        )
