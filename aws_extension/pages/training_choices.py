"""What the Training page offers, and what it says before a training begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aws_extension.access import CloudAccess
from aws_extension.client import CloudClient
from aws_extension.dreambooth_settings import Verdict, judge
from aws_extension.errors import NotFound
from aws_extension.pages import html
from aws_extension.pages.html import Value
from aws_extension.train_estimates import Estimate, Measured, size_of
from aws_extension.training_calls import TrainJob
from middleware_api.contract import CheckpointState, CheckpointType, ModelState

_KIND = CheckpointType.STABLE_DIFFUSION
# Jobs whose time a step is looked up for the estimate, at most.
_MEASURED_MAX = 4


@dataclass(frozen=True)
class Base:
    """What a training may begin with: a model, a checkpoint, or a file of this machine."""

    name: str
    model_id: str = ""
    checkpoint_id: str = ""
    path: Path | None = None


@dataclass(frozen=True)
class Known:
    """What the page has read of the cloud, for one browser."""

    bases: Mapping[str, Base] = field(default_factory=dict)
    measured: Mapping[str, Measured] = field(default_factory=dict)
    following: str = ""


def find_bases(access: CloudAccess, client: CloudClient) -> dict[str, Base]:
    """By what the dropdown calls them. Raises CloudError."""
    checkpoints = client.list_checkpoints([CheckpointState.ACTIVE], [_KIND])
    found = {
        f"{name}": Base(Path(name).stem, checkpoint_id=one.id)
        for one in reversed(checkpoints)
        for name in one.names
    }
    found = dict(reversed(found.items()))
    for model in client.training.list_models([ModelState.COMPLETE]):
        if not model.checkpoint_id:
            found[f"{model.name} · model {model.id[:8]}"] = Base(model.name, model_id=model.id)
    for file in access.local_models().of(_KIND):
        if file.path.name not in found:
            label = f"{file.path.name} · on this machine, {html.size(file.size)}"
            found[label] = Base(file.path.stem, path=file.path)
    return found


def find_measured(client: CloudClient, jobs: tuple[TrainJob, ...]) -> dict[str, Measured]:
    """What a step took in the newest job on each type of machine. Raises CloudError."""
    found: dict[str, Measured] = {}
    for job in jobs:
        if job.step_seconds and job.instance_type not in found and len(found) < _MEASURED_MAX:
            try:
                config = client.training.look(job.id).config
            except NotFound:  # deleted meanwhile
                continue
            size = size_of(config, 1)
            found[job.instance_type] = Measured(job.instance_type, job.step_seconds, size)
    return found


def tell(told: Estimate, pictures: int) -> str:
    """How long and how dear, in a line."""
    if not pictures:
        return html.words("Choose the pictures, and this tells time and cost.")
    counted = ("Pictures:", Value(f"{pictures},"), "steps:", Value(f"{told.steps:,}."))
    if told.seconds is None:
        unknown = "How long that takes is known after the first training on this machine."
        return html.words(*counted, unknown)
    time = ("About", Value(f"{html.duration(told.seconds)}."))
    cost: tuple[html.Part, ...] = ("What it costs is not known.",)
    if told.cost is not None:
        dollars = Value(f"{html.money(told.cost)}.")
        cost = ("Cost, about:", dollars) if told.cost else ("It costs nothing.",)
    basis = (
        "Reckoned from your latest training on such a machine."
        if told.is_measured
        else "By a rule of thumb: nothing has been trained on such a machine yet."
    )
    return html.words(*counted, *time, *cost, basis)


def show_import(config: dict[str, Any]) -> str:
    """What becomes of each imported setting, those that are not done first."""
    order = list(Verdict)
    kinds: dict[Verdict, html.Kind] = {Verdict.HONOURED: "good", Verdict.LEFT_OUT: "bad"}
    rows = [
        [
            f"<span class='sdaws-value'>{html.escape(one.name)}</span>",
            f"<span class='sdaws-value'>{html.escape(_short(one.value))}</span>",
            html.badge(kinds.get(one.verdict, "idle"), one.verdict.value),
            html.escape(one.why),
        ]
        for one in sorted(judge(config), key=lambda one: -order.index(one.verdict))
    ]
    return html.table(["Setting", "Value", "In the cloud", "How"], rows)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
