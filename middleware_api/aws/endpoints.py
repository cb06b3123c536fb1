"""Endpoints as SageMaker's asynchronous inference endpoints.

SageMaker's queue holds a job for six hours, tells its end by SNS, and cannot be asked: neither for
a job's place in it nor to drop one. So a job that is withdrawn ends in our records at once, and
the container, when it comes to it, finds the cancel marker and does nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from middleware_api import contract
from middleware_api.aws.clients import Clients
from middleware_api.aws.faults import (
    create_once,
    explain_fault,
    ignoring_unknown,
    is_unknown,
    refusals,
)
from middleware_api.aws.settings import AwsSettings
from middleware_api.contract import EndpointState, EngineName, Invocation
from middleware_api.errors import Conflict, NotAvailable
from middleware_api.ports import EndpointStatus, Objects, Records
from middleware_api.records import Endpoint

VARIANT = "gpu"
ANSWERS_PREFIX = "sagemaker_output/"
_SCALED = "sagemaker:variant:DesiredInstanceCount"

# Both are SageMaker's own bounds.
_QUEUE_SECONDS = 6 * 3600
_JOB_SECONDS = 3600
# Loading the image and the engine on a fresh instance.
_START_SECONDS = 15 * 60

# Scale out at once, scale in slowly: an instance that is up costs less than a cold start.
_JOBS_PER_GPU = 2.0
_SCALE_OUT_SECONDS = 60
_SCALE_IN_SECONDS = 600

# Of those instance types that have more than one.
_GPUS = {
    **dict.fromkeys(("g4dn.12xlarge", "g5.12xlarge", "g5.24xlarge", "p3.8xlarge"), 4),
    **dict.fromkeys(("g6.12xlarge", "g6.24xlarge", "g6e.12xlarge", "g6e.24xlarge"), 4),
    **dict.fromkeys(("g5.48xlarge", "g6.48xlarge", "g6e.48xlarge", "p3.16xlarge"), 8),
    **dict.fromkeys(("p3dn.24xlarge", "p4d.24xlarge", "p4de.24xlarge", "p5.48xlarge"), 8),
}

_STATES = {
    "creating": EndpointState.CREATING,
    "inservice": EndpointState.IN_SERVICE,
    "updating": EndpointState.UPDATING,
    "systemupdating": EndpointState.UPDATING,
    "rollingback": EndpointState.UPDATING,
    "updaterollbackfailed": EndpointState.FAILED,
    "outofservice": EndpointState.FAILED,
    "failed": EndpointState.FAILED,
    "deleting": EndpointState.DELETING,
    "deleted": EndpointState.DELETED,
}


class SageMakerEndpoints:
    """`ports.Endpoints` on SageMaker, Application Auto Scaling and CloudWatch."""

    patience_seconds = float(_QUEUE_SECONDS + _JOB_SECONDS + 1800)

    def __init__(
        self,
        clients: Clients,
        settings: AwsSettings,
        records: Records,
        objects: Objects,
        clock: Callable[[], float],
    ) -> None:
        self._clients = clients
        self._settings = settings
        self._records = records
        self._objects = objects
        self._clock = clock

    def create(self, endpoint: Endpoint) -> None:
        """See `ports.Endpoints`."""
        sagemaker, name = self._clients.sagemaker, self._name(endpoint.id)
        image = self._image(endpoint)
        try:
            with refusals(f"create the endpoint '{endpoint.name}'"):
                create_once(
                    sagemaker.create_model,
                    ModelName=name,
                    ExecutionRoleArn=self._settings.endpoint_role,
                    PrimaryContainer={
                        "Image": image,
                        "Environment": {"SDAWS_BUCKET": self._settings.bucket},
                    },
                )
                create_once(sagemaker.create_endpoint_config, **self._config(endpoint, name))
                create_once(
                    sagemaker.create_endpoint,
                    EndpointName=name,
                    EndpointConfigName=name,
                )
        except Conflict:
            # After any other error the reconciler goes on where this has stopped.
            self._clear_away(endpoint)
            raise

    def entered_service(self, endpoint: Endpoint) -> None:
        """See `ports.Endpoints`: scaling, which asks for an endpoint in service."""
        if not endpoint.autoscaling_enabled:
            return
        name = self._name(endpoint.id)
        autoscaling = self._clients.autoscaling
        target = self._target(name)
        with refusals(f"scale the endpoint '{endpoint.name}'"):
            autoscaling.register_scalable_target(
                **target,
                MinCapacity=endpoint.min_instance_count,
                MaxCapacity=endpoint.max_instance_count,
            )
            autoscaling.put_scaling_policy(
                PolicyName=f"{name}-backlog",
                **target,
                PolicyType="TargetTrackingScaling",
                TargetTrackingScalingPolicyConfiguration={
                    "TargetValue": _JOBS_PER_GPU * gpus_of(endpoint.instance_type),
                    "CustomizedMetricSpecification": {
                        **_metric("ApproximateBacklogSizePerInstance", name),
                        "Statistic": "Average",
                    },
                    "ScaleOutCooldown": _SCALE_OUT_SECONDS,
                    "ScaleInCooldown": _SCALE_IN_SECONDS,
                },
            )
            # The backlog per instance of no instances is no number: this one starts the first.
            waking = autoscaling.put_scaling_policy(
                PolicyName=f"{name}-wake",
                **target,
                PolicyType="StepScaling",
                StepScalingPolicyConfiguration={
                    "AdjustmentType": "ChangeInCapacity",
                    "MetricAggregationType": "Average",
                    "Cooldown": 300,
                    "StepAdjustments": [{"MetricIntervalLowerBound": 0.0, "ScalingAdjustment": 1}],
                },
            )
            self._clients.cloudwatch.put_metric_alarm(
                AlarmName=_alarm(name),
                AlarmDescription="Jobs wait and no instance is up: scaling starts one",
                **_metric("HasBacklogWithoutCapacity", name),
                Statistic="Average",
                Period=60,
                EvaluationPeriods=1,
                Threshold=1.0,
                ComparisonOperator="GreaterThanOrEqualToThreshold",
                TreatMissingData="missing",
                AlarmActions=[waking["PolicyARN"]],
            )

    def delete(self, endpoint: Endpoint) -> None:
        """See `ports.Endpoints`."""
        name = self._name(endpoint.id)
        if endpoint.autoscaling_enabled:
            # Takes its policies along, and the alarms that scaling made itself.
            with ignoring_unknown():
                self._clients.autoscaling.deregister_scalable_target(**self._target(name))
        # One in passing refuses; the reconciler comes back to it.
        with ignoring_unknown(also=["in-progress", "in progress"]):
            self._clients.sagemaker.delete_endpoint(EndpointName=name)

    def left_service(self, endpoint: Endpoint) -> None:
        """See `ports.Endpoints`: the alarm, the configuration and the model."""
        self._clear_away(endpoint)

    def statuses(self, endpoints: Collection[Endpoint]) -> dict[str, EndpointStatus]:
        """See `ports.Endpoints`. One call an endpoint, and one for all backlogs."""
        backlogs = self._backlogs(endpoints) if len(endpoints) > 1 else {}
        return {e.id: self._status(e, int(backlogs.get(e.id, 0))) for e in endpoints}

    def invoke(self, endpoint_id: str, invocation: Invocation) -> None:
        """See `ports.Endpoints`. A kill before the marker is set may queue a job twice: the
        container finds the outcome of the first time and answers with that."""
        job_id = invocation["job_id"]
        if self.accepted(job_id):
            return
        key = contract.invocation_key(job_id)
        self._objects.write(key, json.dumps(invocation).encode())
        with refusals("take this job"), _explained():
            self._clients.sagemaker_runtime.invoke_endpoint_async(
                EndpointName=self._name(endpoint_id),
                ContentType="application/json",
                Accept="application/json",
                InferenceId=job_id,
                InputLocation=f"s3://{self._settings.bucket}/{key}",
                RequestTTLSeconds=_QUEUE_SECONDS,
                InvocationTimeoutSeconds=_JOB_SECONDS,
            )
        self._records.claim(_accepted_key(job_id), endpoint_id, self.patience_seconds)

    def accepted(self, job_id: str) -> bool:
        """See `ports.Endpoints`."""
        return self._records.lookup(_accepted_key(job_id)) is not None

    def queue_position(self, job_id: str) -> int | None:
        """See `ports.Endpoints`. SageMaker does not tell."""
        return None

    def withdraw(self, job_id: str) -> bool:
        """See `ports.Endpoints`. Not begun is what has written no progress."""
        return self._objects.size(contract.progress_key(job_id)) is None

    def _image(self, endpoint: Endpoint) -> str:
        """Each engine's image knows by itself which one it is."""
        if endpoint.engine is not EngineName.WEBUI:
            return self._settings.image
        if endpoint.webui_url:
            raise Conflict(
                "On AWS each instance of the engine webui has a WebUI of its own: leave webui_url "
                "out.",
                "webui_url_not_here",
            )
        if not self._settings.webui_image:
            raise NotAvailable(
                "This deployment has no image of the engine webui. Build it: make deploy "
                'SET="WebUiEngine=yes".',
                "webui_engine_not_built",
            )
        return self._settings.webui_image

    def _config(self, endpoint: Endpoint, name: str) -> dict[str, Any]:
        output = f"s3://{self._settings.bucket}/{ANSWERS_PREFIX}"
        return {
            "EndpointConfigName": name,
            "ProductionVariants": [
                {
                    "VariantName": VARIANT,
                    "ModelName": name,
                    "InstanceType": endpoint.instance_type,
                    "InitialInstanceCount": endpoint.initial_instance_count,
                    "ContainerStartupHealthCheckTimeoutInSeconds": _START_SECONDS,
                    **_machine_image(endpoint.instance_type),
                }
            ],
            "AsyncInferenceConfig": {
                # One job a GPU at a time: a second one would only share its memory.
                "ClientConfig": {
                    "MaxConcurrentInvocationsPerInstance": gpus_of(endpoint.instance_type)
                },
                "OutputConfig": {
                    "S3OutputPath": output,
                    "S3FailurePath": f"{output}failed/",
                    "NotificationConfig": {
                        "SuccessTopic": self._settings.result_topic,
                        "ErrorTopic": self._settings.error_topic,
                    },
                },
            },
        }

    def _clear_away(self, endpoint: Endpoint) -> None:
        sagemaker, name = self._clients.sagemaker, self._name(endpoint.id)
        if endpoint.autoscaling_enabled:
            self._clients.cloudwatch.delete_alarms(AlarmNames=[_alarm(name)])
        with ignoring_unknown():
            sagemaker.delete_endpoint_config(EndpointConfigName=name)
        with ignoring_unknown():
            sagemaker.delete_model(ModelName=name)

    def _status(self, endpoint: Endpoint, load: int) -> EndpointStatus:
        try:
            told = self._clients.sagemaker.describe_endpoint(EndpointName=self._name(endpoint.id))
        except ClientError as error:
            if not is_unknown(error):
                raise
            return EndpointStatus(EndpointState.DELETED)
        variants = told.get("ProductionVariants", ())
        return EndpointStatus(
            state=endpoint_state(told["EndpointStatus"]),
            instance_count=sum(v.get("CurrentInstanceCount", 0) for v in variants),
            load=load,
            error=told.get("FailureReason", ""),
        )

    def _backlogs(self, endpoints: Collection[Endpoint]) -> dict[str, float]:
        """The latest word on each queue, a minute old or so; absent where there is none."""
        now = self._clock()
        ids = {f"e{number}": endpoint.id for number, endpoint in enumerate(endpoints)}
        answer = self._clients.cloudwatch.get_metric_data(
            StartTime=now - 300,
            EndTime=now,
            ScanBy="TimestampDescending",
            MetricDataQueries=[
                {
                    "Id": query,
                    "MetricStat": {
                        "Metric": _metric("ApproximateBacklogSize", self._name(endpoint_id)),
                        "Period": 60,
                        "Stat": "Maximum",
                    },
                }
                for query, endpoint_id in ids.items()
            ],
        )
        return {
            ids[found["Id"]]: found["Values"][0]
            for found in answer["MetricDataResults"]
            if found["Values"]
        }

    def _target(self, name: str) -> dict[str, str]:
        return {
            "ServiceNamespace": "sagemaker",
            "ResourceId": f"endpoint/{name}/variant/{VARIANT}",
            "ScalableDimension": _SCALED,
        }

    def _name(self, endpoint_id: str) -> str:
        return endpoint_name(self._settings.prefix, endpoint_id)


