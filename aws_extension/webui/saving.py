"""A picture from the cloud becomes one of the WebUI's: its infotext, its file, its grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modules import images, processing, shared
from PIL import Image

# What the WebUI writes of its own knowledge; all else that the engine says is added to it.
_HOST_WRITES = frozenset(
    {
        *("Steps", "Sampler", "Schedule type", "CFG scale", "Image CFG scale", "Seed", "Size"),
        *("Face restoration", "Model hash", "Model", "VAE hash", "VAE", "Variation seed"),
        *("Variation seed strength", "Seed resize from", "Denoising strength", "Clip skip"),
        *("Mask mode", "Mask blur", "Inpaint area", "Masked area padding", "Masked content"),
        *("RNG", "ENSD", "Init image hash", "Tiling", "Version", "User"),
    }
)
_AUTOMATIC = "Automatic"


def infotext_of(p: Any, in_batch: int) -> str:
    """The WebUI's own infotext of a picture of `p`'s running batch."""
    text: str = processing.create_infotext(
        p, p.prompts, p.seeds, p.subseeds, index=in_batch, all_negative_prompts=p.negative_prompts
    )
    return text


def add_to_infotext(p: Any, engine_says: Mapping[str, str], facts: Mapping[str, str]) -> None:
    """Have `p`'s infotexts tell what only the engine knows, and where the picture was made."""
    told = p.extra_generation_params
    # In place of those that the WebUI has kept a place for.
    more = {
        name: value
        for name, value in engine_says.items()
        if name not in _HOST_WRITES and told.get(name) is None
    }
    # The WebUI too names the one that the sampler has taken by itself.
    if engine_says.get("Schedule type", _AUTOMATIC) != _AUTOMATIC:
        more["Schedule type"] = engine_says["Schedule type"]
    p.extra_generation_params = {**told, **more, **facts}
    p.sd_model_hash = p.sd_model_hash or engine_says.get("Model hash")


def correct_colours(p: Any, picture: Image.Image, in_batch: int, text: str) -> Image.Image:
    """The picture with the colours that `p` wants; saved as it was if the settings say so."""
    corrections = getattr(p, "color_corrections", None)
    if not corrections:
        return picture
    if shared.opts.save_images_before_color_correction:
        _save(p, picture, in_batch, text, "-before-color-correction")
    corrected: Image.Image = processing.apply_color_correction(
        corrections[in_batch % len(corrections)], picture
    )
    return corrected


def save_picture(p: Any, picture: Image.Image, in_batch: int, text: str) -> None:
    """Put the infotext into the picture, and save it where and as the WebUI's settings say."""
    picture.info.pop("parameters", None)
    if shared.opts.enable_pnginfo:
        picture.info["parameters"] = text
    _save(p, picture, in_batch, text)


def _save(p: Any, picture: Image.Image, in_batch: int, text: str, suffix: str = "") -> None:
    if p.save_samples():
        p.batch_index = in_batch
        images.save_image(
            picture,
            p.outpath_samples,
            "",
            p.seeds[in_batch],
            p.prompts[in_batch],
            shared.opts.samples_format,
            info=text,
            p=p,
            suffix=suffix,
        )


def wants_grid(p: Any, count: int) -> bool:
    """Whether the WebUI's settings ask for a grid of that many pictures."""
    wanted = (shared.opts.return_grid or shared.opts.grid_save) and not p.do_not_save_grid
    return bool(wanted and (count > 1 or (count and not shared.opts.grid_only_if_multiple)))


def wants_maps() -> bool:
    """Whether the ControlNet extension's settings want its maps shown after the pictures."""
    return not shared.opts.data.get("control_net_no_detectmap", False)


def make_grid(p: Any, pictures: Sequence[Image.Image]) -> tuple[Image.Image, str]:
    """The grid and its infotext; saved if the settings say so."""
    grid = images.image_grid(pictures, p.batch_size)
    text: str = processing.create_infotext(
        p,
        p.prompts,
        p.seeds,
        p.subseeds,
        use_main_prompt=True,
        index=0,
        all_negative_prompts=p.negative_prompts,
    )
    if shared.opts.enable_pnginfo:
        grid.info["parameters"] = text
    if shared.opts.grid_save:
        images.save_image(
            grid,
            p.outpath_grids,
            "grid",
            p.all_seeds[0],
            p.all_prompts[0],
            shared.opts.grid_format,
            info=text,
            short_filename=not shared.opts.grid_extended_filename,
            p=p,
            grid=True,
        )
    return grid, text
