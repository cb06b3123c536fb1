"""Runs the original document's examples against a deployment, and says where it differs."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import httpx

from tests.conformance.examples import Example, examples
from tests.conformance.expected import (
    EXPECTED,
    NULL_WHILE,
    Expected,
    Outcome,
    expected_answer,
)
from tests.conformance.prepared import Prepared
from tests.conformance.recorder import Exchange, Recorder
from tests.conformance.shapes import differences

NO_NODE = "the JavaScript examples are run by Node, which is not here"

# Row 23: "PUT (and POST)"; JavaScript's example sends it by POST.
_METHODS = {("/inference/v2/{id}/run(PUT)", "javascript"): "POST"}


@dataclass(frozen=True)
class Verdict:
    """What one example has shown; `faults` is empty where it conforms or was `skipped`."""

    example: Example
    expected: Expected
    faults: list[str] = field(default_factory=list)
    skipped: str = ""


def conform(
    url: str,
    token: str,
    prepared: Prepared | None = None,
    container: bool = True,
    rows: Collection[int] | None = None,
) -> Iterator[Verdict]:
    """Runs the examples in the document's order against the deployment at `url`.

    All of them, or those of `rows`; without a `container` those that need none. Without
    `prepared` the deployment must be an empty one. Endpoints and jobs that the examples start
    are stopped again; records of data sets, models, checkpoints and training jobs stay.
    """
    recorder = Recorder(url)
    has_node = shutil.which("node") is not None
    with httpx.Client(base_url=url, headers={"x-api-key": token}, timeout=60) as client:
        try:
            for example in examples():
                expected = EXPECTED[example.section.title]
                if rows is not None and expected.row not in rows:
                    continue
                if expected.needs_container and not container:
                    continue
                if example.language == "javascript" and not has_node:
                    yield Verdict(example, expected, skipped=NO_NODE)
                    continue
                filled = bool(prepared) and (container or not expected.listed_by_container)
                found = _run(example, recorder, token, prepared) or faults(
                    example,
                    expected.outcome(example, bool(prepared)),
                    recorder.exchanges,
                    filled,
                )
                yield Verdict(example, expected, found)
                _stop_what_was_started(client, recorder.exchanges)
        finally:
            recorder.stop()


def _run(example: Example, recorder: Recorder, token: str, prepared: Prepared | None) -> list[str]:
    """Why the program could not be run to its end, if so; what it asked is in `recorder`."""
    recorder.exchanges.clear()
    code = example.aimed_at(recorder.url, token)
    for made_up, real in (prepared.substitutions(example) if prepared else {}).items():
        if made_up not in code:
            return [f"nothing to substitute: {made_up!r}"]
        code = code.replace(made_up, real)
    if example.language == "python":
        return _run_python(code)
    done = subprocess.run(
        ["node", "-e", code], capture_output=True, text=True, check=False, timeout=60
    )
    return [f"the program failed: {done.stderr[-500:]}"] if done.returncode else []


def _run_python(code: str) -> list[str]:
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            exec(code, {})
        except Exception as error:  # noqa: BLE001 whatever stops the program is the finding
            return [f"the program failed: {error!r}"]
    return []


def faults(
    example: Example, outcome: Outcome, exchanges: list[Exchange], filled: bool
) -> list[str]:
    """Where what was asked and answered is not what the document and `outcome` say; `filled`:
    lists that the document shows with items must have some."""
    if len(exchanges) != 1:
        return [f"{len(exchanges)} requests"]
    (exchange,) = exchanges
    method = _METHODS.get((example.section.title, example.language), example.section.method)
    if exchange.method != method:
        return [f"{exchange.method} instead of {method}"]
    if exchange.status != outcome.status:
        return [f"HTTP {exchange.status} instead of {outcome.status}: {exchange.body}"]
    if outcome.status == 200:
        documented = expected_answer(example.section)
        return differences(documented, exchange.body, null_while=NULL_WHILE, filled=filled)
    if outcome.status == 422:
        shape = {"detail": [{"loc": ["body"], "msg": "", "type": ""}]}
        found = differences(shape, exchange.body, filled=True)
        why = "" if found else ".".join(map(str, exchange.body["detail"][0]["loc"]))
    else:
        envelope = {"statusCode": outcome.status, "error": "", "code": "", "request_id": ""}
        found = differences(envelope, exchange.body)
        why = "" if found else exchange.body["code"]
    return found or ([] if why == outcome.why else [f"{why!r} instead of {outcome.why!r}"])


def _stop_what_was_started(client: httpx.Client, exchanges: list[Exchange]) -> None:
    """A machine that an example rented would cost money, and a picture is work for minutes."""
    for exchange in exchanges:
        if exchange.status != 200 or not isinstance(exchange.body, dict):
            continue
        if exchange.method == "POST" and "EndpointDeploymentJobId" in exchange.body:
            names = [exchange.body["endpoint_name"]]
            client.request(
                "DELETE", "/endpoints", json={"delete_endpoint_list": names}
            ).raise_for_status()
        if exchange.method == "POST" and "inference_id" in exchange.body:
            job_id = exchange.body["inference_id"]
            client.post(f"/inference/v2/{job_id}/cancel").raise_for_status()
