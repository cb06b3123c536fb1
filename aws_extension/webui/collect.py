"""Pictures of the Jobs page, saved as the WebUI saves those it made itself."""

from __future__ import annotations

from collections.abc import Sequence

from modules import images, shared

from aws_extension.access import open_picture
from aws_extension.answers import InferenceJob, InferenceOutput
from middleware_api.contract import TaskType


class WebUIHost:
    """The WebUI: its output folders, its file-name patterns, its format."""

    def save_pictures(
        self, job: InferenceJob, pictures: Sequence[bytes], output: InferenceOutput
    ) -> list[str]:
        """Each by the WebUI's own function, with its infotext."""
        opts = shared.opts
        task_folder = (
            opts.outdir_txt2img_samples
            if job.task == TaskType.TXT2IMG.value
            else opts.outdir_img2img_samples
        )
        prompt, seed = output.parameters.get("prompt"), output.parameters.get("seed")
        saved = []
        for number, content in enumerate(pictures):
            picture = open_picture(content)
            text = (
                output.infotexts[number]
                if number < len(output.infotexts)
                else str(picture.info.get("parameters") or "")
            )
            picture.info.pop("parameters", None)
            path, _ = images.save_image(
                picture,
                opts.outdir_samples or task_folder,
                "",
                seed,
                prompt,
                opts.samples_format,
                info=text,
            )
            saved.append(str(path))
        return saved
