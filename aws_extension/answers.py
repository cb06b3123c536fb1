"""The API's answers as typed values: raw JSON is parsed here and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from itertools import zip_longest
from typing import Any, TypeVar

from aws_extension.errors import UnexpectedAnswer
from middleware_api.contract import (
    INFERENCE_FINAL,
    CheckpointState,
    CheckpointStep,
    EndpointState,
    InferenceState,
)

E = TypeVar("E", bound=Enum)


@dataclass(frozen=True)
class InferenceJob:
    """A job as row 3 shows it; `progress` is 0..1, absent parts are None or empty.

    `estimated_cost` is in US dollars; None where the machine's price is not known.
    """

    id: str
    state: InferenceState
    task: str
    endpoint_name: str
    started_at: datetime | None
    completed_at: datetime | None
    image_names: tuple[str, ...]
    progress: float
    queue_position: int | None
    eta_seconds: float | None
    preview_url: str
    phase: str
    error: str
    instance_type: str
    run_seconds: float | None
    estimated_cost: float | None
    checkpoint_names: tuple[str, ...]

    @property
    def is_final(self) -> bool:
        """Whether nothing will change any more."""
        return self.state in INFERENCE_FINAL


@dataclass(frozen=True)
class Submission:
    """What row 6 answers; `upload_url` only for a body that has yet to be put (row 6b)."""

    job_id: str
    state: InferenceState
    endpoint_name: str
    upload_url: str


@dataclass(frozen=True)
class Endpoint:
    """A deployment and the endpoint that it made.

    `engine` makes its pictures; `webui_url` is where its WebUI is, "" for one of its own. Prices
    are in US dollars, an hour and instance; None where they are not known.
    """

    deployment_id: str
    name: str
    state: EndpointState | None
    deployment_state: str
    instance_type: str
    instance_count: int
    autoscaling: bool
    min_instances: int
    max_instances: int
    price_per_hour: float | None
    cost_since_start: float | None
    started_at: datetime | None
    error: str
    engine: str = ""
    webui_url: str = ""

    @property
    def is_ready(self) -> bool:
        """Whether it takes jobs now."""
        return self.state is EndpointState.IN_SERVICE


@dataclass(frozen=True)
class OriginalFile:
    """What a file of torch was before its conversion; `sha256` is "" where it is not known."""

    name: str
    size: int | None
    sha256: str


@dataclass(frozen=True)
class Checkpoint:
    """A weights file of the cloud; `sha256` goes with `names`, "" where it is not known.

    `step` is what one is at that is not Active yet, `message` what it waits for. One that the
    server fetches from a URL has `sources`, and `progress` (0..1) where it is known. `can_retry`:
    its conversion failed, and can be tried again.
    """

    id: str
    type: str
    state: CheckpointState
    names: tuple[str, ...]
    created_at: datetime | None
    size: int | None
    error: str
    sha256: tuple[str, ...] = ()
    message: str = ""
    sources: tuple[str, ...] = ()
    progress: float | None = None
    step: CheckpointStep | None = None
    can_retry: bool = False
    originals: tuple[OriginalFile, ...] = ()

    def may_be(self, name: str, size: int) -> bool:
        """Whether a file of that name and size may be it, as it is or as it came."""
        came = any((one.name, one.size) == (name, size) for one in self.originals)
        return came or (name in self.names and self.size == size)

    def may_have(self, size: int) -> bool:
        """Whether a file of that size may be it, under whatever name."""
        return self.size == size or any(one.size == size for one in self.originals)

    @property
    def files(self) -> Iterator[tuple[str, str]]:
        """Each file's name and SHA-256."""
        return zip_longest(self.names, self.sha256[: len(self.names)], fillvalue="")


@dataclass(frozen=True)
class ArrivedPart:
    """A part that the store has already."""

    number: int
    etag: str


@dataclass(frozen=True)
class UploadPlan:
    """Where the missing parts of one file go; `urls` by part number, `part_size` in bytes.

    `checksum` is the kind that the store checks, "" where it tells none.
    """

    filename: str
    part_size: int
    checksum: str
    urls: Mapping[int, str]
    arrived: tuple[ArrivedPart, ...]


@dataclass(frozen=True)
class CheckpointUpload:
    """A checkpoint and what is left to send of it."""

    checkpoint: Checkpoint
    plans: tuple[UploadPlan, ...]


