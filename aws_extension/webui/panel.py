"""The panel in txt2img and img2img, and the tab."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from modules import script_callbacks, scripts, shared
from modules.ui_components import InputAccordion

from aws_extension.access import CloudAccess
from aws_extension.answers import Checkpoint, Endpoint
from aws_extension.errors import NOTHING_SENT, ONLY_HERE, CloudError, NotConfigured
from aws_extension.model_needs import LocalModels, Need, parse_name, resolve
from aws_extension.pages import html
from aws_extension.pages.common import ANY_ENDPOINT
from aws_extension.pages.layout import build_pages, first_page
from aws_extension.pages.live import add_routes
from aws_extension.settings import default_store
from aws_extension.webui import collect, interception
from aws_extension.webui.choice import CloudChoice
from aws_extension.webui.local_models import HostModels
from middleware_api.contract import CheckpointState, CheckpointType, EndpointState

logger = logging.getLogger(__name__)

FIRST_STEP = "Not connected yet. Open the Cloud tab, page Connection, and enter URL and token."
_CHECKPOINT = CheckpointType.STABLE_DIFFUSION
# Between a name and a remark on it, in a dropdown: gradio 3 has no labels beside values. No name
# of the cloud has this character.
_APART = " · "
_HERE = "on this machine, "
_ENDPOINT_WORDS = {
    EndpointState.CREATING: "starting",
    EndpointState.UPDATING: "updating",
    EndpointState.FAILED: "failed",
}


@cache
def host_access() -> CloudAccess:
    """This host's way to the cloud."""
    return CloudAccess(default_store(os.environ, Path.home()), local_models=HostModels)


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
            checkpoint = gr.Dropdown(
                [], label="Cloud checkpoint", elem_id=self.elem_id("checkpoint")
            )
            with gr.Row():
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
            with gr.Column(visible=False, elem_id=self.elem_id("ask")) as ask:
                files = gr.HTML()
                upload = gr.Button(
                    "Upload and generate", variant="primary", elem_id=self.elem_id("upload")
                )
        # On the page, but out of sight: sdaws_panel.js writes them.
        user = gr.Textbox(label="User", elem_id=self.elem_id("user"), elem_classes=["sdaws-away"])
        refused = gr.Textbox(
            label="Refused", elem_id=self.elem_id("refused"), elem_classes=["sdaws-away"]
        )
        use = gr.Textbox(label="Use", elem_id=self.elem_id("use"), elem_classes=["sdaws-away"])
        upload_now = gr.Checkbox(False, visible=False, elem_id=self.elem_id("upload_now"))
        inputs, outputs = [checkpoint, endpoint], [checkpoint, endpoint, status]
        # The tick alone does not open an accordion of the WebUI, and the choices are inside.
        enabled.change(
            lambda on: gr.update(open=on), enabled, enabled.accordion, show_progress="hidden"
        )
        refresh.click(read_lists, inputs, outputs, show_progress="hidden")
        # The Training page's “Use it in txt2img”.
        use.input(use_trained, [use, *inputs], [enabled, *outputs], show_progress="hidden")
        enabled.change(read_lists_when, [enabled, *inputs], outputs, show_progress="hidden")
        for control in (checkpoint, upload_missing, refused):
            control.change(
                show_uploads,
                [checkpoint, upload_missing, refused],
                [ask, files],
                show_progress="hidden",
            )
        checkpoint.change(prefetch, [enabled, checkpoint, endpoint], None, show_progress="hidden")
        # The consent is for this one click: the step that presses “Generate” takes it back. (A
        # step after one of JavaScript alone would never run.)
        tab = "img2img" if is_img2img else "txt2img"
        upload.click(lambda: True, None, upload_now, show_progress="hidden").then(
            lambda: False,
            None,
            upload_now,
            _js=f"() => sdawsGenerate('{tab}')",
            show_progress="hidden",
        )
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
            checkpoint=name_of(checkpoint),
            endpoint="" if endpoint == ANY_ENDPOINT else name_of(endpoint),
            upload_missing=bool(upload_missing or upload_now),
            user=user or "",
        )


def read_lists(checkpoint: str | None, endpoint: str | None) -> tuple[Any, Any, str]:
    """What the two dropdowns offer now, and a line on how it looks."""
    try:
        client = host_access().client()
        cloud = client.list_checkpoints([CheckpointState.ACTIVE], [_CHECKPOINT])
        endpoints = client.list_endpoints()
    except NotConfigured:
        return gr.update(), gr.update(), html.notice("idle", FIRST_STEP)
    except CloudError as fault:
        return gr.update(), gr.update(), html.notice("bad", html.Value(str(fault)))
    checkpoints = checkpoint_labels(cloud, HostModels())
    # At first, the one that is chosen for this machine.
    checkpoint = checkpoint or parse_name(str(shared.opts.data.get("sd_model_checkpoint")))[0]
    names = [ANY_ENDPOINT, *filter(None, map(endpoint_label, endpoints))]
    ready = sum(one.is_ready for one in endpoints)
    if not ready:
        line = html.notice("busy", "No endpoint is ready. Create one in the Cloud tab, or wait.")
    elif not checkpoints:
        line = html.notice("busy", "No checkpoint yet. Upload one in the Cloud tab.")
    else:
        line = html.notice("good", ("Connected. Endpoints ready:", html.Value(str(ready))))
    return (
        gr.update(choices=checkpoints, value=_same_or_first(checkpoint, checkpoints)),
        gr.update(choices=names, value=_same_or_first(endpoint, names)),
        line,
    )


