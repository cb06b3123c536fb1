"""What is uploaded before a deployment: the Lambda package and the inference image's sources.

Both are zip files with the same bytes for the same contents, so that their hash can be their
name, and an unchanged part is neither uploaded nor deployed again.
"""

from __future__ import annotations

import compileall
import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
TEMPLATE = Path(__file__).parent / "template.yaml"

# As template.yaml's Runtime and Architectures say.
LAMBDA_PYTHON = (3, 12)
LAMBDA_PLATFORM = "manylinux2014_x86_64"
# pyproject.toml's groups that the functions need: the API and its adapters on AWS.
LAMBDA_GROUPS = ("api", "aws")
# The parts of middleware_api that run elsewhere.
_NOT_IN_LAMBDA = frozenset({"container", "demo", "deploy", "embedded"})

# What the inference image is built from; everything else may change without a new image.
IMAGE_SOURCES = (
    "pyproject.toml",
    "middleware_api/__init__.py",
    "middleware_api/contract.py",
    "middleware_api/model_params.py",
    "middleware_api/preprocessors.py",
    "middleware_api/prompt_tags.py",
    "middleware_api/tensor_header.py",
    "middleware_api/training_fields.py",
    "middleware_api/weights_name.py",
)
IMAGE_FOLDERS = ("middleware_api/container",)

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip file can tell
_READABLE = 0o644 << 16  # Lambda runs as another user than the one that owns the files


@dataclass(frozen=True)
class Package:
    """A file that is uploaded under a name made of its contents: the first 16 hex digits of
    their SHA-256."""

    path: Path
    digest: str

    @staticmethod
    def of(path: Path) -> Package:
        """The file as it is now."""
        return Package(path, hashlib.sha256(path.read_bytes()).hexdigest()[:16])


class PackageError(Exception):
    """The package cannot be made; the message says why."""


def build_lambda_package(folder: Path) -> Package:
    """Put the functions' code and their libraries into `folder`/lambda.zip.

    Any Python on any machine can build it: pip fetches the wheels for Lambda. Raises PackageError
    when it cannot.
    """
    path = folder / "lambda.zip"
    with TemporaryDirectory() as work:
        site = Path(work)
        _install(site)
        for file in _lambda_modules():
            target = site / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
        _drop_traces_of_this_machine(site)
        if sys.version_info[:2] == LAMBDA_PYTHON:
            # The functions cannot write to their folder: without these files every cold start
            # compiles every module. Another Python cannot make them.
            compileall.compile_dir(
                site,
                quiet=2,
                stripdir=work,
                invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
            )
        _zip(path, site, (file for file in site.rglob("*") if file.is_file()))
    return Package.of(path)


def build_image_sources(folder: Path) -> Package:
    """Put what the inference image is built from into `folder`/image.zip."""
    path = folder / "image.zip"
    files = [ROOT / name for name in IMAGE_SOURCES]
    for name in IMAGE_FOLDERS:
        files += _files(ROOT / name)
    _zip(path, ROOT, files)
    return Package.of(path)


def _install(site: Path) -> None:
    groups = [
        word
        for group in LAMBDA_GROUPS
        for word in ("--group", f"{ROOT / 'pyproject.toml'}:{group}")
    ]
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
        *("--target", str(site), "--no-compile", "--only-binary", ":all:"),
        *("--implementation", "cp", "--python-version", ".".join(map(str, LAMBDA_PYTHON))),
        *("--platform", LAMBDA_PLATFORM),
        *groups,
    ]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise PackageError(
            f"pip could not fetch the Lambda functions' libraries:\n{done.stderr.strip()}"
        )


def _drop_traces_of_this_machine(site: Path) -> None:
    """Commands name this machine's Python in their first line, and RECORD hashes them: the same
    libraries would be another package on another machine."""
    shutil.rmtree(site / "bin", ignore_errors=True)
    for record in site.glob("*.dist-info/RECORD"):
        record.unlink()


def _lambda_modules() -> Iterator[Path]:
    package = ROOT / "middleware_api"
    for file in _files(package):
        if file.relative_to(package).parts[0] not in _NOT_IN_LAMBDA and file.suffix == ".py":
            yield file


def _files(folder: Path) -> list[Path]:
    return [
        file
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.suffix != ".pyc"
    ]


def _zip(path: Path, root: Path, files: Iterable[Path]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(files):
            entry = zipfile.ZipInfo(file.relative_to(root).as_posix(), _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = _READABLE
            archive.writestr(entry, file.read_bytes())
