"""The weights files on the WebUI's disk, as its own lists have them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from modules import hashes, paths, sd_models, sd_vae, shared

from aws_extension.model_needs import LocalFile
from middleware_api.contract import CheckpointType

_EMBEDDING_EXTENSIONS = (".pt", ".bin", ".safetensors")
_LORA_EXTENSIONS = (".pt", ".ckpt", ".safetensors")
_CONTROLNET_EXTENSIONS = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")


class HostModels:
    """This machine's files. Each kind is listed when it is first asked for, then kept: make one
    for each look at the disk. Nothing is hashed here.
    """

    def __init__(self) -> None:
        self._listed: dict[CheckpointType, tuple[LocalFile, ...]] = {}

    @property
    def dreambooth_folder(self) -> Path:
        """Where the Dreambooth extension keeps its models."""
        chosen = getattr(shared.cmd_opts, "dreambooth_models_path", None)
        return Path(chosen or os.path.join(paths.models_path, "dreambooth"))

    def of(self, kind: CheckpointType) -> tuple[LocalFile, ...]:
        """The files of one kind; none where the host lacks that part."""
        if kind not in self._listed:
            self._listed[kind] = tuple(_LISTS[kind]())
        return self._listed[kind]


def _file(
    kind: CheckpointType, path: str, names: Iterable[str], hash_title: str = ""
) -> Iterator[LocalFile]:
    """One file, unless it has gone since the host listed it."""
    try:
        found = os.stat(path)
    except OSError:
        return
    known = _known_sha256(hash_title, found.st_mtime) if hash_title else ""
    yield LocalFile(kind, Path(path), found.st_size, tuple(filter(None, names)), known)


def _known_sha256(title: str, modified: float) -> str:
    """What the WebUI has hashed before.

    Its own look-up also takes the hash of a file that an older one has replaced since: here the
    times must be the same.
    """
    entry = hashes.cache("hashes").get(title) or {}
    return str(entry.get("sha256") or "") if entry.get("mtime") == modified else ""


def _checkpoints() -> Iterator[LocalFile]:
    for info in sd_models.checkpoints_list.values():
        names = (info.name, info.title, info.model_name, info.name_for_extra)
        yield from _file(
            CheckpointType.STABLE_DIFFUSION, info.filename, names, f"checkpoint/{info.name}"
        )


def _vaes() -> Iterator[LocalFile]:
    # The WebUI keeps one hash for all of its VAEs: of no use.
    for name, path in getattr(sd_vae, "vae_dict", {}).items():
        yield from _file(CheckpointType.VAE, path, (name,))


def _loras() -> Iterator[LocalFile]:
    # The built-in Lora extension's module. The hashes that it keeps leave the header out: of no
    # use either.
    networks: Mapping[str, Any] = getattr(sys.modules.get("networks"), "available_networks", {})
    for name, network in networks.items():
        yield from _file(CheckpointType.LORA, network.filename, (name, network.alias))
    # It finds files that came after its last look when a prompt names them; so do we.
    listed = {network.filename for network in networks.values()}
    for option in ("lora_dir", "lyco_dir_backcompat"):
        for path in _walk(getattr(shared.cmd_opts, option, None), _LORA_EXTENSIONS):
            if path not in listed:
                yield from _file(CheckpointType.LORA, path, ())


def _hypernetworks() -> Iterator[LocalFile]:
    for name, path in getattr(shared, "hypernetworks", {}).items():
        yield from _file(CheckpointType.HYPERNETWORKS, path, (name,), f"hypernet/{name}")


def _embeddings() -> Iterator[LocalFile]:
    # The WebUI's list is made by loading them into a model: there may be none here.
    for path in _walk(shared.cmd_opts.embeddings_dir, _EMBEDDING_EXTENSIONS):
        name = os.path.splitext(os.path.basename(path))[0]
        yield from _file(CheckpointType.EMBEDDINGS, path, (name,), f"textual_inversion/{name}")


def _controlnet_models() -> Iterator[LocalFile]:
    for folder in _controlnet_folders():
        for path in _walk(folder, _CONTROLNET_EXTENSIONS):
            yield from _file(CheckpointType.CONTROLNET, path, ())


def _controlnet_folders() -> list[str]:
    """Where the ControlNet extension and Forge look, in their order."""
    folders = [
        os.path.join(paths.models_path, "ControlNet"),
        os.path.join(paths.data_path, "extensions", "sd-webui-controlnet", "models"),
        shared.opts.data.get("control_net_models_path"),
        getattr(shared.cmd_opts, "controlnet_dir", None),
    ]
    return [str(folder) for folder in folders if folder]


def _upscalers() -> Iterator[LocalFile]:
    # Of all the folders that the WebUI has for them. Those that it would first have to download
    # have an address in the place of a file.
    for upscaler in getattr(shared, "sd_upscalers", ()):
        path = getattr(upscaler, "local_data_path", None) or upscaler.data_path
        if path:
            yield from _file(CheckpointType.ESRGAN, path, (upscaler.name,))


def _taggers() -> Iterator[LocalFile]:
    folder = os.path.join(paths.models_path, CheckpointType.DEEPDANBOORU.value)
    for path in _walk(folder, (".pt", ".safetensors")):
        yield from _file(CheckpointType.DEEPDANBOORU, path, ())


def _walk(folder: str | None, extensions: tuple[str, ...]) -> Iterator[str]:
    for parent, _, names in os.walk(folder or "", followlinks=True):
        for name in sorted(names):
            if name.lower().endswith(extensions):
                yield os.path.join(parent, name)


_LISTS: dict[CheckpointType, Callable[[], Iterator[LocalFile]]] = {
    CheckpointType.STABLE_DIFFUSION: _checkpoints,
    CheckpointType.VAE: _vaes,
    CheckpointType.LORA: _loras,
    CheckpointType.HYPERNETWORKS: _hypernetworks,
    CheckpointType.EMBEDDINGS: _embeddings,
    CheckpointType.CONTROLNET: _controlnet_models,
    CheckpointType.ESRGAN: _upscalers,
    CheckpointType.DEEPDANBOORU: _taggers,
}
