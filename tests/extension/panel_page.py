"""A page with the panel, and a button and a log such as the WebUI has: `python -m` with the double
of the WebUI's modules on the path. Its one checkpoint is `mine.safetensors`, in `--folder`.
"""

from __future__ import annotations

import argparse
import html
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
from modules import paths, processing, scripts, sd_models, shared

from aws_extension.errors import CloudError
from aws_extension.webui import panel

SCRIPT = Path(__file__).parents[2] / "javascript" / "sdaws_panel.js"
NAME = "mine.safetensors"


def main() -> None:
    """Serve it until killed."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--port", type=int, required=True)
    arguments.add_argument("--folder", type=Path, required=True)
    given = arguments.parse_args()
    paths.data_path = str(given.folder)
    sd_models.checkpoints_list[NAME] = SimpleNamespace(
        filename=str(given.folder / NAME), name=NAME, title=NAME, model_name="m", name_for_extra="m"
    )
    shared.opts.sd_model_checkpoint = NAME
    panel.register()
    cloud_panel = panel.CloudPanel()
    cloud_panel.args_from, cloud_panel.args_to = 1, 7

    def generate(*args: object) -> str:
        p = processing.StableDiffusionProcessingTxt2Img(
            prompt="a circle",
            outpath_samples=str(given.folder / "samples"),
            outpath_grids=str(given.folder / "grids"),
        )
        p.scripts = scripts.ScriptRunner([cloud_panel])
        p.script_args = [0, *args]
        try:
            return f"<p>{len(processing.process_images(p).images)} made</p>"
        except CloudError as fault:  # as the WebUI writes it
            return f"<div class='error'>{type(fault).__name__}: {html.escape(str(fault))}</div>"

    with gr.Blocks(analytics_enabled=False) as page:
        controls = cloud_panel.ui(is_img2img=False)
        controls[0].visible = True
        log = gr.HTML(elem_id="html_log_txt2img")
        gr.Button("Generate", elem_id="txt2img_generate").click(generate, controls, log)
        page.load(None, None, None, _js=f"() => {{ {SCRIPT.read_text()} }}")
    page.queue().launch(server_name="127.0.0.1", server_port=given.port, quiet=True)


if __name__ == "__main__":
    main()
