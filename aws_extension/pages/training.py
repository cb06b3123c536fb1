"""Page: a checkpoint and pictures become a LoRA, or another checkpoint, in the cloud."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from aws_extension.access import CloudAccess
from aws_extension.dataset_folder import pictures_in
from aws_extension.dreambooth_settings import read_settings, saved_settings
from aws_extension.errors import CloudError, UploadFailed
from aws_extension.pages import html, links, training_form
from aws_extension.pages.common import shown_to_user, user_of
from aws_extension.pages.endpoints import instance_type, offered_machines
from aws_extension.pages.html import Value
from aws_extension.pages.training_choices import (
    Known,
    find_bases,
    find_measured,
    show_import,
    tell,
)
from aws_extension.pages.training_form import NO_DATASET, Form, Read, read_form
from aws_extension.pages.training_view import MODELS_ORDER as MODELS_ORDER
from aws_extension.pages.training_view import ORDER, show_list, show_models, show_one
from aws_extension.train_estimates import Estimate, estimate, size_of
from aws_extension.train_preparation import TrainOrder
from middleware_api.contract import (
    CheckpointType,
    DatasetState,
    TrainState,
)
from middleware_api.training_fields import BadSetting, read_request

PANELS = "sdaws-panels"
READ, READ_ONE, READ_MODELS = (
    "sdaws_training_read", "sdaws_training_one_read", "sdaws_training_models_read",
)  # fmt: skip
JOBS_PER_PAGE = 12
_KIND = CheckpointType.STABLE_DIFFUSION


def read_page(access: CloudAccess, user: str, query: Mapping[str, str]) -> html.Listing:
    """What is being prepared, and one page of the user's jobs. Raises CloudError."""
    jobs, _ = access.glance(user).training.page(JOBS_PER_PAGE, query["cursor"])
    return show_list(access.preparations.of(user) if not query["cursor"] else (), jobs)


def read_one(access: CloudAccess, user: str, query: Mapping[str, str]) -> html.Listing:
    """One job of the user's. Raises CloudError."""
    return show_one(access, access.glance(user).training.look(query["id"]), user)


def read_models(access: CloudAccess, user: str, query: Mapping[str, str]) -> html.Listing:
    """The user's working models. Raises CloudError."""
    client = access.glance(user)
    names = {one.id: one.names[0] for one in client.list_checkpoints((), [_KIND]) if one.names}
    return show_models(client.training.list_models(), names)


