"""The middleware of one machine: all embedded adapters put together, and their life."""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import dataclass, field
from functools import partial

from middleware_api.bootstrap import make_services
from middleware_api.container.gpus import visible_gpus
from middleware_api.contract import PAGE_MAX, EndpointState
from middleware_api.embedded.database import Database
from middleware_api.embedded.endpoints import ProcessEndpoints
from middleware_api.embedded.objects import FolderObjects
from middleware_api.embedded.queue import JobQueue
from middleware_api.embedded.records import SqliteRecords
from middleware_api.embedded.runners import ThreadRunners
from middleware_api.embedded.trainer import TRAINING_PROGRAM, TrainerSettings
from middleware_api.embedded.training import ProcessTrainingJobs
from middleware_api.embedded.training_queue import TrainingQueue
from middleware_api.embedded.worker import CONTAINER_PROGRAM, WorkerSettings
from middleware_api.fetching import Fetcher, FetchPolicy
from middleware_api.records import Endpoint
from middleware_api.services.events import EventHandlers, Services, go_on, reconcile
from middleware_api.settings import Settings, secret_in_file

logger = logging.getLogger(__name__)

RECONCILE_EVERY_SECONDS = 5.0


@dataclass
class Embedded:
    """The middleware on one machine; `start` and `stop` go with the server's life."""

    services: Services
    objects: FolderObjects
    records: SqliteRecords
    database: Database
    queue: JobQueue
    endpoints: ProcessEndpoints
    training_jobs: ProcessTrainingJobs
    runners: ThreadRunners
    _stopping: threading.Event = field(default_factory=threading.Event, init=False)
    _reconciler: threading.Thread | None = field(default=None, init=False)

    def start(self) -> None:
        """Take up what the last server left, and look after it from now on."""
        self.queue.recover()
        self._resume_endpoints()
        self.training_jobs.begin()
        self.runners.start()
        self.services.imports.recover()
        self._reconciler = threading.Thread(target=self._reconcile, name="reconciler")
        self._reconciler.start()

    def stop(self) -> None:
        """Stop the workers (their jobs stay queued) and close the files. Again is no error."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        if self._reconciler is not None:
            self._reconciler.join()
        self.runners.stop()
        self.training_jobs.end()
        self.endpoints.stop()
        self.database.close()

    def _resume_endpoints(self) -> None:
        cursor = None
        alive = (EndpointState.CREATING, EndpointState.IN_SERVICE, EndpointState.DELETING)
        while True:
            page = self.records.page(
                Endpoint, states=[s.value for s in alive], limit=PAGE_MAX, cursor=cursor
            )
            for endpoint in page.items:
                if endpoint.state is EndpointState.DELETING:
                    self.endpoints.delete(endpoint)
                else:
                    self.endpoints.resume(endpoint)
            cursor = page.next_cursor
            if cursor is None:
                return

    def _reconcile(self) -> None:
        while not self._stopping.wait(RECONCILE_EVERY_SECONDS):
            try:
                reconcile(self.services, self.records, time.time)
            except Exception:
                logger.exception("reconciling")


def embedded(
    settings: Settings,
    base_url: str,
    worker_program: str = CONTAINER_PROGRAM,
    training_program: str = TRAINING_PROGRAM,
) -> Embedded:
    """The middleware of one machine, not started yet. `base_url` is where its server listens, the
    programs are what its workers and training jobs run."""
    database = Database(settings.data_dir / "middleware.sqlite3")
    records = SqliteRecords(database, time.time)
    objects = FolderObjects(
        settings.data_dir,
        secret_in_file(settings.signing_key_path).encode(),
        base_url,
        time.time,
    )
    queue = JobQueue(database, time.time)

    def worker_settings(workers: int) -> WorkerSettings:
        # More threads than cores made two workers eighteen times slower.
        threads = max(1, (os.cpu_count() or 1) // workers)
        return WorkerSettings(
            objects.root, threads, job_seconds=settings.job_seconds, program=worker_program
        )

    endpoints = ProcessEndpoints(
        queue, worker_settings, settings.max_workers, visible_gpus(os.environ)
    )
    training_jobs = ProcessTrainingJobs(
        TrainingQueue(database, time.time),
        objects,
        TrainerSettings(
            objects.root,
            settings.data_dir / "training",
            # The other half is for the workers, which also go first: see `lifeline`.
            threads=max(1, (os.cpu_count() or 1) // 2),
            train_seconds=settings.train_seconds,
            program=training_program,
        ),
        settings.max_trainings,
    )
    runners = ThreadRunners()
    services = make_services(
        records,
        objects,
        endpoints,
        training_jobs,
        runners,
        Fetcher(FetchPolicy(settings.import_hosts, settings.import_max_bytes)),
        settings.api_token,
        time.time,
    )
    endpoints.tell(EventHandlers(services))
    training_jobs.tell(EventHandlers(services))
    runners.tell(partial(go_on, services))
    return Embedded(services, objects, records, database, queue, endpoints, training_jobs, runners)
