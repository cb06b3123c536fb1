"""Pictures of the Jobs page, saved as the WebUI saves those it made itself."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from modules import images, shared

from aws_extension.answers import InferenceJob, InferenceOutput
from aws_extension.pictures import open_picture
from middleware_api.contract import TaskType

_SEED = re.compile(r"\bSeed: (\d+)")
_MODEL_HASH = re.compile(r"\bModel hash: ([0-9a-f]+)")


class WebUIHost:
    """The WebUI: its output folders, its file-name patterns, its format."""

    def save_pictures(
        self, job: InferenceJob, pictures: Sequence[bytes], output: InferenceOutput
    ) -> list[str]:
        """Each by the WebUI's own function, with its infotext."""
        opts = shared.opts
        folder = opts.outdir_samples or (
            opts.outdir_txt2img_samples
            if job.task == TaskType.TXT2IMG.value
            else opts.outdir_img2img_samples
        )
        asked = _generation(job, output, len(pictures))
        saved = []
        for number, content in enumerate(pictures):
            picture = open_picture(content)
            text = _infotext(output, number) or str(picture.info.get("parameters") or "")
            picture.info.pop("parameters", None)
            if opts.enable_pnginfo:
                picture.info["parameters"] = text
            asked.batch_index = number
            path, _ = images.save_image(
                picture,
                folder,
                "",
                _seed(text),
                asked.prompt,
                opts.samples_format,
                info=text,
                p=asked,
            )
            saved.append(str(path))
        return saved


def _infotext(output: InferenceOutput, number: int) -> str:
    return output.infotexts[number] if number < len(output.infotexts) else ""


def _seed(text: str) -> int | None:
    found = _SEED.search(text)
    return int(found[1]) if found else None


def _generation(job: InferenceJob, output: InferenceOutput, count: int) -> SimpleNamespace:
    """What the WebUI's file-name patterns read of a generation; there is none any more."""
    asked = output.parameters
    hash_ = _MODEL_HASH.search(_infotext(output, 0))
    return SimpleNamespace(
        prompt=asked.get("prompt", ""),
        negative_prompt=asked.get("negative_prompt", ""),
        steps=asked.get("steps"),
        cfg_scale=asked.get("cfg_scale"),
        sampler_name=asked.get("sampler_name") or "",
        scheduler=asked.get("scheduler"),
        denoising_strength=asked.get("denoising_strength"),
        styles=[],  # they are in the prompt already
        all_seeds=[_seed(_infotext(output, number)) for number in range(count)],
        batch_size=count,
        n_iter=1,
        iteration=0,
        batch_index=0,
        user=None,
        cloud_checkpoint=Path(job.checkpoint_names[0]).stem if job.checkpoint_names else "",
        sd_model_hash=hash_[1] if hash_ else "",
    )
