"""Training jobs as HTML: the list, and one from near with its curve and its pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from aws_extension.access import CloudAccess
from aws_extension.pages import html, links
from aws_extension.pages.html import Value
from aws_extension.train_preparation import Preparation
from aws_extension.training_calls import TrainJob, TrainLook, WorkingModel
from middleware_api.contract import CheckpointType, ModelState, TrainState

ORDER, MODELS_ORDER = "sdaws_training_order", "sdaws_training_models_order"
SAMPLES_SHOWN = 24
_STATES: dict[TrainState, tuple[html.Kind, str]] = {
    TrainState.INITIAL: ("idle", "Not started"),
    TrainState.TRAINING: ("busy", "Training"),
    TrainState.COMPLETE: ("good", "Finished"),
    TrainState.FAILED: ("bad", "Failed"),
    TrainState.STOPPED: ("idle", "Stopped"),
}
_MODEL_STATES: dict[ModelState, tuple[html.Kind, str]] = {
    ModelState.INITIAL: ("idle", "Not made yet"),
    ModelState.CREATING: ("busy", "Being made"),
    ModelState.COMPLETE: ("good", "Ready"),
    ModelState.FAILED: ("bad", "Failed"),
}
_WIDTH, _HEIGHT = 640, 160


def show_list(preparations: Sequence[Preparation], jobs: Sequence[TrainJob]) -> html.Listing:
    """Orders that are no jobs yet, then jobs, newest first."""
    if not preparations and not jobs:
        why = "No training yet. Choose a checkpoint and pictures above, and press Train."
        return html.Listing(note=html.notice("idle", why))
    cards = [html.Card(one.id, _preparation(one)) for one in reversed(preparations)]
    cards += [html.Card(job.id, _card(job)) for job in jobs]
    return html.Listing(
        tuple(cards),
        is_busy=any(not one.error for one in preparations)
        or any(job.state is TrainState.TRAINING for job in jobs),
    )


def _preparation(one: Preparation) -> str:
    title = f"<span class='sdaws-value sdaws-title'>{html.escape(one.order.model_name)}</span>"
    if one.error:
        body = html.notice("bad", Value(one.error))
        stop = html.send_button("Close", ORDER, f"forget {one.id}")
        mark = html.badge("bad", "Not started")
    else:
        words = (one.words, Value(one.value)) if one.value else (one.words,)
        body = html.endless_bar(*words) if one.fraction is None else html.bar(one.fraction, *words)
        stop = html.send_button("Cancel", ORDER, f"forget {one.id}", "sdaws-stop")
        mark = html.badge("busy", "Being prepared")
    return (
        f"<div class='sdaws-panel'><div class='sdaws-line'>{title}{mark}</div>{body}"
        f"<div class='sdaws-buttons'>{stop}</div></div>"
    )


def _card(job: TrainJob) -> str:
    kind, word = _STATES[job.state]
    title = f"<span class='sdaws-value sdaws-title'>{html.escape(job.model_name)}</span>"
    parts = [f"<div class='sdaws-line'>{title}{html.badge(kind, word)}</div>"]
    if job.state is TrainState.TRAINING:
        parts.append(html.bar(job.progress, Value(f"{job.progress:.0%}")))
    if job.error:
        short = job.error if len(job.error) < 200 else f"{job.error[:200]}…"
        parts.append(html.notice("bad", Value(short)))
    parts.append(html.facts(*_facts(job)))
    look = html.send_button("Open", ORDER, f"open {job.id}")
    parts.append(f"<div class='sdaws-buttons'>{look}</div>")
    return f"<div class='sdaws-panel'>{''.join(parts)}</div>"


def _facts(job: TrainJob) -> list[tuple[str, html.Part]]:
    cost: html.Part = "not known"
    if job.cost is not None:
        cost = Value(html.money(job.cost)) if job.cost else "nothing"
    return [
        ("Machine", Value(job.instance_type or "–")),
        ("Started", Value(html.when(job.created_at))),
        ("Took", Value("–" if job.ran_seconds is None else html.duration(job.ran_seconds))),
        ("Loss", Value("–" if job.loss is None else f"{job.loss:.4f}")),
        ("Cost, about", cost),
    ]


def show_one(access: CloudAccess, seen: TrainLook, user: str) -> html.Listing:
    """A job from near, in parts that are drawn anew each for itself."""
    parts = {
        "head": _head(seen),
        "curve": curve(seen.losses),
        "samples": _samples(access, seen, user),
        "rest": _rest(seen),
    }
    return html.Listing(
        tuple(html.Card(f"{seen.job.id} {name}", part) for name, part in parts.items()),
        is_busy=seen.job.state is TrainState.TRAINING,
    )


def _head(seen: TrainLook) -> str:
    """State, what can be done, how far it is."""
    job = seen.job
    kind, word = _STATES[job.state]
    title = f"<span class='sdaws-value sdaws-title'>{html.escape(job.model_name)}</span>"
    parts = [f"<div class='sdaws-line'>{html.badge(kind, word)}{title}</div>"]
    parts.append(html.facts(*_facts(job), *_near_facts(seen)))
    if job.error:
        parts.append(html.notice("bad", Value(job.error)))
    parts.append(_buttons(seen))
    if job.state is TrainState.TRAINING:
        parts.append(html.bar(job.progress, Value(_doing(seen))))
    if seen.checkpoint_names and job.state is not TrainState.COMPLETE:
        kept = "What it had learned until then is kept as a checkpoint."
        parts.append(html.notice("good", kept))
    return f"<div class='sdaws-askable sdaws-detail'>{''.join(parts)}</div>"


def _rest(seen: TrainLook) -> str:
    warnings = html.notice("busy", *map(Value, seen.warnings)) if seen.warnings else ""
    number = f"<div class='sdaws-dim'>{html.words('Job', Value(seen.job.id))}</div>"
    return f"<div class='sdaws-detail'>{warnings}{_settings(seen)}{number}</div>"


def _near_facts(seen: TrainLook) -> list[tuple[str, html.Part]]:
    rate = "–" if seen.learning_rate is None else f"{seen.learning_rate:.3g}"
    rows: list[tuple[str, html.Part]] = [
        ("Step", Value(f"{seen.step:,} / {seen.job.steps:,}" if seen.job.steps else "–")),
        ("Learning rate", Value(rate)),
    ]
    if seen.job.step_seconds is not None:
        rows.append(("Time a step", Value(html.duration(seen.job.step_seconds))))
    if seen.checkpoint_names:
        rows.append(("Checkpoint", Value(", ".join(seen.checkpoint_names))))
    return rows


def _doing(seen: TrainLook) -> str:
    """In a line what it does now."""
    phase = (seen.phase or "waiting for a machine").capitalize()
    line = f"{phase}, {seen.job.progress:.0%}"
    if seen.seconds_left is not None:
        line += f", {html.duration(seen.seconds_left)} left"
    return line


def _buttons(seen: TrainLook) -> str:
    job, made, asked = seen.job, [], ""
    if seen.checkpoint_names:
        made.append(_use_button(seen))
    if job.state is TrainState.TRAINING:
        hint = "It finishes its step, and what it has learned becomes a checkpoint"
        made.append(html.send_button("Stop and keep", ORDER, f"stop {job.id}", "sdaws-stop", hint))
    else:
        if job.state is TrainState.INITIAL:
            made.append(html.send_button("Start", ORDER, f"start {job.id}", "sdaws-primary"))
        made.append(html.ask_button("Delete…"))
        asked = html.question(
            (
                "Delete this training with its curve and sample pictures? The checkpoint that came "
                "of it stays.",
            ),
            "Yes, delete it",
            ORDER,
            f"delete {job.id}",
        )
    return f"<div class='sdaws-buttons'>{''.join(made)}</div>{asked}"


def _use_button(seen: TrainLook) -> str:
    """sdaws.js chooses the checkpoint in the panel, or puts the LoRA's tag into the prompt."""
    name = seen.checkpoint_names[0]
    tag = ""
    if seen.checkpoint_type == CheckpointType.LORA.value:
        tag = f"<lora:{Path(name).stem}:1>"
    return (
        f"<button type='button' class='sdaws-button sdaws-primary' "
        f"data-sdaws-use='{html.escape(name)}' data-sdaws-tag='{html.escape(tag)}'>"
        "Use it in txt2img</button>"
        + (f"<code class='sdaws-value sdaws-tag'>{html.escape(tag)}</code>" if tag else "")
    )


