"""The extension inside Forge's packages: gradio 4, pydantic 2. Run by `make check-forge`.

Imports are inside: the other environments collect this file too, and have no gradio or another.
"""

from __future__ import annotations

import asyncio
import importlib
from pathlib import Path
from types import SimpleNamespace

import pytest

# gradio 4 warns of what it does itself.
pytestmark = [pytest.mark.forge, pytest.mark.filterwarnings("ignore")]
DOUBLE = Path(__file__).parents[1] / "extension" / "webui_double"
PAGES = {"Connection", "Endpoints", "Models", "Jobs", "Merge", "Training"}


@pytest.fixture(scope="module")
def forge(tmp_path_factory):
    """The double of the WebUI's modules, with the extension loaded into it."""
    import gradio

    assert gradio.__version__ == "4.40.0"
    from aws_extension.access import CloudAccess
    from aws_extension.fake_transport import FakeTransport
    from aws_extension.settings import SettingsStore
    from tests.extension.pretend_cloud import TOKEN, PretendCloud
    from tests.forge.forge_events import take_js_by_its_old_name

    with pytest.MonkeyPatch.context() as monkeypatch:
        take_js_by_its_old_name(monkeypatch)
        monkeypatch.syspath_prepend(str(DOUBLE))
        panel = importlib.import_module("aws_extension.webui.panel")
        environ = {"SDAWS_API_URL": "http://cloud.test", "SDAWS_API_TOKEN": TOKEN}
        folder = tmp_path_factory.mktemp("forge")
        store = SettingsStore(environ, folder / ".config" / "connection.json")
        access = CloudAccess(store, FakeTransport(PretendCloud()))
        monkeypatch.setattr(panel, "host_access", lambda: access)
        callbacks = importlib.import_module("modules.script_callbacks")
        panel.register()
        yield SimpleNamespace(panel=panel, callbacks=callbacks, access=access)
        callbacks.script_unloaded_callback()


def test_the_tab_is_built_with_every_page(forge):
    ((blocks, title, _),) = forge.callbacks.ui_tabs[0]()
    assert title == "Cloud"
    components = blocks.get_config_file()["components"]
    tabs = {c["props"]["label"] for c in components if c["type"] == "tabitem"}
    assert tabs >= PAGES


@pytest.mark.parametrize("is_img2img", [False, True])
def test_the_panel_is_built(forge, is_img2img):
    import gradio as gr

    with gr.Blocks(analytics_enabled=False):
        controls = forge.panel.CloudPanel().ui(is_img2img=is_img2img)
    assert [control.value for control in controls][:1] == [False]


def test_a_users_request_is_read_as_gradio_4_hands_it_on(forge):
    import gradio as gr
    from starlette.requests import Request

    from aws_extension.pages.common import BROWSER_COOKIE, user_of

    cookie = f"{BROWSER_COOKIE}={'0123456789abcdef' * 2}".encode()
    scope = {"type": "http", "headers": [(b"cookie", cookie)]}
    assert user_of(gr.Request(Request(scope))).startswith("browser-")
    assert user_of(gr.Request(Request(scope), username="alice")) == "user-alice"


def test_the_routes_answer(forge):
    import httpx
    from fastapi import FastAPI

    from aws_extension.pages import links

    app = FastAPI()
    forge.callbacks.started[0](None, app)
    watch = links.watch(forge.access, "endpoints", "", {})

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://forge") as client:
            return await client.get(watch)

    answer = asyncio.run(ask())
    assert answer.status_code == 200
    assert [card["key"] for card in answer.json()["cards"]] == ["d-pretend-1"]
