"""The settings' page names what the code reads, and nothing else; its defaults are the code's."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

import middleware_api
from middleware_api.aws.settings import AwsSettings
from middleware_api.container.object_store import DEFAULT_WEIGHTS_BYTES, DEFAULT_WEIGHTS_DIR
from middleware_api.container.serve import DEFAULT_CACHE_BYTES
from middleware_api.contract import TRAIN_ROOT
from middleware_api.settings import read_settings

REPOSITORY = Path(middleware_api.__file__).parents[1]
ROW = re.compile(r"^\| `(SDAWS_\w+)` \| ([^|]+) \| (?:`([^`]*)`)? ?\| .+ \|$", re.MULTILINE)


@pytest.fixture(scope="module")
def page() -> dict[str, str]:
    """The default of each variable."""
    text = (REPOSITORY / "docs" / "settings.md").read_text()
    rows = ROW.findall(text)
    assert len(rows) == text.count("\n| `SDAWS_"), "a row of another form"
    return {name: default for name, _, default in rows}


def test_every_variable_that_the_code_reads_is_on_the_page_and_no_other(
    page: dict[str, str],
) -> None:
    sources = [
        path
        for folder in ("middleware_api", "aws_extension", "scripts")
        for ending in ("*.py", "*.sh", "Dockerfile", "*.yaml")
        for path in (REPOSITORY / folder).rglob(ending)
    ]
    texts = [path.read_text() for path in sources]
    named = {name for text in texts for name in re.findall(r"\bSDAWS_[A-Z0-9]\w*\b", text)}
    settings = (REPOSITORY / "middleware_api" / "settings.py").read_text()
    named |= {f"SDAWS_{name.upper()}" for name in re.findall(r'\bvalue\("(\w+)"', settings)}
    named |= {f"SDAWS_{field.name.upper()}" for field in fields(AwsSettings)}
    assert named == set(page), "write docs/settings.md anew"


def test_its_defaults_are_the_codes(page: dict[str, str], tmp_path: Path) -> None:
    settings = read_settings({"SDAWS_DATA_DIR": str(tmp_path)})
    for name in ("host", "port", "job_seconds", "max_workers", "import_max_bytes"):
        value = getattr(settings, name)
        text = str(int(value)) if isinstance(value, float) else str(value)
        assert page[f"SDAWS_{name.upper()}"] == text, name
    assert page["SDAWS_MAX_TRAININGS"] == str(settings.max_trainings)
    assert page["SDAWS_TRAIN_SECONDS"] == str(int(settings.train_seconds))
    assert page["SDAWS_CACHE_BYTES"] == str(DEFAULT_CACHE_BYTES)
    assert page["SDAWS_WEIGHTS_BYTES"] == str(DEFAULT_WEIGHTS_BYTES)
    assert page["SDAWS_WEIGHTS_DIR"] == str(DEFAULT_WEIGHTS_DIR)
    assert page["SDAWS_TRAIN_ROOT"] == TRAIN_ROOT
    for field in fields(AwsSettings):
        if isinstance(field.default, str):
            assert page[f"SDAWS_{field.name.upper()}"] == field.default
