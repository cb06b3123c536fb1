"""Page: what was asked of the cloud, latest first, and one job from near."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from aws_extension.access import CloudAccess
from aws_extension.answers import InferenceJob, InferenceOutput
from aws_extension.client import Page, WaitStatus
from aws_extension.errors import CloudError, Conflict, NotFound
from aws_extension.pages import html, links
from aws_extension.pages.common import shown_to_user, user_of
from aws_extension.pages.host import Host
from aws_extension.pages.html import Value
from middleware_api.contract import InferenceState, TaskType

JOBS_PER_PAGE = 12
READ, READ_ONE, ORDER = "sdaws_jobs_read", "sdaws_job_read", "sdaws_jobs_order"
ALL_STATES, ALL_TASKS = "All states", "All tasks"
_STATES: dict[InferenceState, tuple[html.Kind, str]] = {
    InferenceState.CREATED: ("busy", "Waiting"),
    InferenceState.IN_PROGRESS: ("busy", "Running"),
    InferenceState.SUCCEEDED: ("good", "Finished"),
    InferenceState.FAILED: ("bad", "Failed"),
    InferenceState.CANCELLED: ("idle", "Cancelled"),
}
_STATE_OF_WORD = {word: state for state, (_, word) in _STATES.items()}


def read_page(access: CloudAccess, user: str, query: Mapping[str, str]) -> html.Listing:
    """One page of the user's jobs, as the filters in `query` have it. Raises CloudError."""
    return show(access, _fetch(access, user, query).jobs, user, query)


def _fetch(access: CloudAccess, user: str, query: Mapping[str, str]) -> Page:
    return access.glance(user).list_jobs(
        JOBS_PER_PAGE,
        query["cursor"],
        [InferenceState(query["state"])] if query["state"] else [],
        [TaskType(query["task"])] if query["task"] else [],
    )


def show(
    access: CloudAccess, jobs: tuple[InferenceJob, ...], user: str, query: Mapping[str, str]
) -> html.Listing:
    """Jobs as cards; a click opens one."""
    if not jobs:
        why = (
            "No job fits these filters."
            if query["state"] or query["task"]
            else "No jobs yet. Generate a picture, and it appears here."
        )
        return html.Listing(note=html.notice("idle", why))
    return html.Listing(
        tuple(html.Card(job.id, _card(access, job, user)) for job in jobs),
        is_busy=any(not job.is_final for job in jobs),
    )


def _card(access: CloudAccess, job: InferenceJob, user: str) -> str:
    kind, word = _STATES[job.state]
    source = links.thumbnail(access, job, user)
    if source:
        frame = f"<img alt='' loading='lazy' src='{html.escape(source)}'>"
        if len(job.image_names) > 1:
            frame += f"<span class='sdaws-value sdaws-count'>{len(job.image_names)}</span>"
    elif job.is_final:
        frame = f"<span class='sdaws-value sdaws-why'>{html.escape(job.error)}</span>"
    else:
        frame = html.bar(job.progress, Value(f"{job.progress:.0%}"))
    marks = html.badge(kind, word)
    if _has_pictures(job):
        marks += (
            "<span class='sdaws-mark'>Collected</span>"
            if access.collected.has(job.id)
            else "<span class='sdaws-mark sdaws-new'>To collect</span>"
        )
    numbers = [job.task, *_took(job), *_cost(job)]
    models = ", ".join(Path(name).stem for name in job.checkpoint_names) or job.endpoint_name
    return (
        f"<button type='button' class='sdaws-card' data-sdaws-send='{ORDER}' "
        f"data-sdaws-order='open {html.escape(job.id)}'>"
        f"<span class='sdaws-frame'>{frame}</span><span class='sdaws-marks'>{marks}</span>"
        f"<span class='sdaws-value sdaws-strong'>{html.escape(models)}</span>"
        f"<span class='sdaws-value sdaws-numbers'>{html.escape(' · '.join(numbers))}</span>"
        f"<span class='sdaws-value sdaws-dim'>{html.when(job.started_at)}</span></button>"
    )


