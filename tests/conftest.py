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
