"""What the service made at run time: CloudFormation does not know it, and it costs money.

All of it has names that begin with the deployment's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from middleware_api.deploy.stack import Say


class Sweeper:
    """Deletes one deployment's endpoints and what belongs to them."""

    def __init__(self, session: Any, name: str, say: Say) -> None:
        self._session = session
        self._prefix = f"{name}-"
        self._say = say
        self._sagemaker = session.client("sagemaker")

    def sweep(self) -> None:
        """Delete endpoints with their configurations, models and scaling; stop training jobs."""
        for target in self._scalable_targets():
            self._session.client("application-autoscaling").deregister_scalable_target(
                ServiceNamespace="sagemaker",
                ResourceId=target["ResourceId"],
                ScalableDimension=target["ScalableDimension"],
            )
        for name in self._names("list_endpoints", "Endpoints", "EndpointName"):
            self._say(f"Deleting endpoint {name}")
            self._sagemaker.delete_endpoint(EndpointName=name)
        for name in self._names("list_endpoint_configs", "EndpointConfigs", "EndpointConfigName"):
            self._sagemaker.delete_endpoint_config(EndpointConfigName=name)
        for name in self._names("list_models", "Models", "ModelName"):
            self._sagemaker.delete_model(ModelName=name)
        for name in self._names(
            "list_training_jobs", "TrainingJobSummaries", "TrainingJobName", "InProgress"
        ):
            self._say(f"Stopping training job {name}")
            self._sagemaker.stop_training_job(TrainingJobName=name)

    def sweep_traces(self) -> None:
        """Delete scaling alarms and the containers' logs; only once the stack, whose own alarms
        have such names too, is gone."""
        cloudwatch, logs = self._session.client("cloudwatch"), self._session.client("logs")
        for page in cloudwatch.get_paginator("describe_alarms").paginate(
            AlarmNamePrefix=self._prefix
        ):
            if names := [alarm["AlarmName"] for alarm in page["MetricAlarms"]]:
                cloudwatch.delete_alarms(AlarmNames=names)
        for page in logs.get_paginator("describe_log_groups").paginate(
            logGroupNamePrefix=f"/aws/sagemaker/Endpoints/{self._prefix}"
        ):
            for group in page["logGroups"]:
                logs.delete_log_group(logGroupName=group["logGroupName"])

    def _scalable_targets(self) -> Iterator[dict[str, str]]:
        pages = self._session.client("application-autoscaling").get_paginator(
            "describe_scalable_targets"
        )
        for page in pages.paginate(ServiceNamespace="sagemaker"):
            for target in page["ScalableTargets"]:
                if target["ResourceId"].startswith(f"endpoint/{self._prefix}"):
                    yield target

    def _names(
        self, operation: str, things: str, field: str, status: str | None = None
    ) -> Iterator[str]:
        """Names with the prefix; the service itself can only ask for names that contain it."""
        status_filter = {} if status is None else {"StatusEquals": status}
        for page in self._sagemaker.get_paginator(operation).paginate(
            NameContains=self._prefix, **status_filter
        ):
            for thing in page[things]:
                name: str = thing[field]
                if name.startswith(self._prefix):
                    yield name
