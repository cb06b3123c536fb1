"""One generation of the WebUI, made in the cloud and handed back as if it were made here."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from modules import images, paths, processing, sd_samplers, shared
from PIL import Image

from aws_extension.access import open_picture
from aws_extension.client import CloudClient, WaitStatus
from aws_extension.errors import CloudError
from aws_extension.webui.batches import Batch, Piece, cut_into_batches
from aws_extension.webui.choice import CloudChoice
from aws_extension.webui.request_fields import is_img2img, picture_settings, request_fields
from aws_extension.webui.script_args import is_set, to_json
from middleware_api.contract import CheckpointType, InferenceState, TaskType

# The WebUI's own always-on scripts: what they do travels in fields of `p`.
_OWN_SCRIPTS = ("processing_scripts",)
_COMMENTS_SCRIPT = "comments.py"
_MODEL_HASH = re.compile(r"\bModel hash: ([0-9a-f]+)")


@dataclass
class _Made:
    """What has come back so far."""

    pictures: list[Image.Image] = field(default_factory=list)
    infotexts: list[str] = field(default_factory=list)


def generate(p: Any, choice: CloudChoice, client: CloudClient) -> Any:
    """Make `p`'s pictures in the cloud; a `Processed`, as `process_images` returns.

    Raises CloudError, which the WebUI shows; pictures that had come before are saved by then.
    """
    checkpoint = _checkpoint(p, choice)
    other_scripts = _other_scripts(p)
    with _overridden_options(p):
        settings = picture_settings(shared.opts, p.override_settings)
        _prepare(p, checkpoint)
        batches = cut_into_batches(
            p.all_prompts,
            p.all_negative_prompts,
            p.all_seeds,
            p.all_subseeds,
            p.batch_size,
            p.n_iter,
            p.subseed_strength,
        )
        _write_last_parameters(p)
        made = _Made()
        models = {CheckpointType.STABLE_DIFFUSION: [checkpoint]}
        shared.state.job_count = (
            p.n_iter if shared.state.job_count == -1 else shared.state.job_count
        )
        for number, batch in enumerate(batches):
            shared.state.skipped = False
            if shared.state.interrupted or shared.state.stopping_generation:
                break
            _enter_batch(p, batch, number)
            for at, piece in enumerate(batch.pieces):
                fields = request_fields(p, piece, settings, other_scripts)
                task = TaskType.IMG2IMG if is_img2img(p) else TaskType.TXT2IMG
                submission = client.submit(task, models, fields, choice.endpoint)
                offset = sum(earlier.count for earlier in batch.pieces[:at])
                if _follow(client, submission.job_id, p.steps, at, len(batch.pieces)):
                    _collect(p, client, submission.job_id, batch, piece, offset, made)
            shared.state.nextjob()
    return _finish(p, made)


def _checkpoint(p: Any, choice: CloudChoice) -> str:
    """A checkpoint that a script or the request asks for wins over the panel's."""
    asked = p.override_settings.get("sd_model_checkpoint")
    if asked:
        # "folder/name.safetensors [hash]", as the WebUI writes titles
        return os.path.basename(re.sub(r"\s*\[[0-9a-f]+\]$", "", str(asked)))
    if choice.checkpoint:
        return choice.checkpoint
    raise CloudError(
        "No cloud checkpoint is chosen. Open “Generate in the cloud”, press its refresh button, "
        "and choose one; is the list empty, upload one in the Cloud tab."
    )


def _other_scripts(p: Any) -> dict[str, Any]:
    """The arguments of other extensions' always-on scripts that are in use, by title."""
    found = {}
    for script in p.scripts.alwayson_scripts if p.scripts else []:
        title = str(script.title()).lower()
        own = os.path.basename(os.path.dirname(script.filename or "")) in _OWN_SCRIPTS
        if own or getattr(script, "is_cloud_panel", False):
            continue
        args = list(p.script_args[script.args_from : script.args_to])
        defaults = [getattr(control, "value", None) for control in script.controls or []]
        if is_set(args, defaults):
            found[title] = to_json(args)
    return found


@contextmanager
def _overridden_options(p: Any) -> Iterator[None]:
    """The request's settings for its length, as the WebUI has it; without loading any model."""
    mine = {
        k: v for k, v in p.override_settings.items() if k not in ("sd_model_checkpoint", "sd_vae")
    }
    before = {k: shared.opts.data.get(k, shared.opts.get_default(k)) for k in mine}
    try:
        for name, value in mine.items():
            shared.opts.set(name, value, is_api=True, run_callbacks=False)
        yield
    finally:
        if p.override_settings_restore_afterwards:
            for name, value in before.items():
                setattr(shared.opts, name, value)


def _prepare(p: Any, checkpoint: str) -> None:
    """Fill in what `process_images` would: defaults, prompts, seeds, sizes."""
    if p.restore_faces is None:
        p.restore_faces = shared.opts.face_restoration
    if p.tiling is None:
        p.tiling = shared.opts.tiling
    if fix := getattr(sd_samplers, "fix_p_invalid_sampler_and_scheduler", None):
        fix(p)
    p.sd_model_name = os.path.splitext(checkpoint)[0]
    p.sd_model_hash = p.sd_vae_name = p.sd_vae_hash = None
    p.cloud_checkpoint = p.sd_model_name
    p.fill_fields_from_opts()
    p.setup_prompts()
    seed, subseed = processing.get_fixed_seed(p.seed), processing.get_fixed_seed(p.subseed)
    numbers = range(len(p.all_prompts))
    steady = bool(p.subseed_strength)
    p.all_seeds = seed if isinstance(seed, list) else [seed + (0 if steady else n) for n in numbers]
    p.all_subseeds = subseed if isinstance(subseed, list) else [subseed + n for n in numbers]
    # Hooks do not run here (most need the model), but prompts must lose their comments.
    for script in p.scripts.alwayson_scripts if p.scripts else []:
        if os.path.basename(script.filename or "") == _COMMENTS_SCRIPT:
            script.process(p)
    if not is_img2img(p):
        p.init(p.all_prompts, p.all_seeds, p.all_subseeds)