def curve(losses: Sequence[tuple[int, float]]) -> str:
    """The loss over the steps, as a picture."""
    if len(losses) < 2:
        return ""
    first, last = losses[0][0], losses[-1][0]
    low, high = min(loss for _, loss in losses), max(loss for _, loss in losses)
    span, height = max(last - first, 1), max(high - low, 1e-12)
    points = " ".join(
        f"{(step - first) / span * _WIDTH:.1f},{(high - loss) / height * _HEIGHT:.1f}"
        for step, loss in losses
    )
    return (
        "<figure class='sdaws-curve'><figcaption class='sdaws-line'><b>Loss</b>"
        f"<span class='sdaws-value sdaws-dim'>{low:.4f} – {high:.4f}</span></figcaption>"
        f"<svg viewBox='-4 -4 {_WIDTH + 8} {_HEIGHT + 8}' preserveAspectRatio='none' role='img' "
        f"aria-label='{losses[-1][1]:.4f}'><polyline points='{points}'></polyline></svg>"
        f"<div class='sdaws-line sdaws-dim sdaws-value sdaws-ends'><span>{first:,}</span>"
        f"<span>{last:,}</span></div></figure>"
    )


def _samples(access: CloudAccess, seen: TrainLook, user: str) -> str:
    """The newest first."""
    numbered = list(enumerate(seen.samples))[-SAMPLES_SHOWN:]
    shown = []
    for index, sample in reversed(numbered):
        source = html.escape(links.train_sample(access, seen.job.id, index, sample.step, user))
        shown.append(
            f"<a href='{source}' target='_blank' title='Open it alone'><img loading='lazy' "
            f"alt='{html.escape(sample.prompt)}' src='{source}'>"
            f"<span class='sdaws-value sdaws-dim'>{sample.step:,} · {html.escape(sample.prompt)}"
            "</span></a>"
        )
    return f"<div class='sdaws-samples'>{''.join(shown)}</div>" if shown else ""


