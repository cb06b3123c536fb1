"""Page: several checkpoints become one, in the cloud."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr

from aws_extension.access import CloudAccess
from aws_extension.answers import InferenceJob
from aws_extension.client import Merge, WaitStatus
from aws_extension.errors import CloudError
from aws_extension.pages import html, links
from aws_extension.pages.common import checkpoint_choices, keep_or_first, shown_to_user, user_of
from aws_extension.pages.html import Value
from middleware_api.contract import CheckpointType, InferenceState, MergeMethod

READ, READ_LISTS, ORDER = "sdaws_merge_read", "sdaws_merge_lists", "sdaws_merge_order"
NO_VAE = "None"
NO_MODEL = ""
# What each does with models A, B, C and multiplier M.
METHODS = {
    MergeMethod.WEIGHTED_SUM: (
        "A × (1 − M) + B × M: a mixture of two models. M = 0 is A, M = 1 is B."
    ),
    MergeMethod.ADD_DIFFERENCE: "A + (B − C) × M: what B has learned beyond C is added to A.",
    MergeMethod.NO_INTERPOLATION: "A alone: to change its precision, or to put a VAE into it.",
}
_MODELS_NEEDED = {
    MergeMethod.WEIGHTED_SUM: 2,
    MergeMethod.ADD_DIFFERENCE: 3,
    MergeMethod.NO_INTERPOLATION: 1,
}


def read_one(access: CloudAccess, user: str, query: Mapping[str, str]) -> html.Listing:
    """The merge that was begun here. Raises CloudError."""
    job = access.glance(user).get_job(query["id"])
    return html.Listing((html.Card(job.id, show(job)),), is_busy=not job.is_final)


def show(job: InferenceJob) -> str:
    """How a merge is doing, and its button."""
    if job.state is InferenceState.SUCCEEDED:
        return html.notice("good", "Merged: it is now a checkpoint you can choose.")
    if job.state is InferenceState.FAILED:
        return html.notice("bad", "The models could not be merged.", Value(job.error or "–"))
    if job.state is InferenceState.CANCELLED:
        return html.notice("idle", "Cancelled: no checkpoint was made.")
    button = html.send_button("Cancel the merge", ORDER, f"cancel {job.id}", "sdaws-stop")
    told = html.bar(job.progress, Value(WaitStatus(job).describe()))
    return f"{told}<div class='sdaws-buttons'>{button}</div>"


def checked(merge: Merge) -> Merge:
    """What can be sent. Raises CloudError naming what is missing."""
    needed = _MODELS_NEEDED[merge.method]
    chosen = (merge.primary, merge.secondary, merge.tertiary)[:needed]
    missing = [letter for letter, name in zip("ABC", chosen, strict=False) if not name]
    if missing:
        raise CloudError(
            f"“{merge.method.value}” needs {needed} model(s). "
            f"Choose model {' and '.join(missing)} too; "
            "is the list empty, upload models on the Models page first."
        )
    return merge


def build(access: CloudAccess) -> None:
    """Lay the page out; sdaws.js has it read its lists when it is opened."""
    gr.Markdown("Make a new checkpoint out of some that the cloud has. Nothing is sent from here.")
    # Its own listing has no cards: it is how sdaws.js sees that the page was opened.
    opened = gr.HTML(html.listing(html.Listing(), READ_LISTS), elem_id="sdaws_merge_opened")
    first = MergeMethod.WEIGHTED_SUM
    method = gr.Radio(
        [method.value for method in METHODS],
        value=first.value,
        label="Method",
        elem_id="sdaws_merge_method",
    )
    formula = gr.HTML(_formula(first), elem_id="sdaws_merge_formula")
    with gr.Row():
        primary = gr.Dropdown([], label="Primary model (A)", elem_id="sdaws_merge_a")
        secondary = gr.Dropdown([], label="Secondary model (B)", elem_id="sdaws_merge_b")
        tertiary = gr.Dropdown(
            [], label="Tertiary model (C)", visible=False, elem_id="sdaws_merge_c"
        )
    multiplier = gr.Slider(
        0, 1, value=0.3, step=0.05, label="Multiplier (M)", elem_id="sdaws_merge_m"
    )
    with gr.Row():
        name = gr.Textbox(
            label="Name of the new checkpoint",
            placeholder="optional: made of the models' names",
            max_lines=1,
            elem_id="sdaws_merge_name",
        )
        vae = gr.Dropdown([NO_VAE], value=NO_VAE, label="VAE to bake in")
    with gr.Row():
        half = gr.Checkbox(True, label="Half precision: half the size, the same pictures")
        discard = gr.Textbox(
            label="Discard weights whose name fits",
            placeholder="optional: a regular expression",
            max_lines=1,
        )
    run = gr.Button("Merge", variant="primary", elem_id="sdaws_merge_run")
    progress = gr.HTML(elem_id="sdaws_merge_progress")
    running = gr.State("")
    with gr.Row(elem_classes=["sdaws-away"]):
        order = gr.Textbox(label="Order", elem_id=ORDER)
        read = gr.Button("Read", elem_id=READ)
        read_lists = gr.Button("Read", elem_id=READ_LISTS)

    def lists(a: str | None, b: str | None, c: str | None, baked: str | None) -> tuple[Any, ...]:
        try:
            client = access.glance()
            models = checkpoint_choices(client)
            vaes = [NO_VAE, *checkpoint_choices(client, CheckpointType.VAE)]
        except CloudError as fault:
            failed = html.listing(html.failed(fault), READ_LISTS)
            return (*(gr.update() for _ in range(4)), failed)
        few = html.notice("idle", "There is no checkpoint yet. Upload some on the Models page.")
        note = "" if models else few
        return (
            *(gr.update(choices=models, value=x if x in models else None) for x in (a, b, c)),
            gr.update(choices=vaes, value=keep_or_first(baked, vaes)),
            html.listing(html.Listing(note=note), READ_LISTS),
        )

    def explain(chosen: str) -> tuple[str, Any, Any, Any]:
        method = MergeMethod(chosen)
        needed = _MODELS_NEEDED[method]
        return (
            _formula(method),
            gr.update(visible=needed >= 2),
            gr.update(visible=needed >= 3),
            gr.update(visible=needed >= 2),
        )

    def begin(request: gr.Request, *form: Any) -> tuple[str, str]:
        with shown_to_user():
            user = user_of(request)
            job_id = access.client(user).run_merge(checked(_merge(*form)))
            return _follow(job_id, user), job_id

    def _follow(job_id: str, user: str) -> str:
        shown = read_one(access, user, {"id": job_id})
        watch = links.watch(access, "merge", user, {"id": job_id}) if shown.is_busy else ""
        return html.listing(shown, READ, watch, kind="sdaws-single")

    def reread(job_id: str, request: gr.Request) -> str:
        if not job_id:
            return ""
        with shown_to_user():
            return _follow(job_id, user_of(request))

    def obey(text: str, request: gr.Request) -> tuple[Any, str]:
        act, _, job_id = text.partition(" ")
        if act != "cancel":
            return gr.update(), ""
        with shown_to_user():
            user = user_of(request)
            access.client(user).cancel_job(job_id)
            return _follow(job_id, user), ""

    choices = [primary, secondary, tertiary, vae]
    read_lists.click(lists, choices, [*choices, opened], show_progress="hidden")
    method.change(
        explain, method, [formula, secondary, tertiary, multiplier], show_progress="hidden"
    )
    run.click(
        begin,
        [method, primary, secondary, tertiary, multiplier, half, name, vae, discard],
        [progress, running],
    )
    read.click(reread, running, progress, show_progress="hidden")
    order.input(obey, order, [progress, order], show_progress="hidden")


def _formula(method: MergeMethod) -> str:
    return f"<div class='sdaws-dim'>{html.words(METHODS[method])}</div>"


def _merge(
    method: str,
    primary: str | None,
    secondary: str | None,
    tertiary: str | None,
    multiplier: float,
    half: bool,
    name: str,
    vae: str | None,
    discard: str,
) -> Merge:
    """The form's values; a model that the method does not use is left out."""
    chosen = MergeMethod(method)
    needed = _MODELS_NEEDED[chosen]
    return Merge(
        method=chosen,
        primary=primary or NO_MODEL,
        secondary=(secondary or NO_MODEL) if needed >= 2 else NO_MODEL,
        tertiary=(tertiary or NO_MODEL) if needed >= 3 else NO_MODEL,
        multiplier=multiplier,
        half_precision=half,
        name=name.strip(),
        vae="" if vae in (None, NO_VAE) else str(vae),
        discard=discard.strip(),
    )
