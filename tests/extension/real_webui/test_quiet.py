"""While nobody asks for the cloud, the extension talks to nobody."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.extension.browsing import browser as browser  # a fixture
from tests.extension.browsing import sync_api
from tests.extension.real_webui.conftest import running_webui
from tests.extension.real_webui.webui_page import LONG, WebuiPage, expect

pytestmark = pytest.mark.timeout(300)


class Listener(socketserver.ThreadingTCPServer):
    """Counts who comes, and hangs up."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.visits = 0

    def verify_request(self, request: object, client_address: object) -> bool:
        self.visits += 1
        return False


@pytest.fixture
def listener() -> Iterator[Listener]:
    with Listener() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def test_nothing_is_asked_before_the_toggle_is_on(
    checkout: Path, tmp_path: Path, listener: Listener, browser: sync_api.Browser
) -> None:
    address = f"http://127.0.0.1:{listener.server_address[1]}"
    environ = {"SDAWS_API_URL": address, "SDAWS_API_TOKEN": "token-of-the-tests-0123456789"}
    with running_webui(checkout, tmp_path, **environ) as url, WebuiPage(browser, url) as page:
        requests.post(f"{url}/sdapi/v1/txt2img", json={"prompt": "a", "steps": 1}, timeout=60)
        page.page.locator("#script_txt2img_cloud_enabled .label-wrap").wait_for()
        assert listener.visits == 0
        page.page.locator("#script_txt2img_cloud_enabled-visible-checkbox").check()
        status = page.page.locator("#script_txt2img_cloud_status.prose")
        expect(status).to_contain_text("cannot be reached", timeout=LONG)
        assert listener.visits > 0


def test_unconfigured_the_tab_explains_the_first_step(
    checkout: Path, tmp_path: Path, browser: sync_api.Browser
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "data").mkdir()
    nothing = {"HOME": str(home), "SDAWS_API_URL": "", "SDAWS_API_TOKEN": ""}
    with (
        running_webui(checkout, tmp_path / "data", **nothing) as url,
        WebuiPage(browser, url) as page,
    ):
        page.page.locator("#script_txt2img_cloud_enabled-visible-checkbox").check()
        status = page.page.locator("#script_txt2img_cloud_status.prose")
        expect(status).to_contain_text("Not connected yet. Open the Cloud tab", timeout=LONG)
        page.tab("Cloud")
        expect(page.page.locator("#sdaws_url")).to_be_visible()
        assert page.complaints == []
    log = (tmp_path / "data" / "webui.log").read_text()
    assert "aws_extension" not in log  # no traceback of ours
    assert list(home.rglob("*sdaws*")) == []
