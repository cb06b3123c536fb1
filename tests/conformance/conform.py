"""Runs the original document's examples against a deployment, and says where it differs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from tests.conformance.examples import Example, differences, examples
from tests.conformance.prepared import Prepared
from tests.conformance.recorder import Exchange, Recorder


@dataclass(frozen=True)
class Expected:
    """Status codes of a section's two examples, Python's and JavaScript's.

    `empty` is a deployment in which nothing was but what the examples before did; `prepared` one
    with all that they speak of. A section that `needs_container` cannot be prepared without one.
    """

    empty: tuple[int, int]
    prepared: tuple[int, int]
    needs_container: bool = False

    def status(self, example: Example, prepared: bool) -> int:
        """Of one of the two."""
        both = self.prepared if prepared else self.empty
        return both[example.language == "javascript"]


_LIST = Expected((200, 200), (200, 200))
_NO_JOB_ID = (422, 422)

EXPECTED = {
    "/inference/test-connection": _LIST,
    "/inference/v2": Expected((404, 404), (200, 200), needs_container=True),
    "/endpoints(POST)": Expected((200, 200), (200, 200)),
    "/endpoints(DELETE)": Expected((404, 404), (200, 200)),
    "/endpoints(GET)": _LIST,
    "/inference/list-inference-jobs": _LIST,
    "/inference/get-endpoint-deployment-job": Expected((404, 404), (200, 200)),
    "/inference/get-inference-job": Expected(_NO_JOB_ID, (200, 200), needs_container=True),
    "/inference/get-inference-job-image-output": Expected(
        _NO_JOB_ID, (200, 200), needs_container=True
    ),
    "/inference/get-inference-job-param-output": Expected(
        _NO_JOB_ID, (200, 200), needs_container=True
    ),
    # `key` is left out, which is required.
    "/inference/generate-s3-presigned-url-for-uploading": Expected((422, 422), (200, 200)),
    "/inference/get-texual-inversion-list": _LIST,
    "/inference/get-lora-list": _LIST,
    "/inference/get-hypernetwork-list": _LIST,
    "/inference/get-controlnet-model-list": _LIST,
    # Neither example sends a body.
    "/inference/run-model-merge": Expected((422, 422), (422, 422)),
    # Python's example sends no body.
    "/model(POST)": Expected((422, 200), (422, 200)),
    # No program makes models yet: said before anything changes.
    "/model(PUT)": Expected((404, 404), (501, 501)),
    "/models(GET)": _LIST,
    "/checkpoint": Expected((200, 200), (200, 200)),
    "/checkpoint(put)": Expected((404, 404), (200, 200)),
    "/checkpoints": _LIST,
    "/inference/v2/{id}/run(PUT)": Expected((404, 404), (200, 200)),
    # A model that is not Complete cannot be trained, and no program makes one yet.
    "/train(PUT)": Expected((404, 404), (409, 409)),
    "/trains(GET)": _LIST,
    # JavaScript's asks for the same name again.
    "/dataset(POST)": Expected((200, 409), (200, 200)),
    # Its file was never sent.
    "/dataset(PUT)": Expected((409, 409), (200, 200)),
    "/datasets(GET)": _LIST,
    "/{dataset_name}/data": Expected((404, 404), (200, 200)),
    "/upload_checkpoint": Expected((200, 200), (200, 200)),
}

# Where our contract decides otherwise than the document shows.
DECIDED = {
    "endTime. is null, not string": "a deployment that has not ended has no end",
    "[].endTime. is null, not string": "a deployment that has not ended has no end",
    "[].completeTime. is null, not string": "a job that has not ended has no end",
    "models. is list, not an object": "row 19: `models` is a list",
    "statusCode. is number, not string": "success bodies carry the number 200",
    "checkpoint.params.multipart_upload.bubble-gum-kaugummi-v20 is missing": "the name of a file "
    "of the document's own",
}


@dataclass(frozen=True)
class Verdict:
    """What one example has shown; `faults` is empty where it conforms."""

    example: Example
    faults: list[str]


def conform(
    url: str, token: str, prepared: Prepared | None = None, container: bool = True
) -> Iterator[Verdict]:
    """Runs all examples in the document's order against the deployment at `url`; without a
    `container` those prepared ones that need none."""
    recorder = Recorder(url)
    try:
        for example in examples():
            expected = EXPECTED[example.section]
            if prepared and expected.needs_container and not container:
                continue
            changes = prepared.substitutions(example) if prepared else {}
            code = example.aimed_at(recorder.url, token)
            for made_up, real in changes.items():
                code = code.replace(made_up, real)
            recorder.exchanges.clear()
            done = _run(example, code)
            yield Verdict(
                example,
                _faults(
                    example, expected.status(example, bool(prepared)), done, recorder.exchanges
                ),
            )
    finally:
        recorder.stop()


def _run(example: Example, code: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c"] if example.language == "python" else ["node", "-e"]
    return subprocess.run([*command, code], capture_output=True, text=True, check=False, timeout=60)


def _faults(
    example: Example,
    status: int,
    done: subprocess.CompletedProcess[str],
    exchanges: list[Exchange],
) -> list[str]:
    if done.returncode:
        return [f"the program failed: {done.stderr[-500:]}"]
    if len(exchanges) != 1:
        return [f"{len(exchanges)} requests"]
    (exchange,) = exchanges
    if exchange.status != status:
        return [f"HTTP {exchange.status} instead of {status}: {exchange.body}"]
    if status == 200:
        return [d for d in differences(example.answer, exchange.body) if d not in DECIDED]
    shape = {"detail": [{"loc": [], "msg": "", "type": ""}]}
    envelope = {"statusCode": status, "error": "", "code": "", "request_id": ""}
    return differences(shape if status == 422 else envelope, exchange.body)