def _has_pictures(job: InferenceJob) -> bool:
    """Also a failed or cancelled one may: those made before."""
    return job.is_final and bool(job.image_names)


def _took(job: InferenceJob) -> list[str]:
    if job.run_seconds is not None:
        return [html.duration(job.run_seconds)]
    if job.started_at and job.completed_at:  # the second is whole seconds
        return [html.duration(max(0.0, (job.completed_at - job.started_at).total_seconds()))]
    return []


def _cost(job: InferenceJob) -> list[str]:
    return [] if not job.estimated_cost else [html.money(job.estimated_cost)]


def read_one(access: CloudAccess, user: str, query: Mapping[str, str]) -> html.Listing:
    """One job of the user's. Raises CloudError."""
    client = access.glance(user)
    job = client.get_job(query["id"])
    output, missing = None, ""
    if _has_pictures(job):
        try:
            output = client.get_output(job.id)
        except (Conflict, NotFound) as fault:
            missing = str(fault)
    return html.Listing(
        (html.Card(job.id, details(access, job, user, output, missing)),),
        is_busy=not job.is_final,
    )


def details(
    access: CloudAccess, job: InferenceJob, user: str, output: InferenceOutput | None, missing: str
) -> str:
    """A job from near: its state, what can be done with it, its pictures."""
    parts = [_head(job)]
    if job.error:
        parts.append(html.notice("bad", Value(job.error)))
    parts.append(_buttons(access, job))
    if not job.is_final:
        parts.append(html.bar(job.progress, Value(WaitStatus(job).describe())))
        if source := links.preview(access, job, user):
            parts.append(
                f"<div class='sdaws-pictures'><img alt='Preview' src='{html.escape(source)}'></div>"
            )
    if missing:
        parts.append(html.notice("bad", "Its pictures are not there any more.", Value(missing)))
    for folder in dict.fromkeys(str(Path(path).parent) for path in access.collected.files(job.id)):
        parts.append(f"<div class='sdaws-dim'>{html.words('Saved in', Value(folder))}</div>")
    if output is not None:
        if output.warnings:
            parts.append(html.notice("busy", *map(Value, output.warnings)))
        parts.append(_pictures(access, job, user))
        parts.append(_infotexts(output))
    parts.append(f"<div class='sdaws-dim'>{html.words('Job', Value(job.id))}</div>")
    return f"<div class='sdaws-askable sdaws-detail'>{''.join(parts)}</div>"


def _head(job: InferenceJob) -> str:
    kind, word = _STATES[job.state]
    rows: list[tuple[str, html.Part]] = [
        ("Model", Value(", ".join(job.checkpoint_names) or "–")),
        ("Endpoint", Value(job.endpoint_name or "–")),
        ("Machine", Value(job.instance_type or "–")),
        ("Started", Value(html.when(job.started_at))),
        ("Took", Value("".join(_took(job)) or "–")),
        ("Cost, about", "nothing" if job.estimated_cost == 0 else Value(*(_cost(job) or ["–"]))),
    ]
    title = f"<span class='sdaws-value sdaws-title'>{html.escape(job.task)}</span>"
    return f"<div class='sdaws-line'>{html.badge(kind, word)}{title}</div>{html.facts(*rows)}"


def _buttons(access: CloudAccess, job: InferenceJob) -> str:
    made = []
    if _has_pictures(job):
        again = access.collected.has(job.id)
        made.append(
            html.send_button(
                "Collect again" if again else "Collect",
                ORDER,
                f"collect {job.id}",
                "" if again else "sdaws-primary",
                "Save these pictures into the output folder here",
            )
        )
    if job.is_final:
        made.append(
            html.send_button("Re-run", ORDER, f"rerun {job.id}", hint="The same request again")
        )
        made.append(html.ask_button("Delete…"))
        asked = html.question(
            ("Delete this job and its pictures in the cloud? This cannot be undone.",),
            "Yes, delete it",
            ORDER,
            f"delete {job.id}",
        )
    else:
        made.append(html.send_button("Cancel this job", ORDER, f"cancel {job.id}", "sdaws-stop"))
        asked = ""
    return f"<div class='sdaws-buttons'>{''.join(made)}</div>{asked}"