def build(access: CloudAccess) -> None:
    """Lay the page out; sdaws.js has it read its lists when it is opened."""
    known, imported, opened = gr.State(Known()), gr.State({}), gr.State("")
    pictures = gr.State(0)
    message = gr.HTML(elem_id="sdaws_training_message")
    with gr.Column() as overview:
        with gr.Accordion("Train", open=True, elem_id="sdaws_training_form"):
            with gr.Row():
                base = gr.Dropdown(
                    [],
                    label="Checkpoint to train",
                    info="One of this machine is uploaded first",
                    elem_id="sdaws_training_base",
                    scale=2,
                )
                offers = offered_machines(access.is_local_server())
                machine = gr.Dropdown(
                    offers, value=offers[0], label="Machine", allow_custom_value=True,
                    elem_id="sdaws_training_machine", scale=2,
                )  # fmt: skip
            with gr.Tabs():
                concepts = training_form.build_concepts()
            form = training_form.build_settings(concepts)
            with gr.Accordion("Settings of the Dreambooth extension", open=False) as importing:
                gr.HTML(html.words("All settings of its db_config.json are taken over."))
                with gr.Row():
                    saved = gr.Dropdown(
                        [], label="Its model on this machine", elem_id="sdaws_training_saved"
                    )
                    file = gr.Textbox(
                        label="Or the path of a db_config.json",
                        placeholder="models/dreambooth/…/db_config.json",
                        max_lines=1,
                        elem_id="sdaws_training_file",
                    )
                    take = gr.Button(
                        "Take over", elem_id="sdaws_training_take", elem_classes=["sdaws-small"]
                    )
                judged = gr.HTML(elem_id="sdaws_training_judged")
            told = gr.HTML(tell(Estimate(0, None, None, False), 0), elem_id="sdaws_training_told")
            train = gr.Button("Train", variant="primary", elem_id="sdaws_training_start")
        listing = gr.HTML(html.unread(READ, PANELS), elem_id="sdaws_trainings")
        with gr.Row():
            newest = gr.Button("Newest", elem_classes=["sdaws-small"], size="sm")
            older = gr.Button("Older", elem_classes=["sdaws-small"], size="sm", interactive=False)
        with gr.Accordion("Models made of checkpoints", open=False):
            models = gr.HTML(html.unread(READ_MODELS, PANELS), elem_id="sdaws_training_models")
    with gr.Column(visible=False) as close_up:
        back = gr.Button(
            "Back", elem_id="sdaws_training_back", elem_classes=["sdaws-back"], size="sm"
        )
        detail = gr.HTML(elem_id="sdaws_training_detail")
    gr.HTML(html.dreambooth_button(), elem_classes=["sdaws-away"])
    with gr.Row(elem_classes=["sdaws-away"]):
        order = gr.Textbox(label="Order", elem_id=ORDER)
        models_order = gr.Textbox(label="Order", elem_id=MODELS_ORDER)
        wanted = gr.Textbox(label="Take over", elem_id="sdaws_training_wanted")
        read = gr.Button("Read", elem_id=READ)
        read_near = gr.Button("Read", elem_id=READ_ONE)
        read_bases = gr.Button("Read", elem_id=READ_MODELS)
    page = _Page(access, form)
    lists = [dataset for dataset, *_ in concepts]
    outputs = [listing, known, base, saved, older, *lists]
    read.click(page.lists, [known, base, saved, *lists], outputs, show_progress="hidden")
    newest.click(page.lists, [known, base, saved, *lists], outputs, show_progress="hidden")
    older.click(page.older, known, [listing, known, older], show_progress="hidden")
    read_bases.click(page.models, None, models, show_progress="hidden")
    read_near.click(page.near, opened, detail, show_progress="hidden")
    places = [control for dataset, folder, *_ in concepts for control in (dataset, folder)]
    reckoned = [known, pictures, machine, imported, *form.controls]
    for control in places:
        control.change(page.count, places, pictures, show_progress="hidden").then(
            page.reckon, reckoned, told, show_progress="hidden"
        )
    form.kind.input(
        training_form.rates_of,
        form.kind,
        [form.rate, form.text_rate, form.rank],
        show_progress="hidden",
    )
    moving = [form.kind, machine, *form.plain, *(concept[4] for concept in concepts)]
    for control in moving:
        control.change(page.reckon, reckoned, told, show_progress="hidden")
    filled = [imported, judged, message, base, *form.controls]
    take.click(page.take, [known, saved, file], filled)
    wanted.input(page.take_wanted, [known, wanted], [*filled, wanted, saved, importing])
    train.click(page.train, [known, base, machine, imported, *form.controls], [message, listing])
    seen = [message, overview, close_up, detail, opened, order]
    order.input(page.obey, order, seen, show_progress="hidden")
    models_order.input(
        page.obey_models, models_order, [message, models, models_order], show_progress="hidden"
    )
    back.click(
        lambda: ("", gr.update(visible=True), gr.update(visible=False), "", "", ""),
        None,
        seen,
        show_progress="hidden",
    )


