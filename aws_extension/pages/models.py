"""Page: the weights files here and in the cloud, and the way from one to the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from aws_extension.access import CloudAccess
from aws_extension.answers import Checkpoint
from aws_extension.errors import CloudError
from aws_extension.pages import html, links
from aws_extension.pages.common import shown_to_user
from aws_extension.pages.html import Value
from aws_extension.pages.model_list import ModelRow, list_models, picture_beside
from aws_extension.upload_progress import duration
from aws_extension.upload_queue import Upload, UploadOrder, UploadState
from middleware_api.contract import CheckpointState, CheckpointStep, CheckpointType

READ, ORDER = "sdaws_models_read", "sdaws_models_order"
LIST = "sdaws-models"
_TYPES = {
    CheckpointType.STABLE_DIFFUSION: "Checkpoints",
    CheckpointType.LORA: "LoRAs",
    CheckpointType.VAE: "VAEs",
    CheckpointType.EMBEDDINGS: "Embeddings",
    CheckpointType.HYPERNETWORKS: "Hypernetworks",
    CheckpointType.CONTROLNET: "ControlNet models",
    CheckpointType.ESRGAN: "Upscalers",
    CheckpointType.DEEPDANBOORU: "DeepDanbooru models",
}
_UPLOADING: dict[UploadState, str] = {
    UploadState.WAITING: "Waiting for its turn",
    UploadState.RUNNING: "Uploading",
    UploadState.OFFLINE: "The server does not answer: tried again by itself",
    UploadState.PAUSED: "Paused",
    UploadState.FAILED: "Not uploaded",
}


def read_all(access: CloudAccess, user: str, query: Mapping[str, str]) -> html.Listing:
    """Everybody's weights files: they are shared. Raises CloudError."""
    rows = list_models(
        access.local_models(),
        access.glance().list_checkpoints(),
        access.uploads.all(),
        access.hashes.get,
    )
    return show(access, rows)


def show(access: CloudAccess, rows: Mapping[CheckpointType, Sequence[ModelRow]]) -> html.Listing:
    """A table of each type, row by row, so that only what changes is drawn anew."""
    everything = [row for kind in _TYPES for row in rows.get(kind, ())]
    cards = []
    for kind, title in _TYPES.items():
        if found := rows.get(kind, ()):
            cards.append(html.Card(f"type:{kind.value}", _heading(kind, title, found)))
            cards += [html.Card(row.key, _row(access, row)) for row in found]
    uploads = [row.upload for row in everything if row.upload]
    note = _summary(uploads)
    if not cards:
        why = "No model yet, here or in the cloud. Upload one below."
        note += html.notice("idle", why)
    is_busy = any(one.state is not UploadState.PAUSED for one in uploads) or any(
        row.cloud is not None and row.cloud.state is CheckpointState.INITIAL for row in everything
    )
    return html.Listing(tuple(cards), note, is_busy)


def _heading(kind: CheckpointType, title: str, rows: Sequence[ModelRow]) -> str:
    pick = ""
    if any(row.can_upload for row in rows):
        hint = "Select all that are only here"
        pick = (
            f"<input type='checkbox' data-sdaws-pick-all='{kind.value}' title='{hint}' "
            f"aria-label='{hint}'>"
        )
    return (
        f"<div class='sdaws-row sdaws-row-head'><span>{pick}</span><span></span>"
        f"<h3>{html.escape(title)}</h3><span></span><span></span></div>"
    )


def _row(access: CloudAccess, row: ModelRow) -> str:
    pick = ""
    if row.can_upload:
        pick = (
            f"<input type='checkbox' data-sdaws-pick='{html.escape(row.key)}' "
            f"data-sdaws-kind='{row.kind.value}' aria-label='{html.escape(row.name)}'>"
        )
    picture = picture_beside(row.local.path) if row.local else None
    if picture is not None:
        link = html.escape(links.model_picture(access, picture))
        shown = f"<img src='{link}' alt='' loading='lazy'>"
    else:
        shown = "<span class='sdaws-no-picture'></span>"
    name = f"<div class='sdaws-value sdaws-strong'>{html.escape(row.name)}</div>"
    return (
        f"<div class='sdaws-row' role='group' aria-label='{html.escape(row.name)}'>"
        f"<span>{pick}</span>{shown}<div>{name}{_state(row)}</div>"
        f"<div class='sdaws-size'>{html.words(Value(html.size(row.size)))}</div>"
        f"<div class='sdaws-acts sdaws-askable'>{_acts(row)}</div></div>"
    )


