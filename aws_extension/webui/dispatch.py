"""One generation of the WebUI, ordered from the cloud and handed back as if it were made here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from modules import images, paths, processing, sd_samplers, shared
from PIL import Image

from aws_extension.fan_out import Order
from aws_extension.pictures import flatten_mask
from aws_extension.webui.batches import cut_into_batches
from aws_extension.webui.choice import CloudChoice
from aws_extension.webui.generation import Batch, Generation, Share
from aws_extension.webui.host_options import overridden_options
from aws_extension.webui.host_scripts import other_scripts, rewrite_prompts
from aws_extension.webui.models_for import PreparedModels, prepare_models
from aws_extension.webui.picture_settings import picture_settings, settings_without_effect
from aws_extension.webui.request_fields import (
    is_img2img,
    piece_fields,
    request_fields,
    without_maps,
)
from aws_extension.webui.saving import make_grid, wants_grid, wants_maps
from middleware_api.contract import CheckpointType, TaskType

# Settings of the WebUI ("add network to prompt"), and the tags that they stand for.
_ADDED_NETWORKS = {"sd_lora": "lora", "sd_hypernetwork": "hypernet"}

# The resize mode that has no picture of the new size.
_LATENT_RESIZE = 3


def generate(p: Any, choice: CloudChoice, generation: Generation, *, at_once: bool) -> Any:
    """Order `p`'s pictures; a `Processed`, as `process_images` returns.

    Unless all are wanted `at_once`, its pictures come when they are looked at. Raises CloudError
    before anything is sent.
    """
    for image in _inputs(p):
        image.load()  # of a script: perhaps still being made
    if generation.is_ending or (shared.state.skipped and not at_once):
        return processing.Processed(p, [], p.seed, "")
    with overridden_options(p):
        ordered = _order(p, choice, generation, with_maps=at_once and wants_maps())
    shares = []
    for order in ordered:
        shares.append(generation.add(*order))
        if generation.is_ending:  # heard while it waited for room
            break
    with overridden_options(p):
        with_grid = wants_grid(p, sum(len(share.pictures) for share in shares))
    if at_once or with_grid:
        generation.settle_all()
    with overridden_options(p):
        return _processed(p, shares, with_grid)


def _inputs(p: Any) -> list[Image.Image]:
    found = [*(getattr(p, "init_images", None) or []), getattr(p, "image_mask", None)]
    return [image for image in found if isinstance(image, Image.Image)]


def _order(
    p: Any, choice: CloudChoice, generation: Generation, with_maps: bool
) -> list[tuple[Batch, Order, int, int]]:
    """The jobs of `p`, each with its batch and the place of its pictures there."""
    _prepare(p)
    settings = picture_settings(shared.opts, p.override_settings.get("sd_vae"))
    fields = request_fields(p, settings, other_scripts(p))
    # A checkpoint that a script or the request asks for wins over the panel's.
    asked = p.override_settings.get("sd_model_checkpoint")
    prepared = prepare_models(
        fields,
        replace(choice, checkpoint=str(asked)) if asked else choice,
        generation.client,
        list(dict.fromkeys([*p.all_prompts, *p.all_negative_prompts])),
        generation.state_folder,
        generation.known_checkpoints,
    )
    generation.known_checkpoints = prepared.cloud
    for warning in (*prepared.warnings, *settings_without_effect(shared.opts, p)):
        p.comment(warning)
    _name_models(p, prepared)
    fields = prepared.fields
    task = TaskType.IMG2IMG if is_img2img(p) else TaskType.TXT2IMG
    batches = cut_into_batches(
        p.all_prompts,
        p.all_negative_prompts,
        p.all_seeds,
        p.all_subseeds,
        p.batch_size,
        p.n_iter,
        p.subseed_strength,
        len(fields.get("init_images", ())),
    )
    ordered: list[tuple[Batch, Order, int, int]] = []
    for number, cut in enumerate(batches):
        _enter_batch(p, cut.start, cut.count, number)
        if number == 0:
            _write_last_parameters(p)
        label = f"Batch {number + 1} out of {p.n_iter}" if p.n_iter > 1 else ""
        batch = Batch(p, len(cut.pieces), label)
        first = 0
        for piece in cut.pieces:
            if not with_maps or ordered:  # once for all pictures, as from the extension itself
                fields = without_maps(fields)
            order = Order(
                task,
                prepared.models,
                piece_fields(piece, fields, prepared.prompt),
                choice.endpoint,
            )
            ordered.append((batch, order, first, piece.count))
            first += piece.count
    if shared.state.job_count == -1:
        shared.state.job_count = p.n_iter
    return ordered


def _name_models(p: Any, prepared: PreparedModels) -> None:
    """What infotexts and file-name patterns say of checkpoint and VAE."""
    p.sd_model_name = p.cloud_checkpoint = os.path.splitext(prepared.checkpoint)[0]
    p.sd_model_hash = prepared.shorthash(prepared.checkpoint)
    vae = next(iter(prepared.models.get(CheckpointType.VAE, ())), None)
    p.sd_vae_name, p.sd_vae_hash = vae, vae and prepared.shorthash(vae)


def _prepare(p: Any) -> None:
    """Fill in what `process_images` would: defaults, prompts, seeds, sizes, parameters to tell."""
    if p.restore_faces is None:
        p.restore_faces = shared.opts.face_restoration
    if p.tiling is None:
        p.tiling = shared.opts.tiling
    if fix := getattr(sd_samplers, "fix_p_invalid_sampler_and_scheduler", None):
        fix(p)
    p.fill_fields_from_opts()
    p.setup_prompts()
    seed, subseed = processing.get_fixed_seed(p.seed), processing.get_fixed_seed(p.subseed)
    numbers = range(len(p.all_prompts))
    steady = bool(p.subseed_strength)
    p.all_seeds = seed if isinstance(seed, list) else [seed + (0 if steady else n) for n in numbers]
    p.all_subseeds = subseed if isinstance(subseed, list) else [subseed + n for n in numbers]
    _add_networks(p)
    rewrite_prompts(p)
    if is_img2img(p):
        _prepare_img2img(p)
    else:
        p.init(p.all_prompts, p.all_seeds, p.all_subseeds)


def _add_networks(p: Any) -> None:
    """The network that the WebUI's settings add to each prompt, unless it is there already."""
    for setting, kind in _ADDED_NETWORKS.items():
        name = getattr(shared.opts, setting, None)
        if name in (None, "", "None") or any(f"<{kind}:{name}:" in text for text in p.all_prompts):
            continue
        tag = f"<{kind}:{name}:{shared.opts.extra_networks_default_multiplier}>"
        p.all_prompts = [text + tag for text in p.all_prompts]


