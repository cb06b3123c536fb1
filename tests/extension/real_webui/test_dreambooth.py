"""Beside the Dreambooth extension in a real WebUI: from its saved settings to a picture."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from tests.extension.browsing import browser as browser  # a fixture
from tests.extension.browsing import sync_api
from tests.extension.real_webui.conftest import RealWebui
from tests.extension.real_webui.webui_page import LONG, WebuiPage, expect


@pytest.fixture
def saved(webui: RealWebui) -> None:
    """Two pictures, and what the extension has saved for its model `dot`."""
    pictures = webui.data / "pictures"
    pictures.mkdir(exist_ok=True)
    for number in range(2):
        Image.new("RGB", (64, 64), (200 * number, 90, 40)).save(pictures / f"{number}.png")
    folder = webui.data / "models" / "dreambooth" / "dot"
    folder.mkdir(parents=True, exist_ok=True)
    concept = {
        "instance_data_dir": str(pictures), "instance_prompt": "a sks dot", "save_infer_steps": 1,
    }  # fmt: skip
    settings = {
        "model_name": "dot", "use_lora": True, "num_train_epochs": 2, "resolution": 64,
        "src": webui.checkpoint, "concepts_list": [concept],
    }  # fmt: skip
    (folder / "db_config.json").write_text(json.dumps(settings))


def test_its_saved_settings_are_trained_in_the_cloud(
    webui: RealWebui, browser: sync_api.Browser, saved: None
) -> None:
    with WebuiPage(browser, webui.url) as visit:
        page = visit.page
        visit.tab("Dreambooth")
        page.click("#tab_dreambooth_interface input")
        page.click("#tab_dreambooth_interface ul.options li[aria-label='dot']")
        page.click("#sdaws_dreambooth")
        row = page.locator("#sdaws_training_judged tr", has_text="num_train_epochs")
        expect(row).to_contain_text("Honoured", timeout=LONG)
        expect(page.locator("#sdaws_training_base input")).to_have_value(webui.checkpoint)
        assert page.locator("#db_status.prose").inner_text() == "", "its own training was not asked"
        page.click("#sdaws_training_start")
        page.click("#sdaws_trainings :text('Open')", timeout=LONG)
        page.wait_for_selector("#sdaws_training_detail :text('Finished')", timeout=LONG)
        page.click("#sdaws_training_detail :text('Use it in txt2img')")
        expect(page.locator("#txt2img_prompt textarea")).to_have_value("<lora:dot:1>")
        chosen = page.locator("#script_txt2img_cloud_enabled-visible-checkbox")
        expect(chosen).to_be_checked()
        visit.choose("#script_txt2img_cloud_checkpoint", webui.checkpoint)
        page.fill("#txt2img_prompt textarea", "a sks dot <lora:dot:1>")
        assert 'Lora hashes: "dot:' in visit.generate(7)
        assert visit.complaints == []
