"""AWS in this process, for the adapters' tests: moto, and every call counted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import boto3
from moto import mock_aws

from middleware_api.aws.table import schema

REGION = "eu-central-1"
TABLE = "sdaws-table"
BUCKET = "sdaws-bucket"

# Whoever calls AWS without moto in between has no right there.
_NOBODY = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_SESSION_TOKEN": "testing",
    "AWS_DEFAULT_REGION": REGION,
}


class Aws:
    """One empty account with the deployment's table and bucket."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.session = boto3.Session(region_name=REGION)
        self.session.events.register("before-parameter-build.*.*", self._note)
        self.session.client("dynamodb").create_table(TableName=TABLE, **schema())
        self.session.client("s3").create_bucket(
            Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION}
        )
        self.calls.clear()

    def client(self, service: str) -> Any:
        """A boto3 client."""
        return self.session.client(service)

    @contextmanager
    def counted(self) -> Iterator[list[str]]:
        """The names of the operations that are called meanwhile."""
        names: list[str] = []
        before = len(self.calls)
        yield names
        names += [name for name, _ in self.calls[before:]]

    def _note(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        self.calls.append((model.name, params))


@contextmanager
def aws() -> Iterator[Aws]:
    """AWS for the length of a test; nothing leaves this process."""
    with mock.patch.dict(os.environ, _NOBODY), mock_aws():
        yield Aws()
