"""What a user of the WebUI does with the cloud, by mouse and keyboard in its real page."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image, ImageChops, ImageDraw

from middleware_api.contract import InferenceState
from tests.extension.browsing import browser as browser  # a fixture
from tests.extension.browsing import sync_api
from tests.extension.conftest import RealServer
from tests.extension.real_webui.conftest import RealWebui, wait_for_start
from tests.extension.real_webui.webui_page import LONG, WebuiPage, expect

PROMPT = "a big red circle on a blue background"
pytestmark = pytest.mark.timeout(420)


@pytest.fixture
def page(browser: sync_api.Browser, webui: RealWebui) -> Iterator[WebuiPage]:
    with WebuiPage(browser, webui.url) as opened:
        yield opened
        assert opened.complaints == []


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A picture to start from, as a file."""
    picture = Image.new("RGB", (64, 64), "navy")
    ImageDraw.Draw(picture).ellipse((16, 16, 48, 48), fill="red")
    picture.save(tmp_path / "start.png")
    return tmp_path / "start.png"


def newest(webui: RealWebui, folder: str) -> Image.Image:
    with Image.open(max(webui.saved(folder), key=lambda path: path.stat().st_mtime_ns)) as saved:
        return saved.convert("RGB")


def at_work(server: RealServer) -> int:
    """Jobs of anybody that are waiting or running."""
    states = [InferenceState.CREATED, InferenceState.IN_PROGRESS]
    return len(server.client().list_jobs(states=states).jobs)


def test_a_picture_is_made_with_progress_and_made_larger(page: WebuiPage, webui: RealWebui) -> None:
    page.turn_on(webui.checkpoint)
    page.prompt(PROMPT)
    page.number("txt2img_batch_count", 3)
    page.number("txt2img_steps", 60)
    page.number("txt2img_seed", 70)
    before = len(webui.saved("txt2img-images"))
    page.press_generate()
    bar = page.page.locator("#txt2img_results .progressDiv .progress")
    expect(bar).to_contain_text("Cloud: ")
    expect(page.page.locator("#txt2img_gallery .livePreview img").first).to_be_visible()
    page.page.wait_for_function(
        "parseFloat(document.querySelector('.progressDiv .progress')?.style.width) > 10"
    )
    expect(page.page.locator("#html_info_txt2img.prose")).to_contain_text("Seed: 70,", timeout=LONG)
    page.wait_for_end()
    expect(page.page.locator("#html_info_txt2img.prose")).to_contain_text("Cloud endpoint: ")
    expect(page.shown()).to_have_count(4)  # the grid first
    assert len(webui.saved("txt2img-images")) == before + 3
    page.shown().nth(2).click()
    page.page.click("#txt2img_upscale")
    expect(page.page.locator("#html_info_txt2img.prose")).to_contain_text(
        "Hires upscale: ", timeout=LONG
    )
    page.wait_for_end()
    expect(page.page.locator("#html_info_txt2img.prose")).to_contain_text("Seed: 71,")
    expect(page.shown()).to_have_count(4)
    assert newest(webui, "txt2img-images").size == (128, 128)


def test_stopping_reaches_the_worker(
    page: WebuiPage, webui: RealWebui, real_server: RealServer
) -> None:
    def made() -> int:
        return len(webui.saved("txt2img-images"))

    def wait_for_a_preview() -> None:
        expect(page.page.locator("#txt2img_gallery .livePreview img").first).to_be_visible()

    page.turn_on(webui.checkpoint)
    page.prompt(PROMPT)
    page.number("txt2img_steps", 150)
    page.number("txt2img_batch_count", 40)
    before = made()
    page.press_generate()
    wait_for_a_preview()
    page.page.click("#txt2img_interrupt")  # of several pictures, the one in work is finished
    page.wait_for_end()
    assert before < made() < before + 10
    assert at_work(real_server) == 0
    page.press_generate()
    wait_for_a_preview()
    began = time.monotonic()
    page.page.click("#txt2img_interrupt")
    page.page.click("#txt2img_interrupting")  # not even that
    page.wait_for_end()
    assert time.monotonic() - began < 15
    assert at_work(real_server) == 0
    before = made()
    page.number("txt2img_batch_count", 2)
    page.press_generate()
    wait_for_a_preview()
    page.page.click("#txt2img_skip")
    page.wait_for_end()
    assert made() - before in (1, 2)  # what the skipped batch had made is kept
    assert at_work(real_server) == 0
    assert page.log().inner_text().count("error") == 0


