"""Weights files to models: loaded once, kept in memory within bounds, lent to one job at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast

import torch
from torch import nn

from middleware_api.container.control.controlnet import ControlNet, load_controlnet
from middleware_api.container.engine.checkpoint import (
    Autoencoder,
    StableDiffusion,
    load_autoencoder,
    load_checkpoint,
)
from middleware_api.container.engine.model_cache import ModelCache
from middleware_api.container.engine.roles import Roles
from middleware_api.container.engine.together import check_together
from middleware_api.container.extras.tagger import Tagger, load_tagger
from middleware_api.container.extras.upscaler_models import (
    UpscalerModel,
    load_upscaler,
)
from middleware_api.container.networks.adapters import Lora, load_lora
from middleware_api.container.networks.hypernetworks import Hypernetwork, load_hypernetwork
from middleware_api.container.networks.job_networks import JobNetworks
from middleware_api.container.prompts.embeddings import Embedding, load_embedding
from middleware_api.container.storage import sha256_of
from middleware_api.weights_name import WeightsName

# Of the bytes for checkpoints: what VAE files, upscalers, and LoRAs and their like, may take
# beside them.
_VAE_SHARE = 8
_UPSCALERS_SHARE = 8
_TAGGERS_SHARE = 8
_NETWORKS_SHARE = 4
_CONTROLNETS_SHARE = 2

_Network = TypeVar("_Network", Lora, Embedding, Hypernetwork)


@dataclass(frozen=True)
class CheckpointFile:
    """A weights file on this machine; `sha256` may be empty."""

    path: Path
    name: str
    key: str
    sha256: str


@dataclass(frozen=True)
class Models:
    """One job's loaded checkpoints, the VAE that it asks for already in each of them.

    `last` is the one that the last pass begins with; `refiner` is None without one. `networks` are
    the job's LoRAs, embeddings and hypernetworks, `controlnets` those of its units in their order.
    """

    main: StableDiffusion
    last: StableDiffusion
    refiner: StableDiffusion | None
    names: Roles[WeightsName]
    networks: JobNetworks
    controlnets: tuple[ControlNet, ...] = ()
    upscaler: UpscalerModel | None = None

    def parts(self) -> Iterator[nn.Module]:
        """Everything that a job's latents and pictures go through."""
        for model in dict.fromkeys((self.main, self.last, self.refiner or self.last)):
            yield from (model.unet, model.vae)


