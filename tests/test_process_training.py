"""Training as processes of this machine: killed, stopped, queued, taken up by the next server."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from middleware_api import contract
from middleware_api.contract import CheckpointType, TrainState
from middleware_api.embedded.database import Database
from middleware_api.embedded.objects import FolderObjects
from middleware_api.embedded.trainer import TrainerSettings
from middleware_api.embedded.training import ProcessTrainingJobs
from middleware_api.embedded.training_queue import REMEMBERED_SECONDS, TrainingQueue
from middleware_api.ports import EndpointChanged, InvocationFinished, TrainingChanged
from middleware_api.records import TrainJob

JOB = TrainJob(
    id="7a1b",
    owner="me",
    created_at=1.0,
    type=CheckpointType.STABLE_DIFFUSION,
    state=TrainState.TRAINING,
    model_id="m",
    model_name="dogs",
    params={},
)


@dataclass
class Heard:
    """Whoever is told of ends."""

    ends: queue.Queue[TrainingChanged] = field(default_factory=queue.Queue)

    def invocation_starting(self, job_id: str) -> bool:
        raise AssertionError(job_id)

    def invocation_finished(self, event: InvocationFinished) -> None:
        raise AssertionError(event)

    def endpoint_changed(self, event: EndpointChanged) -> None:
        raise AssertionError(event)

    def training_changed(self, event: TrainingChanged) -> None:
        self.ends.put(event)


class Machine:
    """This machine, and the servers that it runs one after the other."""

    def __init__(self, folder: Path) -> None:
        self.now = 1_000_000.0
        self.database = Database(folder / "records.sqlite3")
        self.objects = FolderObjects(folder, b"key", "http://store.test", lambda: self.now)
        self.settings = TrainerSettings(
            self.objects.root, folder / "training", 1, 60.0, program="tests.pretend_trainer"
        )
        self.heard = Heard()
        self.servers: list[ProcessTrainingJobs] = []

    def serve(self, **settings: Any) -> ProcessTrainingJobs:
        """A server that begins."""
        jobs = ProcessTrainingJobs(
            TrainingQueue(self.database, lambda: self.now),
            self.objects,
            replace(self.settings, **settings),
        )
        jobs.tell(self.heard)
        self.servers.append(jobs)
        jobs.begin()
        return jobs

    def start(self, jobs: ProcessTrainingJobs, job: TrainJob = JOB, **pretend: object) -> str:
        """A job whose program pretends so."""
        order = {"params": {"pretend": pretend}}
        self.objects.write(contract.order_key(f"{job.id}/input/"), json.dumps(order).encode())
        return jobs.start(job, f"{job.id}/input/", f"{job.id}/output/")

    def end(self) -> TrainingChanged:
        """The next end that is told."""
        return self.heard.ends.get(timeout=60)

    def lines(self, name: str, job: TrainJob = JOB) -> list[str]:
        """What the job's processes have noted."""
        return self.objects.read(f"{job.id}/output/{name}").decode().split()

    def wait_for(self, name: str, line: str) -> None:
        """Until a process has noted that."""
        deadline = time.monotonic() + 60
        while True:
            key = f"{JOB.id}/output/{name}"
            if self.objects.size(key) is not None and line in self.lines(name):
                return
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    for server in made.servers:
        server.end()
    made.database.close()


def test_one_trains_and_the_next_waits_its_turn(machine: Machine) -> None:
    jobs = machine.serve()
    second, third = replace(JOB, id="second"), replace(JOB, id="third")
    machine.start(jobs, waits=True)
    machine.wait_for("steps", "2")
    machine.start(jobs, second)
    machine.start(jobs, third)
    assert TrainingQueue(machine.database, lambda: 0).waits(third.id) == 1
    jobs.stop(third)
    assert machine.end() == TrainingChanged("third", TrainState.STOPPED), "nobody had begun it"
    jobs.stop(JOB)
    assert machine.end() == TrainingChanged(JOB.id, TrainState.STOPPED)
    assert machine.end() == TrainingChanged("second", TrainState.COMPLETE)
    assert machine.lines("steps", second) == ["0", "1", "2", "3", "4"]
    assert list(machine.settings.folder.iterdir()) == [], "its folder went with it"
    status = jobs.status(JOB)
    assert status is not None
    assert status.state is TrainState.STOPPED


