"""SageMaker's training jobs, by Stubber: moto cannot stop one, and ends each at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from botocore.stub import ANY, Stubber

from middleware_api.aws.clients import Clients
from middleware_api.aws.training import SageMakerTrainingJobs, training_status
from middleware_api.contract import CheckpointType, ModelState, TrainState
from middleware_api.errors import Conflict
from middleware_api.ports import TrainingStatus
from middleware_api.records import Model, TrainJob
from tests.aws import BUCKET, REGION, aws
from tests.test_aws_endpoints import ROLE, SETTINGS

JOB = TrainJob(
    id="7a1b",
    owner="me",
    created_at=1.0,
    type=CheckpointType.STABLE_DIFFUSION,
    state=TrainState.TRAINING,
    model_id="m",
    model_name="dogs",
    params={},
    instance_type="ml.g5.xlarge",
)
NAME = "sdaws-7a1b"
STARTED = {"TrainingJobArn": f"arn:aws:sagemaker:{REGION}:111122223333:training-job/{NAME}"}


@pytest.fixture
def sagemaker() -> Iterator[tuple[SageMakerTrainingJobs, Stubber]]:
    with aws() as account:
        clients = Clients(account.session)
        with Stubber(clients.sagemaker) as stub:
            yield SageMakerTrainingJobs(clients, SETTINGS), stub
            stub.assert_no_pending_responses()


Rig = tuple[SageMakerTrainingJobs, Stubber]


def test_a_job_reads_its_order_and_writes_below_its_prefix(sagemaker: Rig) -> None:
    jobs, stub = sagemaker
    stub.add_response(
        "create_training_job",
        STARTED,
        {
            "TrainingJobName": NAME,
            "RoleArn": ROLE,
            "AlgorithmSpecification": ANY,
            "InputDataConfig": [
                {
                    "ChannelName": "order",
                    "DataSource": {
                        "S3DataSource": {
                            "S3DataType": "S3Prefix",
                            "S3Uri": f"s3://{BUCKET}/in/",
                            "S3DataDistributionType": "FullyReplicated",
                        }
                    },
                }
            ],
            "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/output/"},
            "ResourceConfig": {
                "InstanceType": "ml.g5.xlarge",
                "InstanceCount": 1,
                "VolumeSizeInGB": 100,
            },
            "StoppingCondition": {"MaxRuntimeInSeconds": 86400},
            "EnableManagedSpotTraining": False,
            "Environment": {"SDAWS_BUCKET": BUCKET, "SDAWS_OUTPUT_PREFIX": "output/"},
        },
    )
    assert jobs.start(JOB, "in/", "output/") == NAME


def test_a_model_is_made_without_a_gpu() -> None:
    model = Model(
        id="m", owner="me", created_at=1.0, name="dogs", type=JOB.type, state=ModelState.CREATING
    )
    with aws() as account:
        jobs = SageMakerTrainingJobs(Clients(account.session), SETTINGS)
        for job in (model, replace(JOB, instance_type="")):
            jobs.start(job, "in/", "output/")
        asked = [told["ResourceConfig"]["InstanceType"] for _, told in account.calls]
    assert asked == ["ml.m5.2xlarge", "ml.g5.2xlarge"]


def test_a_machine_that_may_be_taken_away_is_waited_for() -> None:
    with aws() as account:
        spot = replace(SETTINGS, spot_training="yes")
        SageMakerTrainingJobs(Clients(account.session), spot).start(JOB, "in/", "output/")
        ((_, asked),) = account.calls
    assert asked["EnableManagedSpotTraining"]
    assert asked["StoppingCondition"] == {
        "MaxRuntimeInSeconds": 86400,
        "MaxWaitTimeInSeconds": 172800,
    }


def test_the_same_job_a_second_time_changes_nothing(sagemaker: Rig) -> None:
    jobs, stub = sagemaker
    stub.add_client_error(
        "create_training_job", "ResourceInUse", "Training job names must be unique: already exists"
    )
    assert jobs.start(JOB, "in/", "output/") == NAME


def test_a_refusal_is_told_with_what_to_do(sagemaker: Rig) -> None:
    jobs, stub = sagemaker
    stub.add_client_error("create_training_job", "ResourceLimitExceeded", "The limit is 0.")
    with pytest.raises(Conflict, match="does not start this training job: The limit is 0"):
        jobs.start(JOB, "in/", "output/")


def test_stopping_what_has_ended_is_no_error(sagemaker: Rig) -> None:
    jobs, stub = sagemaker
    for reason in (
        "The request was rejected because the training job is in status Completed.",
        "Requested resource not found.",
    ):
        stub.add_client_error("stop_training_job", "ValidationException", reason)
        jobs.stop(JOB)
    stub.add_client_error("stop_training_job", "AccessDeniedException", "no")
    with pytest.raises(Exception, match="AccessDenied"):
        jobs.stop(JOB)


def test_an_unknown_job_has_no_status(sagemaker: Rig) -> None:
    jobs, stub = sagemaker
    stub.add_client_error(
        "describe_training_job", "ValidationException", "Requested resource not found."
    )
    assert jobs.status(JOB) is None


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ({"TrainingJobStatus": "Stopping"}, TrainingStatus(TrainState.TRAINING)),
        ({"TrainingJobStatus": "Completed"}, TrainingStatus(TrainState.COMPLETE)),
        ({"TrainingJobStatus": "Stopped"}, TrainingStatus(TrainState.STOPPED)),
        (
            {"TrainingJobStatus": "Failed", "FailureReason": "AlgorithmError: out of memory"},
            TrainingStatus(TrainState.FAILED, "AlgorithmError: out of memory"),
        ),
        (
            {"TrainingJobStatus": "Stopped", "SecondaryStatus": "MaxRuntimeExceeded"},
            TrainingStatus(TrainState.FAILED, "It ran longer than 24 hours and was stopped."),
        ),
        (
            {"TrainingJobStatus": "Stopped", "SecondaryStatus": "MaxWaitTimeExceeded"},
            TrainingStatus(
                TrainState.FAILED,
                "No spot machine came, or stayed, for 48 hours. Try another instance type, or "
                "deploy with SpotTraining=no.",
            ),
        ),
        (
            {"TrainingJobStatus": "InProgress", "SecondaryStatus": "Downloading"},
            TrainingStatus(TrainState.TRAINING, phase="waiting for a machine"),
        ),
        (
            {"TrainingJobStatus": "InProgress", "SecondaryStatus": "Interrupted"},
            TrainingStatus(
                TrainState.TRAINING, phase="its machine was taken away, waiting for another"
            ),
        ),
        (
            {"TrainingJobStatus": "InProgress", "SecondaryStatus": "Training"},
            TrainingStatus(TrainState.TRAINING),
        ),
    ],
)
def test_sagemakers_words_for_training(told: dict[str, Any], status: TrainingStatus) -> None:
    assert training_status(told) == status


def test_a_failure_always_has_a_reason() -> None:
    assert training_status({"TrainingJobStatus": "Failed"}).error
