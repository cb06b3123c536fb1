"""What the extension's tests share: a client without a network, and a real embedded server."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aws_extension.client import CloudClient
from aws_extension.fake_transport import FakeTransport, Handler
from aws_extension.http import Retries

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