def _pictures(access: CloudAccess, job: InferenceJob, user: str) -> str:
    shown = []
    for index in range(len(job.image_names)):
        source = html.escape(links.picture(access, job, index, user))
        shown.append(
            f"<a href='{source}' target='_blank' title='Open it alone'>"
            f"<img alt='{html.escape(job.image_names[index])}' loading='lazy' src='{source}'></a>"
        )
    return f"<div class='sdaws-pictures'>{''.join(shown)}</div>"


def _infotexts(output: InferenceOutput) -> str:
    text = "\n\n".join(output.infotexts)
    if not text:
        return ""
    return (
        "<div class='sdaws-infotext'><div class='sdaws-line'><b>Infotext</b>"
        "<button type='button' class='sdaws-button' data-sdaws-copy=''>Copy</button></div>"
        f"<textarea readonly rows='5' aria-label='Infotext'>{html.escape(text)}</textarea></div>"
    )


@dataclass(frozen=True)
class Pages:
    """Where in the list a user is: the cursors of the pages up to this one."""

    cursors: tuple[str, ...] = ("",)

    @property
    def here(self) -> str:
        """This page's cursor."""
        return self.cursors[-1]

    def older(self, cursor: str) -> Pages:
        """One page further back in time."""
        return Pages((*self.cursors, cursor)) if cursor else self

    def newer(self) -> Pages:
        """One page towards now."""
        return Pages(self.cursors[:-1] or ("",))


def _query(state_word: str, task_word: str, at: Pages) -> dict[str, str]:
    """The filters and the place, as a link carries them."""
    return {
        "state": _STATE_OF_WORD[state_word].value if state_word in _STATE_OF_WORD else "",
        "task": "" if task_word == ALL_TASKS else task_word,
        "cursor": at.here,
    }


def collect(access: CloudAccess, host: Host, job_id: str, user: str) -> list[str]:
    """Save a finished job's pictures by the host's rules; where they are. Raises CloudError."""
    client = access.client(user)
    job = client.get_job(job_id)
    try:
        files, output = client.download_images(job_id), client.get_output(job_id)
        saved = host.save_pictures(job, output.pictures(files), output)
        access.collected.add(job_id, saved)
    except OSError as fault:
        raise CloudError(
            f"The pictures could not be saved here ({fault.strerror}: {fault.filename}). Make "
            "room or give the right to write there; then collect them again."
        ) from fault
    return saved


