"""boto3's clients: each made once, when it is first needed, with bounded patience."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import boto3
from botocore.config import Config

# API Gateway waits 29 seconds: three tries of a service that does not answer must fit.
_CONFIG = Config(
    connect_timeout=3,
    read_timeout=8,
    retries={"mode": "standard", "total_max_attempts": 3},
)
# Requests that carry parts of weights, and URLs that browsers follow: only version 4 makes them
# name the region's own host, without which S3 redirects in the first hours of a bucket.
_S3_CONFIG = _CONFIG.merge(
    Config(signature_version="s3v4", s3={"addressing_style": "virtual"}, read_timeout=60)
)


class Clients:
    """The AWS services that the middleware calls."""

    def __init__(self, session: boto3.Session | None = None) -> None:
        self._session = session or boto3.Session()

    @cached_property
    def dynamodb(self) -> Any:
        """Records."""
        return self._client("dynamodb")

    @cached_property
    def s3(self) -> Any:
        """Objects."""
        return self._session.client("s3", config=_S3_CONFIG)

    @cached_property
    def sagemaker(self) -> Any:
        """Endpoints and training jobs."""
        return self._client("sagemaker")

    @cached_property
    def sagemaker_runtime(self) -> Any:
        """Invocations."""
        return self._client("sagemaker-runtime")

    @cached_property
    def autoscaling(self) -> Any:
        """Endpoints' numbers of instances."""
        return self._client("application-autoscaling")

    @cached_property
    def cloudwatch(self) -> Any:
        """Backlogs and the alarms on them."""
        return self._client("cloudwatch")

    @cached_property
    def sqs(self) -> Any:
        """The queue of events and imports."""
        return self._client("sqs")

    @cached_property
    def secrets(self) -> Any:
        """The admin token."""
        return self._client("secretsmanager")

    def _client(self, service: str) -> Any:
        return self._session.client(service, config=_CONFIG)
