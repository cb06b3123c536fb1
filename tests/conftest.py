"""Parts that several test files share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server import Server


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A server with an empty data directory."""
    running = Server(tmp_path / "var")
    yield running
    if running.process.poll() is None:
        running.stop()


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small checkpoint of random weights."""
    # The extension's tests load this file too, and have no torch.
    from middleware_api.demo.random_weights import write_random_checkpoint

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    write_random_checkpoint(path)
    return path.read_bytes()


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory, weights: bytes) -> Iterator[Server]:
    """A server with the endpoint 'studio' in service and the checkpoint 'tiny.safetensors'. A
    worker takes seconds to start: tests share this one, and leave it without running jobs."""
    running = Server(tmp_path_factory.mktemp("studio") / "var")
    _furnish(running, weights)
    yield running
    running.stop()


@pytest.fixture
def own_studio(server: Server, weights: bytes) -> Server:
    """Another one, for a test alone that ends or breaks it."""
    _furnish(server, weights)
    return server


def _furnish(server: Server, weights: bytes) -> None:
    endpoint = server.deploy()
    assert endpoint["endpoint_status"] == "InService", endpoint
    assert endpoint["current_instance_count"] == 1
    server.upload(weights)