def build(access: CloudAccess, host: Host) -> None:
    """Lay the page out; sdaws.js has it read its list when it is opened."""
    pages, following = gr.State(Pages()), gr.State("")
    message = gr.HTML(elem_id="sdaws_jobs_message")
    with gr.Column() as overview:
        with gr.Row(elem_classes=["sdaws-toolbar"]):
            state = gr.Dropdown([ALL_STATES, *_STATE_OF_WORD], value=ALL_STATES, label="State")
            task = gr.Dropdown(
                [ALL_TASKS, *(member.value for member in TaskType)], value=ALL_TASKS, label="Task"
            )
            newest = gr.Button("Newest", elem_classes=["sdaws-small"], size="sm")
            newer = gr.Button("Newer", interactive=False, elem_classes=["sdaws-small"], size="sm")
            older = gr.Button("Older", interactive=False, elem_classes=["sdaws-small"], size="sm")
            every = gr.Button(
                "Collect all",
                elem_classes=["sdaws-small"],
                size="sm",
                elem_id="sdaws_collect_all",
            )
        listing = gr.HTML(html.unread(READ), elem_id="sdaws_jobs")
    with gr.Column(visible=False) as close_up:
        back = gr.Button("← All jobs", elem_classes=["sdaws-back"], size="sm")
        detail = gr.HTML(elem_id="sdaws_job")
    # In the page, but not to be seen: what a click on a card or button writes and presses.
    with gr.Row(elem_classes=["sdaws-away"]):
        order = gr.Textbox(label="Order", elem_id=ORDER)
        read = gr.Button("Read", elem_id=READ)
        read_job = gr.Button("Read", elem_id=READ_ONE)
    opened = gr.State("")

    def list_jobs(
        state_word: str, task_word: str, at: Pages, request: gr.Request
    ) -> tuple[str, str, Any, Any]:
        query, watch, following_cursor = _query(state_word, task_word, at), "", ""
        try:
            user = user_of(request)
            watch = links.watch(access, "jobs", user, query)
            page = _fetch(access, user, query)
            shown, following_cursor = show(access, page.jobs, user, query), page.next_cursor
        except CloudError as fault:
            shown = html.failed(fault)
        return (
            html.listing(shown, READ, watch),
            following_cursor,
            gr.update(interactive=at.here != ""),
            gr.update(interactive=bool(following_cursor)),
        )

    def collect_shown(
        state_word: str, task_word: str, at: Pages, request: gr.Request
    ) -> Iterator[str]:
        with shown_to_user():
            user, saved = user_of(request), 0
            jobs = _fetch(access, user, _query(state_word, task_word, at)).jobs
            waiting = [j for j in jobs if _has_pictures(j) and not access.collected.has(j.id)]
            for number, job in enumerate(waiting):
                yield html.bar(number / len(waiting), "Collecting…", Value(job.id[:8]))
                saved += len(collect(access, host, job.id, user))
        yield html.notice("good", ("Pictures saved here:", Value(str(saved))))

    def open_job(job_id: str, user: str) -> str:
        query = {"id": job_id}
        shown = read_one(access, user, query)
        watch = links.watch(access, "job", user, query) if shown.is_busy else ""
        return html.listing(shown, READ_ONE, watch, kind="sdaws-single")

    def reread(job_id: str, request: gr.Request) -> str:
        if not job_id:
            return ""
        with shown_to_user():
            return open_job(job_id, user_of(request))

    def obey(text: str, request: gr.Request) -> tuple[Any, ...]:
        act, _, job_id = text.partition(" ")
        if not job_id:
            return tuple(gr.update() for _ in range(6))
        said = ""
        with shown_to_user():
            user = user_of(request)
            client = access.client(user)
            if act == "rerun":
                job_id = client.rerun_job(job_id).job_id
                said = html.notice("good", "Sent again, as a job of its own: this one.")
            elif act == "cancel":
                client.cancel_job(job_id)
            elif act == "collect":
                saved = collect(access, host, job_id, user)
                said = html.notice("good", ("Pictures saved here:", Value(str(len(saved)))))
            elif act == "delete":
                client.delete_job(job_id)
                access.forget_job(job_id, user)
                said = html.notice("idle", "Deleted, with its pictures.")
                return said, gr.update(visible=True), gr.update(visible=False), "", "", ""
            shown = open_job(job_id, user)
        return said, gr.update(visible=False), gr.update(visible=True), shown, job_id, ""

    listed = [listing, following, newer, older]
    asked = [state, task, pages]
    read.click(list_jobs, asked, listed, show_progress="hidden")
    for filter_ in (state, task):
        filter_.change(lambda: Pages(), None, pages).then(
            list_jobs, asked, listed, show_progress="hidden"
        )
    newest.click(lambda: Pages(), None, pages).then(list_jobs, asked, listed)
    newer.click(lambda at: at.newer(), pages, pages).then(list_jobs, asked, listed)
    older.click(lambda at, to: at.older(to), [pages, following], pages).then(
        list_jobs, asked, listed
    )
    every.click(collect_shown, asked, message, show_progress="hidden").then(
        list_jobs, asked, listed, show_progress="hidden"
    )
    order.input(
        obey,
        order,
        [message, overview, close_up, detail, opened, order],
        show_progress="hidden",
    )
    read_job.click(reread, opened, detail, show_progress="hidden")
    back.click(
        lambda: ("", gr.update(visible=True), gr.update(visible=False), "", ""),
        None,
        [message, overview, close_up, detail, opened],
        show_progress="hidden",
    )
