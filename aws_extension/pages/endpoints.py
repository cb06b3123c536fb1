"""Page: the machines that make pictures."""

from __future__ import annotations

from typing import Any

import gradio as gr

from aws_extension.access import CloudAccess
from aws_extension.answers import Endpoint
from aws_extension.errors import CloudError
from aws_extension.pages import html
from aws_extension.pages.common import shown_to_user
from middleware_api.contract import INSTANCE_COUNT_MAX, EndpointState

# "local" is a process of the embedded server; the others are rented GPUs, cheapest first.
INSTANCE_TYPES = ["local", "ml.g4dn.xlarge", "ml.g4dn.2xlarge", "ml.g5.xlarge", "ml.g5.2xlarge"]
_KINDS: dict[EndpointState | None, html.Kind] = {
    EndpointState.IN_SERVICE: "good",
    EndpointState.CREATING: "busy",
    EndpointState.UPDATING: "busy",
    EndpointState.DELETING: "busy",
    EndpointState.FAILED: "bad",
}
_WORDS = {
    EndpointState.IN_SERVICE: "Ready",
    EndpointState.CREATING: "Starting",
    EndpointState.UPDATING: "Changing",
    EndpointState.DELETING: "Stopping",
    EndpointState.FAILED: "Failed",
    EndpointState.DELETED: "Deleted",
}


def show(endpoints: list[Endpoint]) -> str:
    """The list as a table, gone ones left out."""
    alive = [e for e in endpoints if e.state is not EndpointState.DELETED]
    if not alive:
        return html.notice("idle", "No endpoint yet. Create one below: it makes the pictures.")
    rows = []
    for endpoint in alive:
        word = _WORDS[endpoint.state] if endpoint.state else "Failed"
        state = html.badge(_KINDS.get(endpoint.state, "bad"), word)
        if endpoint.error:
            state += f"<div class='sdaws-why'>{html.escape(endpoint.error)}</div>"
        rows.append(
            [
                f"<b>{html.escape(endpoint.name or endpoint.deployment_id)}</b>",
                state,
                html.escape(endpoint.instance_type),
                str(endpoint.instance_count),
                html.when(endpoint.started_at),
            ]
        )
    return html.table(["Endpoint", "State", "Machine", "Count", "Since"], rows)


def deletable(endpoints: list[Endpoint]) -> list[str]:
    """Names that can still be deleted."""
    gone = (EndpointState.DELETED, EndpointState.DELETING)
    return [e.name for e in endpoints if e.name and e.state not in gone]


def build(access: CloudAccess) -> None:
    """Lay the page out; sdaws.js has it read its list when it is opened."""
    with gr.Row():
        gr.Markdown("Each endpoint is one or more machines that wait for work, and cost money.")
        refresh = gr.Button("Refresh", elem_classes=["sdaws-live", "sdaws-small"], size="sm")
    listing = gr.HTML(elem_id="sdaws_endpoints")
    with gr.Accordion("Create an endpoint", open=True):
        with gr.Row():
            machine = gr.Dropdown(
                INSTANCE_TYPES,
                value=INSTANCE_TYPES[0],
                label="Machine",
                info="“local” for the embedded server, ml.… on AWS",
                allow_custom_value=True,
            )
            count = gr.Slider(1, INSTANCE_COUNT_MAX, value=1, step=1, label="How many")
            name = gr.Textbox(label="Name", placeholder="optional: one is made up", info=" ")
        create = gr.Button("Create", variant="primary", elem_id="sdaws_create_endpoint")
    with gr.Accordion("Delete an endpoint", open=False):
        with gr.Row():
            chosen = gr.Dropdown([], label="Endpoint to delete")
            delete = gr.Button("Delete…", elem_id="sdaws_delete_endpoint")
        with gr.Row(visible=False) as question:
            asked = gr.HTML()
            confirm = gr.Button("Yes, delete it", variant="stop", elem_id="sdaws_delete_yes")
            keep = gr.Button("Keep it")
    message = gr.HTML()

    def read() -> tuple[str, Any]:
        try:
            endpoints = access.client().list_endpoints()
        except CloudError as fault:
            return html.notice("bad", str(fault)), gr.update(choices=[])
        return show(endpoints), gr.update(choices=deletable(endpoints))

    def create_one(machine_name: str, how_many: float, wanted: str) -> tuple[str, str, Any]:
        with shown_to_user():
            made = access.client().create_endpoint(machine_name, int(how_many), wanted.strip())
        text = f"Endpoint '{made.name}' is starting. It takes jobs as soon as it is ready."
        return html.notice("good", text), *read()

    def ask(selected: str | None) -> tuple[Any, str]:
        if not selected:
            raise gr.Error("Choose the endpoint to delete first.")
        text = f"Delete '{selected}'? Its running jobs stop, and so does its cost."
        return gr.update(visible=True), html.notice("bad", text)

    def delete_one(selected: str) -> tuple[str, Any, str, Any]:
        with shown_to_user():
            access.client().delete_endpoints([selected])
        done = html.notice("good", f"Endpoint '{selected}' is being deleted.")
        return done, gr.update(visible=False), gr.update(), gr.update(value=None)

    outputs = [listing, chosen]
    refresh.click(read, None, outputs, show_progress="hidden")
    create.click(create_one, [machine, count, name], [message, *outputs])
    delete.click(ask, chosen, [question, asked])
    keep.click(lambda: gr.update(visible=False), None, question)
    confirm.click(delete_one, chosen, [message, question, *outputs]).then(read, None, outputs)
