"""Page: what was asked of the cloud, latest first."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import gradio as gr

from aws_extension.access import CloudAccess, open_picture
from aws_extension.answers import InferenceJob
from aws_extension.client import WaitStatus
from aws_extension.errors import CloudError, Conflict, NotFound
from aws_extension.pages import html
from aws_extension.pages.common import shown_to_user
from middleware_api.contract import InferenceState

JOBS_PER_PAGE = 12
_STATES: dict[InferenceState, tuple[html.Kind, str]] = {
    InferenceState.CREATED: ("busy", "Waiting"),
    InferenceState.IN_PROGRESS: ("busy", "Running"),
    InferenceState.SUCCEEDED: ("good", "Finished"),
    InferenceState.FAILED: ("bad", "Failed"),
    InferenceState.CANCELLED: ("idle", "Cancelled"),
}


def show(access: CloudAccess, jobs: tuple[InferenceJob, ...]) -> str:
    """The jobs as cards; a click hands the job's id to the hidden box (see sdaws.js)."""
    if not jobs:
        return html.notice("idle", "No jobs yet. Generate a picture, and it appears here.")
    with ThreadPoolExecutor(4) as pool:
        thumbnails = list(pool.map(access.thumbnail, jobs))
    cards = "".join(_card(job, thumb) for job, thumb in zip(jobs, thumbnails, strict=True))
    return f"<div class='sdaws-cards'>{cards}</div>"


def _card(job: InferenceJob, thumbnail: str) -> str:
    kind, word = _STATES[job.state]
    picture = (
        f"<img alt='' src='{thumbnail}'>" if thumbnail else "<span class='sdaws-blank'></span>"
    )
    facts = [f"{len(job.image_names)} picture(s)"] if job.image_names else []
    if job.started_at and job.completed_at:
        seconds = max(timedelta(0), job.completed_at - job.started_at).total_seconds()
        facts.append(f"{seconds:.0f} s")
    more = " · ".join(facts) if job.is_final else WaitStatus(job).describe()
    return (
        f"<button type='button' class='sdaws-card' data-sdaws-job='{html.escape(job.id)}'>"
        f"{picture}<span class='sdaws-line'>{html.badge(kind, word)} {html.escape(job.task)}</span>"
        f"<span class='sdaws-dim'>{html.when(job.started_at)}</span>"
        f"<span class='sdaws-dim'>{html.escape(more)}</span></button>"
    )


def details(access: CloudAccess, job_id: str) -> tuple[str, list[Any], str, Any]:
    """State, pictures, infotext and the Cancel button of one job."""
    client = access.client()
    job = client.get_job(job_id.strip())
    kind, word = _STATES[job.state]
    title = f"{word}: {job.task} on {job.endpoint_name or '–'}, job {job.id}"
    if job.error:
        title += f"\n{job.error}"
    pictures: list[Any] = []
    infotexts: tuple[str, ...] = ()
    if job.image_names:
        try:
            pictures = [open_picture(content) for content in client.download_images(job.id)]
            infotexts = client.get_output(job.id).infotexts
        except (Conflict, NotFound) as fault:
            title += f"\nIts pictures are not there: {fault}"
    cancel = gr.update(visible=not job.is_final)
    return html.notice(kind, title), pictures, "\n\n".join(infotexts), cancel


def build(access: CloudAccess) -> None:
    """Lay the page out; sdaws.js has it read its list when it is opened."""
    cursor, following = gr.State(""), gr.State("")
    with gr.Row():
        gr.Markdown("Choose a job to see its pictures.")
        newest = gr.Button("Newest", elem_classes=["sdaws-small"], size="sm")
        older = gr.Button("Older", interactive=False, elem_classes=["sdaws-small"], size="sm")
        refresh = gr.Button("Refresh", elem_classes=["sdaws-live", "sdaws-small"], size="sm")
    listing = gr.HTML(elem_id="sdaws_jobs")
    # In the page, but not to be seen: cards write their job's id here.
    chosen = gr.Textbox(label="Chosen job", elem_id="sdaws_job", elem_classes=["sdaws-away"])
    state = gr.HTML()
    cancel = gr.Button("Cancel this job", variant="stop", visible=False)
    gallery = gr.Gallery(
        label="Pictures",
        columns=4,
        object_fit="contain",
        height="auto",
        elem_id="sdaws_job_gallery",
    )
    infotext = gr.Textbox(label="Infotext", lines=4, show_copy_button=True, interactive=False)

    def read(at: str) -> tuple[str, str, Any]:
        try:
            page = access.client().list_jobs(JOBS_PER_PAGE, at)
            shown = show(access, page.jobs)
        except CloudError as fault:
            return html.notice("bad", str(fault)), "", gr.update(interactive=False)
        return shown, page.next_cursor, gr.update(interactive=bool(page.next_cursor))

    def open_job(job_id: str) -> tuple[str, list[Any], str, Any]:
        if not job_id.strip():
            return "", [], "", gr.update(visible=False)
        with shown_to_user():
            return details(access, job_id)

    def cancel_job(job_id: str) -> tuple[str, list[Any], str, Any]:
        with shown_to_user():
            access.client().cancel_job(job_id.strip())
        return open_job(job_id)

    listed = [listing, following, older]
    shown = [state, gallery, infotext, cancel]
    refresh.click(read, cursor, listed, show_progress="hidden")
    newest.click(lambda: "", None, cursor).then(read, cursor, listed)
    older.click(lambda at: at, following, cursor).then(read, cursor, listed)
    chosen.change(open_job, chosen, shown)
    cancel.click(cancel_job, chosen, shown).then(read, cursor, listed)