def test_a_killed_program_goes_on_a_bounded_number_of_times(machine: Machine) -> None:
    jobs = machine.serve()
    machine.start(jobs, kill=2, steps=6)
    assert machine.end() == TrainingChanged(JOB.id, TrainState.COMPLETE)
    assert len(set(machine.lines("runs"))) == 3
    assert machine.lines("steps") == ["0", "1", "2", "3", "0", "4", "0", "5", "6"]
    worse = replace(JOB, id="worse")
    machine.start(jobs, worse, kill=9)
    end = machine.end()
    assert end.state is TrainState.FAILED
    assert "died 3 times over this job (killed by signal 9 after: out of memory" in end.error


def test_what_the_program_says_is_the_reason(machine: Machine) -> None:
    jobs = machine.serve()
    machine.start(jobs, fail="'a.png' is no picture.")
    assert machine.end() == TrainingChanged(JOB.id, TrainState.FAILED, "'a.png' is no picture.")
    crashed = replace(JOB, id="crashed")
    machine.start(jobs, crashed, crash="no such head")
    end = machine.end()
    assert end.state is TrainState.FAILED
    assert "ended with exit code 1 after: RuntimeError: no such head" in end.error
    assert len(machine.lines("runs", crashed)) == 1, "again would end the same"


def test_who_does_not_stop_is_killed(machine: Machine) -> None:
    jobs = machine.serve(stop_seconds=0.2)
    machine.start(jobs, stubborn=True)
    machine.wait_for("steps", "2")
    jobs.stop(JOB)
    end = machine.end()
    assert end.state is TrainState.STOPPED
    assert "did not end within" in end.error


def test_a_job_that_runs_too_long_fails(machine: Machine) -> None:
    jobs = machine.serve(train_seconds=1.0, stop_seconds=0.2)
    machine.start(jobs, stubborn=True)
    end = machine.end()
    assert end.state is TrainState.FAILED
    assert "raise SDAWS_TRAIN_SECONDS" in end.error


def test_the_next_server_goes_on(machine: Machine) -> None:
    jobs = machine.serve()
    machine.start(jobs, waits=True, steps=4)
    machine.wait_for("steps", "2")
    jobs.end()
    assert machine.heard.ends.empty(), "it has not ended"
    outcome = json.loads(machine.objects.read(contract.train_outcome_key(f"{JOB.id}/output/")))
    assert outcome["state"] == "Stopped", "it saved what it had"
    again = machine.serve()
    machine.wait_for("steps", "3")
    again.stop(JOB)
    assert machine.end() == TrainingChanged(JOB.id, TrainState.STOPPED)


def test_an_end_that_no_server_saw_is_not_trained_again(machine: Machine) -> None:
    jobs = machine.serve()
    machine.start(jobs)
    machine.end()
    with machine.database.transaction() as connection:
        connection.execute("UPDATE training SET state = 'Training', leased = 1")
    machine.serve()
    assert machine.end() == TrainingChanged(JOB.id, TrainState.COMPLETE)
    assert len(machine.lines("runs")) == 1


def test_old_ends_are_forgotten_in_time(machine: Machine) -> None:
    jobs = machine.serve()
    machine.start(jobs)
    machine.end()
    machine.now += REMEMBERED_SECONDS - 1
    assert machine.serve().status(JOB) is not None
    machine.now += 2
    assert machine.serve().status(JOB) is None


def test_a_job_whose_order_is_gone_fails_with_that(machine: Machine) -> None:
    jobs = machine.serve()
    jobs.start(JOB, "nowhere/", "out/")
    end = machine.end()
    assert end.state is TrainState.FAILED
    assert "There is no object 'nowhere/order.json'" in end.error