def test_generating_for_ever_goes_on_until_it_is_stopped(page: WebuiPage, webui: RealWebui) -> None:
    page.turn_on(webui.checkpoint)
    page.prompt(PROMPT)
    before = len(webui.saved("txt2img-images"))
    page.page.click("#txt2img_generate", button="right")
    page.page.click("#context-menu >> text='Generate forever'")
    deadline = time.monotonic() + 90
    while len(webui.saved("txt2img-images")) < before + 3:
        assert time.monotonic() < deadline
        page.page.wait_for_timeout(200)
    page.page.locator("#txt2img_generate, #txt2img_interrupt").locator("visible=true").last.click(
        button="right"
    )
    page.page.click("#context-menu >> text='Cancel generate forever'")
    page.wait_for_end()
    after = len(webui.saved("txt2img-images"))
    page.page.wait_for_timeout(1500)  # it would have begun again by now
    assert len(webui.saved("txt2img-images")) <= after + 1


def test_each_way_of_img2img(page: WebuiPage, webui: RealWebui, start: Path) -> None:
    def differs(before: Image.Image, after: Image.Image, box: tuple[int, int, int, int]) -> bool:
        return ImageChops.difference(before.crop(box), after.crop(box)).getbbox() is not None

    with Image.open(start) as opened:
        original = opened.convert("RGB")
    middle, side = (28, 24, 36, 40), (0, 0, 12, 64)
    page.tab("img2img")
    page.turn_on(webui.checkpoint, "img2img")
    page.prompt("a green square", "img2img")
    page.number("img2img_denoising_strength", 0.8)
    page.put_picture("img2img_image", start)
    assert "Denoising strength: 0.8" in page.generate(11, "img2img")
    assert differs(original, newest(webui, "img2img-images"), side)

    page.tab("Sketch")
    page.put_picture("img2img_sketch", start)
    page.draw("img2img_sketch")
    page.generate(12, "img2img")

    page.tab("Inpaint")
    page.put_picture("img2maskimg", start)
    page.draw("img2maskimg")
    assert "Mask blur: 4" in page.generate(13, "img2img")
    made = newest(webui, "img2img-images")
    assert differs(original, made, middle)
    assert not differs(original, made, side)

    page.tab("Inpaint sketch")
    page.put_picture("inpaint_sketch", start)
    page.draw("inpaint_sketch")
    assert "Mask blur: 4" in page.generate(14, "img2img")
    made = newest(webui, "img2img-images")
    assert differs(original, made, middle)
    assert not differs(original, made, side)

    page.tab("Inpaint upload")
    mask = Image.new("RGB", (64, 64))
    mask.paste("white", (32, 0, 64, 64))
    mask.save(start.parent / "mask.png")
    page.put_picture("img_inpaint_base", start)
    page.put_picture("img_inpaint_mask", start.parent / "mask.png")
    assert "Mask blur: 4" in page.generate(15, "img2img")
    made = newest(webui, "img2img-images")
    assert differs(original, made, (40, 0, 64, 64))
    assert not differs(original, made, side)


def test_a_folders_pictures_are_named_after_it(
    page: WebuiPage, webui: RealWebui, start: Path, tmp_path: Path
) -> None:
    here, there = tmp_path / "in", tmp_path / "out"
    here.mkdir()
    with Image.open(start) as opened:
        for name in ("anna", "berta"):
            opened.save(here / f"{name}.png")
    page.tab("img2img")
    page.turn_on(webui.checkpoint, "img2img")
    page.prompt(PROMPT, "img2img")
    page.tab("Batch")
    page.tab("From directory")
    page.page.fill("#img2img_batch_input_dir textarea", str(here))
    page.page.fill("#img2img_batch_output_dir textarea", str(there))
    page.generate(21, "img2img")
    assert sorted(path.name for path in there.iterdir()) == [
        "00000-anna.png", "00001-berta.png",
    ]  # fmt: skip
    expect(page.shown("img2img")).to_have_count(2)
    page.number("img2img_batch_count", 2)
    page.generate(22, "img2img")
    assert sorted(path.name for path in there.iterdir()) == [
        "00000-anna.png", "00001-berta.png", "00002-anna-1.png", "00003-anna-2.png",
        "00004-berta-1.png", "00005-berta-2.png",
    ]  # fmt: skip


