"""Every example of the original document, as it stands, against a live server."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.conformance.conform import EXPECTED, Verdict, conform
from tests.conformance.examples import differences, examples
from tests.conformance.prepared import Prepared
from tests.engine_checkpoints import write_checkpoint
from tests.server import Server

needs_node = pytest.mark.skipif(
    shutil.which("node") is None,
    reason="the JavaScript examples are run by Node, which is not here",
)


def token_of(server: Server) -> str:
    return (server.data_dir / "api_token").read_text().strip()


def told(verdicts: list[Verdict]) -> str:
    return "\n".join(f"{v.example.name}: {'; '.join(v.faults)}" for v in verdicts if v.faults)


def test_no_example_is_lost() -> None:
    found = examples()
    assert len(found) == 60
    assert {example.section for example in found} == set(EXPECTED)


@needs_node
def test_on_an_empty_server(server: Server) -> None:
    verdicts = list(conform(f"{server.url}/prod", token_of(server)))
    assert len(verdicts) == 60
    assert not told(verdicts), told(verdicts)


@needs_node
def test_on_a_server_that_has_all_they_speak_of(server: Server, tmp_path: Path) -> None:
    prepared = Prepared(server.client, write_checkpoint(tmp_path / "tiny.safetensors").read_bytes())
    verdicts = list(conform(f"{server.url}/prod", token_of(server), prepared))
    assert len(verdicts) == 60
    assert not told(verdicts), told(verdicts)


def test_a_missing_field_or_another_type_is_a_difference() -> None:
    documented = {"id": "x", "parts": [{"size": 1}]}
    assert differences(documented, {"id": "y", "parts": [], "more": 1}) == []
    assert differences(documented, {"parts": [{"size": "1"}]}) == [
        "id is missing",
        "parts.[].size. is string, not number",
    ]
    assert differences([1], {}) == ["the body is object, not a list"]
