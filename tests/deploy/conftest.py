"""One emulator and one deployment in it for all of these tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.deploy.emulator import Emulator


@dataclass(frozen=True)
class Deployment:
    """A deployed stack and its outputs."""

    aws: Emulator
    outputs: dict[str, str]
    said: str

    @property
    def api_url(self) -> str:
        """The stage's URL on the emulator's own port, which has no name for each API."""
        api_id = self.outputs["ApiUrl"].removeprefix("https://").partition(".")[0]
        return f"{self.aws.url}/restapis/{api_id}/prod/_user_request_"

    @property
    def token(self) -> str:
        """The admin token."""
        secret = self.aws.client("secretsmanager").get_secret_value(
            SecretId=self.outputs["AdminTokenSecret"]
        )
        token: str = secret["SecretString"]
        return token

    def client(self) -> httpx.Client:
        """A caller with the admin token."""
        return httpx.Client(base_url=self.api_url, headers={"x-api-key": self.token}, timeout=60)


def outputs(aws: Emulator, stack: str) -> dict[str, str]:
    """A stack's outputs by their names."""
    found: list[dict[str, Any]] = aws.client("cloudformation").describe_stacks(StackName=stack)[
        "Stacks"
    ]
    return {o["OutputKey"]: o["OutputValue"] for o in found[0]["Outputs"]}


@pytest.fixture(scope="session")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    """An AWS without anything in it."""
    running = Emulator(tmp_path_factory.mktemp("aws"))
    yield running
    running.stop()


@pytest.fixture(scope="session")
def deployment(aws: Emulator) -> Deployment:
    """What `make deploy` makes."""
    done = aws.run("deploy")
    assert done.returncode == 0, done.stderr + done.stdout
    return Deployment(aws, outputs(aws, "sdaws"), done.stdout)