def test_scripts_and_styles(page: WebuiPage, webui: RealWebui) -> None:
    page.turn_on(webui.checkpoint)
    page.prompt("a circle|red")
    page.choose("#txt2img_styles", "round")
    page.page.keyboard.press("Escape")
    scripts = "#txt2img_script_container #script_list"
    page.choose(scripts, "Prompt matrix")
    assert "very round" in page.generate(31)
    expect(page.shown()).to_have_count(3)
    page.choose(scripts, "X/Y/Z plot")
    page.choose("#script_txt2img_xyz_plot_x_type", "Steps")
    page.fill("#script_txt2img_xyz_plot_x_values", "2,3")
    page.choose("#script_txt2img_xyz_plot_y_type", "CFG Scale")
    page.fill("#script_txt2img_xyz_plot_y_values", "4,6")
    before = len(webui.saved("txt2img-images"))
    assert "Steps: 2" in page.generate(32)
    assert len(webui.saved("txt2img-images")) == before + 4
    page.shown().first.click()
    said = page.page.locator("#html_info_txt2img.prose")
    expect(said).to_contain_text("X Type: Steps")
    expect(said).to_contain_text("Y Type: CFG Scale")


def test_a_cloud_picture_goes_on_to_other_tabs(page: WebuiPage, webui: RealWebui) -> None:
    page.turn_on(webui.checkpoint)
    page.prompt(PROMPT)
    page.generate(41)
    for button, place in (
        ("img2img", "#img2img_image"),
        ("inpaint", "#img2maskimg"),
        ("extras", "#extras_image"),
    ):
        page.tab("txt2img")
        page.shown().first.click()
        page.page.click(f"#txt2img_send_to_{button}")
        expect(page.page.locator(f"{place} img").first).to_be_visible()
    page.tab("img2img")
    expect(page.page.locator("#img2img_prompt textarea")).to_have_value(PROMPT)
    expect(page.page.locator("#img2img_seed input")).to_have_value("41")


def test_a_failure_stands_in_the_webuis_error_box(
    page: WebuiPage, webui: RealWebui, real_server: RealServer
) -> None:
    client = real_server.client()
    gone = client.create_endpoint("local", 1, name="gone").name
    page.turn_on(webui.checkpoint)
    page.page.click("#script_txt2img_cloud_refresh")
    page.page.wait_for_timeout(500)
    page.page.locator("#script_txt2img_cloud_endpoint input").click()
    page.page.locator("#script_txt2img_cloud_endpoint ul.options li", has_text="gone").click()
    client.delete_endpoints([gone])
    page.prompt(PROMPT)
    page.press_generate()
    error = page.log().locator(".error")
    expect(error).to_contain_text("gone", timeout=LONG)
    page.wait_for_end()
    assert "Traceback" not in error.inner_text()


def test_each_browser_has_its_own_jobs_and_collects_them(
    page: WebuiPage, webui: RealWebui, browser: sync_api.Browser
) -> None:
    page.turn_on(webui.checkpoint)
    page.prompt(PROMPT)
    page.generate(51)
    page.tab("Cloud")
    page.tab("Jobs")
    cards = page.page.locator("#sdaws_jobs .sdaws-card")
    expect(cards).to_have_count(1)
    cards.first.click()
    before = len(webui.saved("txt2img-images"))
    page.page.locator("#sdaws_job").get_by_text("Collect again").click()
    expect(page.page.locator("#sdaws_jobs_message.prose")).to_contain_text("Pictures saved here: 1")
    assert len(webui.saved("txt2img-images")) == before + 1
    with WebuiPage(browser, webui.url) as other:
        other.tab("Cloud")
        other.tab("Jobs")
        expect(other.page.locator("#sdaws_jobs.prose")).to_contain_text("No jobs yet.")
        assert other.complaints == []


def test_reloading_the_ui_leaves_one_interceptor_and_no_thread(
    page: WebuiPage, webui: RealWebui
) -> None:
    def inside() -> dict[str, Any]:
        found: dict[str, Any] = requests.get(f"{webui.url}/inside", timeout=30).json()
        return found

    def threads() -> list[str]:  # beside those that gradio keeps in reserve
        return [name for name in inside()["threads"] if "AnyIO" not in name]

    before = threads()
    for number in range(10):
        page.reload_ui()
        wait_for_start(webui.log, number + 2)
        page.open()
    page.complaints.clear()  # of connections that ended
    now = inside()
    assert now["interceptors"] == 1
    assert str(now["original"]).endswith("modules/processing.py")
    assert len(threads()) <= len(before)
    page.turn_on(webui.checkpoint)
    page.prompt(PROMPT)
    made = len(webui.saved("txt2img-images"))
    page.generate(61)
    assert len(webui.saved("txt2img-images")) == made + 1
    deadline = time.monotonic() + 20
    while any("sdaws" in name for name in threads()):
        assert time.monotonic() < deadline, threads()
        time.sleep(0.1)
