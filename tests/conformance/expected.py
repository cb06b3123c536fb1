"""What each section's examples must be answered, and where we decided against the document."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.conformance.examples import Example, Section


@dataclass(frozen=True)
class Outcome:
    """A status code; `why` is an error's `code`, or the first place that does not fit (422)."""

    status: int
    why: str = ""


@dataclass(frozen=True)
class Each:
    """Where the two languages' examples ask for different things."""

    python: Outcome
    javascript: Outcome


@dataclass(frozen=True)
class Expected:
    """One row of the document.

    `empty` is a deployment in which nothing was but what the examples before did; `prepared` one
    with all that they speak of. A row that `needs_container` gives its documented answer only
    where a container works; `listed_by_container` is a list that stays empty without.
    """

    row: int
    empty: Outcome | Each
    prepared: Outcome | Each
    needs_container: bool = False
    listed_by_container: bool = False

    def outcome(self, example: Example, prepared: bool) -> Outcome:
        """Of one of the section's examples."""
        expected = self.prepared if prepared else self.empty
        if isinstance(expected, Outcome):
            return expected
        return expected.python if example.language == "python" else expected.javascript


def _missing(code: str) -> Outcome:
    return Outcome(404, code)


_OK = Outcome(200)
_NO_JOB_ID = Outcome(422, "query.jobID")
_NO_BODY = Outcome(422, "body")
# JavaScript's example sends its body to /dataset.
_IMPORT = Each(_OK, Outcome(422, "body.dataset_name"))

EXPECTED = {
    "/inference/test-connection": Expected(1, _OK, _OK),
    "/inference/list-inference-jobs": Expected(2, _OK, _OK, listed_by_container=True),
    # The examples of rows 3 to 5 and 11 leave out what is required; prepared, it is added.
    "/inference/get-inference-job": Expected(3, _NO_JOB_ID, _OK, needs_container=True),
    "/inference/get-inference-job-image-output": Expected(4, _NO_JOB_ID, _OK, needs_container=True),
    "/inference/get-inference-job-param-output": Expected(5, _NO_JOB_ID, _OK, needs_container=True),
    "/inference/v2": Expected(6, _missing("checkpoint_not_found"), _OK, needs_container=True),
    "/endpoints(POST)": Expected(7, _OK, _OK),
    "/endpoints(DELETE)": Expected(8, _missing("endpoint_not_found"), _OK),
    "/endpoints(GET)": Expected(9, _OK, _OK),
    "/inference/get-endpoint-deployment-job": Expected(10, _missing("not_found"), _OK),
    "/inference/generate-s3-presigned-url-for-uploading": Expected(
        11, Outcome(422, "query.key"), _OK
    ),
    "/inference/get-texual-inversion-list": Expected(12, _OK, _OK),
    "/inference/get-lora-list": Expected(13, _OK, _OK),
    "/inference/get-hypernetwork-list": Expected(14, _OK, _OK),
    "/inference/get-controlnet-model-list": Expected(15, _OK, _OK),
    # Neither example sends a body.
    "/inference/run-model-merge": Expected(16, _NO_BODY, _NO_BODY),
    # Python's example sends no body.
    "/model(POST)": Expected(17, Each(_NO_BODY, _OK), Each(_NO_BODY, _OK)),
    "/model(PUT)": Expected(18, _missing("model_not_found"), _OK),
    "/models(GET)": Expected(19, _OK, _OK),
    "/checkpoint": Expected(20, _OK, _OK),
    "/checkpoint(put)": Expected(21, _missing("not_found"), _OK),
    "/checkpoints": Expected(22, _OK, _OK),
    "/inference/v2/{id}/run(PUT)": Expected(23, _missing("model_not_found"), _OK),
    # The model of the prepared job was never made.
    "/train(PUT)": Expected(
        24, _missing("train_job_not_found"), Outcome(409, "model_not_complete")
    ),
    "/trains(GET)": Expected(25, _OK, _OK),
    # JavaScript's example asks for the same name again; prepared, each has its own.
    "/dataset(POST)": Expected(26, Each(_OK, Outcome(409, "dataset_name_taken")), _OK),
    # Its file was never sent.
    "/dataset(PUT)": Expected(27, Outcome(409, "files_missing"), _OK),
    "/datasets(GET)": Expected(28, _OK, _OK),
    "/{dataset_name}/data": Expected(29, _missing("dataset_not_found"), _OK),
    "/upload_checkpoint": Expected(30, _IMPORT, _IMPORT),
}


@dataclass(frozen=True)
class Decision:
    """Our own answer in the place of the documented one; `contract` is the sentence it rests on."""

    decide: Callable[[Any], Any]
    contract: str


def _import_without_the_files_name(documented: Any) -> Any:
    checkpoint = documented["checkpoint"]
    params = {**checkpoint["params"], "multipart_upload": {}}
    return {**documented, "checkpoint": {**checkpoint, "params": params}}


_NAMES = Decision(
    lambda _: ["name"],
    "Rows 12-15: list of names of Active checkpoints of that type (`[]` when none)",
)
_DEPLOYMENT = {
    "EndpointDeploymentJobId": "id",
    "startTime": "2023-07-04 08:00:47.736033",
    "endTime": "2023-07-04 08:12:55.148070",
    "endpoint_name": "name",
    "endpoint_status": "Creating",
    "status": "inprogress",
    "error": "",
    "instance_type": "ml.g4dn.xlarge",
    "current_instance_count": 0,
}
DECISIONS = {
    "/endpoints(POST)": Decision(
        lambda _: _DEPLOYMENT, "Row 7: the deployment as in row 10 (`status: inprogress`)"
    ),
    "/endpoints(GET)": Decision(
        lambda _: [_DEPLOYMENT],
        "Row 9: bare list of row 10's objects",
    ),
    "/inference/get-texual-inversion-list": _NAMES,
    "/inference/get-lora-list": _NAMES,
    "/inference/get-hypernetwork-list": _NAMES,
    "/inference/get-controlnet-model-list": _NAMES,
    "/models(GET)": Decision(
        lambda documented: {**documented, "models": [documented["models"]]},
        "Row 19: `models` is a list",
    ),
    "/trains(GET)": Decision(
        lambda documented: {**documented, "statusCode": 200},
        'Success bodies of rows 17-30 also carry `"statusCode": 200`, as documented.',
    ),
    "/dataset(POST)": Decision(
        lambda documented: {
            **documented,
            "s3PresignUrl": [{"filename": "as sent", "s3": "s3://x", "url": "https://x"}],
        },
        'Row 26: `s3PresignUrl`: one entry a file, `{"filename": <as sent>, "s3": "s3://...", '
        '"url": <presigned PUT>}`',
    ),
    "/upload_checkpoint": Decision(
        _import_without_the_files_name,
        "Row 30: file name from the URL or Content-Disposition",
    ),
}

# The contract's page has no sentence for it: these times are not there before what they tell of.
NULL_WHILE = {
    "endTime": frozenset({"inprogress"}),
    "completeTime": frozenset({"created", "inprogress"}),
}


def expected_answer(section: Section) -> Any:
    """The documented answer, or what we decided instead."""
    decision = DECISIONS.get(section.title)
    return section.answer if decision is None else decision.decide(section.answer)
