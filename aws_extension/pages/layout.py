"""The pages side by side, for whichever host shows them."""

from __future__ import annotations

import gradio as gr

from aws_extension.access import CloudAccess
from aws_extension.pages import checkpoints, connection, endpoints, jobs


def build_pages(access: CloudAccess) -> None:
    """Tabs that both hosts have, inside the surrounding `gr.Tabs`."""
    with gr.Tab("Jobs", elem_id="sdaws_tab_jobs"):
        jobs.build(access)
    with gr.Tab("Checkpoints", elem_id="sdaws_tab_checkpoints"):
        checkpoints.build(access)
    with gr.Tab("Endpoints", elem_id="sdaws_tab_endpoints"):
        endpoints.build(access)
    with gr.Tab("Connection", elem_id="sdaws_tab_connection"):
        connection.build(access)
