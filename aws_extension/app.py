"""The pages as an app of their own: `python -m aws_extension`."""

from __future__ import annotations

from pathlib import Path

import gradio as gr

from aws_extension.access import CloudAccess
from aws_extension.pages import generate
from aws_extension.pages.host import FolderHost
from aws_extension.pages.layout import build_pages, first_page

TITLE = "Stable Diffusion in the cloud"
ROOT = Path(__file__).resolve().parent.parent
# Names of installed fonts: gradio's own theme would fetch its fonts from the network.
FONTS = ["system-ui", "-apple-system", "Segoe UI", "sans-serif"]
CODE_FONTS = ["ui-monospace", "Consolas", "monospace"]
# Where the Jobs page collects pictures, below the folder that the app was started in.
PICTURES_FOLDER = "cloud-pictures"


def build_app(access: CloudAccess) -> gr.Blocks:
    """The whole app; nothing is asked of the server before a page is opened."""
    theme = gr.themes.Default(font=FONTS, font_mono=CODE_FONTS)
    css = (ROOT / "style.css").read_text(encoding="utf-8")
    script = "".join(
        (ROOT / "javascript" / name).read_text(encoding="utf-8")
        for name in ("sdaws.js", "sdaws_upload.js")
    )
    with gr.Blocks(title=TITLE, theme=theme, css=css, analytics_enabled=False) as blocks:
        gr.Markdown(f"# {TITLE}")
        start = first_page(access)
        with gr.Tabs(selected="generate" if start == "jobs" else start):
            with gr.Tab("Generate", id="generate", elem_id="sdaws_tab_generate"):
                generate.build(access, blocks)
            build_pages(access, FolderHost(Path.cwd() / PICTURES_FOLDER))
        blocks.load(None, None, None, _js=f"() => {{ {script} }}")
    # A generation holds its slot while it is followed; cancelling and reading need others.
    return blocks.queue(concurrency_count=8, api_open=False)
