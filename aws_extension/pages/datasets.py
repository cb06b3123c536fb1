"""Page: folders of pictures, looked at and sent; data sets in the cloud, and their captions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from aws_extension.access import CloudAccess
from aws_extension.dataset_calls import Dataset
from aws_extension.dataset_uploads import DatasetOrder, Sending, SendState, with_captions
from aws_extension.errors import CloudError, UploadFailed
from aws_extension.pages import html, links
from aws_extension.pages.common import shown_to_user
from aws_extension.pages.dataset_cards import (
    ORDER,
    PER_PAGE,
    Look,
    caption_of,
    folder_cards,
    order,
    pictures_of,
    set_cards,
)
from aws_extension.pages.html import Value
from aws_extension.picture_folder import write_caption
from middleware_api.contract import DatasetState, is_valid_name

READ, READ_FOLDER, READ_SET = "sdaws_datasets_read", "sdaws_folder_read", "sdaws_dataset_read"
PICTURES = "sdaws-shots"
RESOLUTIONS = ["512", "640", "768", "1024"]
_STATES: dict[DatasetState, tuple[html.Kind, str]] = {
    DatasetState.INITIAL: ("busy", "Not complete"),
    DatasetState.ENABLED: ("good", "Enabled"),
    DatasetState.DISABLED: ("idle", "Disabled"),
}


def read_all(access: CloudAccess, user: str, query: Mapping[str, str]) -> html.Listing:
    """The data sets of the token's owner. Raises CloudError."""
    return show(access.dataset_uploads.all(), access.glance().datasets.all())


def show(sendings: Sequence[Sending], datasets: Sequence[Dataset]) -> html.Listing:
    """What is on its way first, then what is there."""
    cards = [html.Card(f"send:{one.order.name}", _sending(one)) for one in sendings]
    cards += [html.Card(f"set:{one.name}", _dataset(one)) for one in datasets]
    note = ""
    if not cards:
        why = "No data set yet. Look at a folder of pictures below, and send it."
        note = html.notice("idle", why)
    is_busy = any(one.state is SendState.RUNNING for one in sendings)
    return html.Listing(tuple(cards), note, is_busy)


def _sending(sending: Sending) -> str:
    name, total = sending.order.name, len(sending.order.files)
    title = f"<span class='sdaws-value sdaws-title'>{html.escape(name)}</span>"
    parts = [f"<div class='sdaws-line'>{title}</div>"]
    said = f"{sending.arrived} / {total}"
    if sending.progress is not None and sending.progress.seconds_left is not None:
        said += f" · {sending.progress.describe()}"
    is_running = sending.state is SendState.RUNNING
    word = "Files being sent:" if is_running else "Paused"
    kind: html.Kind = "busy" if is_running else "idle"
    parts.append(html.bar(sending.arrived / max(1, total), word, Value(said), kind=kind))
    if sending.error:
        parts.append(html.notice("bad", Value(sending.error)))
    if is_running:
        first = html.send_button("Pause", ORDER, order("pause", name))
    else:
        first = html.send_button("Go on", ORDER, order("resume", name))
    stop = html.send_button(
        "Forget", ORDER, order("forget", name), hint="What has arrived stays in the cloud"
    )
    parts.append(f"<div class='sdaws-buttons'>{first}{stop}</div>")
    return f"<div class='sdaws-panel'>{''.join(parts)}</div>"


def _dataset(dataset: Dataset) -> str:
    kind, word = _STATES[dataset.state]
    rows: list[tuple[str, html.Part]] = [
        ("Files", Value("–" if dataset.files is None else str(dataset.files))),
        ("Made", Value(html.when(dataset.created_at))),
    ]
    buttons = html.send_button("Look", ORDER, order("open", dataset.name))
    if dataset.state is DatasetState.ENABLED:
        hint = "No training can use it until it is enabled again"
        buttons += html.send_button("Disable", ORDER, order("disable", dataset.name), hint=hint)
    else:
        buttons += html.send_button("Enable", ORDER, order("enable", dataset.name))
    buttons += html.ask_button("Delete…")
    asked = html.question(
        ("Delete", Value(f"“{dataset.name}”"), "with its pictures in the cloud, for good?"),
        "Yes, delete it",
        ORDER,
        order("delete", dataset.name),
    )
    title = f"<span class='sdaws-value sdaws-title'>{html.escape(dataset.name)}</span>"
    return (
        f"<div class='sdaws-panel sdaws-askable'><div class='sdaws-line'>{title}"
        f"{html.badge(kind, word)}</div>{html.facts(*rows)}"
        f"<div class='sdaws-buttons'>{buttons}</div>{asked}</div>"
    )