def _prepare_img2img(p: Any) -> None:
    """What the host's own `init` does beside reading the model; the names are its infotext's."""
    p.extra_generation_params["Denoising strength"] = p.denoising_strength
    if p.image_mask is not None:
        _tell_mask(p)
    correct = _corrects_colours(p)
    if correct:
        p.color_corrections = []
    # One of them may stand there several times.
    flat: dict[int, Image.Image] = {}
    for image in p.init_images or []:
        if shared.opts.save_init_img:
            p.init_img_hash = hashlib.md5(image.tobytes()).hexdigest()
            images.save_image(
                image,
                path=shared.opts.outdir_init_images,
                basename=None,
                forced_filename=p.init_img_hash,
                save_to_dirs=False,
                existing_info=image.info,
            )
        if id(image) not in flat:
            flat[id(image)] = images.flatten(image, shared.opts.img2img_background_color)
        if correct:
            shown = flat[id(image)]
            if p.resize_mode != _LATENT_RESIZE:
                shown = images.resize_image(p.resize_mode, shown, p.width, p.height)
            p.color_corrections.append(processing.setup_color_correction(shown))
    p.init_images = [flat[id(image)] for image in p.init_images or []]


def _corrects_colours(p: Any) -> bool:
    """Whether results get the colours of what they started from."""
    if not shared.opts.img2img_color_correction or p.color_corrections is not None:
        return False
    if p.image_mask is not None:  # comes back with what was not masked in place already
        p.comment("The setting img2img_color_correction has no effect with a mask in the cloud.")
        return False
    return True


def _tell_mask(p: Any) -> None:
    """What the infotext says of a mask; with an empty one, the WebUI makes the whole picture."""
    told = p.extra_generation_params
    if p.inpainting_mask_invert:
        told["Mask mode"] = "Inpaint not masked"
    if p.mask_blur_x > 0 or p.mask_blur_y > 0:
        told["Mask blur"] = p.mask_blur
    if p.inpaint_full_res:
        darkest, brightest = flatten_mask(p.image_mask).getextrema()
        if darkest == 255 if p.inpainting_mask_invert else brightest == 0:
            p.comment("The mask is empty: the whole picture is made anew.")
            return
        told["Inpaint area"] = "Only masked"
        told["Masked area padding"] = p.inpaint_full_res_padding
    content = {0: "fill", 2: "latent noise", 3: "latent nothing"}.get(p.inpainting_fill)
    if content:
        told["Masked content"] = content


def _write_last_parameters(p: Any) -> None:
    """The file behind the WebUI's "read last generation parameters" button."""
    if shared.cmd_opts.no_prompt_history:
        return
    text = processing.create_infotext(p, p.all_prompts, p.all_seeds, p.all_subseeds, index=0)
    with open(os.path.join(paths.data_path, "params.txt"), "w", encoding="utf8") as file:
        file.write(text)


def _enter_batch(p: Any, start: int, count: int, number: int) -> None:
    """What infotexts and file-name patterns read of the running batch."""
    span = slice(start, start + count)
    p.iteration = number
    p.prompts, p.negative_prompts = p.all_prompts[span], p.all_negative_prompts[span]
    p.seeds, p.subseeds = p.all_seeds[span], p.all_subseeds[span]
    p.batch_index = count - 1  # as after its last picture: what the grid is named by


def _processed(p: Any, shares: Sequence[Share], with_grid: bool) -> Any:
    """The host's own result; a grid shows what came, so all must have been waited for."""
    if shares and shares[-1].is_settled:
        # Grid and answer tell what the engine said of the last picture, as the host's do.
        p.extra_generation_params = shares[-1].batch.p.extra_generation_params
    shown: list[tuple[Image.Image, str]] = [
        pair for share in shares for pair in share.pairs(made_only=with_grid)
    ]
    index_of_first = 0
    if with_grid and wants_grid(p, len(shown)):
        grid, text = make_grid(p, [picture for picture, _ in shown])
        if shared.opts.return_grid:
            shown.insert(0, (grid, text))
            index_of_first = 1
    texts = [text for _, text in shown]
    maps = shares[0].maps if shares else []
    return processing.Processed(
        p,
        [*(picture for picture, _ in shown), *maps],
        p.all_seeds[0],
        texts[0] if texts else "",
        subseed=p.all_subseeds[0],
        index_of_first_image=index_of_first,
        infotexts=texts,
    )
