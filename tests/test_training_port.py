"""What any adapter of `ports.TrainingJobs` must do, as far as both can be asked the same."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from middleware_api import contract
from middleware_api.aws.clients import Clients
from middleware_api.aws.objects import S3Objects
from middleware_api.aws.training import SageMakerTrainingJobs
from middleware_api.contract import TrainState
from middleware_api.ports import Objects, TrainingJobs
from tests.aws import BUCKET, aws
from tests.test_aws_endpoints import SETTINGS
from tests.test_aws_training import JOB
from tests.test_process_training import Machine

Side = tuple[TrainingJobs, Objects]


@pytest.fixture(params=["embedded", "aws"])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Side]:
    if request.param == "embedded":
        machine = Machine(tmp_path)
        jobs = machine.serve()
        yield jobs, machine.objects
        jobs.end()
        machine.database.close()
    else:
        with aws() as account:
            clients = Clients(account.session)
            yield SageMakerTrainingJobs(clients, SETTINGS), S3Objects(clients.s3, BUCKET)


def test_a_job_that_it_does_not_know_has_no_status(side: Side) -> None:
    jobs, _ = side
    assert jobs.status(JOB) is None


def test_a_started_job_is_known_under_one_name_until_after_its_end(side: Side) -> None:
    jobs, objects = side
    objects.write(contract.order_key("in/"), json.dumps({"params": {}}).encode())
    name = jobs.start(JOB, "in/", "out/")
    assert JOB.id in name
    deadline = time.monotonic() + 60
    while (status := jobs.status(JOB)) is not None and status.state is TrainState.TRAINING:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert status is not None
    assert (status.state, status.error) == (TrainState.COMPLETE, "")
    assert jobs.start(JOB, "in/", "out/") == name
    assert jobs.status(JOB) == status, "the same job a second time changes nothing"
