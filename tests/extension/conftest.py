"""What the extension's tests share: a client without a network, and a real embedded server."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest

with warnings.catch_warnings():
    # gradio 3.41.2 and what it imports warn of their own age; our warnings stay errors.
    warnings.simplefilter("ignore")
    import gradio  # noqa: F401

from aws_extension.client import CloudClient
from aws_extension.fake_transport import FakeTransport, Handler
from aws_extension.http import Retries


def pytest_configure(config: pytest.Config) -> None:
    """As above, for what gradio does when it builds and serves pages."""
    for module in ("gradio", "starlette", "httpx", "websockets", "asyncio", "anyio"):
        config.addinivalue_line("filterwarnings", rf"ignore:::{module}(\..*)?")


URL = "http://cloud.test/prod"
TOKEN = "token-of-the-tests-0123456789"


class FakeTime:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        """Pass the time at once."""
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def fake_time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def fake_client(fake_time: FakeTime) -> Callable[[Handler], tuple[CloudClient, FakeTransport]]:
    """Builds a client whose every request goes to the given handler."""

    def build(handler: Handler) -> tuple[CloudClient, FakeTransport]:
        transport = FakeTransport(handler)
        retries = Retries(sleep=fake_time.sleep, chance=lambda: 1.0)
        return (
            CloudClient(URL, TOKEN, adapter=transport, retries=retries, clock=fake_time),
            transport,
        )

    return build
