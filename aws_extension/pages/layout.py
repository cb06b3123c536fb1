"""The pages side by side, for whichever host shows them."""

from __future__ import annotations

import gradio as gr

from aws_extension.access import CloudAccess
from aws_extension.errors import CloudError
from aws_extension.pages import connection, datasets, endpoints, jobs, merge, models, training
from aws_extension.pages.host import Host


def first_page(access: CloudAccess) -> str:
    """The id of the page to begin with: the one with the first step, until that is done."""
    try:
        access.store.read()
    except CloudError:
        return "connection"
    return "jobs"


def build_pages(access: CloudAccess, host: Host) -> None:
    """Tabs that both hosts have, inside the surrounding `gr.Tabs`."""
    with gr.Tab("Connection", id="connection", elem_id="sdaws_tab_connection"):
        connection.build(access)
    with gr.Tab("Endpoints", id="endpoints", elem_id="sdaws_tab_endpoints"):
        endpoints.build(access)
    with gr.Tab("Models", id="models", elem_id="sdaws_tab_models"):
        models.build(access)
    with gr.Tab("Jobs", id="jobs", elem_id="sdaws_tab_jobs"):
        jobs.build(access, host)
    with gr.Tab("Data sets", id="datasets", elem_id="sdaws_tab_datasets"):
        datasets.build(access)
    with gr.Tab("Training", id="training", elem_id="sdaws_tab_training"):
        training.build(access)
    with gr.Tab("Merge", id="merge", elem_id="sdaws_tab_merge"):
        merge.build(access)