def _write_last_parameters(p: Any) -> None:
    """The file behind the WebUI's "read last generation parameters" button."""
    if shared.cmd_opts.no_prompt_history:
        return
    text = processing.create_infotext(p, p.all_prompts, p.all_seeds, p.all_subseeds, index=0)
    with open(os.path.join(paths.data_path, "params.txt"), "w", encoding="utf8") as file:
        file.write(text)


def _enter_batch(p: Any, batch: Batch, number: int) -> None:
    """What file-name patterns and the progress bar read of the running batch."""
    span = slice(batch.start, batch.start + batch.count)
    p.iteration = number
    p.prompts, p.negative_prompts = p.all_prompts[span], p.all_negative_prompts[span]
    p.seeds, p.subseeds = p.all_seeds[span], p.all_subseeds[span]
    if p.n_iter > 1:
        shared.state.job = f"Batch {number + 1} out of {p.n_iter}"
    shared.state.sampling_steps = p.steps
    shared.state.sampling_step = 0


def _follow(client: CloudClient, job_id: str, steps: int, at: int, pieces: int) -> bool:
    """Wait for a job, showing its progress; False when the user stopped it."""
    state = shared.state
    previews = _Previews(client)

    def show(status: WaitStatus) -> None:
        state.textinfo = f"Cloud: {status.describe()}"
        state.sampling_step = int(steps * (at + status.job.progress) / pieces)
        previews.show(status)

    try:
        job = client.wait_for(job_id, show, lambda: state.interrupted or state.skipped)
    finally:
        state.textinfo = None
    return job.state is InferenceState.SUCCEEDED


class _Previews:
    """Shows a running job's preview as it grows."""

    def __init__(self, client: CloudClient) -> None:
        self._client = client
        self._last = b""

    def show(self, status: WaitStatus) -> None:
        """Fetch the preview and hand it on when it is another one."""
        if (
            not status.job.preview_url
            or status.job.is_final
            or not shared.opts.live_previews_enable
        ):
            return
        try:
            content = self._client.download(status.job.preview_url)
            if content != self._last:
                shared.state.assign_current_image(open_picture(content))
                self._last = content
        except CloudError:
            return  # replaced while it was read: the next poll has another


def _collect(
    p: Any,
    client: CloudClient,
    job_id: str,
    batch: Batch,
    piece: Piece,
    offset: int,
    made: _Made,
) -> None:
    """Fetch a job's pictures and save them as the WebUI saves its own."""
    output = client.get_output(job_id)
    for warning in output.warnings:
        p.comment(warning)
    files = client.download_images(job_id)
    # An engine may answer with a grid before the pictures: the last ones are they.
    for number, content in enumerate(files[-piece.count :]):
        picture = open_picture(content)
        index = batch.start + offset + number
        p.batch_index = offset + number
        text = (
            output.infotexts[number - piece.count]
            if len(output.infotexts) >= piece.count
            else str(picture.info.get("parameters") or "")
        )
        if found := _MODEL_HASH.search(text):
            p.sd_model_hash = found[1]
        picture.info.pop("parameters", None)
        if shared.opts.enable_pnginfo:
            picture.info["parameters"] = text
        if p.save_samples():
            images.save_image(
                picture,
                p.outpath_samples,
                "",
                p.all_seeds[index],
                p.all_prompts[index],
                shared.opts.samples_format,
                info=text,
                p=p,
            )
        made.pictures.append(picture)
        made.infotexts.append(text)


def _finish(p: Any, made: _Made) -> Any:
    """The WebUI's own result, with its grid where its settings ask for one."""
    first = made.infotexts[0] if made.infotexts else ""
    shown, texts = list(made.pictures), list(made.infotexts)
    wanted = (shared.opts.return_grid or shared.opts.grid_save) and not p.do_not_save_grid
    enough = len(shown) > 1 or (shown and not shared.opts.grid_only_if_multiple)
    index_of_first = 0
    if wanted and enough:
        grid = images.image_grid(made.pictures, p.batch_size)
        if shared.opts.enable_pnginfo:
            grid.info["parameters"] = first
        if shared.opts.return_grid:
            shown.insert(0, grid)
            texts.insert(0, first)
            index_of_first = 1
        if shared.opts.grid_save:
            images.save_image(
                grid,
                p.outpath_grids,
                "grid",
                p.all_seeds[0],
                p.all_prompts[0],
                shared.opts.grid_format,
                info=first,
                short_filename=not shared.opts.grid_extended_filename,
                p=p,
                grid=True,
            )
    return processing.Processed(
        p,
        shown,
        p.all_seeds[0],
        first,
        subseed=p.all_subseeds[0],
        index_of_first_image=index_of_first,
        infotexts=texts,
    )