def read_folder(access: CloudAccess, user: str, query: Mapping[str, str]) -> html.Listing:
    """A folder of this machine, looked at. Raises UploadFailed."""
    if not query["folder"]:
        return html.Listing()
    look = _look(access, query)
    return folder_cards(access, access.looks.look(Path(look.folder)), look)


def _look(access: CloudAccess, query: Mapping[str, str]) -> Look:
    folder = str(Path(query["folder"]).expanduser())
    return Look(
        folder, int(query["resolution"]), int(query["page"]), frozenset(access.looks.left_out)
    )


def read_set(access: CloudAccess, user: str, query: Mapping[str, str]) -> html.Listing:
    """One data set of the cloud from near. Raises CloudError."""
    name, page = query["name"], int(query["page"])
    if not name:
        return html.Listing()
    files = access.dataset_views.files(name)
    there = {file.name: file for file in files if file.size is not None}
    shown = pictures_of(files)[page * PER_PAGE : (page + 1) * PER_PAGE]
    wanted = [there[c] for file in shown if (c := caption_of(file.name)) in there]
    captions = access.dataset_views.captions(name, wanted)
    return set_cards(access, name, files, captions, page)


def keep_dropped(access: CloudAccess, batch: str, name: str, content: bytes) -> str:
    """Keep a file that was dropped on the page; the folder that its batch is in.

    Raises UploadFailed, ValueError for what is no batch.
    """
    if not batch.isdecimal():
        raise ValueError(f"no batch: {batch}")
    folder = access.store.folder / "dropped" / f"pictures-{batch}"
    if not is_valid_name(name):
        raise UploadFailed(
            f"'{name}' cannot be a name in the cloud. Rename it: letters, digits, spaces and "
            ". _ - ( ) + [ ] are allowed, no dot at the start."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    except OSError as fault:
        raise UploadFailed(f"'{name}' could not be kept here: {fault.strerror}.") from fault
    return str(folder)


def send_folder(access: CloudAccess, query: Mapping[str, str], name: str) -> int:
    """Begin to send what a folder has for a data set; how many pictures. Raises CloudError."""
    look = _look(access, query)
    name = name.strip() or Path(look.folder).name
    if not is_valid_name(name):
        raise UploadFailed(
            f"'{name}' cannot be a data set's name: letters, digits, spaces and . _ - ( ) + [ ] "
            "are allowed, no dot at the start."
        )
    access.client()  # configured at all?
    pictures = [one.path for one in access.looks.look(Path(look.folder)) if look.is_sent(one)]
    if not pictures:
        raise UploadFailed(f"'{look.folder}' has no picture that can be used.")
    access.dataset_uploads.begin(DatasetOrder(name, with_captions(pictures)))
    return len(pictures)


def save_caption(access: CloudAccess, query: Mapping[str, str], text: str) -> None:
    """Write a caption where its link has it: beside a picture here, or into a data set there.

    Raises CloudError.
    """
    if "path" in query:
        write_caption(Path(query["path"]), text)
    else:
        _write_there(access, query["name"], query["file"], text)


def _write_there(access: CloudAccess, name: str, caption: str, text: str) -> None:
    """Put a caption into a data set of the cloud; an empty one is taken out. Raises CloudError."""
    client = access.client()
    there = {file.name for file in client.datasets.files(name)}
    if not text.strip():
        if caption in there:
            client.datasets.remove(name, [caption])
        return
    state = next((one.state for one in client.datasets.all() if one.name == name), None)
    urls = client.datasets.write(name, [caption])
    client.storage.send("PUT", urls[caption], body=text.strip().encode())
    access.dataset_views.forget_caption(name, caption)
    if state is DatasetState.ENABLED and caption not in there:
        # A further file has disabled it, until it has arrived.
        client.datasets.set_state(name, DatasetState.ENABLED)


def remove_there(access: CloudAccess, name: str, picture: str) -> None:
    """Take a picture and its caption out of a data set of the cloud. Raises CloudError."""
    datasets = access.client().datasets
    there = {file.name for file in datasets.files(name)}
    datasets.remove(name, [file for file in (picture, caption_of(picture)) if file in there])


def build(access: CloudAccess) -> None:
    """Lay the page out; sdaws.js has it read its lists when it is opened."""
    DatasetsPage(access)


class DatasetsPage:
    """The page's controls, and what they do."""

    def __init__(self, access: CloudAccess) -> None:
        self.access = access
        self._page, self._opened, self._set_page = gr.State(0), gr.State(""), gr.State(0)
        self._message = gr.HTML(elem_id="sdaws_datasets_message")
        with gr.Column() as self._overview:
            self._listing = gr.HTML(
                html.unread(READ, kind="sdaws-panels"), elem_id="sdaws_datasets"
            )
            gr.Markdown("### A folder of pictures")
            with gr.Row(elem_classes=["sdaws-toolbar"]):
                self._folder = gr.Textbox(
                    label="Folder on this machine",
                    placeholder="/path/to/pictures",
                    scale=3,
                    elem_id="sdaws_folder",
                )
                self._resolution = gr.Dropdown(
                    RESOLUTIONS,
                    value=RESOLUTIONS[0],
                    label="Training's resolution",
                    elem_id="sdaws_folder_resolution",
                )
                look = gr.Button("Look at it", elem_id="sdaws_folder_look")
            gr.HTML(html.drop_zone(), elem_id="sdaws_folder_drop")
            self._pictures = gr.HTML(
                html.listing(html.Listing(), READ_FOLDER, "", PICTURES, is_written_in=True),
                elem_id="sdaws_pictures",
            )
            with gr.Row(elem_classes=["sdaws-toolbar"]):
                self._name = gr.Textbox(
                    label="Name of the data set",
                    placeholder="The folder's own name",
                    scale=3,
                    elem_id="sdaws_dataset_name",
                )
                send = gr.Button("Send", variant="primary", elem_id="sdaws_dataset_send")
        with gr.Column(visible=False) as self._close_up:
            back = gr.Button("← All data sets", elem_classes=["sdaws-back"], size="sm")
            self._detail = gr.HTML(elem_id="sdaws_dataset")
        with gr.Row(elem_classes=["sdaws-away"]):
            self._order = gr.Textbox(label="Order", elem_id=ORDER)
            self._link = gr.Textbox(label="Link", elem_id="sdaws_drop_link")
            read = gr.Button("Read", elem_id=READ)
            read_folder_button = gr.Button("Read", elem_id=READ_FOLDER)
            read_set_button = gr.Button("Read", elem_id=READ_SET)
        asked = [self._folder, self._resolution, self._page]
        read.click(
            lambda: (self._read(), links.drop(access)),
            None,
            [self._listing, self._link],
            show_progress="hidden",
        )
        read_folder_button.click(self._reread, asked, self._pictures, show_progress="hidden")
        read_set_button.click(
            self._read_set, [self._opened, self._set_page], self._detail, show_progress="hidden"
        )
        look.click(self._look, [self._folder, self._resolution], [self._pictures, self._page])
        self._resolution.change(
            self._look, [self._folder, self._resolution], [self._pictures, self._page]
        )
        send.click(self._send, [*asked, self._name], [self._message, self._listing])
        self._order.input(
            self._obey,
            [self._order, *asked, self._opened, self._set_page],
            self._obeyed,
            show_progress="hidden",
        )
        back.click(
            lambda: ("", gr.update(visible=True), gr.update(visible=False), "", ""),
            None,
            [self._message, self._overview, self._close_up, self._detail, self._opened],
            show_progress="hidden",
        )

    @property
    def _obeyed(self) -> list[Any]:
        return [
            self._message, self._order, self._listing, self._pictures, self._page, self._overview,
            self._close_up, self._detail, self._opened, self._set_page,
        ]  # fmt: skip

    def _read(self) -> str:
        try:
            shown = read_all(self.access, "", {})
        except CloudError as fault:
            shown = html.failed(fault)
        watch = links.watch(self.access, "datasets", "", {})
        return html.listing(shown, READ, watch, kind="sdaws-panels")

    def _reread(self, folder: str, resolution: str, page: int) -> Any:
        return self._read_folder(folder, resolution, page) if folder.strip() else gr.update()

    def _read_folder(self, folder: str, resolution: str, page: int) -> str:
        query = _folder_query(folder, resolution, page)
        try:
            shown = read_folder(self.access, "", query)
        except CloudError as fault:
            shown = html.failed(fault)
        watch = links.watch(self.access, "folder", "", query)
        return html.listing(shown, READ_FOLDER, watch, PICTURES, is_written_in=True)

    def _read_set(self, name: str, page: int) -> str:
        query = {"name": name, "page": str(page)}
        if not name:
            return ""
        try:
            shown = read_set(self.access, "", query)
        except CloudError as fault:
            shown = html.failed(fault)
        title = f"<div class='sdaws-value sdaws-title'>{html.escape(name)}</div>"
        watch = links.watch(self.access, "dataset", "", query)
        return title + html.listing(shown, READ_SET, watch, PICTURES, is_written_in=True)

    def _look(self, folder: str, resolution: str) -> tuple[str, int]:
        if not folder.strip():
            return html.listing(html.Listing(), READ_FOLDER, "", PICTURES, is_written_in=True), 0
        return self._read_folder(folder, resolution, 0), 0

    def _send(self, folder: str, resolution: str, page: int, name: str) -> tuple[str, str]:
        if not folder.strip():
            raise gr.Error("Choose a folder, or drop pictures, first.")
        with shown_to_user():
            count = send_folder(self.access, _folder_query(folder, resolution, page), name)
        said = html.notice("good", ("Pictures being sent:", Value(str(count))))
        return said, self._read()

    def _obey(
        self, text: str, folder: str, resolution: str, page: int, opened: str, set_page: int
    ) -> dict[Any, Any]:
        if not text:
            return {self._order: ""}
        act, *what = json.loads(text)
        with shown_to_user():
            done: dict[Any, Any] = {self._order: "", self._message: ""}
            if act == "page":
                pictures = self._read_folder(folder, resolution, int(what[0]))
                return {**done, self._page: int(what[0]), self._pictures: pictures}
            if act in ("open", "set_page", "remove"):
                name = what[0] if act == "open" else opened
                set_page = int(what[0]) if act == "set_page" else 0 if act == "open" else set_page
                if act == "remove":
                    remove_there(self.access, what[0], what[1])
                return {
                    **done, self._opened: name, self._set_page: set_page,
                    self._overview: gr.update(visible=False),
                    self._close_up: gr.update(visible=True),
                    self._detail: self._read_set(name, set_page),
                }  # fmt: skip
            self._change(act, what[0])
            return {**done, self._listing: self._read()}

    def _change(self, act: str, name: str) -> None:
        if act == "delete":
            self.access.client().datasets.delete(name)
        elif act in ("enable", "disable"):
            state = DatasetState.ENABLED if act == "enable" else DatasetState.DISABLED
            self.access.client().datasets.set_state(name, state)
        else:
            sendings = self.access.dataset_uploads
            {"pause": sendings.pause, "resume": sendings.resume, "forget": sendings.forget}[act](
                name
            )


def _folder_query(folder: str, resolution: str, page: int) -> dict[str, str]:
    return {"folder": folder.strip(), "resolution": resolution, "page": str(page)}
