"""The stand-alone app in a real browser."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.extension.conftest import REPOSITORY, RealServer
from tests.extension.pretend_cloud import TOKEN, PretendCloud, serve

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium: install Debian's chromium to run the browser tests")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=OPTIONS)
        yield launched
        launched.close()


@contextmanager
def app(home: Path, url: str, token: str) -> Iterator[str]:
    """`python -m aws_extension` against a server; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environ = {**os.environ, "HOME": str(home), "SDAWS_API_URL": url, "SDAWS_API_TOKEN": token}
    process = subprocess.Popen(
        [sys.executable, "-m", "aws_extension", "--port", str(port)],
        cwd=REPOSITORY,
        env=environ,
        stdout=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urlopen(address, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, "the app ended"
                assert time.monotonic() < deadline, "the app did not start within 60 s"
                time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait(20)


class Visit:
    """One page of the app, and everything that its console complained of."""

    def __init__(self, browser: sync_api.Browser, address: str) -> None:
        self.complaints: list[str] = []
        self.page = browser.new_page(viewport={"width": 1280, "height": 1000})
        # gradio's own page asks for a script of another host; no test goes out for it.
        self.page.route(
            lambda url: "127.0.0.1" not in url, lambda route: route.fulfill(status=200, body="")
        )
        self.page.on(
            "console", lambda m: self.complaints.append(m.text) if m.type == "error" else None
        )
        self.page.on("pageerror", lambda fault: self.complaints.append(str(fault)))
        self.page.goto(address)
        self.page.wait_for_selector("#sdaws_generate")

    def open(self, tab: str) -> None:
        self.page.click(f".tab-nav button:has-text('{tab}')")

    def generate(self, prompt: str) -> None:
        self.page.wait_for_function("document.querySelector('#sdaws_checkpoint input').value")
        self.page.fill("#sdaws_prompt textarea", prompt)
        self.page.click("#sdaws_generate")


def test_a_prompt_becomes_pictures_on_the_page_and_a_job_in_the_list(browser, tmp_path):
    with serve(PretendCloud(polls=3)) as url, app(tmp_path, url, TOKEN) as address:
        visit = Visit(browser, address)
        visit.generate("a big red circle")
        visit.page.wait_for_selector("#sdaws_status .sdaws-progress")
        visit.page.wait_for_selector("#sdaws_gallery img", timeout=30_000)
        text = visit.page.input_value("#sdaws_infotext textarea")
        assert text.startswith("a big red circle\n")
        assert TOKEN not in visit.page.content()
        visit.open("Jobs")
        visit.page.click(".sdaws-card:has-text('Finished')")
        visit.page.wait_for_selector("#sdaws_job .sdaws-pictures img")
        visit.open("Endpoints")
        visit.page.wait_for_selector("#sdaws_endpoints :text('pretend-1')")
        visit.open("Models")
        visit.page.wait_for_selector("#sdaws_checkpoints :text('demo.safetensors')")
        visit.open("Connection")
        visit.page.click("#sdaws_test")
        visit.page.wait_for_selector("#sdaws_connection_result :text('Connected')")
        assert visit.complaints == []


def test_cancel_stops_the_job(browser, tmp_path):
    cloud = PretendCloud(polls=1000)
    with serve(cloud) as url, app(tmp_path, url, TOKEN) as address:
        visit = Visit(browser, address)
        visit.generate("x")
        visit.page.wait_for_selector("#sdaws_preview img")
        visit.page.click("#sdaws_cancel")
        visit.page.wait_for_selector("#sdaws_status :text('Cancelled')")
        assert cloud.cancelled == ["job-1"]


def test_a_failure_is_a_box_that_says_why(browser, tmp_path):
    cloud = PretendCloud(fail_with="Out of memory. Use a smaller size.")
    with serve(cloud) as url, app(tmp_path, url, TOKEN) as address:
        visit = Visit(browser, address)
        visit.generate("x")
        visit.page.wait_for_selector(":text('Use a smaller size')")


def test_the_whole_way_with_the_real_server(browser, tmp_path, real_server: RealServer):
    with app(tmp_path, real_server.url, real_server.token) as address:
        visit = Visit(browser, address)
        visit.page.fill("#sdaws_width input[type=number]", "64")
        visit.page.fill("#sdaws_height input[type=number]", "64")
        visit.generate("a circle")
        visit.page.wait_for_selector("#sdaws_gallery img", timeout=60_000)
        assert "Size: 64x64" in visit.page.input_value("#sdaws_infotext textarea")
        assert visit.complaints == []
