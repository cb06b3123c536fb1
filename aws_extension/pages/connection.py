"""Page: which server, and does it answer."""

from __future__ import annotations

import gradio as gr

from aws_extension import errors
from aws_extension.access import CloudAccess
from aws_extension.pages import html
from aws_extension.pages.html import Value
from aws_extension.settings import EMBEDDED_URL
from middleware_api.contract import CheckpointState, CheckpointType

INTRO = (
    "Pictures are made by a server of yours: the embedded one on this machine, or the middleware "
    "in your AWS account. Enter its URL and token."
)


def test_result(access: CloudAccess) -> str:
    """Try the connection once, and say in plain words what works and what comes next."""
    try:
        connection = access.store.read()
        client = access.glance()
        client.test_connection()
        endpoints = client.list_endpoints()
        checkpoints = client.list_checkpoints(
            [CheckpointState.ACTIVE], [CheckpointType.STABLE_DIFFUSION]
        )
    except errors.CloudError as fault:
        return html.notice("bad", *explain(fault))
    ready = sum(endpoint.is_ready for endpoint in endpoints)
    lines: list[html.Part | tuple[html.Part, ...]] = [
        ("Connected to", Value(connection.api_url)),
        ("Endpoints ready:", Value(str(ready))),
        ("Checkpoints to choose from:", Value(str(len(checkpoints)))),
    ]
    if not ready:
        lines.append("Next: create an endpoint on the Endpoints page, or wait until one is ready.")
    elif not checkpoints:
        lines.append("Next: upload a checkpoint on the Models page.")
    else:
        lines.append("Next: generate a picture.")
    if connection.is_exposed:
        lines.append(
            "Careful: this URL is http://, so the token crosses the network readable. Use https://."
        )
    return html.notice("busy" if connection.is_exposed else "good", *lines)


def explain(fault: errors.CloudError) -> list[html.Part | tuple[html.Part, ...]]:
    """What a failed test means, what to do, and last what exactly was answered."""
    told = Value(str(fault))
    if isinstance(fault, errors.ServerFault):
        return ["The server is there, but has a fault of its own. Try again in a minute.", told]
    if isinstance(fault, errors.ApiError) and not fault.code:
        # The API gives each of its errors a code; a proxy or some other program does not.
        return [
            "Something answers there, but it is not the API. Check the URL: host, port and path; "
            "on AWS it ends in /prod.",
            told,
        ]
    if isinstance(fault, errors.Unauthorised):
        return ["The server is there, but refuses the token. Paste it again.", told]
    if isinstance(fault, errors.Forbidden):
        return [
            "The server is there, and this token may not use it. Ask its owner for one that may.",
            told,
        ]
    return [told]


def build(access: CloudAccess) -> None:
    """Lay the page out in the surrounding Blocks."""
    gr.Markdown(INTRO)
    with gr.Row():
        url = gr.Textbox(
            label="Server URL",
            value=_known_url(access),
            placeholder=EMBEDDED_URL,
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
            return html.notice("bad", Value(str(fault))), new_token
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
            "First step: enter the server's URL and token, then press “Save and test”.",
            "No AWS account? Run “make serve” in this extension's folder: that is a server on "
            "this machine. It prints its URL and where its token is.",
        )
    except errors.CloudError as fault:
        return html.notice("bad", Value(str(fault)))
    return html.notice(
        "idle", ("Using", Value(connection.api_url)), ("Set in:", Value(connection.source))
    )
