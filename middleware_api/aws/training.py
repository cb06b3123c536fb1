"""Training jobs, and the making of models, as SageMaker's training jobs."""

from __future__ import annotations

from typing import Any

from botocore.exceptions import ClientError

from middleware_api.aws.clients import Clients
from middleware_api.aws.faults import create_once, ignoring_unknown, is_unknown, refusals
from middleware_api.aws.settings import AwsSettings
from middleware_api.contract import TRAIN_METRICS, TRAIN_OUTPUT_VARIABLE, TrainState
from middleware_api.ports import TrainingStatus
from middleware_api.records import Model, TrainJob

_DEFAULT_INSTANCE = "ml.g5.2xlarge"
# Making a model is reading and writing: it needs memory, and no GPU.
_MODEL_INSTANCE = "ml.m5.2xlarge"
_DISK_GIB = 100
_MAX_SECONDS = 24 * 3600
# A machine that was taken away is waited for so long.
_MAX_SPOT_SECONDS = 2 * _MAX_SECONDS
_STARTING = {"Starting", "Pending", "LaunchingMLInstances", "PreparingTrainingStack", "Downloading"}

_STATES = {
    "InProgress": TrainState.TRAINING,
    "Stopping": TrainState.TRAINING,
    "Completed": TrainState.COMPLETE,
    "Failed": TrainState.FAILED,
    "Stopped": TrainState.STOPPED,
}


class SageMakerTrainingJobs:
    """`ports.TrainingJobs` on SageMaker; it remembers ended jobs for good."""

    def __init__(self, clients: Clients, settings: AwsSettings) -> None:
        self._clients = clients
        self._settings = settings

    def start(self, job: TrainJob | Model, input_prefix: str, output_prefix: str) -> str:
        """See `ports.TrainingJobs`."""
        name = self._name(job)
        instance = _MODEL_INSTANCE
        if isinstance(job, TrainJob):
            instance = job.instance_type or _DEFAULT_INSTANCE
        spot = self._settings.spot_training == "yes"
        bounds = {"MaxRuntimeInSeconds": _MAX_SECONDS}
        if spot:
            bounds["MaxWaitTimeInSeconds"] = _MAX_SPOT_SECONDS
        with refusals("start this training job"):
            create_once(
                self._clients.sagemaker.create_training_job,
                TrainingJobName=name,
                RoleArn=self._settings.endpoint_role,
                AlgorithmSpecification={
                    "TrainingImage": self._settings.image,
                    "TrainingInputMode": "File",
                    "MetricDefinitions": [
                        {"Name": metric, "Regex": regex} for metric, regex in TRAIN_METRICS.items()
                    ],
                },
                InputDataConfig=[
                    {
                        "ChannelName": "order",
                        "DataSource": {
                            "S3DataSource": {
                                "S3DataType": "S3Prefix",
                                "S3Uri": self._url(input_prefix),
                                "S3DataDistributionType": "FullyReplicated",
                            }
                        },
                    }
                ],
                OutputDataConfig={"S3OutputPath": self._url(output_prefix)},
                ResourceConfig={
                    "InstanceType": instance,
                    "InstanceCount": 1,
                    "VolumeSizeInGB": _DISK_GIB,
                },
                StoppingCondition=bounds,
                # No CheckpointConfig: the program keeps its states under `output_prefix` itself,
                # on every machine in the same way.
                EnableManagedSpotTraining=spot,
                Environment={
                    "SDAWS_BUCKET": self._settings.bucket,
                    TRAIN_OUTPUT_VARIABLE: output_prefix,
                },
            )
        return name

    def stop(self, job: TrainJob | Model) -> None:
        """See `ports.TrainingJobs`."""
        # SageMaker refuses for a job that has ended.
        with ignoring_unknown(also=["status"]):
            self._clients.sagemaker.stop_training_job(TrainingJobName=self._name(job))

    def status(self, job: TrainJob | Model) -> TrainingStatus | None:
        """See `ports.TrainingJobs`."""
        try:
            told = self._clients.sagemaker.describe_training_job(TrainingJobName=self._name(job))
        except ClientError as error:
            if not is_unknown(error):
                raise
            return None
        return training_status(told)

    def _name(self, job: TrainJob | Model) -> str:
        return f"{self._settings.prefix}-{job.id}"

    def _url(self, prefix: str) -> str:
        return f"s3://{self._settings.bucket}/{prefix}"


def training_status(told: dict[str, Any]) -> TrainingStatus:
    """Of DescribeTrainingJob's answer, or of the same fields in an event."""
    state = _STATES[told["TrainingJobStatus"]]
    error = told.get("FailureReason", "")
    if told.get("SecondaryStatus") == "MaxRuntimeExceeded":
        state = TrainState.FAILED
        error = f"It ran longer than {_MAX_SECONDS // 3600} hours and was stopped."
    if told.get("SecondaryStatus") == "MaxWaitTimeExceeded":
        state = TrainState.FAILED
        error = (
            f"No spot machine came, or stayed, for {_MAX_SPOT_SECONDS // 3600} hours. Try another "
            "instance type, or deploy with SpotTraining=no."
        )
    if state is TrainState.FAILED and not error:
        error = "SageMaker gives no reason; the job's log in CloudWatch may."
    secondary = told.get("SecondaryStatus", "")
    phase = ""
    if secondary == "Interrupted":
        phase = "its machine was taken away, waiting for another"
    elif secondary in _STARTING:
        phase = "waiting for a machine"
    return TrainingStatus(state, error, phase)