class Loader:
    """Lends models. `cache_bytes` bounds the checkpoints that stay in memory."""

    def __init__(self, device: torch.device, dtype: torch.dtype, cache_bytes: int) -> None:
        self._device, self._dtype = device, dtype
        self.checkpoints: ModelCache[StableDiffusion] = ModelCache(cache_bytes, lambda m: m.n_bytes)
        self._vaes: ModelCache[Autoencoder] = ModelCache(
            cache_bytes // _VAE_SHARE, lambda m: m.n_bytes
        )
        self._upscalers: ModelCache[UpscalerModel] = ModelCache(
            cache_bytes // _UPSCALERS_SHARE, lambda m: m.n_bytes
        )
        self._taggers: ModelCache[Tagger] = ModelCache(
            cache_bytes // _TAGGERS_SHARE, lambda m: m.n_bytes
        )
        self._networks: ModelCache[Lora | Embedding | Hypernetwork] = ModelCache(
            cache_bytes // _NETWORKS_SHARE, lambda m: m.n_bytes
        )
        self._controlnets: ModelCache[ControlNet] = ModelCache(
            cache_bytes // _CONTROLNETS_SHARE, lambda m: m.n_bytes
        )

    @contextmanager
    def load(self, files: Roles[CheckpointFile]) -> Iterator[Models]:
        """Lends the models, from memory where they are there; raises CheckpointUnreadable."""
        with ExitStack() as lent:
            vae = None if files.vae is None else lent.enter_context(self._vae(files.vae))
            upscaler = None
            if files.upscaler is not None:
                upscaler = lent.enter_context(self.upscaler(files.upscaler))

            def lend(file: CheckpointFile) -> StableDiffusion:
                model = lent.enter_context(self._checkpoint(file))
                return model if vae is None else model.with_autoencoder(vae)

            networks = JobNetworks(
                [self._network(file, _lora) for file in files.loras],
                [self._network(file, _embedding) for file in files.embeddings],
                [self._network(file, _hypernetwork) for file in files.hypernetworks],
            )
            controlnets = tuple(
                lent.enter_context(self._controlnet(file)) for file in files.controlnets
            )
            files = Roles(files.main, files.second_pass, files.refiner)
            loaded = files.each(lend)
            main, last, refiner = loaded.main, loaded.second_pass or loaded.main, loaded.refiner
            check_together(main, last, refiner)
            for net in controlnets:
                for model in dict.fromkeys((main, last, refiner or last)):
                    net.check_goes_with(model)
            names = loaded.each(lambda model: WeightsName(model.name, model.sha256))
            if vae is not None:
                names = replace(names, vae=WeightsName(vae.name, vae.sha256))
            yield Models(main, last, refiner, names, networks, controlnets, upscaler)

    @contextmanager
    def _checkpoint(self, file: CheckpointFile) -> Iterator[StableDiffusion]:
        def read() -> StableDiffusion:
            return load_checkpoint(file.path, file.name, _sha256(file), self._device, self._dtype)

        with self.checkpoints.use(file.sha256 or file.key, self._expected(file), read) as model:
            yield model

    @contextmanager
    def _vae(self, file: CheckpointFile) -> Iterator[Autoencoder]:
        def read() -> Autoencoder:
            return load_autoencoder(file.path, file.name, _sha256(file), self._device, self._dtype)

        with self._vaes.use(file.sha256 or file.key, self._expected(file), read) as vae:
            yield vae

    @contextmanager
    def _controlnet(self, file: CheckpointFile) -> Iterator[ControlNet]:
        def read() -> ControlNet:
            return load_controlnet(file.path, file.name, file.sha256, self._device, self._dtype)

        # Its name says a thing about it: see ControlNet.pools.
        key = repr((file.sha256 or file.key, file.name))
        with self._controlnets.use(key, self._expected(file), read) as net:
            yield net

    @contextmanager
    def upscaler(self, file: CheckpointFile) -> Iterator[UpscalerModel]:
        """Lends an upscaler that is a model; raises CheckpointUnreadable."""

        def read() -> UpscalerModel:
            return load_upscaler(file.path, file.name, self._device)

        key = file.sha256 or file.key
        with self._upscalers.use(key, self._expected(file), read) as model:
            yield model

    @contextmanager
    def tagger(self, file: CheckpointFile) -> Iterator[Tagger]:
        """Lends what describes pictures; raises CheckpointUnreadable."""

        def read() -> Tagger:
            return load_tagger(file.path, file.name, self._device)

        key = file.sha256 or file.key
        with self._taggers.use(key, self._expected(file), read) as tagger:
            yield tagger

    def _network(
        self, file: CheckpointFile, read: Callable[[CheckpointFile], _Network]
    ) -> _Network:
        key = repr((read.__name__, file.sha256 or file.key, file.name))
        with self._networks.use(key, self._expected(file), lambda: read(file)) as network:
            return cast(_Network, network)

    def _expected(self, file: CheckpointFile) -> int:
        """Bytes in memory. Halves in the file become singles on the CPU; too much is no harm."""
        growth = 2 if self._dtype is torch.float32 else 1
        return growth * file.path.stat().st_size if file.path.is_file() else 0


def _lora(file: CheckpointFile) -> Lora:
    return load_lora(file.path, file.name)


def _embedding(file: CheckpointFile) -> Embedding:
    return load_embedding(file.path, file.name, _sha256(file))


def _hypernetwork(file: CheckpointFile) -> Hypernetwork:
    return load_hypernetwork(file.path, file.name)


def _sha256(file: CheckpointFile) -> str:
    if file.sha256 or not file.path.is_file():  # the loader says so in its own words
        return file.sha256
    with file.path.open("rb") as content:
        return sha256_of(content)
