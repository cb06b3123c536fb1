"""Page: the weights files in the cloud, and sending more of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import gradio as gr

from aws_extension.access import CloudAccess
from aws_extension.answers import Checkpoint
from aws_extension.errors import Cancelled, CloudError
from aws_extension.pages import html, links
from aws_extension.pages.common import shown_to_user
from aws_extension.pages.html import Value
from aws_extension.pages.uploads import Uploads
from middleware_api.contract import CheckpointState, CheckpointType

WATCH_SECONDS = 0.3
READ = "sdaws_models_read"
_TYPES = {
    CheckpointType.STABLE_DIFFUSION.value: "Checkpoint",
    CheckpointType.EMBEDDINGS.value: "Embedding",
    CheckpointType.LORA.value: "LoRA",
    CheckpointType.HYPERNETWORKS.value: "Hypernetwork",
    CheckpointType.CONTROLNET.value: "ControlNet",
    CheckpointType.VAE.value: "VAE",
}
_STATES: dict[CheckpointState, tuple[html.Kind, str]] = {
    CheckpointState.ACTIVE: ("good", "Ready"),
    CheckpointState.INITIAL: ("idle", "Not complete"),
    CheckpointState.DISABLED: ("idle", "Disabled"),
    CheckpointState.FAILED: ("bad", "Failed"),
}


def read_all(access: CloudAccess, user: str, query: Mapping[str, str]) -> html.Listing:
    """Everybody's weights files: they are shared. Raises CloudError."""
    return show(access.glance().list_checkpoints())


def show(checkpoints: list[Checkpoint]) -> html.Listing:
    """The list as a table."""
    if not checkpoints:
        return html.Listing(note=html.notice("idle", "No model yet. Upload one below."))
    rows = []
    for checkpoint in checkpoints:
        state = html.badge(*_STATES[checkpoint.state])
        if checkpoint.error:
            state += f"<div class='sdaws-why sdaws-value'>{html.escape(checkpoint.error)}</div>"
        rows.append(
            [
                html.words(Value(", ".join(checkpoint.names) or checkpoint.id)),
                html.escape(_TYPES[checkpoint.type]) if checkpoint.type in _TYPES else "–",
                state,
                html.words(Value(html.size(checkpoint.size))),
                html.words(Value(html.when(checkpoint.created_at))),
            ]
        )
    table = html.table(["File", "Type", "State", "Size", "Uploaded"], rows)
    return html.Listing((html.Card("table", table),))


def build(access: CloudAccess) -> None:
    """Lay the page out; sdaws.js has it read its list when it is opened."""
    uploads = Uploads(access)
    gr.Markdown("Weights files that the cloud can use. A file is sent once.")
    listing = gr.HTML(html.unread(READ, kind="sdaws-single"), elem_id="sdaws_checkpoints")
    task_id = gr.State("")
    with gr.Accordion("Upload a file", open=True):
        with gr.Row():
            path = gr.Textbox(
                label="File on this machine",
                placeholder="/path/to/model.safetensors",
                scale=3,
                elem_id="sdaws_upload_path",
            )
            kind = gr.Dropdown(
                [member.value for member in CheckpointType],
                value=CheckpointType.STABLE_DIFFUSION.value,
                label="Type",
            )
        with gr.Row():
            send = gr.Button("Upload", variant="primary", elem_id="sdaws_upload")
            stop = gr.Button("Stop the upload")
        progress = gr.HTML(elem_id="sdaws_upload_progress")
    with gr.Row(elem_classes=["sdaws-away"]):
        read_button = gr.Button("Read", elem_id=READ)

    def read() -> str:
        try:
            shown = read_all(access, "", {})
        except CloudError as fault:
            shown = html.failed(fault)
        watch = links.watch(access, "models", "", {})
        return html.listing(shown, READ, watch, kind="sdaws-single")

    def upload(file: str, type_name: str) -> Iterator[tuple[str, str]]:
        if not file.strip():
            raise gr.Error("Enter the path of the file to upload first.")
        with shown_to_user():
            running = uploads.start(Path(file.strip()).expanduser(), CheckpointType(type_name))
            yield running, html.bar(0, "Starting…")
            yield from watch(running)

    def watch(running: str) -> Iterator[tuple[str, str]]:
        task = uploads.get(running)
        assert task is not None  # started just above
        while not task.finished.wait(WATCH_SECONDS):
            if task.progress:
                line = Value(task.progress.describe())
                yield running, html.bar(task.progress.fraction, line)
        uploads.forget(running)
        if isinstance(task.error, Cancelled):
            yield "", html.notice("idle", Value(str(task.error)))
        elif task.error is not None:
            yield "", html.notice("bad", Value(str(task.error)))
        else:
            yield "", html.bar(1, "Uploaded: it can be chosen now.", kind="good")

    def stop_upload(running: str) -> None:
        if task := uploads.get(running):
            task.stop.set()

    read_button.click(read, None, listing, show_progress="hidden")
    send.click(upload, [path, kind], [task_id, progress], show_progress="hidden").then(
        read, None, listing
    )
    stop.click(stop_upload, task_id, None, queue=False)
