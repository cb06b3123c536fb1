"""The panel in a real browser, beside a button and a log such as the WebUI has."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator

import pytest

from tests.extension.browsing import browser as browser  # a fixture
from tests.extension.browsing import page_program
from tests.extension.conftest import REPOSITORY
from tests.extension.pretend_cloud import TOKEN, PretendCloud, serve
from tests.extension.webui_host import DOUBLE

PANEL = "#script_txt2img_cloud_"


@pytest.fixture
def cloud() -> PretendCloud:
    return PretendCloud()


@pytest.fixture
def address(cloud, tmp_path) -> Iterator[str]:
    (tmp_path / "mine.safetensors").write_bytes(hashlib.sha256(b"mine").digest() * 9375)
    program = ["-m", "tests.extension.panel_page", "--folder", str(tmp_path)]
    environ = {"PYTHONPATH": f"{DOUBLE}{os.pathsep}{REPOSITORY}", "SDAWS_API_TOKEN": TOKEN}
    with serve(cloud) as url, page_program(program, tmp_path, url, **environ) as found:
        yield found


def test_upload_and_generate_is_offered_done_and_over(cloud, browser, address):
    page = browser.new_page(viewport={"width": 768, "height": 900})
    page.goto(address)
    upload = page.locator(f"{PANEL}upload")
    chosen = page.locator(f"{PANEL}checkpoint input")
    page.get_by_role("checkbox").first.check()
    page.wait_for_function(
        f"document.querySelector('{PANEL}checkpoint input').value.includes('on this machine')"
    )
    # Refused: the button comes with the size of what it would send.
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_text("Nothing was sent.").first.wait_for()
    page.locator(f"{PANEL}ask").get_by_text("mine.safetensors (checkpoint, 300 kB).").wait_for()
    assert cloud.jobs == []
    # Agreed: it is sent, the picture made, and the panel knows where the file is now.
    upload.click()
    page.get_by_text("1 made").wait_for()
    upload.wait_for(state="hidden")
    assert chosen.input_value() == "mine.safetensors"
    assert cloud.checkpoints.is_active("Stable-diffusion", "mine.safetensors")
    # The consent was for that click alone.
    cloud.checkpoints.all.pop()
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_text("Nothing was sent.").first.wait_for()
    upload.wait_for(state="visible")
    assert len(cloud.jobs) == 1
    page.close()