def use_trained(
    text: str, checkpoint: str | None, endpoint: str | None
) -> tuple[Any, Any, Any, str]:
    """Switch the cloud on for what was trained, and choose it if it is a checkpoint."""
    kind, _, rest = text.partition(" ")
    name = rest.rpartition(" ")[0]
    wanted = name if kind == "checkpoint" else checkpoint
    return gr.update(value=True), *read_lists(wanted, endpoint)


def prefetch(enabled: bool, checkpoint: str | None, endpoint: str | None) -> None:
    """Let the cloud load the chosen checkpoint while the prompt is being written.

    Only a hint: what goes wrong is told when a picture is asked for.
    """
    name, _, remark = (checkpoint or "").partition(_APART)
    if not enabled or not name or remark:
        return
    try:
        client = host_access().client()
        for found in client.list_checkpoints([CheckpointState.ACTIVE], [_CHECKPOINT]):
            if name in found.names:
                chosen = "" if endpoint == ANY_ENDPOINT else name_of(endpoint)
                client.prefetch_checkpoint(found.id, chosen)
                return
    except CloudError as fault:
        logger.info("checkpoint %s not loaded ahead: %s", name, fault)


def read_lists_when(
    enabled: bool, checkpoint: str | None, endpoint: str | None
) -> tuple[Any, Any, Any]:
    """On turning the toggle on; turning it off asks nothing."""
    if not enabled:
        return gr.update(), gr.update(), gr.update()
    return read_lists(checkpoint, endpoint)


def checkpoint_labels(cloud: Sequence[Checkpoint], local: LocalModels) -> list[str]:
    """The cloud's file names, newest first, then what only this machine has, with its size."""
    here = {
        Need(_CHECKPOINT, file.names[0], file.sha256): file
        for file in local.of(_CHECKPOINT)
        if file.names
    }
    only_here = resolve(here, cloud, local).uploads
    return [
        *dict.fromkeys(name for checkpoint in cloud for name in checkpoint.names),
        *(
            f"{need.name}{_APART}{_HERE}{html.size(file.size)}"
            for need, file in here.items()
            if file in only_here
        ),
    ]


def endpoint_label(endpoint: Endpoint) -> str:
    """Its name, and its state while it takes no jobs; nothing for one that never will."""
    if endpoint.is_ready:
        return endpoint.name
    word = _ENDPOINT_WORDS.get(endpoint.state) if endpoint.state else None
    return f"{endpoint.name}{_APART}{word}" if word else ""


def name_of(label: str | None) -> str:
    """The name in a dropdown's label."""
    return (label or "").partition(_APART)[0]


def _same_or_first(current: str | None, labels: list[str]) -> str:
    """The label of the same thing, which may have changed its state; else the first."""
    return next((label for label in labels if name_of(label) == name_of(current)), [*labels, ""][0])


def show_uploads(checkpoint: str | None, upload_missing: bool, refused: str) -> tuple[Any, str]:
    """What would have to be uploaded, and the button for it; nothing when no one needs to ask.

    `refused` is what the last generation was refused with, while that stands on the page.
    """
    name, _, remark = (checkpoint or "").partition(_APART)
    files = refused.removeprefix(ONLY_HERE).partition(NOTHING_SENT)[0].strip()
    if not files and remark:
        files = f"{name} ({remark.removeprefix(_HERE)})."
    shown = bool(files) and not upload_missing
    line = html.notice("busy", (ONLY_HERE, html.Value(files))) if shown else ""
    return gr.update(visible=shown), line


def build_tab() -> list[tuple[gr.Blocks, str, str]]:
    """The Cloud tab, in the form that the WebUI wants."""
    access = host_access()
    with gr.Blocks(analytics_enabled=False) as blocks, gr.Tabs(selected=first_page(access)):
        build_pages(access, collect.WebUIHost())
    for control in blocks.blocks.values():
        # Else the WebUI keeps what a control showed first, an old server's URL too, and shows it
        # again after the next start.
        control.do_not_save_to_config = True
    return [(blocks, "Cloud", "sdaws_cloud")]


def _started(_demo: gr.Blocks, app: FastAPI) -> None:
    add_routes(app, host_access())
    host_access().uploads.take_up()
    host_access().dataset_uploads.take_up()


def register() -> None:
    """Hook into the host; the WebUI calls this again after each "Reload UI"."""
    interception.install(host_access())
    script_callbacks.on_ui_tabs(build_tab)
    script_callbacks.on_app_started(_started)
    script_callbacks.on_script_unloaded(interception.remove)
