"""Requests to pictures: conditioning, guidance, the sampler's walk, and the autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from middleware_api.container import pictures
from middleware_api.container.checkpoint import VAE_SCALE, StableDiffusion, load_checkpoint
from middleware_api.container.infotext import infotext, seed_of
from middleware_api.container.model_cache import ModelCache
from middleware_api.container.noise import PictureNoise
from middleware_api.container.progress import Step
from middleware_api.container.prompts import PromptEncoder
from middleware_api.container.request import GenerationRequest, MaskFill
from middleware_api.container.samplers import Walk
from middleware_api.container.schedules import Plan, timestep_of
from middleware_api.container.storage import sha256_of

PREVIEW_LATENTS = 16


@dataclass(frozen=True)
class CheckpointFile:
    """A weights file on this machine; `sha256` may be empty."""

    path: Path
    name: str
    key: str
    sha256: str


@dataclass(frozen=True)
class Picture:
    """One finished picture; `index` counts over all batches of the job."""

    index: int
    image: Image.Image
    infotext: str


OnStep = Callable[[Step], None]


class Engine:
    """Stable Diffusion 1.x with diffusers' modules and our own samplers. One job at a time."""

    def __init__(self, device: torch.device, cache_bytes: int, prompts: PromptEncoder) -> None:
        self._device = device
        self._dtype = torch.float16 if device.type == "cuda" else torch.float32
        self._prompts = prompts
        self.cache: ModelCache[StableDiffusion] = ModelCache(cache_bytes, lambda m: m.n_bytes)

    @contextmanager
    def load(self, file: CheckpointFile) -> Iterator[StableDiffusion]:
        """Lends the checkpoint, from memory when it is there; raises CheckpointUnreadable."""

        def read() -> StableDiffusion:
            digest = file.sha256 or _sha256(file.path)
            return load_checkpoint(file.path, file.name, digest, self._device, self._dtype)

        # Halves in the file become singles on the CPU; expecting too much only evicts earlier.
        growth = 2 if self._dtype is torch.float32 else 1
        expected = growth * file.path.stat().st_size if file.path.is_file() else 0
        with self.cache.use(file.sha256 or file.key, expected, read) as model:
            yield model

    def warnings(self, request: GenerationRequest) -> list[str]:
        """Every part of the request that the pictures will not show."""
        return [
            *request.warnings,
            *self._prompts.warnings("prompt", request.prompt),
            *self._prompts.warnings("negative_prompt", request.negative_prompt),
        ]

    @torch.inference_mode()
    def generate(
        self, model: StableDiffusion, request: GenerationRequest, on_step: OnStep
    ) -> Iterator[Picture]:
        """Yields pictures as their batch is done; `on_step` may raise to stop the job."""
        strength = request.start.denoising_strength if request.start else None
        plan = request.sampler.plan_for(request.schedule, request.steps, strength)
        start = _Start.of(model, request, self._device, self._dtype)
        text = [
            self._prompts.encode(model.text_encoder, prompt, request.clip_skip)
            for prompt in dict.fromkeys((request.prompt, request.negative_prompt))
        ]
        denoiser = _Denoiser(model.unet, text[0], text[-1], request.cfg_scale, start, self._dtype)
        total = plan.steps * request.n_iter
        for batch in range(request.n_iter):
            first = batch * request.batch_size
            indices = range(first, first + request.batch_size)

            def step(i: int, clean: Tensor | None, done: int = batch * plan.steps) -> None:
                on_step(Step(done + i, total, clean))

            latents = _sample(model, request, plan, start, denoiser, indices, step)
            on_step(Step((batch + 1) * plan.steps, total, None))
            for index, latent in zip(indices, latents, strict=True):
                image = self._decode(model, latent)
                if start.overlay is not None:
                    image = start.overlay.apply(image)
                yield Picture(index, image, infotext(request, model, index))

    @torch.inference_mode()
    def preview(self, model: StableDiffusion, clean: Tensor) -> Image.Image:
        """A small picture of the first latent of a batch."""
        small = clean[:1]
        height, width = small.shape[2:]
        shrink = min(1.0, PREVIEW_LATENTS / max(height, width))
        size = (max(1, int(height * shrink)), max(1, int(width * shrink)))
        return self._decode(model, nn.functional.adaptive_avg_pool2d(small, size)[0])

    def _decode(self, model: StableDiffusion, latent: Tensor) -> Image.Image:
        """One at a time, so that a picture does not depend on its batch."""
        scaled = latent[None].to(self._dtype) / VAE_SCALE
        return pictures.to_picture(model.vae.decode(scaled).sample[0])


