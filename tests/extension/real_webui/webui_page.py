"""The WebUI's own page in a real browser: its controls as a user finds them."""

from __future__ import annotations

import re
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.extension.browsing import sync_api

LONG = 120_000
expect = sync_api.expect
# gradio's page asks for fonts and a script of other hosts; the WebUI's own favicon is not there.
_NOT_OURS = ("Failed to load resource", "manifest.json")


class WebuiPage:
    """One visitor of the WebUI, with cookies of its own."""

    def __init__(self, browser: sync_api.Browser, url: str, theme: str = "light") -> None:
        self.url, self.theme = url, theme
        self.complaints: list[str] = []
        self.page = browser.new_page(viewport={"width": 1400, "height": 1200})
        self.page.set_default_timeout(30_000)
        self.page.route(
            lambda asked: "127.0.0.1" not in asked,
            lambda route: route.fulfill(status=200, body=""),
        )
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda fault: self.complaints.append(str(fault)))
        self.open()

    def __enter__(self) -> WebuiPage:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.page.context.close()
        self.page.close()

    def _hear(self, message: Any) -> None:
        if message.type == "error" and not any(part in message.text for part in _NOT_OURS):
            self.complaints.append(message.text)

    def open(self) -> None:
        """Load the page, and wait until its scripts have done their part."""
        self.page.goto(f"{self.url}/?__theme={self.theme}", wait_until="domcontentloaded")
        self.page.wait_for_selector("#txt2img_generate", timeout=LONG)
        self.page.wait_for_selector("#script_txt2img_cloud_enabled-visible-checkbox")

    def tab(self, name: str) -> None:
        """Open one of the tabs at the top, or of img2img's modes."""
        self.page.locator(
            ".tab-nav button:visible", has_text=re.compile(rf"^\s*{name}\s*$")
        ).first.click()

    def turn_on(self, checkpoint: str, tab: str = "txt2img") -> None:
        """The panel's toggle, and its checkpoint."""
        self.page.locator(f"#script_{tab}_cloud_enabled-visible-checkbox").check()
        chosen = self.page.locator(f"#script_{tab}_cloud_checkpoint input")
        expect(chosen).not_to_have_value("")
        self.choose(f"#script_{tab}_cloud_checkpoint", checkpoint)
        expect(chosen).to_have_value(checkpoint)

    def choose(self, selector: str, option: str) -> None:
        """Pick from a dropdown."""
        self.page.locator(f"{selector} input").first.click()
        self.page.locator(f"{selector} ul.options li[aria-label={option!r}]").click()

    def number(self, name: str, value: float) -> None:
        """A slider's number, or a number field."""
        self.page.locator(f"#{name} input[type=number]").first.fill(str(value))

    def prompt(self, text: str, tab: str = "txt2img") -> None:
        self.page.fill(f"#{tab}_prompt textarea", text)

    def fill(self, selector: str, text: str) -> None:
        """Write into a field that an answer of the WebUI may just be emptying."""
        field = self.page.locator(f"{selector} textarea")
        for _ in range(20):
            field.fill(text)
            self.page.wait_for_timeout(700)
            if field.input_value() == text:
                return
        raise AssertionError(f"{selector} does not keep {text!r}")

    def reload_ui(self) -> None:
        """Have the WebUI start its page anew, and do not look at it meanwhile.

        Two faults of its own are kept out of the way: asked to while a page is still loading, it
        waits for ever; and asked for anything before its API is there again, it ends.
        """
        self.page.route("**/internal/ping*", lambda route: route.abort())
        self.page.wait_for_timeout(2500)
        self.page.evaluate("document.querySelector('#settings_restart_gradio').click()")

    def press_generate(self, tab: str = "txt2img") -> None:
        self.page.click(f"#{tab}_generate")
        expect(self.page.locator(f"#{tab}_interrupt")).to_be_visible()

    def wait_for_end(self, tab: str = "txt2img") -> None:
        for name in ("interrupt", "interrupting"):
            expect(self.page.locator(f"#{tab}_{name}")).to_be_hidden(timeout=LONG)

    def generate(self, seed: int, tab: str = "txt2img") -> str:
        """Make pictures to the end; the infotext below them."""
        self.number(f"{tab}_seed", seed)
        self.press_generate(tab)
        said = self.page.locator(f"#html_info_{tab}.prose")
        expect(said).to_contain_text(f"Seed: {seed},", timeout=LONG)
        self.wait_for_end(tab)
        return said.inner_text()

    def shown(self, tab: str = "txt2img") -> sync_api.Locator:
        """The small pictures below the large one."""
        return self.page.locator(f"#{tab}_gallery .thumbnails button")

    def put_picture(self, place: str, path: Path) -> None:
        """Upload a file into one of img2img's pictures."""
        self.page.locator(f"#{place} input[type=file]").set_input_files(path)

    def draw(self, place: str) -> None:
        """Hatch the middle of a canvas with the mouse; the brush follows it frame by frame."""
        canvas = self.page.locator(f"#{place} canvas[key=interface]")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        assert box is not None
        mouse = self.page.mouse
        for column in range(7):
            across = box["x"] + box["width"] * (0.44 + 0.02 * column)
            mouse.move(across, box["y"] + box["height"] * 0.3)
            mouse.down()
            for row in range(8):
                mouse.move(across, box["y"] + box["height"] * (0.35 + 0.04 * row))
                self.page.wait_for_timeout(20)
            mouse.up()

    def log(self, tab: str = "txt2img") -> sync_api.Locator:
        """Where the WebUI shows errors and comments."""
        return self.page.locator(f"#html_log_{tab}.prose")