def _state(row: ModelRow) -> str:
    if row.upload is not None:
        return _upload_state(row.upload)
    if row.cloud is None:
        return html.badge("idle", "Only here")
    error = ""
    if row.local is not None and row.local.path.name not in row.cloud.names and row.cloud.names:
        name = Value(", ".join(row.cloud.names))
        error = f"<div class='sdaws-why'>{html.words('Its name there:', name)}</div>"
    if row.cloud.error:
        error += f"<div class='sdaws-why sdaws-value'>{html.escape(row.cloud.error)}</div>"
    if row.cloud.state is CheckpointState.ACTIVE:
        return html.badge("good", "Here and in the cloud" if row.local else "In the cloud") + error
    if row.cloud.state is CheckpointState.DISABLED:
        return html.badge("idle", "Disabled in the cloud") + error
    if row.cloud.state is CheckpointState.FAILED:
        return html.badge("bad", "Failed") + error
    if row.cloud.sources:
        what = ("The server fetches it:", Value(row.cloud.sources[0]))
        progress = row.cloud.progress
        return html.endless_bar(*what) if progress is None else html.bar(progress, *what)
    if row.cloud.message:
        why = f"<div class='sdaws-why sdaws-value'>{html.escape(row.cloud.message)}</div>"
        is_checked = row.cloud.step is not CheckpointStep.CHECKING
        doing = "Being converted in the cloud" if is_checked else "Being checked in the cloud"
        return html.badge("busy", doing) + why
    return html.badge("idle", "Not complete in the cloud")


def _upload_state(upload: Upload) -> str:
    word = _UPLOADING[upload.state]
    if upload.state is UploadState.FAILED:
        why = f"<div class='sdaws-why sdaws-value'>{html.escape(upload.error)}</div>"
        return html.badge("bad", word) + why
    progress = upload.progress
    if upload.state is UploadState.RUNNING and progress is not None:
        return html.bar(progress.fraction, Value(progress.describe()))
    fraction = progress.fraction if progress and progress.phase == "sending" else 0.0
    return html.bar(fraction, word, kind="idle")


def _acts(row: ModelRow) -> str:
    """The row's buttons, and what the dangerous one asks first."""
    if row.upload is not None:
        key = row.upload.order.key
        if row.upload.state in (UploadState.PAUSED, UploadState.FAILED):
            first = html.send_button("Go on", ORDER, _order("resume", key))
        else:
            first = html.send_button("Pause", ORDER, _order("pause", key))
        stop = html.send_button("Cancel", ORDER, _order("cancel", key))
        return f"<div class='sdaws-buttons'>{first}{stop}</div>"
    if row.cloud is None:
        send = html.send_button("Upload", ORDER, _order("upload", row.key))
        return f"<div class='sdaws-buttons'>{send}</div>"
    buttons = ""
    if row.cloud.state is CheckpointState.ACTIVE:
        hint = "No request can use it until it is enabled again"
        buttons = html.send_button("Disable", ORDER, _order("disable", row.cloud.id), hint=hint)
    elif row.cloud.state is CheckpointState.DISABLED:
        buttons = html.send_button("Enable", ORDER, _order("enable", row.cloud.id))
    elif row.cloud.can_retry:
        buttons = html.send_button("Try again", ORDER, _order("retry", row.cloud.id))
    renaming = _renaming(row.cloud)
    if renaming:
        buttons += html.ask_name_button("Rename…")
    buttons += html.ask_button("Delete…")
    asked: tuple[html.Part, ...] = ("Delete", Value(f"“{row.name}”"), "in the cloud, for good?")
    if row.local is not None:
        asked += ("The file here stays.",)
    deleting = html.question(asked, "Yes, delete it", ORDER, _order("delete", row.cloud.id))
    return f"<div class='sdaws-buttons'>{buttons}</div>{deleting}{renaming}"


def _renaming(cloud: Checkpoint) -> str:
    """The question for another name; nothing where that cannot be had."""
    if cloud.state not in (CheckpointState.ACTIVE, CheckpointState.DISABLED):
        return ""
    if len(cloud.names) != 1:
        return ""
    (name,) = cloud.names
    order = _order("rename", [cloud.id, name])
    return html.name_question(("Its name in the cloud:",), name, "Rename", ORDER, order)


def _summary(uploads: Sequence[Upload]) -> str:
    """All uploads in one bar."""
    active = [one for one in uploads if one.state is not UploadState.FAILED]
    if not active:
        return ""
    total = sum(one.order.size for one in active)
    done = sum(
        one.progress.done for one in active if one.progress and one.progress.phase != "hashing"
    )
    speed = sum(
        one.progress.bytes_per_second
        for one in active
        if one.progress and one.state is UploadState.RUNNING and one.progress.phase == "sending"
    )
    said = f"{len(active)}: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB"
    if speed:
        said += f", {speed / 1e6:.1f} MB/s, {duration((total - done) / speed)} left"
    return html.bar(done / total if total else 0, "Files being uploaded:", Value(said))


def _order(act: str, *what: str | list[str]) -> str:
    return json.dumps([act, *what])


