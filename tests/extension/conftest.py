"""What the extension's tests share: a client without a network, and a real embedded server."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

with warnings.catch_warnings():
    # gradio 3.41.2 and what it imports warn of their own age; our warnings stay errors.
    warnings.simplefilter("ignore")
    import gradio  # noqa: F401

from aws_extension.client import CloudClient
from aws_extension.fake_transport import FakeTransport, Handler
from aws_extension.http import Retries
from aws_extension.uploader import upload_checkpoint
from middleware_api.contract import CheckpointType, EndpointState


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


REPOSITORY = Path(__file__).parents[2]
DEMO_CHECKPOINT = REPOSITORY / "middleware_api" / "demo" / "demo.safetensors"
MIDDLEWARE_PYTHON = REPOSITORY / ".venv" / "bin" / "python"


@dataclass(frozen=True)
class RealServer:
    """A running embedded server with one worker and one small checkpoint, both ready."""

    url: str
    token: str
    checkpoint: str
    weights: Path

    def client(self) -> CloudClient:
        """A client of its own."""
        return CloudClient(self.url, self.token)


@pytest.fixture(scope="session")
def real_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """The real middleware in its own environment; the checkpoint came by our own uploader."""
    if not MIDDLEWARE_PYTHON.exists():
        pytest.skip("the middleware's environment .venv is missing: make it by `make test`")
    folder = tmp_path_factory.mktemp("server")
    weights = _weights(folder)
    process = subprocess.Popen(
        [str(MIDDLEWARE_PYTHON), "-m", "middleware_api", "serve", "--port=0"],
        cwd=REPOSITORY,
        env={**os.environ, "SDAWS_DATA_DIR": str(folder / "var"), "SDAWS_API_TOKEN": TOKEN},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line.startswith("listening on "), f"the server did not start: {line!r}"
        server = RealServer(
            line.removeprefix("listening on ").strip(), TOKEN, weights.name, weights
        )
        _make_ready(server)
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)
        process.stdout.close()


def _weights(folder: Path) -> Path:
    """The demo checkpoint, or one of its size with random weights where it is not there."""
    if DEMO_CHECKPOINT.exists():
        return DEMO_CHECKPOINT
    path = folder / "random-weights.safetensors"
    write_random_weights(path)
    return path


def write_random_weights(path: Path) -> None:
    """A checkpoint of the demo's size, by the middleware's environment."""
    script = (
        "import sys; from pathlib import Path; "
        "from middleware_api.demo.random_weights import write_random_checkpoint; "
        "write_random_checkpoint(Path(sys.argv[1]))"
    )
    subprocess.run([str(MIDDLEWARE_PYTHON), "-c", script, str(path)], cwd=REPOSITORY, check=True)


def _make_ready(server: RealServer) -> None:
    client = server.client()
    name = client.create_endpoint("local", 1).name
    upload_checkpoint(client, server.weights, CheckpointType.STABLE_DIFFUSION)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        found = next(e for e in client.list_endpoints() if e.name == name)
        if found.is_ready:
            return
        assert found.state is not EndpointState.FAILED, found.error
        time.sleep(0.1)
    raise AssertionError("the endpoint was not ready within 90 s")