def gpus_of(instance_type: str) -> int:
    """How many jobs an instance does at a time: its container runs a worker for each GPU."""
    return _GPUS.get(instance_type.removeprefix("ml."), 1)


def endpoint_name(prefix: str, endpoint_id: str) -> str:
    """SageMaker's name for an endpoint, its configuration and its model."""
    return f"{prefix}-{endpoint_id}"


def endpoint_state(word: str) -> EndpointState:
    """SageMaker's word, as DescribeEndpoint (`InService`) or an event (`IN_SERVICE`) writes it."""
    return _STATES[word.replace("_", "").lower()]


def _machine_image(instance_type: str) -> dict[str, str]:
    """The one whose GPU driver fits the image's CUDA; an instance without a GPU has no choice."""
    if not instance_type.startswith(("ml.g", "ml.p")):
        return {}
    return {"InferenceAmiVersion": "al2023-ami-sagemaker-inference-gpu-4-1"}


@contextmanager
def _explained() -> Iterator[None]:
    """A job that has been noted is only late when AWS does not answer."""
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        if (unavailable := explain_fault(error)) is not None:
            raise unavailable from error
        raise


def _metric(metric: str, name: str) -> dict[str, Any]:
    return {
        "Namespace": "AWS/SageMaker",
        "MetricName": metric,
        "Dimensions": [{"Name": "EndpointName", "Value": name}],
    }


def _alarm(name: str) -> str:
    return f"{name}-wake"


def _accepted_key(job_id: str) -> str:
    return f"accepted/{job_id}"