@dataclass(frozen=True)
class InferenceOutput:
    """A finished job's `parameters` and decoded `info`."""

    parameters: Mapping[str, Any]
    infotexts: tuple[str, ...]
    warnings: tuple[str, ...]

    def pictures(self, files: Sequence[bytes]) -> Sequence[bytes]:
        """A job's files without those that follow its pictures: each picture has an infotext."""
        return files[: len(self.infotexts) or None]

    def maps(self, files: Sequence[bytes]) -> Sequence[bytes]:
        """The files behind its pictures: what ControlNet's units saw."""
        return files[len(self.infotexts) :] if self.infotexts else ()


class Fields:
    """One JSON object under inspection; what does not fit is UnexpectedAnswer naming the field."""

    def __init__(self, raw: object, what: str) -> None:
        if not isinstance(raw, dict):
            raise UnexpectedAnswer(
                f"The server answered something else than {what}. Check that the URL is that of "
                "the API and that its version fits this extension."
            )
        self._raw: dict[str, Any] = raw
        self._what = what

    def _fault(self, name: str, value: object) -> UnexpectedAnswer:
        return UnexpectedAnswer(
            f"The server's answer ({self._what}) has {name}={value!r:.80}, which does not fit. "
            "Check that the server's version fits this extension."
        )

    def text(self, name: str) -> str:
        """A required text."""
        value = self._raw.get(name)
        if not isinstance(value, str) or not value:
            raise self._fault(name, value)
        return value

    def optional_text(self, *names: str) -> str:
        """The first of `names` that is there, or the empty text."""
        for name in names:
            value = self._raw.get(name)
            if value is None:
                continue
            if not isinstance(value, str):
                raise self._fault(name, value)
            return value
        return ""

    def optional_number(self, name: str) -> float | None:
        """A number, or a text that holds one, or None."""
        value = self._raw.get(name)
        if value is None or value == "":
            return None
        try:
            return float(value)
        except (TypeError, ValueError) as fault:
            raise self._fault(name, value) from fault

    def optional_integer(self, name: str) -> int | None:
        """A whole number or None."""
        number = self.optional_number(name)
        return None if number is None else int(number)

    def integer(self, name: str) -> int:
        """A required whole number."""
        number = self.optional_integer(name)
        if number is None:
            raise self._fault(name, None)
        return number

    def flag(self, name: str) -> bool:
        """True or false; absent means false."""
        value = self._raw.get(name)
        if value is not None and not isinstance(value, bool):
            raise self._fault(name, value)
        return bool(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; absent means none, a single text means one."""
        value = self._raw.get(name)
        if value is None:
            return ()
        if isinstance(value, str):
            return (value,)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self._fault(name, value)
        return tuple(value)

    def pairs(self, name: str) -> tuple[tuple[int, float], ...]:
        """A list of pairs of a whole number and a number; absent means none."""
        value = self._raw.get(name)
        try:
            return tuple((int(first), float(second)) for first, second in value or ())
        except (TypeError, ValueError) as fault:
            raise self._fault(name, value) from fault

    def objects(self, name: str) -> list[Fields]:
        """A list of objects; absent means none."""
        value = self._raw.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self._fault(name, value)
        return [Fields(item, f"{self._what}, {name}") for item in value]

    def object(self, name: str) -> Fields:
        """A required object."""
        return Fields(self._raw.get(name), f"{self._what}, {name}")

    def mapping(self, name: str) -> dict[str, Any]:
        """An object as it is; absent means empty."""
        value = self._raw.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self._fault(name, value)
        return value

    def choice(self, name: str, kinds: type[E]) -> E:
        """A required member of a closed set."""
        value = self._raw.get(name)
        try:
            return kinds(value)
        except ValueError as fault:
            raise self._fault(name, value) from fault

    def optional_choice(self, name: str, kinds: type[E]) -> E | None:
        """A member of a closed set, or None."""
        return None if self._raw.get(name) is None else self.choice(name, kinds)

    def time(self, name: str, pattern: str) -> datetime | None:
        """A UTC time, or None."""
        value = self.optional_text(name)
        if not value:
            return None
        try:
            return datetime.strptime(value, pattern).replace(tzinfo=timezone.utc)
        except ValueError as fault:
            raise self._fault(name, value) from fault


_TIME = "%Y-%m-%d %H:%M:%S.%f"
_COMPLETE_TIME = "%Y-%m-%d-%H-%M-%S"


def parse_job(raw: object) -> InferenceJob:
    """Row 3."""
    fields = Fields(raw, "an inference job")
    return InferenceJob(
        id=fields.text("InferenceJobId"),
        state=fields.choice("status", InferenceState),
        task=fields.optional_text("taskType"),
        endpoint_name=fields.optional_text("endpoint_name"),
        started_at=fields.time("startTime", _TIME),
        completed_at=fields.time("completeTime", _COMPLETE_TIME),
        image_names=fields.texts("image_names"),
        progress=min(1.0, max(0.0, fields.optional_number("progress") or 0.0)),
        queue_position=fields.optional_integer("queue_position"),
        eta_seconds=fields.optional_number("eta_seconds"),
        preview_url=fields.optional_text("preview_url"),
        phase=fields.optional_text("phase"),
        error=fields.optional_text("error"),
        instance_type=fields.optional_text("instance_type"),
        run_seconds=fields.optional_number("run_seconds"),
        estimated_cost=fields.optional_number("estimated_cost"),
        checkpoint_names=fields.texts("checkpoint_names"),
    )


def parse_submission(raw: object) -> Submission:
    """Rows 6 and 6b."""
    fields = Fields(raw, "a submitted job")
    return Submission(
        job_id=fields.text("inference_id"),
        state=fields.choice("status", InferenceState),
        endpoint_name=fields.optional_text("endpoint_name"),
        upload_url=fields.optional_text("api_params_s3_upload_url"),
    )


def parse_endpoint(raw: object) -> Endpoint:
    """Row 10; a deployment that failed early has no endpoint state."""
    fields = Fields(raw, "an endpoint")
    has_state = fields.optional_text("endpoint_status") != ""
    return Endpoint(
        deployment_id=fields.text("EndpointDeploymentJobId"),
        name=fields.optional_text("endpoint_name"),
        state=fields.choice("endpoint_status", EndpointState) if has_state else None,
        deployment_state=fields.optional_text("status"),
        instance_type=fields.optional_text("instance_type"),
        instance_count=fields.optional_integer("current_instance_count") or 0,
        autoscaling=fields.flag("autoscaling_enabled"),
        min_instances=fields.optional_integer("min_instance_count") or 0,
        max_instances=fields.optional_integer("max_instance_count") or 0,
        price_per_hour=fields.optional_number("price_per_hour"),
        cost_since_start=fields.optional_number("cost_since_start"),
        started_at=fields.time("startTime", _TIME),
        error=fields.optional_text("error"),
        engine=fields.optional_text("engine"),
        webui_url=fields.optional_text("webui_url"),
    )


def parse_checkpoint(raw: object) -> Checkpoint:
    """An element of row 22, or the `checkpoint` of rows 20 and 21."""
    fields = Fields(raw, "a checkpoint")
    created = fields.optional_number("created")
    return Checkpoint(
        id=fields.text("id"),
        type=fields.optional_text("type"),
        state=fields.choice("status", CheckpointState),
        names=fields.texts("name"),
        created_at=None if created is None else datetime.fromtimestamp(created, timezone.utc),
        size=fields.optional_integer("size"),
        error=fields.optional_text("error"),
        sha256=fields.texts("sha256"),
        message=fields.optional_text("message"),
        sources=fields.texts("sources"),
        progress=fields.optional_number("progress"),
        step=fields.optional_choice("step", CheckpointStep),
        can_retry=fields.flag("can_retry"),
        originals=tuple(
            OriginalFile(
                name=one.text("name"),
                size=one.optional_integer("size"),
                sha256=one.optional_text("sha256"),
            )
            for one in fields.objects("originals")
        ),
    )


def parse_checkpoint_upload(raw: object) -> CheckpointUpload:
    """Rows 20 (POST) and 20b."""
    fields = Fields(raw, "a checkpoint's upload")
    plans = tuple(
        UploadPlan(
            filename=plan.text("filename"),
            part_size=plan.integer("part_size"),
            checksum=plan.optional_text("checksum"),
            urls={part.integer("PartNumber"): part.text("url") for part in plan.objects("parts")},
            arrived=tuple(
                ArrivedPart(part.integer("PartNumber"), part.text("ETag"))
                for part in plan.objects("arrived")
            ),
        )
        for plan in fields.objects("s3PresignUrl")
    )
    return CheckpointUpload(parse_checkpoint(fields.mapping("checkpoint")), plans)


def parse_texts(raw: object, what: str) -> tuple[str, ...]:
    """A bare JSON list of texts."""
    return Fields({"items": raw}, what).texts("items")


def parse_list(raw: object, what: str) -> list[object]:
    """A bare JSON list."""
    if not isinstance(raw, list):
        raise UnexpectedAnswer(
            f"The server answered something else than a list of {what}. Check that the URL is "
            "that of the API."
        )
    return raw