@dataclass(frozen=True)
class _Page:
    """What the page's controls do."""

    access: CloudAccess
    form: Form

    def lists(
        self,
        request: gr.Request,
        known: Known,
        base: str | None,
        saved: str | None,
        *chosen: str | None,
    ) -> tuple[Any, ...]:
        """Everything that the page offers, and its newest jobs."""
        configs = list(saved_settings(self.access.local_models().dreambooth_folder))
        try:
            user = user_of(request)
            client = self.access.glance(user)
            bases = find_bases(self.access, client)
            jobs, following = client.training.page(JOBS_PER_PAGE)
            known = Known(bases, find_measured(client, jobs), following)
            names = [d.name for d in client.datasets.all([DatasetState.ENABLED])]
            shown = show_list(self.access.preparations.of(user), jobs)
            watch = links.watch(self.access, "trainings", user, {"cursor": ""})
        except CloudError as fault:
            shown, watch, names = html.failed(fault), "", []
        offered = [NO_DATASET, *names]
        return (
            html.listing(shown, READ, watch, PANELS),
            known,
            _offer(list(known.bases), base),
            _offer(configs, saved),
            gr.update(interactive=bool(known.following)),
            *(_offer(offered, one) for one in chosen),
        )

    def older(self, known: Known, request: gr.Request) -> tuple[Any, ...]:
        """The next page of jobs."""
        with shown_to_user():
            user = user_of(request)
            query = {"cursor": known.following}
            jobs, following = self.access.glance(user).training.page(JOBS_PER_PAGE, known.following)
            watch = links.watch(self.access, "trainings", user, query)
        shown = html.listing(show_list((), jobs), READ, watch, PANELS)
        known = Known(known.bases, known.measured, following)
        return shown, known, gr.update(interactive=bool(following))

    def models(self, request: gr.Request) -> str:
        """The working models."""
        watch = ""
        try:
            user = user_of(request)
            watch = links.watch(self.access, "training_models", user, {})
            shown = read_models(self.access, user, {})
        except CloudError as fault:
            shown = html.failed(fault)
        return html.listing(shown, READ_MODELS, watch, PANELS)

    def near(self, job_id: str, request: gr.Request) -> str:
        """The opened job."""
        if not job_id:
            return ""
        with shown_to_user():
            return self._open(job_id, user_of(request))

    def _open(self, job_id: str, user: str) -> str:
        query = {"id": job_id}
        shown = read_one(self.access, user, query)
        watch = links.watch(self.access, "training", user, query) if shown.is_busy else ""
        return html.listing(shown, READ_ONE, watch, kind="sdaws-single")

    def count(self, request: gr.Request, *places: str) -> int:
        """Pictures in all chosen data sets and folders; those that cannot be read count none."""
        found = 0
        for dataset, folder in zip(places[::2], places[1::2]):  # noqa: B905 - they are pairs
            try:
                if folder.strip():
                    found += len(pictures_in(Path(folder.strip()).expanduser()))
                elif dataset:
                    files = self.access.glance(user_of(request)).datasets.files(dataset)
                    found += sum(not file.name.lower().endswith(".txt") for file in files)
            except CloudError:
                continue  # said when it is sent
        return found

    def reckon(
        self, known: Known, pictures: int, offer: str | None, imported: Mapping[str, Any],
        *values: Any,
    ) -> str:  # fmt: skip
        """How long and how dear."""
        read = read_form(values, imported)
        config = {**read.config, "concepts_list": list(read.concepts)}
        machine = instance_type(offer or "")
        size = size_of(config, pictures)
        return tell(estimate(size, machine, known.measured.get(machine)), pictures)

    def take(self, known: Known, saved: str | None, file: str) -> tuple[Any, ...]:
        """Read the extension's settings into the form."""
        with shown_to_user():
            path = Path(file.strip()).expanduser() if file.strip() else self._saved(saved)
            config = read_settings(path)
        said = html.notice("good", ("Settings taken over from", Value(str(path))))
        base = gr.update()
        source = Path(str(config.get("src") or "")).name
        for label, one in known.bases.items():
            if source and (label == source or (one.path and one.path.name == source)):
                base = gr.update(value=label)
        return config, show_import(config), said, base, *training_form.fill(config)

    def take_wanted(self, known: Known, wanted: str) -> tuple[Any, ...]:
        """The same for a model that the Dreambooth extension's own tab names."""
        taken = self.take(known, wanted, "")
        names = list(saved_settings(self.access.local_models().dreambooth_folder))
        return *taken, "", gr.update(choices=names, value=wanted), gr.update(open=True)

    def _saved(self, name: str | None) -> Path:
        found = saved_settings(self.access.local_models().dreambooth_folder)
        if name not in found:
            raise UploadFailed(
                f"The Dreambooth extension has saved no settings for '{name or ''}' here. Press "
                "its “Save Settings” first, or enter the path of a db_config.json."
            )
        return found[str(name)]

    def train(
        self,
        request: gr.Request,
        known: Known,
        label: str | None,
        offer: str | None,
        imported: Mapping[str, Any],
        *values: Any,
    ) -> tuple[str, str]:
        """Begin: what has to be uploaded or made first is."""
        base = known.bases.get(label or "")
        if base is None:
            raise gr.Error("Choose a checkpoint to train first.")
        read = read_form(values, imported)
        _require(read)
        order = TrainOrder(
            model_name=base.name[:200],
            instance_type=instance_type(offer or ""),
            config={"model_name": base.name, **read.config},
            concepts=read.concepts,
            model_id=base.model_id,
            checkpoint_id=base.checkpoint_id,
            path=base.path,
        )
        with shown_to_user():
            user = user_of(request)
            for place in read.folders:
                if not place.startswith("s3://") and not pictures_in(Path(place).expanduser()):
                    raise UploadFailed(f"There are no pictures in '{place}'. Check the folder.")
            self.access.preparations.begin(order, user)
            shown = read_page(self.access, user, {"cursor": ""})
            watch = links.watch(self.access, "trainings", user, {"cursor": ""})
        said = html.notice("good", "It is being prepared: this page may be closed.")
        return said, html.listing(shown, READ, watch, PANELS)

    def obey(self, text: str, request: gr.Request) -> tuple[Any, ...]:
        """An order of the list's or the job's own buttons."""
        act, _, thing = text.partition(" ")
        if not thing:
            return tuple(gr.update() for _ in range(6))
        said = ""
        with shown_to_user():
            user = user_of(request)
            calls = self.access.client(user).training
            if act == "forget":
                self.access.preparations.cancel(thing, user)
                return "", gr.update(), gr.update(), gr.update(), gr.update(), ""
            if act == "stop":
                calls.set_state(thing, TrainState.STOPPED)
                said = html.notice("busy", "It saves what it has learned, and stops.")
            elif act == "start":
                calls.set_state(thing, TrainState.TRAINING)
            elif act == "delete":
                calls.delete(thing)
                said = html.notice("idle", "Deleted. The checkpoint that came of it stays.")
                return said, gr.update(visible=True), gr.update(visible=False), "", "", ""
            shown = self._open(thing, user)
        return said, gr.update(visible=False), gr.update(visible=True), shown, thing, ""

    def obey_models(self, text: str, request: gr.Request) -> tuple[Any, ...]:
        """An order of the models' own buttons."""
        act, _, model_id = text.partition(" ")
        if act != "delete":
            return gr.update(), gr.update(), ""
        with shown_to_user():
            self.access.client(user_of(request)).training.delete_model(model_id)
        return html.notice("idle", "Deleted."), self.models(request), ""


def _offer(choices: list[str], current: str | None) -> Any:
    """What is chosen stays untouched: it may have changed since this was asked for."""
    if current in choices:
        return gr.update(choices=choices)
    return gr.update(choices=choices, value=choices[0] if choices else None)


def _require(read: Read) -> None:
    """Raises gradio's Error for what the program would refuse."""
    if not read.concepts:
        raise gr.Error("Choose a data set, or enter a folder of pictures, first.")
    try:
        read_request({"config_params": {**read.config, "concepts_list": list(read.concepts)}})
    except BadSetting as fault:
        raise gr.Error(str(fault)) from fault
