"""Page of the stand-alone app: a small txt2img and img2img form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr
from PIL import Image

from aws_extension.access import CloudAccess
from aws_extension.client import CloudClient, WaitStatus
from aws_extension.errors import CloudError
from aws_extension.pages import html
from aws_extension.pages.common import (
    ANY_ENDPOINT,
    checkpoint_choices,
    endpoint_choices,
    keep_or_first,
    shown_to_user,
    user_of,
)
from aws_extension.pages.html import Value
from aws_extension.pictures import encode_picture, open_picture
from middleware_api.contract import CheckpointType, InferenceState, TaskType

SAMPLERS = [
    "Euler",
    "Euler a",
    "DPM++ 2M",
    "DPM++ SDE",
    "Heun",
    "LMS",
    "DDIM",
]
# The repository's demo checkpoint was trained on pictures of this size, in pixels.
DEMO_PREFIX, DEMO_SIZE = "demo", 64


@dataclass(frozen=True)
class Form:
    """What the user filled in, in the order of the form's controls."""

    prompt: str
    negative_prompt: str
    checkpoint: str
    endpoint: str
    sampler: str
    steps: float
    cfg_scale: float
    width: float
    height: float
    n_iter: float
    batch_size: float
    seed: float | None
    start: Image.Image | None
    denoising_strength: float

    @property
    def task(self) -> TaskType:
        """A picture to start from makes it img2img."""
        return TaskType.TXT2IMG if self.start is None else TaskType.IMG2IMG

    def fields(self) -> dict[str, Any]:
        """The WebUI API's fields."""
        fields: dict[str, Any] = {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "sampler_name": self.sampler,
            "steps": int(self.steps),
            "cfg_scale": self.cfg_scale,
            "width": int(self.width),
            "height": int(self.height),
            "n_iter": int(self.n_iter),
            "batch_size": int(self.batch_size),
            "seed": -1 if self.seed is None else int(self.seed),
        }
        if self.start is not None:
            fields["init_images"] = [encode_picture(self.start)]
            fields["denoising_strength"] = self.denoising_strength
        return fields


@dataclass(frozen=True)
class Shown:
    """What one step of a generation changes on the page; None leaves a part as it is."""

    job_id: str
    status: str
    preview: Image.Image | None = None
    pictures: list[Image.Image] | None = None
    infotexts: tuple[str, ...] = ()


def generate(client: CloudClient, form: Form) -> Iterator[Shown]:
    """Submit the form and follow its job to its pictures."""
    submission = client.submit(
        form.task,
        {CheckpointType.STABLE_DIFFUSION: [form.checkpoint]},
        form.fields(),
        "" if form.endpoint == ANY_ENDPOINT else form.endpoint,
    )
    yield Shown(submission.job_id, html.bar(0, "Sent…"))
    status: WaitStatus | None = None
    for status in client.watch(submission.job_id):
        line = html.bar(status.job.progress, Value(status.describe()))
        yield Shown(submission.job_id, line, _preview(client, status))
    if status is None or status.job.state is InferenceState.CANCELLED:
        yield Shown("", html.notice("idle", "Cancelled."))
        return
    pictures = [open_picture(content) for content in client.download_images(submission.job_id)]
    output = client.get_output(submission.job_id)
    for picture, text in zip(pictures, output.infotexts):  # noqa: B905 - fewer texts is no harm
        picture.info.setdefault("parameters", text)
    made = (
        "Pictures made:",
        Value(str(len(pictures))),
        "Endpoint",
        Value(submission.endpoint_name),
    )
    kind: html.Kind = "busy" if output.warnings else "good"
    line = html.notice(kind, made, *map(Value, output.warnings))
    yield Shown("", line, None, pictures, output.infotexts)


def _preview(client: CloudClient, status: WaitStatus) -> Image.Image | None:
    if not status.job.preview_url or status.job.is_final:
        return None
    try:
        return open_picture(client.download(status.job.preview_url))
    except CloudError:
        return None  # replaced while it was read: the next poll has another


