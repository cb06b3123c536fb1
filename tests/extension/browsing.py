"""The stand-alone app in a process of its own, and a real browser on it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.extension.conftest import REPOSITORY

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


def app(home: Path, url: str, token: str) -> AbstractContextManager[str]:
    """`python -m aws_extension` against a server; its address."""
    return page_program(["-m", "aws_extension"], home, url, SDAWS_API_TOKEN=token)


@contextmanager
def page_program(program: list[str], home: Path, url: str, **environ: str) -> Iterator[str]:
    """A Python program that serves pages, against a server; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fixed = {"PYTHONPATH": str(REPOSITORY), "SDAWS_API_URL": url}
    process = subprocess.Popen(
        [sys.executable, *program, "--port", str(port)],
        cwd=home,
        env={**os.environ, "HOME": str(home), **fixed, **environ},
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
    """One page of the app, and everything that its console complained of.

    Each has cookies of its own, as another person's browser has.
    """

    def __init__(
        self, browser: sync_api.Browser, address: str, width: int = 1280, theme: str = "light"
    ) -> None:
        self.complaints: list[str] = []
        self.page = browser.new_page(viewport={"width": width, "height": 1000})
        # gradio's own page asks for a script of another host; no test goes out for it.
        self.page.route(
            lambda url: "127.0.0.1" not in url, lambda route: route.fulfill(status=200, body="")
        )
        self.page.on(
            "console", lambda m: self.complaints.append(m.text) if m.type == "error" else None
        )
        self.page.on("pageerror", lambda fault: self.complaints.append(str(fault)))
        self.page.goto(f"{address}/?__theme={theme}")
        self.page.wait_for_selector("#sdaws_generate")

    def open(self, tab: str) -> None:
        self.page.click(f".tab-nav button:has-text('{tab}')")

    def generate(self, prompt: str) -> None:
        self.page.wait_for_function("document.querySelector('#sdaws_checkpoint input').value")
        self.page.fill("#sdaws_prompt textarea", prompt)
        self.page.click("#sdaws_generate")
