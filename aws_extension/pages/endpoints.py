"""Page: the machines that make pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

import gradio as gr

from aws_extension.access import CloudAccess
from aws_extension.answers import Endpoint
from aws_extension.client import Autoscaling
from aws_extension.errors import CloudError
from aws_extension.pages import html, links
from aws_extension.pages.common import shown_to_user
from aws_extension.pages.html import Value
from middleware_api import prices
from middleware_api.contract import INSTANCE_COUNT_MAX, EndpointState, EngineName

PANELS = "sdaws-panels"
READ, ORDER = "sdaws_endpoints_read", "sdaws_endpoints_order"
LOCAL = "local"
# What is offered: the embedded server's own process, and rented GPUs, cheapest first.
MACHINES = {
    LOCAL: "this server itself",
    "ml.g4dn.xlarge": "T4, 16 GB",
    "ml.g4dn.2xlarge": "T4, 16 GB, more memory",
    "ml.g6.xlarge": "L4, 24 GB",
    "ml.g5.xlarge": "A10G, 24 GB",
    "ml.g5.2xlarge": "A10G, 24 GB, more memory",
    "ml.g5.12xlarge": "4 × A10G, 96 GB",
}
_STATES: dict[EndpointState | None, tuple[html.Kind, str]] = {
    EndpointState.IN_SERVICE: ("good", "Ready"),
    EndpointState.CREATING: ("busy", "Starting"),
    EndpointState.UPDATING: ("busy", "Changing"),
    EndpointState.DELETING: ("busy", "Stopping"),
    EndpointState.FAILED: ("bad", "Failed"),
    None: ("bad", "Failed"),
}
_BUSY = (EndpointState.CREATING, EndpointState.UPDATING, EndpointState.DELETING)


def read_all(access: CloudAccess, user: str, query: Mapping[str, str]) -> html.Listing:
    """Everybody's endpoints: they are shared. Raises CloudError."""
    return show(access.glance().list_endpoints(), datetime.now(timezone.utc))


def show(endpoints: list[Endpoint], now: datetime) -> html.Listing:
    """The endpoints as cards, gone ones left out."""
    alive = [e for e in endpoints if e.state is not EndpointState.DELETED]
    if not alive:
        why = "No endpoint yet. Create one below: it makes the pictures."
        return html.Listing(note=html.notice("idle", why))
    return html.Listing(
        tuple(html.Card(e.deployment_id, _card(e, now)) for e in alive),
        is_busy=any(e.state in _BUSY for e in alive),
    )


def _card(endpoint: Endpoint, now: datetime) -> str:
    kind, word = _STATES[endpoint.state]
    sleeps = endpoint.is_ready and endpoint.autoscaling and endpoint.instance_count == 0
    if sleeps:
        kind, word = "idle", "Asleep"
    name = endpoint.name or endpoint.deployment_id
    parts = [
        f"<div class='sdaws-line'><span class='sdaws-value sdaws-title'>{html.escape(name)}</span>"
        f"{html.badge(kind, word)}</div>"
    ]
    if endpoint.state is EndpointState.CREATING:
        parts.append(html.endless_bar(_wait_of(endpoint)))
    elif endpoint.state in _BUSY:
        parts.append(html.endless_bar("Under way…"))
    elif sleeps:
        told = html.words("It wakes for the next job, and costs nothing until then.")
        parts.append(f"<div class='sdaws-dim'>{told}</div>")
    if endpoint.error:
        parts.append(html.notice("bad", Value(endpoint.error)))
    parts.append(html.facts(*_facts(endpoint, now)))
    if endpoint.name and endpoint.state is not EndpointState.DELETING:
        parts.append(f"<div class='sdaws-buttons'>{html.ask_button('Delete…')}</div>")
        asked = ("Delete", Value(f"“{name}”?"), "Its running jobs stop, and so does its cost.")
        parts.append(html.question(asked, "Yes, delete it", ORDER, f"delete {name}"))
    return f"<div class='sdaws-panel sdaws-askable'>{''.join(parts)}</div>"


def _wait_of(endpoint: Endpoint) -> str:
    if endpoint.instance_type == LOCAL:
        return "The worker is starting, a few seconds."
    return "A machine is being rented and its program started: 5 to 10 minutes."


