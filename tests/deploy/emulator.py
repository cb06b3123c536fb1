"""An emulator of AWS in a process of its own, and a deployment in it.

ministack checks every call against the roles' policies, as AWS does, and runs the functions as
processes with their roles' credentials. It has no SageMaker: moto's server stands in for that, and
says of every endpoint at once that it is in service.
"""

from __future__ import annotations

import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import boto3
import httpx

REPOSITORY = Path(__file__).parents[2]
REGION = "eu-central-1"
ACCOUNT = "111122223333"
# The emulator's own administrator; any other key needs a policy for what it does.
ADMINISTRATOR = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}

# What moto stands in for, and the names by which boto3 finds it; the functions inherit them.
ELSEWHERE = {
    "sagemaker": "AWS_ENDPOINT_URL_SAGEMAKER",
    "sagemaker-runtime": "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME",
    "application-autoscaling": "AWS_ENDPOINT_URL_APPLICATION_AUTO_SCALING",
}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Emulator:
    """Empty, on free ports."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self.url = f"http://127.0.0.1:{free_port()}"
        sagemaker = f"http://127.0.0.1:{free_port()}"
        self._elsewhere = dict.fromkeys(ELSEWHERE.values(), sagemaker)
        self._start("moto.server", "--host=127.0.0.1", f"--port={_port(sagemaker)}")
        self._start(
            "ministack",
            AUTH="true",
            BIND_HOST="127.0.0.1",
            GATEWAY_PORT=_port(self.url),
            MINISTACK_ACCOUNT_ID=ACCOUNT,
            MINISTACK_REGION=REGION,
        )
        self._wait_until_answered(f"{self.url}/_ministack/health")
        self._wait_until_answered(f"{sagemaker}/moto-api/data.json")

    def client(self, service: str) -> Any:
        """A boto3 client of its administrator."""
        return boto3.client(
            service,
            endpoint_url=self._elsewhere[ELSEWHERE[service]] if service in ELSEWHERE else self.url,
            region_name=REGION,
            aws_access_key_id=ADMINISTRATOR["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=ADMINISTRATOR["AWS_SECRET_ACCESS_KEY"],
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`python -m middleware_api.deploy`, as make runs it, against this AWS."""
        python = REPOSITORY / ".venv-deploy/bin/python"
        return subprocess.run(
            [python, "-m", "middleware_api.deploy", *arguments, "--region", REGION],
            cwd=REPOSITORY,
            env={**self._environment(), "AWS_ENDPOINT_URL": self.url},
            capture_output=True,
            text=True,
            check=False,
        )

    def stop(self) -> None:
        """End it; everything in it is gone."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(20)

    def _start(self, module: str, *arguments: str, **environment: str) -> None:
        with (self._folder / f"{module}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    [REPOSITORY / ".venv-emulator/bin/python", "-m", module, *arguments],
                    cwd=self._folder,
                    env={**self._environment(), **environment},
                    stdout=log,
                    stderr=log,
                )
            )

    def _environment(self) -> dict[str, str]:
        """This process's, with nothing in it that could lead to a real account."""
        ours = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        return {**ours, **ADMINISTRATOR, **self._elsewhere}

    def _wait_until_answered(self, url: str) -> None:
        for _ in range(300):
            logs = [log.read_text() for log in self._folder.glob("*.log")]
            assert all(process.poll() is None for process in self._processes), logs
            try:
                httpx.get(url, timeout=1).raise_for_status()
                return
            except httpx.HTTPError:
                time.sleep(0.1)
        raise AssertionError(f"no answer from {url}: {logs}")


def _port(url: str) -> str:
    return url.rpartition(":")[2]
