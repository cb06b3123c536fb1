"""What is uploaded: whole, without what it does not need, and the same for the same contents."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.deploy.emulator import REPOSITORY

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(120)]

# The functions' own Python, without its site-packages: only what is uploaded can be imported.
BARE_PYTHON = (REPOSITORY / ".venv-emulator/bin/python", "-S", "-I")

ELSEWHERE = {"torch", "gradio", "uvicorn", "filelock", "numpy", "PIL", "requests"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both packages, unpacked beside themselves."""
    folder = tmp_path_factory.mktemp("packages")
    package_into(folder)
    for name in ("lambda", "image"):
        zipfile.ZipFile(folder / f"{name}.zip").extractall(folder / name)
    return folder


def package_into(folder: Path) -> None:
    subprocess.run(
        [REPOSITORY / ".venv-deploy/bin/python", "-m", "middleware_api.deploy", "package", folder],
        cwd=REPOSITORY,
        check=True,
        stdout=subprocess.DEVNULL,
    )


def run_in(folder: Path, *command: str | Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_functions_import_from_the_package_alone(folder: Path) -> None:
    imported = run_in(
        folder,
        *BARE_PYTHON,
        "-c",
        "import sys; sys.path.insert(0, 'lambda'); import middleware_api.aws.handlers as handlers;"
        "handlers.api_handler, handlers.event_handler; print(*sys.modules)",
    )
    modules = {name.partition(".")[0] for name in imported.split()}
    assert {"fastapi", "mangum", "botocore"} <= modules
    assert not ELSEWHERE & modules


def test_the_package_holds_nothing_that_runs_elsewhere(folder: Path) -> None:
    assert not ELSEWHERE & {path.name for path in (folder / "lambda").iterdir()}
    parts = {path.name for path in (folder / "lambda/middleware_api").iterdir()}
    assert not {"container", "demo", "deploy", "embedded"} & parts
    size = sum(path.stat().st_size for path in (folder / "lambda").rglob("*"))
    assert size < 100_000_000  # Lambda's own bound is 250 MB


def test_its_compiled_parts_are_for_the_functions_machine(folder: Path) -> None:
    compiled = [path.name for path in (folder / "lambda").rglob("*.so")]
    assert compiled
    assert all(name.endswith(".cpython-312-x86_64-linux-gnu.so") for name in compiled), compiled


def test_the_images_sources_are_all_that_its_program_needs(folder: Path) -> None:
    # .venv has the groups that the Dockerfile installs, and more.
    for program in ("serve", "engine.diffusers_engine", "webui.engine", "train"):
        module = f"middleware_api.container.{program}"
        run_in(folder / "image", sys.executable, "-c", f"import {module}")


def test_the_same_contents_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    package_into(tmp_path)
    for name in ("lambda.zip", "image.zip"):
        assert (folder / name).read_bytes() == (tmp_path / name).read_bytes()