def _facts(endpoint: Endpoint, now: datetime) -> list[tuple[str, html.Part]]:
    count = str(endpoint.instance_count)
    if endpoint.autoscaling:
        count += f" ({endpoint.min_instances}–{endpoint.max_instances})"
    age = (now - endpoint.started_at).total_seconds() if endpoint.started_at else None
    engine = " · ".join(part for part in (endpoint.engine, endpoint.webui_url) if part)
    return [
        *([("Engine", Value(engine))] if engine else []),
        ("Machine", Value(endpoint.instance_type or "–")),
        ("How many now", Value(count)),
        ("Price an hour, each", _sum(endpoint.price_per_hour)),
        ("Cost since its start", _sum(endpoint.cost_since_start)),
        ("Age", Value("–" if age is None else _age(age))),
    ]


def _age(seconds: float) -> str:
    # Whole minutes: a card that changes each second would be sent each second.
    return html.duration(max(0.0, seconds) // 60 * 60) if seconds >= 60 else "< 1 min"


def _sum(dollars: float | None) -> html.Part:
    if dollars is None:
        return "not known"
    return "nothing" if dollars == 0 else Value(html.money(dollars))


def offered_machines(is_local_server: bool) -> list[str]:
    """What the form offers, the server's own process first where the server is on this machine."""
    names = list(MACHINES)
    if not is_local_server:
        names.append(names.pop(0))
    return [_offer(name) for name in names]


def _offer(name: str) -> str:
    price = prices.price_per_hour(name)
    costs = [] if price is None else [f"{html.money(price)} an hour" if price else "costs nothing"]
    return " · ".join([name, MACHINES[name], *costs])


def instance_type(offer: str) -> str:
    """The machine of a choice, or of what someone typed instead."""
    return offer.split(" · ")[0].strip()


@dataclass(frozen=True)
class Order:
    """What the form asks for."""

    offer: str
    count: int
    scales: bool
    at_least: int
    at_most: int
    engine: EngineName = EngineName.DIFFUSERS
    webui_url: str = ""

    @property
    def has_address(self) -> bool:
        """Whether it works with a WebUI that runs already: on one machine it does."""
        return self.engine is EngineName.WEBUI and instance_type(self.offer) == LOCAL

    @property
    def autoscaling(self) -> Autoscaling | None:
        """None where the number of instances is fixed, as it always is on one machine."""
        if not self.scales or instance_type(self.offer) == LOCAL:
            return None
        return Autoscaling(self.at_least, max(self.at_least, self.at_most))

    @property
    def first_count(self) -> int:
        """Instances to begin with."""
        scaling = self.autoscaling
        return self.count if scaling is None else max(1, scaling.at_least)


def idle_cost(order: Order) -> str:
    """What it costs while nobody asks for pictures, in one line."""
    scaling = order.autoscaling
    price = prices.price_per_hour(instance_type(order.offer))
    if price == 0:
        return html.words("It costs nothing: the pictures are made by the server's own machine.")
    count = order.count if scaling is None else scaling.at_least
    if count == 0:
        return html.words(
            "Idle, it costs nothing: after 15 minutes without work it goes to sleep. The next job "
            "then waits 5 to 10 minutes for a machine."
        )
    if price is None:
        return html.words("Idle, it costs its machines' full price; this page does not know it.")
    hourly = price * count
    return html.words(
        "Idle, it costs its machines' full price:",
        Value(f"{html.money(hourly)} / h, {html.money(hourly * 24)} / 24 h."),
        "Delete it when you are done.",
    )


def build(access: CloudAccess) -> None:
    """Lay the page out; sdaws.js has it read its list when it is opened."""
    gr.Markdown("An endpoint is one or more machines that make pictures. Running, they cost money.")
    message = gr.HTML(elem_id="sdaws_endpoints_message")
    listing = gr.HTML(html.unread(READ, PANELS), elem_id="sdaws_endpoints")
    offers = offered_machines(access.is_local_server())
    first = Order(offers[0], 1, True, 0, 1)
    with gr.Accordion("Create an endpoint", open=True):
        with gr.Row():
            machine = gr.Dropdown(
                offers,
                value=offers[0],
                label="Machine",
                info="More graphics memory: larger pictures",
                allow_custom_value=True,
                elem_id="sdaws_machine",
                scale=2,
            )
            name = gr.Textbox(
                label="Name",
                placeholder="optional: one is made up",
                info="What lists will call it",
                elem_id="sdaws_endpoint_name",
                max_lines=1,
            )
        with gr.Row():
            engine = gr.Dropdown(
                [each.value for each in EngineName],
                value=first.engine.value,
                label="Engine",
                info="diffusers is light and fast; webui is a WebUI, with its extensions",
                elem_id="sdaws_engine",
            )
            webui_url = gr.Textbox(
                label="Address of the WebUI",
                placeholder="http://127.0.0.1:7860",
                info="Started with --api; as the server reaches it",
                visible=first.has_address,
                elem_id="sdaws_webui_url",
                max_lines=1,
            )
        scales = gr.Checkbox(
            True,
            label="Follow the work, and scale to zero when idle",
            visible=first.autoscaling is not None,
            elem_id="sdaws_scales",
        )
        with gr.Row():
            count = gr.Slider(
                1, INSTANCE_COUNT_MAX, value=1, step=1, label="How many machines",
                visible=first.autoscaling is None, elem_id="sdaws_count",
            )  # fmt: skip
            at_least = gr.Slider(
                0, INSTANCE_COUNT_MAX, value=0, step=1, label="At least", info="0: it may sleep",
                visible=first.autoscaling is not None,
            )  # fmt: skip
            at_most = gr.Slider(
                1, INSTANCE_COUNT_MAX, value=1, step=1, label="At most", info="When much waits",
                visible=first.autoscaling is not None,
            )  # fmt: skip
        cost = gr.HTML(idle_cost(first), elem_id="sdaws_idle_cost")
        create = gr.Button("Create", variant="primary", elem_id="sdaws_create_endpoint")
        gr.HTML(
            "<div class='sdaws-dim'>"
            + html.words(
                "Prices: US dollars before tax, on demand, as listed for",
                Value(f"{prices.PRICES_REGION}, {prices.PRICES_DATE}."),
                "Your region's may differ.",
            )
            + "</div>"
        )
    with gr.Row(elem_classes=["sdaws-away"]):
        order = gr.Textbox(label="Order", elem_id=ORDER)
        read = gr.Button("Read", elem_id=READ)

    def list_endpoints() -> str:
        try:
            shown = read_all(access, "", {})
        except CloudError as fault:
            shown = html.failed(fault)
        return html.listing(shown, READ, links.watch(access, "endpoints", "", {}), PANELS)

    def fit(*form: Any) -> tuple[Any, ...]:
        wanted = _order(*form)
        is_local = instance_type(wanted.offer) == LOCAL
        bounds = gr.update(visible=wanted.autoscaling is not None)
        return (
            gr.update(visible=not is_local),
            gr.update(visible=wanted.autoscaling is None),
            bounds,
            bounds,
            idle_cost(wanted),
            gr.update(visible=wanted.has_address),
        )

    def create_one(wanted_name: str, *form: Any) -> tuple[str, str, str]:
        wanted = _order(*form)
        with shown_to_user():
            made = access.client().create_endpoint(
                instance_type(wanted.offer),
                wanted.first_count,
                wanted_name.strip(),
                wanted.autoscaling,
                wanted.engine,
                wanted.webui_url if wanted.has_address else "",
            )
        said = html.notice(
            "good", ("Starting:", Value(made.name)), "It takes jobs as soon as it is ready."
        )
        return said, list_endpoints(), ""

    def obey(text: str) -> tuple[Any, Any, str]:
        act, _, endpoint_name = text.partition(" ")
        if act != "delete":
            return gr.update(), gr.update(), ""
        with shown_to_user():
            access.client().delete_endpoints([endpoint_name])
        return html.notice("idle", ("Being deleted:", Value(endpoint_name))), list_endpoints(), ""

    form = [machine, count, scales, at_least, at_most, engine, webui_url]
    shown = [scales, count, at_least, at_most, cost, webui_url]
    for control in form[:-1]:
        control.change(fit, form, shown, show_progress="hidden")
    read.click(list_endpoints, None, listing, show_progress="hidden")
    create.click(create_one, [name, *form], [message, listing, name])
    order.input(obey, order, [message, listing, order], show_progress="hidden")


def _order(
    offer: str | None,
    count: float,
    scales: bool,
    least: float,
    most: float,
    engine: str,
    webui_url: str,
) -> Order:
    bounds = (int(least), int(most))
    return Order(offer or LOCAL, int(count), scales, *bounds, EngineName(engine), webui_url.strip())
