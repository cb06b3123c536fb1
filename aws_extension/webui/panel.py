"""The panel in txt2img and img2img, and the tab."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
from modules import script_callbacks, scripts
from modules.ui_components import InputAccordion

from aws_extension.access import CloudAccess
from aws_extension.errors import CloudError
from aws_extension.pages import html
from aws_extension.pages.common import (
    ANY_ENDPOINT,
    checkpoint_choices,
    endpoint_choices,
    keep_or_first,
)
from aws_extension.pages.layout import build_pages, first_page
from aws_extension.pages.live import add_routes
from aws_extension.settings import default_store
from aws_extension.webui import collect, interception
from aws_extension.webui.choice import CloudChoice


@cache
def host_access() -> CloudAccess:
    """This host's way to the cloud."""
    return CloudAccess(default_store(os.environ, Path.home()))


class CloudPanel(scripts.Script):  # type: ignore[misc]  # the host's class has no types
    """The always-visible panel; its controls' values travel as script arguments of each `p`."""

    is_cloud_panel = True

    def title(self) -> str:
        """Also the key of its arguments in the WebUI's own API."""
        return "Cloud"

    def show(self, is_img2img: bool) -> Any:
        """In both tabs."""
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        """Draw the panel; the server is asked when it is opened, not before."""
        with InputAccordion(
            False, label="Generate in the cloud", elem_id=self.elem_id("enabled")
        ) as enabled:
            with gr.Row():
                checkpoint = gr.Dropdown(
                    [], label="Cloud checkpoint", elem_id=self.elem_id("checkpoint")
                )
                endpoint = gr.Dropdown(
                    [ANY_ENDPOINT],
                    value=ANY_ENDPOINT,
                    label="Endpoint",
                    elem_id=self.elem_id("endpoint"),
                )
                refresh = gr.Button(
                    "Refresh",
                    elem_id=self.elem_id("refresh"),
                    elem_classes=["sdaws-small"],
                    size="sm",
                )
            upload_missing = gr.Checkbox(
                False,
                label="Upload missing models without asking",
                elem_id=self.elem_id("upload_missing"),
            )
            status = gr.HTML(elem_id=self.elem_id("status"))
            # Written by sdaws.js; on the page, but out of sight.
            user = gr.Textbox(
                label="User", elem_id=self.elem_id("user"), elem_classes=["sdaws-away"]
            )
            upload_now = gr.Checkbox(False, visible=False, elem_id=self.elem_id("upload_now"))
        inputs, outputs = [checkpoint, endpoint], [checkpoint, endpoint, status]
        # The tick alone does not open an accordion of the WebUI, and the choices are inside.
        enabled.change(
            lambda on: gr.update(open=on), enabled, enabled.accordion, show_progress="hidden"
        )
        refresh.click(read_lists, inputs, outputs, show_progress="hidden")
        enabled.change(read_lists_when, [enabled, *inputs], outputs, show_progress="hidden")
        return [enabled, checkpoint, endpoint, upload_missing, user, upload_now]

    def read_choice(
        self,
        enabled: bool = False,
        checkpoint: str | None = None,
        endpoint: str | None = None,
        upload_missing: bool = False,
        user: str | None = None,
        upload_now: bool = False,
    ) -> CloudChoice | None:
        """The arguments as a choice; None when the toggle is off.

        Callers of the WebUI's API may leave any of them out.
        """
        if not enabled:
            return None
        return CloudChoice(
            checkpoint=checkpoint or "",
            endpoint="" if endpoint in (None, ANY_ENDPOINT) else endpoint,
            upload_missing=bool(upload_missing or upload_now),
            user=user or "",
        )


def read_lists(checkpoint: str | None, endpoint: str | None) -> tuple[Any, Any, str]:
    """What the two dropdowns offer now, and a line on how it looks."""
    try:
        client = host_access().client()
        checkpoints, endpoints = checkpoint_choices(client), endpoint_choices(client)
    except CloudError as fault:
        return gr.update(), gr.update(), html.notice("bad", html.Value(str(fault)))
    ready = len(endpoints) - 1
    if not ready:
        line = html.notice("busy", "No endpoint is ready. Create one in the Cloud tab, or wait.")
    elif not checkpoints:
        line = html.notice("busy", "No checkpoint yet. Upload one in the Cloud tab.")
    else:
        line = html.notice("good", ("Connected. Endpoints ready:", html.Value(str(ready))))
    return (
        gr.update(choices=checkpoints, value=keep_or_first(checkpoint, checkpoints)),
        gr.update(choices=endpoints, value=keep_or_first(endpoint, endpoints)),
        line,
    )


def read_lists_when(
    enabled: bool, checkpoint: str | None, endpoint: str | None
) -> tuple[Any, Any, Any]:
    """On turning the toggle on; turning it off asks nothing."""
    if not enabled:
        return gr.update(), gr.update(), gr.update()
    return read_lists(checkpoint, endpoint)


def build_tab() -> list[tuple[gr.Blocks, str, str]]:
    """The Cloud tab, in the form that the WebUI wants."""
    access = host_access()
    with gr.Blocks(analytics_enabled=False) as blocks, gr.Tabs(selected=first_page(access)):
        build_pages(access, collect.WebUIHost())
    return [(blocks, "Cloud", "sdaws_cloud")]


def register() -> None:
    """Hook into the host; the WebUI calls this again after each "Reload UI"."""
    interception.install(host_access())
    script_callbacks.on_ui_tabs(build_tab)
    script_callbacks.on_app_started(lambda demo, app: add_routes(app, host_access()))
    script_callbacks.on_script_unloaded(interception.remove)
