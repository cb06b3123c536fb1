"""Every example of the original document, as it stands, against a live server."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conform import Verdict, conform, faults
from tests.conformance.examples import examples, listed_rows, sections
from tests.conformance.expected import EXPECTED, Outcome
from tests.conformance.prepared import Prepared
from tests.conformance.recorder import Exchange
from tests.conformance.shapes import differences
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
    assert len(examples()) == 60
    listed = listed_rows()
    assert len(listed) == 30
    assert {section.title for section in sections()} == set(EXPECTED)
    assert sorted(expected.row for expected in EXPECTED.values()) == sorted(listed)


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


def test_a_missing_field_another_type_or_another_form_is_a_difference() -> None:
    documented = {"id": "x", "at": "s3://a", "parts": [{"size": 1}]}
    assert differences(documented, {"id": "y", "at": "s3://b", "parts": [], "more": 1}) == []
    assert differences(documented, {"at": "/b", "parts": [{"size": 1}, {"size": "1"}]}) == [
        "id is missing",
        "at is not an s3:// location: '/b'",
        "parts[1].size is string, not number",
    ]
    assert differences([1], {}) == ["the body is object, not a list"]


def test_a_list_that_should_have_items_must_not_be_empty() -> None:
    documented = {"parts": [{"tags": ["a"]}]}
    assert differences(documented, {"parts": []}) == []
    assert differences(documented, {"parts": []}, filled=True) == ["parts is empty"]
    assert differences(documented, {"parts": [{"tags": []}]}, filled=True) == []


def test_a_field_may_be_null_only_in_the_states_that_are_told() -> None:
    rule = {"endTime": frozenset({"inprogress"})}
    documented = {"status": "x", "endTime": "2023-07-04 08:12:55.148070"}
    running = {"status": "inprogress", "endTime": None}
    assert differences(documented, running, null_while=rule) == []
    ended = {"status": "failed", "endTime": None}
    assert differences(documented, ended, null_while=rule) == ["endTime is null, not string"]


@pytest.mark.parametrize(
    ("title", "answer", "fault"),
    [
        (
            "/endpoints(DELETE)",
            {"statusCode": 404, "error": "no such route", "code": "not_found", "request_id": "r"},
            "'not_found' instead of 'endpoint_not_found'",
        ),
        ("/endpoints(DELETE)", {}, "statusCode is missing"),
        (
            "/inference/generate-s3-presigned-url-for-uploading",
            {"detail": [{"loc": ["query", "other"], "msg": "", "type": ""}]},
            "'query.other' instead of 'query.key'",
        ),
    ],
)
def test_an_error_for_another_reason_does_not_conform(
    title: str, answer: dict[str, Any], fault: str
) -> None:
    example = next(example for example in examples() if example.section.title == title)
    outcome = EXPECTED[title].outcome(example, prepared=False)
    exchange = Exchange(example.section.method, example.section.path, outcome.status, answer)
    assert fault in faults(example, outcome, [exchange], filled=False)


def test_an_empty_answer_is_not_the_one_that_was_decided() -> None:
    for title in ("/endpoints(POST)", "/models(GET)", "/inference/get-lora-list"):
        example = next(example for example in examples() if example.section.title == title)
        exchange = Exchange(example.section.method, example.section.path, 200, {})
        assert faults(example, Outcome(200), [exchange], filled=True)
