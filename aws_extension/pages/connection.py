"""Page: which server, and does it answer."""

from __future__ import annotations

import gradio as gr

from aws_extension import errors
from aws_extension.access import CloudAccess
from aws_extension.pages import html
from middleware_api.contract import CheckpointState, CheckpointType

INTRO = (
    "Pictures are made by a server of yours: the embedded one on this machine (`make serve`), or "
    "the middleware in your AWS account. Enter its URL and token."
)


def test_result(access: CloudAccess) -> str:
    """Try the connection and say in plain words what works and what comes next."""
    try:
        connection = access.store.read()
        client = access.client()
        client.test_connection()
        endpoints = client.list_endpoints()
        checkpoints = client.list_checkpoints(
            [CheckpointState.ACTIVE], [CheckpointType.STABLE_DIFFUSION]
        )
    except errors.Unauthorised as fault:
        return html.notice(
            "bad", f"The server is there, but refuses the token. Paste it again. ({fault})"
        )
    except errors.CloudError as fault:
        return html.notice("bad", str(fault))
    ready = sum(endpoint.is_ready for endpoint in endpoints)
    lines = [
        f"Connected to {connection.api_url}.",
        f"{ready} endpoint(s) ready, {len(checkpoints)} checkpoint(s) to choose from.",
    ]
    if not ready:
        lines.append("Next: create an endpoint on the Endpoints page, or wait until one is ready.")
    elif not checkpoints:
        lines.append("Next: upload a checkpoint on the Checkpoints page.")
    if connection.is_exposed:
        lines.append(
            "Careful: this URL is http://, so the token crosses the network readable. Use https://."
        )
    return html.notice("busy" if connection.is_exposed else "good", "\n".join(lines))


def build(access: CloudAccess) -> None:
    """Lay the page out in the surrounding Blocks."""
    gr.Markdown(INTRO)
    with gr.Row():
        url = gr.Textbox(
            label="Server URL",
            value=_known_url(access),
            placeholder="http://127.0.0.1:8210",
            elem_id="sdaws_url",
        )
        token = gr.Textbox(
            label="Token",
            type="password",
            placeholder="leave empty to keep the saved one",
            elem_id="sdaws_token",
        )
    with gr.Row():
        save = gr.Button("Save and test", variant="primary", elem_id="sdaws_save")
        test = gr.Button("Test connection", elem_id="sdaws_test")
    result = gr.HTML(_hint(access), elem_id="sdaws_connection_result")

    def save_and_test(new_url: str, new_token: str) -> tuple[str, str]:
        if access.store.is_fixed:
            text = "URL and token come from SDAWS_API_URL and SDAWS_API_TOKEN. Change them there."
            return html.notice("bad", text), ""
        try:
            access.store.write(new_url, new_token)
        except errors.CloudError as fault:
            return html.notice("bad", str(fault)), new_token
        return test_result(access), ""

    save.click(save_and_test, [url, token], [result, token])
    test.click(lambda: test_result(access), None, result)


def _known_url(access: CloudAccess) -> str:
    try:
        return access.store.read().api_url
    except errors.CloudError:
        return ""  # the hint below the buttons says why


def _hint(access: CloudAccess) -> str:
    try:
        connection = access.store.read()
    except errors.NotConfigured:
        return html.notice(
            "idle",
            "First step: enter the server's URL and token, then press “Save and test”. Without "
            "an AWS account: run “make serve” in this repository, its URL is "
            "http://127.0.0.1:8210 and it prints where its token is.",
        )
    except errors.CloudError as fault:
        return html.notice("bad", str(fault))
    return html.notice("idle", f"Using {connection.api_url}, from {connection.source}.")
