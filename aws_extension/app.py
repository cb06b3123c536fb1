"""The pages as an app of their own: `python -m aws_extension`."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from aws_extension.access import CloudAccess
from aws_extension.pages import generate
from aws_extension.pages.layout import build_pages

TITLE = "Stable Diffusion in the cloud"
ROOT = Path(__file__).resolve().parent.parent
# Names of installed fonts: gradio's own theme would fetch its fonts from the network.
FONTS = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
CODE_FONTS = ["ui-monospace", "Consolas", "monospace"]


def build_app(access: CloudAccess) -> gr.Blocks:
    """The whole app; nothing is asked of the server before a page is opened."""
    theme = gr.themes.Default(font=FONTS, font_mono=CODE_FONTS)
    css = (ROOT / "style.css").read_text(encoding="utf-8")
    script = (ROOT / "javascript" / "sdaws.js").read_text(encoding="utf-8")
    with gr.Blocks(title=TITLE, theme=theme, css=css, analytics_enabled=False) as blocks:
        gr.Markdown(f"# {TITLE}")
        with gr.Tabs():
            with gr.Tab("Generate", elem_id="sdaws_tab_generate"):
                generate.build(access, blocks)
            build_pages(access)
        blocks.load(None, None, None, _js=f"() => {{ {script} }}")
    # A generation holds its slot while it is followed; cancelling and reading need others.
    return blocks.queue(concurrency_count=8, api_open=False)