@dataclass(frozen=True)
class _Start:
    """The latents a job starts from and must keep; all None for txt2img."""

    latent: Tensor | None
    mask: Tensor | None
    overlay: pictures.Overlay | None
    fill: MaskFill
    shape: tuple[int, int, int]

    @staticmethod
    def of(
        model: StableDiffusion, request: GenerationRequest, device: torch.device, dtype: torch.dtype
    ) -> _Start:
        factor = model.latent_factor
        height, width = max(1, request.height // factor), max(1, request.width // factor)
        shape = (4, height, width)
        if request.start is None:
            return _Start(None, None, None, MaskFill.ORIGINAL, shape)
        prepared = pictures.prepare_start(request.start, width * factor, height * factor)
        pixels = pictures.to_tensor(prepared.picture).to(device, dtype)
        # The mean, not a draw: the same picture in gives the same picture out.
        latent = model.vae.encode(pixels).latent_dist.mode().float() * VAE_SCALE
        if prepared.mask is None or request.start.mask is None:
            return _Start(latent, None, None, MaskFill.ORIGINAL, shape)
        mask = pictures.latent_mask(prepared.mask, width, height).to(device)
        return _Start(latent, mask, prepared.overlay, request.start.mask.fill, shape)

    def filled(self, noise: Tensor) -> Tensor | None:
        """The starting latents of a batch, the masked part replaced as `fill` says."""
        if self.latent is None:
            return None
        latent = self.latent.expand_as(noise)
        if self.mask is None or self.fill in (MaskFill.FILL, MaskFill.ORIGINAL):
            return latent
        anew = noise if self.fill is MaskFill.LATENT_NOISE else torch.zeros_like(noise)
        return latent * (1 - self.mask) + anew * self.mask

    def keep(self, latent: Tensor) -> Tensor:
        """The original where the mask is black."""
        if self.mask is None or self.latent is None:
            return latent
        return self.latent * (1 - self.mask) + latent * self.mask


@dataclass(frozen=True)
class _Denoiser:
    """The UNet as a guess of the clean latent, guided away from the negative prompt."""

    unet: nn.Module
    positive: Tensor
    negative: Tensor
    cfg_scale: float
    start: _Start
    dtype: torch.dtype

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        scaled = (x / (sigma**2 + 1) ** 0.5).to(self.dtype)
        time = torch.tensor([timestep_of(sigma)], device=x.device)
        count = x.shape[0]
        if self.cfg_scale == 1:
            noise = self._predict(scaled, time, [self.positive] * count)
        else:
            # Both halves in one call.
            texts = [self.positive] * count + [self.negative] * count
            towards, away = self._predict(torch.cat([scaled, scaled]), time, texts).chunk(2)
            noise = away + (towards - away) * self.cfg_scale
        return self.start.keep(x - noise * sigma)

    def _predict(self, scaled: Tensor, time: Tensor, texts: Sequence[Tensor]) -> Tensor:
        times = time.expand(scaled.shape[0])
        predicted: Tensor = self.unet(scaled, times, torch.cat([*texts]), return_dict=False)[0]
        return predicted.float()


def _sample(
    model: StableDiffusion,
    request: GenerationRequest,
    plan: Plan,
    start: _Start,
    denoise: Callable[[Tensor, float], Tensor],
    indices: range,
    step: Callable[[int, Tensor | None], None],
) -> Tensor:
    """The finished latents of one batch, (batch, 4, height, width)."""
    device = model.text_encoder.device
    noises = [
        PictureNoise(
            seed_of(request, i), start.shape, request.subseed + i, request.subseed_strength
        )
        for i in indices
    ]

    def stack(parts: list[Tensor]) -> Tensor:
        return torch.stack(parts).to(device)

    first = stack([noise.first() for noise in noises])
    x = first * plan.noise_scale
    initial = start.filled(first)
    if initial is not None:
        x = x + initial * plan.image_scale
    walk = Walk(
        plan.sigmas,
        denoise,
        step,
        fresh_noise=lambda: stack([noise.fresh() for noise in noises]),
        path_noise=lambda a, b: stack([noise.along_path(a, b) for noise in noises]),
    )
    return start.keep(request.sampler.run(walk, x) * plan.final_scale)


def _sha256(path: Path) -> str:
    if not path.is_file():  # the loader says so in its own words
        return ""
    with path.open("rb") as file:
        return sha256_of(file)
