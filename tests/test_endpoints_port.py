"""What any adapter of `ports.Endpoints` must do, as far as both can be asked the same."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from middleware_api.aws.clients import Clients
from middleware_api.aws.endpoints import SageMakerEndpoints
from middleware_api.aws.objects import S3Objects
from middleware_api.aws.records import DynamoRecords
from middleware_api.contract import EndpointState
from middleware_api.embedded.database import Database
from middleware_api.embedded.endpoints import ProcessEndpoints
from middleware_api.embedded.queue import JobQueue
from middleware_api.embedded.worker import WorkerSettings
from middleware_api.errors import Conflict
from middleware_api.ports import EndpointChanged, Endpoints, InvocationFinished, TrainingChanged
from middleware_api.records import Endpoint
from tests.aws import BUCKET, TABLE, aws
from tests.test_aws_endpoints import ENDPOINT, JOB, SETTINGS


@dataclass
class Heard:
    """Whoever is told of ends and changes."""

    ended: list[InvocationFinished] = field(default_factory=list)
    changed: list[EndpointChanged] = field(default_factory=list)

    def invocation_starting(self, job_id: str) -> bool:
        return False

    def invocation_finished(self, event: InvocationFinished) -> None:
        self.ended.append(event)

    def endpoint_changed(self, event: EndpointChanged) -> None:
        self.changed.append(event)

    def training_changed(self, event: TrainingChanged) -> None:
        raise AssertionError(event)


@pytest.fixture(params=["embedded", "aws"])
def endpoints(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Endpoints]:
    if request.param == "embedded":
        database = Database(tmp_path / "queue.sqlite3")
        processes = ProcessEndpoints(
            JobQueue(database, time.time),
            lambda _: WorkerSettings(tmp_path, threads=1),
            max_workers=2,
        )
        processes.tell(Heard())
        yield processes
        processes.stop()
        database.close()
    else:
        with aws() as account:
            clients = Clients(account.session)
            records = DynamoRecords(clients.dynamodb, TABLE, time.time)
            objects = S3Objects(clients.s3, BUCKET)
            yield SageMakerEndpoints(clients, SETTINGS, records, objects, time.time)


FIXED = replace(ENDPOINT, autoscaling_enabled=False)


def state(endpoints: Endpoints, endpoint: Endpoint) -> EndpointState:
    return endpoints.statuses([endpoint])[endpoint.id].state


def test_an_endpoint_that_it_does_not_know_is_deleted_and_can_be_deleted(
    endpoints: Endpoints,
) -> None:
    assert state(endpoints, FIXED) is EndpointState.DELETED
    for _ in range(2):
        endpoints.delete(FIXED)
        endpoints.left_service(FIXED)
    assert state(endpoints, FIXED) is EndpointState.DELETED


def test_a_created_endpoint_is_known_until_it_is_deleted(endpoints: Endpoints) -> None:
    endpoints.create(FIXED)
    endpoints.entered_service(FIXED)
    assert state(endpoints, FIXED) in (EndpointState.CREATING, EndpointState.IN_SERVICE)
    endpoints.delete(FIXED)
    deadline = time.monotonic() + 30
    while state(endpoints, FIXED) is not EndpointState.DELETED:
        assert time.monotonic() < deadline
    endpoints.left_service(FIXED)


def test_a_job_is_accepted_once_it_is_queued_and_again_changes_nothing(
    endpoints: Endpoints,
) -> None:
    endpoints.create(FIXED)
    assert not endpoints.accepted(JOB["job_id"])
    endpoints.invoke(FIXED.id, JOB)
    endpoints.invoke(FIXED.id, JOB)
    assert endpoints.accepted(JOB["job_id"])
    assert endpoints.withdraw(JOB["job_id"]), "no instance has begun it"
    assert endpoints.patience_seconds > 3600


def test_a_machine_takes_no_more_workers_than_it_may_run(tmp_path: Path) -> None:
    database = Database(tmp_path / "queue.sqlite3")
    processes = ProcessEndpoints(
        JobQueue(database, time.time),
        lambda _: WorkerSettings(tmp_path, threads=1, program="this"),
        max_workers=2,
    )
    processes.tell(Heard())
    try:
        with pytest.raises(Conflict, match="may run 2 in all"):
            processes.create(replace(FIXED, initial_instance_count=3))
        assert state(processes, FIXED) is EndpointState.DELETED
        processes.create(replace(FIXED, initial_instance_count=2))
        with pytest.raises(Conflict, match="SDAWS_MAX_WORKERS"):
            processes.create(replace(FIXED, id="another", initial_instance_count=1))
    finally:
        processes.stop()
        database.close()