def build(access: CloudAccess) -> None:
    """Lay the page out; sdaws.js has it read its list when it is opened."""
    gr.Markdown(
        "Weights files on this machine and in the cloud. A file is sent once, in the background: "
        "this page may be closed, and a restart goes on where it was."
    )
    send = html.picked_button("Upload what is selected", ORDER)
    gr.HTML(f"<div class='sdaws-buttons'>{send}</div>")
    message = gr.HTML(elem_id="sdaws_models_message")
    listing = gr.HTML(html.unread(READ, kind=LIST), elem_id="sdaws_checkpoints")
    kinds = [member.value for member in CheckpointType]
    first = CheckpointType.STABLE_DIFFUSION.value
    with gr.Accordion("Another file", open=False):
        with gr.Row():
            path = gr.Textbox(
                label="File on this machine",
                placeholder="/path/to/model.safetensors",
                scale=3,
                elem_id="sdaws_upload_path",
            )
            kind = gr.Dropdown(kinds, value=first, label="Type")
            send_path = gr.Button("Upload", variant="primary", elem_id="sdaws_upload")
        with gr.Row():
            url = gr.Textbox(
                label="URL that the server fetches",
                placeholder="https://…/model.safetensors",
                scale=3,
                elem_id="sdaws_import_url",
            )
            url_kind = gr.Dropdown(kinds, value=first, label="Type")
            fetch = gr.Button("Fetch", elem_id="sdaws_import")
        gr.HTML(html.browser_upload(kinds), elem_id="sdaws_browser_upload")
    with gr.Row(elem_classes=["sdaws-away"]):
        order = gr.Textbox(label="Order", elem_id=ORDER)
        read_button = gr.Button("Read", elem_id=READ)
        link = gr.Textbox(label="Link", elem_id="sdaws_browser_link")

    def read() -> tuple[str, str]:
        permission = links.browser_upload(access)
        try:
            shown = read_all(access, "", {})
        except CloudError as fault:
            shown = html.failed(fault)
        watch = links.watch(access, "models", "", {})
        return html.listing(shown, READ, watch, kind=LIST), permission

    def upload_path(file: str, type_name: str) -> tuple[str, str, str, str]:
        chosen = Path(file.strip()).expanduser()
        if not file.strip():
            raise gr.Error("Enter the path of the file to upload first.")
        if not chosen.is_file():
            raise gr.Error(f"'{chosen}' is no file on this machine. Check the path.")
        with shown_to_user():
            access.client()
        size = chosen.stat().st_size
        access.uploads.add([UploadOrder(chosen, CheckpointType(type_name), size)])
        return "", *read(), ""

    def fetch_url(address: str, type_name: str) -> tuple[str, str, str, str]:
        if not address.strip():
            raise gr.Error("Enter the URL of a weights file first.")
        with shown_to_user():
            access.client().import_checkpoint(CheckpointType(type_name), address.strip())
        said = "The server fetches it now. It becomes ready by itself."
        return html.notice("good", said), *read(), ""

    def obey(text: str) -> tuple[Any, Any, Any, str]:
        if not text:
            return gr.update(), gr.update(), gr.update(), ""
        act, *what = json.loads(text)
        with shown_to_user():
            said = _ACTS[act](access, *what)
        return said or "", *read(), ""

    read_button.click(read, None, [listing, link], show_progress="hidden")
    send_path.click(upload_path, [path, kind], [message, listing, link, path])
    fetch.click(fetch_url, [url, url_kind], [message, listing, link, url])
    order.input(obey, order, [message, listing, link, order], show_progress="hidden")


def _upload(access: CloudAccess, keys: str | list[str]) -> None:
    """Files by their rows' keys: only what the host lists can be asked for."""
    wanted = {keys} if isinstance(keys, str) else set(keys)
    access.client()  # configured at all?
    local = access.local_models()
    access.uploads.add(
        order
        for kind in CheckpointType
        for file in local.of(kind)
        if (order := UploadOrder(file.path, kind, file.size, file.sha256)).key in wanted
    )


def _rename(access: CloudAccess, which: list[str], new: str) -> str:
    """Tells how to take it back."""
    checkpoint_id, old = which
    access.client().rename_checkpoint(checkpoint_id, old, new.strip())
    undo = html.send_button("Undo", ORDER, _order("rename", [checkpoint_id, new.strip()], old))
    said = html.notice("good", ("Renamed:", Value(f"{old} → {new.strip()}")))
    return f"{said}<div class='sdaws-buttons'>{undo}</div>"


def _set(state: CheckpointState) -> Callable[[CloudAccess, Any], None]:
    def act(access: CloudAccess, checkpoint_id: Any) -> None:
        access.client().set_checkpoint_state(checkpoint_id, state)

    return act


def _retry(access: CloudAccess, checkpoint_id: str) -> None:
    access.client().retry_checkpoint(checkpoint_id)


_ACTS: dict[str, Callable[..., str | None]] = {
    "rename": _rename,
    "retry": _retry,
    "upload": _upload,
    "pause": lambda access, key: access.uploads.pause(key),
    "resume": lambda access, key: access.uploads.resume(key),
    "cancel": lambda access, key: access.uploads.cancel(key),
    "enable": _set(CheckpointState.ACTIVE),
    "disable": _set(CheckpointState.DISABLED),
    "delete": lambda access, checkpoint_id: access.client().delete_checkpoint(checkpoint_id),
}