def _settings(seen: TrainLook) -> str:
    text = json.dumps(seen.config, indent=1, ensure_ascii=False)
    return (
        "<details><summary>Settings</summary><div class='sdaws-infotext'>"
        "<button type='button' class='sdaws-button sdaws-small' data-sdaws-copy=''>Copy</button>"
        f"<textarea readonly rows='12'>{html.escape(text)}</textarea></div></details>"
    )


def show_models(models: Sequence[WorkingModel], names: Mapping[str, str]) -> html.Listing:
    """Working models; `names` are checkpoints' file names by their ids."""
    if not models:
        return html.Listing(note=html.notice("idle", "None yet: the first training makes one."))
    return html.Listing(
        tuple(html.Card(model.id, _model(model, names)) for model in models),
        is_busy=any(model.state is ModelState.CREATING for model in models),
    )


def _model(model: WorkingModel, names: Mapping[str, str]) -> str:
    kind, word = _MODEL_STATES[model.state]
    title = f"<span class='sdaws-value sdaws-title'>{html.escape(model.name)}</span>"
    parts = [f"<div class='sdaws-line'>{title}{html.badge(kind, word)}</div>"]
    if model.state is ModelState.CREATING:
        parts.append(html.bar(model.progress, Value(f"{model.progress:.0%}")))
    if model.error:
        parts.append(html.notice("bad", Value(model.error)))
    if base := names.get(model.checkpoint_id):
        parts.append(html.facts(("Made of", Value(base))))
    if model.state is not ModelState.CREATING:
        parts.append(f"<div class='sdaws-buttons'>{html.ask_button('Delete…')}</div>")
        asked = ("Delete the model", Value(f"“{model.name}”?"), "Its trainings stay.")
        parts.append(html.question(asked, "Yes, delete it", MODELS_ORDER, f"delete {model.id}"))
    return f"<div class='sdaws-panel sdaws-askable'>{''.join(parts)}</div>"