def build(access: CloudAccess, blocks: gr.Blocks) -> None:
    """Lay the page out; its dropdowns are filled when the page is loaded."""
    job_id, infotexts = gr.State(""), gr.State(())
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            prompt = gr.Textbox(
                label="Prompt",
                lines=3,
                placeholder="a big red circle on a blue background",
                elem_id="sdaws_prompt",
            )
            negative = gr.Textbox(label="Negative prompt", lines=1)
            with gr.Row():
                checkpoint = gr.Dropdown([], label="Checkpoint", elem_id="sdaws_checkpoint")
                endpoint = gr.Dropdown([ANY_ENDPOINT], value=ANY_ENDPOINT, label="Endpoint")
            reload = gr.Button("Refresh the lists", size="sm", elem_id="sdaws_lists")
            # On the page, but out of sight: sdaws.js writes what was trained.
            use = gr.Textbox(label="Use", elem_id="sdaws_use", elem_classes=["sdaws-away"])
            with gr.Row():
                sampler = gr.Dropdown(SAMPLERS, value=SAMPLERS[0], label="Sampler")
                seed = gr.Number(-1, precision=0, label="Seed (-1: another each time)")
            with gr.Row():
                steps = gr.Slider(1, 100, value=20, step=1, label="Steps")
                cfg = gr.Slider(1, 20, value=7, step=0.5, label="CFG scale")
            with gr.Row():
                width = gr.Slider(64, 2048, value=512, step=8, label="Width", elem_id="sdaws_width")
                height = gr.Slider(
                    64, 2048, value=512, step=8, label="Height", elem_id="sdaws_height"
                )
            with gr.Row():
                count = gr.Slider(1, 16, value=1, step=1, label="Batch count")
                batch = gr.Slider(1, 8, value=4, step=1, label="Batch size")
            with gr.Accordion("Start from a picture (img2img)", open=False):
                start = gr.Image(label="Picture", type="pil", height=220)
                strength = gr.Slider(0, 1, value=0.75, step=0.05, label="Denoising strength")
        with gr.Column(scale=6, min_width=320):
            with gr.Row():
                go = gr.Button("Generate", variant="primary", elem_id="sdaws_generate")
                cancel = gr.Button("Cancel", elem_id="sdaws_cancel")
            status = gr.HTML(elem_id="sdaws_status")
            preview = gr.Image(
                label="Preview",
                visible=False,
                height=240,
                elem_id="sdaws_preview",
                show_download_button=False,
            )
            gallery = gr.Gallery(
                label="Pictures",
                columns=2,
                object_fit="contain",
                height="auto",
                elem_id="sdaws_gallery",
            )
            infotext = gr.Textbox(
                label="Infotext",
                lines=4,
                interactive=False,
                show_copy_button=True,
                elem_id="sdaws_infotext",
            )

    def run(request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        form = Form(*values)
        if not form.checkpoint:
            raise gr.Error(
                "Choose a checkpoint first. Is the list empty? Upload one on the Models page."
            )
        with shown_to_user():
            for shown in generate(access.client(user_of(request)), form):
                yield (
                    shown.job_id,
                    shown.status,
                    gr.update(value=shown.preview, visible=True)
                    if shown.preview
                    else gr.update(visible=False)
                    if not shown.job_id
                    else gr.update(),
                    gr.update() if shown.pictures is None else shown.pictures,
                    shown.infotexts,
                    shown.infotexts[0] if shown.infotexts else "",
                )

    def stop(running: str, request: gr.Request) -> None:
        if running:
            with shown_to_user():
                access.client(user_of(request)).cancel_job(running)

    def lists(chosen: str | None, place: str | None) -> tuple[Any, Any]:
        try:
            client = access.client()
            checkpoints, endpoints = checkpoint_choices(client), endpoint_choices(client)
        except CloudError as fault:
            gr.Warning(str(fault))
            return gr.update(), gr.update()
        return (
            gr.update(choices=checkpoints, value=keep_or_first(chosen, checkpoints)),
            gr.update(choices=endpoints, value=keep_or_first(place, endpoints)),
        )

    def use_trained(text: str, chosen: str | None, place: str | None) -> tuple[Any, Any]:
        kind, _, rest = text.partition(" ")
        return lists(rest.rpartition(" ")[0] if kind == "checkpoint" else chosen, place)

    def fit_size(name: str | None) -> tuple[Any, Any]:
        if name and name.startswith(DEMO_PREFIX):
            return gr.update(value=DEMO_SIZE), gr.update(value=DEMO_SIZE)
        return gr.update(), gr.update()

    def select(texts: tuple[str, ...], event: gr.SelectData) -> str:
        index = event.index if isinstance(event.index, int) else 0
        return texts[index] if index < len(texts) else ""

    form = [
        prompt, negative, checkpoint, endpoint, sampler, steps, cfg, width, height, count, batch,
        seed, start, strength,
    ]  # fmt: skip
    go.click(
        run,
        form,
        [job_id, status, preview, gallery, infotexts, infotext],
        show_progress="hidden",
    )
    cancel.click(stop, job_id, None, queue=False)
    blocks.load(lists, [checkpoint, endpoint], [checkpoint, endpoint])
    reload.click(lists, [checkpoint, endpoint], [checkpoint, endpoint])
    use.input(use_trained, [use, checkpoint, endpoint], [checkpoint, endpoint])
    checkpoint.change(fit_size, checkpoint, [width, height])
    gallery.select(select, infotexts, infotext)
