"""Requests to pictures: conditioning, one or two passes of the sampler, and the autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from PIL import Image
from torch import Tensor, nn

from middleware_api.container.control.control import Control
from middleware_api.container.control.job_control import JobControl, Size
from middleware_api.container.engine import autoencoding, pictures
from middleware_api.container.engine.autoencoding import shown_beside
from middleware_api.container.engine.checkpoint import (
    StableDiffusion,
)
from middleware_api.container.engine.checkpoint_shapes import LATENT_CHANNELS
from middleware_api.container.engine.hires import Target
from middleware_api.container.engine.infotext import MASK_STRENGTH, infotext, seed_of
from middleware_api.container.engine.loading import Loader, Models
from middleware_api.container.engine.request import GenerationRequest, MaskFill
from middleware_api.container.engine.tiling import seamless
from middleware_api.container.engine.together import check_enlarging
from middleware_api.container.extras.upscaler_models import (
    ModelUpscaler,
)
from middleware_api.container.extras.upscalers import (
    AnyPictureUpscaler,
    LatentUpscaler,
    PictureUpscaler,
    Resize,
    UpscalerFile,
    exactly,
)
from middleware_api.container.networks.job_networks import JobNetworks
from middleware_api.container.progress import Step
from middleware_api.container.prompts.encoder import PromptEncoder
from middleware_api.container.prompts.networks import misplaced_in
from middleware_api.container.prompts.reader import Ask, PromptReader
from middleware_api.container.prompts.schedule import Clock
from middleware_api.container.samplers.denoiser import Guided, Refined
from middleware_api.container.samplers.samplers import Sampler
from middleware_api.container.samplers.sampling import Pass, Start
from middleware_api.container.samplers.sampling_settings import SamplingSettings
from middleware_api.container.samplers.schedules import Plan, levels_of

PREVIEW_LATENTS = 16


@dataclass(frozen=True)
class Picture:
    """One finished picture; `index` counts over all batches of the job.

    After them come the maps that ControlNet's units saw, whose `infotext` is "".
    """

    index: int
    image: Image.Image
    infotext: str


OnStep = Callable[[Step], None]
Begin = Callable[[Sequence[int]], Start]


class Engine:
    """Stable Diffusion with diffusers' modules and our own samplers. One job at a time.

    Without a `dtype` a GPU works in half precision, a CPU in single.
    """

    def __init__(
        self,
        device: torch.device,
        cache_bytes: int,
        prompts: PromptEncoder,
        dtype: torch.dtype | None = None,
    ) -> None:
        self._device = device
        self._dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
        self._prompts = PromptReader(prompts)
        self.loader = Loader(device, self._dtype, cache_bytes)

    def warnings(self, models: Models, request: GenerationRequest) -> list[str]:
        """Every part of the prompts that the pictures will not show, and a VAE that seems odd."""
        asks = self._asks(request)
        found = models.networks.unused([ask.networks for ask in asks])
        found += filter(None, (models.main.doubt, models.last.doubt))
        for model, ask in zip((models.main, models.last), asks, strict=False):
            found += models.networks.problems(model, ask.networks)
            found += misplaced_in(ask.negative)
        return [*dict.fromkeys(found)]

    def text_parameters(self, models: Models, request: GenerationRequest) -> dict[str, str]:
        """What the prompts and the kind of model add to the pictures' parameters."""
        texts = self._prompts.parameters(models.main, self._asks(request), models.networks)
        main, has_picture = models.main, request.start is not None
        if main.is_inpainting and (has_picture or not main.family.is_xl):  # the WebUI's rule
            texts[MASK_STRENGTH] = str(request.sampling.mask_strength)
        return texts

    @torch.inference_mode()
    def generate(
        self, models: Models, request: GenerationRequest, on_step: OnStep
    ) -> Iterator[Picture]:
        """Yields pictures as their batch is done; `on_step` may raise to stop the job."""
        with seamless(models.parts() if request.tiling else ()):
            yield from self._generate(models, request, on_step)

    def _generate(
        self, models: Models, request: GenerationRequest, on_step: OnStep
    ) -> Iterator[Picture]:
        asked, request = request, fitted(request, models)
        if request.hires is not None:
            check_enlarging(models.main, models.last, request.hires.upscaler)
        unbegun = _Counter(on_step, 0, request.n_iter)
        begin = self.start_of(models.main, request, _to_size(models, request, unbegun))
        control = JobControl.of(models.controlnets, request, _sizes(models.main, request))
        passes = self._passes(models, request, control)
        steps = sum(each.plan.steps for each in passes)
        # The WebUI decodes with what sampled last.
        decoder = models.refiner if models.refiner and request.is_refined else models.last
        texts = self.text_parameters(models, request)
        for batch in range(request.n_iter):
            indices = range(batch * request.batch_size, (batch + 1) * request.batch_size)
            counter = _Counter(on_step, batch * steps, steps * request.n_iter)
            start = begin([seed_of(request, i) for i in indices])
            latents = self._sample(models, request, start, passes, indices, counter)
            for index, latent in zip(indices, latents, strict=True):
                image = control.finished(self._decode(decoder, latent))
                if start.overlay is not None:
                    image = start.overlay.apply(image)
                yield Picture(index, image, infotext(asked, models.names, texts, index))
        for index, image in enumerate(control.shown_maps(), request.n_iter * request.batch_size):
            yield Picture(index, image, "")

    @torch.inference_mode()
    def preview(self, models: Models, clean: Tensor) -> Image.Image:
        """A small picture of the first latent of a batch."""
        small = clean[:1]
        height, width = small.shape[2:]
        shrink = min(1.0, PREVIEW_LATENTS / max(height, width))
        size = (max(1, int(height * shrink)), max(1, int(width * shrink)))
        return self._decode(models.main, nn.functional.adaptive_avg_pool2d(small, size)[0])

    def start_of(
        self, model: StableDiffusion, request: GenerationRequest, to_size: Resize = exactly
    ) -> Begin:
        """Where the first pass of pictures with certain seeds begins; `to_size` enlarges the
        picture that it begins with."""
        factor = model.latent_factor
        height, width = max(1, request.height // factor), max(1, request.width // factor)
        shape = (LATENT_CHANNELS, height, width)
        strength = request.sampling.mask_strength
        if request.start is None:
            if not model.is_inpainting:
                return lambda seeds: Start(shape)
            nothing = torch.zeros(1, 3, height * factor, width * factor, device=self._device)
            beside = shown_beside(model, nothing, None, strength, shape)
            return lambda seeds: Start(shape, picture=beside)
        prepared = pictures.prepare_start(request.start, width * factor, height * factor, to_size)
        seen = self._see(model, prepared.picture)
        pixels = pictures.to_tensor(prepared.picture).to(self._device)
        picture = shown_beside(model, pixels, prepared.shown_mask, strength, shape)
        mask, fill = None, MaskFill.ORIGINAL
        if prepared.mask is not None and request.start.mask is not None:
            fill = request.start.mask.fill
            mask = pictures.latent_mask(prepared.mask, width, height, request.start.mask.rounded)
            mask = mask.to(self._device)

        def begin(seeds: Sequence[int]) -> Start:
            # The WebUI draws by the generator that the generation before left: that of its seed.
            # So it is this one when a seed's picture is made again.
            latent = seen.draw(seeds)
            if latent.shape[1:] != shape:  # resize_mode 3 leaves the picture's own size
                latent = nn.functional.interpolate(latent, size=(height, width), mode="bilinear")
            return Start(shape, latent, mask, prepared.overlay, fill, picture)

        return begin

    def _passes(
        self, models: Models, request: GenerationRequest, control: JobControl
    ) -> list[Pass]:
        """One, or two for hires fix: the first of these only when its picture is not given.

        The refiner, if any, works in the last one alone: the WebUI's default.
        """
        hires = request.hires
        ask, *second = self._asks(request)
        work = self._control(control, models.main, False)
        first = self._pass(
            models.main, request.sampler, request.plan, ask, request.cfg_scale, models, work
        )
        last, cfg_scale = first, request.cfg_scale
        if hires is not None:
            (ask,), cfg_scale = second, hires.cfg_scale
            work = self._control(control, models.last, True)
            last = self._pass(models.last, hires.sampler, hires.plan, ask, cfg_scale, models, work)
        if models.refiner is not None and request.refiner is not None:
            work = self._control(control, models.refiner, hires is not None)
            refiner = self._guided(models.refiner, ask, cfg_scale, models.networks, work)
            levels = levels_of((hires or request).sampling.schedule).full
            last = replace(
                last,
                denoise=Refined(last.denoise, refiner, request.refiner.switch_at, levels),
                patch=last.patch.and_also(models.networks.patch(models.refiner, ask.networks)),
            )
        return [last] if hires is None or hires.first_picture is not None else [first, last]

    def _asks(self, request: GenerationRequest) -> list[Ask]:
        """What each pass is to show."""
        calls = request.sampler.calls(request.steps)
        size = (request.width, request.height)
        first = Ask(request.prompt, request.negative_prompt, Clock(calls), request.text, size)
        hires = request.hires
        if hires is None:
            return [first]
        clock = Clock(hires.sampler.calls(hires.steps), before=calls)
        target = hires.target(*size)
        size = (target.width, target.height)
        return [first, Ask(hires.prompt, hires.negative_prompt, clock, request.text, size)]

    def _pass(
        self,
        model: StableDiffusion,
        sampler: Sampler,
        plan: Plan,
        ask: Ask,
        cfg_scale: float,
        models: Models,
        control: Control,
    ) -> Pass:
        denoise = self._guided(model, ask, cfg_scale, models.networks, control)
        return Pass(sampler, plan, denoise, models.networks.patch(model, ask.networks))

    def _guided(
        self,
        model: StableDiffusion,
        ask: Ask,
        cfg_scale: float,
        networks: JobNetworks,
        control: Control,
    ) -> Guided:
        guidance = self._prompts.guidance(model, ask, networks)
        how = (cfg_scale, self._dtype, model.prediction, model.is_inpainting, control)
        return Guided(model.unet, guidance, *how)

    def _control(self, control: JobControl, model: StableDiffusion, is_second: bool) -> Control:
        return control.at_work(lambda picture: self._see(model, picture).mean, is_second)

    def _sample(
        self,
        models: Models,
        request: GenerationRequest,
        start: Start,
        passes: list[Pass],
        indices: range,
        counter: _Counter,
    ) -> Tensor:
        """The finished latents of one batch."""
        *before, last = passes
        for first in before:
            latents = first.run(request, start, indices, counter.step, self._device)
            counter.finish(first.plan.steps)
        if request.hires is not None:
            given = request.hires.first_picture
            small = latents if given is None else pictures.flatten(given)
            seeds = [seed_of(request, i) for i in indices]
            target = request.hires.target(request.width, request.height)
            upscaler = request.hires.upscaler
            if not isinstance(upscaler, LatentUpscaler):
                upscaler = _ready(upscaler, models, request)
            larger = self._enlarge(models, upscaler, target, small, seeds, counter)
            start = _hires_start(models.last, request, larger)
        latents = last.run(request, start, indices, counter.step, self._device)
        counter.finish(last.plan.steps)
        return latents

    def _enlarge(
        self,
        models: Models,
        upscaler: LatentUpscaler | PictureUpscaler,
        target: Target,
        small: Tensor | Image.Image,
        seeds: Sequence[int],
        counter: _Counter,
    ) -> Tensor:
        """The latents that the second pass begins with, one a seed.

        `small` is what the first pass made, or the one picture that is given in its place.
        """
        factor = models.main.latent_factor
        if isinstance(upscaler, LatentUpscaler):
            if isinstance(small, Image.Image):
                small = self._see(models.main, small).draw(seeds)
            large = upscaler.resize(small, target.height // factor, target.width // factor)
        else:
            if isinstance(small, Image.Image):
                made = [small] * len(seeds)
            else:
                made = [self._decode(models.main, latent) for latent in small]
            size = (target.width, target.height)
            resized = [upscaler.resize(each, *size, counter.look) for each in made]
            drawn = [
                self._see(models.last, picture).draw([seed])
                for picture, seed in zip(resized, seeds, strict=True)
            ]
            large = torch.cat(drawn)
        cut_y, cut_x = target.cut_y // factor, target.cut_x // factor
        bottom, right = large.shape[2] - (cut_y + 1) // 2, large.shape[3] - (cut_x + 1) // 2
        return large[:, :, cut_y // 2 : bottom, cut_x // 2 : right]

    def _see(self, model: StableDiffusion, picture: Image.Image) -> autoencoding.Seen:
        return autoencoding.see(model, pictures.to_tensor(picture).to(self._device))

    def _decode(self, model: StableDiffusion, latent: Tensor) -> Image.Image:
        """One at a time, so that a picture does not depend on its batch."""
        return pictures.to_picture(autoencoding.decode(model, latent))


def fitted(request: GenerationRequest, models: Models) -> GenerationRequest:
    """With the schedules that each pass's model was trained for."""

    def fit(settings: SamplingSettings, model: StableDiffusion) -> SamplingSettings:
        return settings.fitted(zero_snr=model.zero_snr, for_xl=model.family.is_xl)

    hires = request.hires
    if hires is not None:
        hires = replace(hires, sampling=fit(hires.sampling, models.last))
    return replace(request, sampling=fit(request.sampling, models.main), hires=hires)


def _hires_start(model: StableDiffusion, request: GenerationRequest, latents: Tensor) -> Start:
    start = Start.of_latents(latents)
    if not model.is_inpainting:
        return start
    # All of it is to be made anew: only by a weaker mask does the model see any.
    strength = request.sampling.mask_strength
    pixels = [autoencoding.decode(model, latent)[None] for latent in latents]
    beside = [shown_beside(model, each, None, strength, start.shape) for each in pixels]
    return replace(start, picture=torch.cat([each for each in beside if each is not None]))


@dataclass
class _Counter:
    """Counts a batch's steps over its passes; `done` are those of the passes before."""

    on_step: OnStep
    done: int
    total: int

    def step(self, i: int, clean: Tensor | None) -> None:
        self.on_step(Step(self.done + i, self.total, clean))

    def look(self) -> None:
        """Between two pieces of work that are no steps."""
        self.on_step(Step(self.done, self.total, None))

    def finish(self, steps: int) -> None:
        self.done += steps
        self.on_step(Step(self.done, self.total, None))


def _sizes(model: StableDiffusion, request: GenerationRequest) -> list[Size]:
    """Width and height of each pass's pictures."""
    factor = model.latent_factor
    width, height = max(1, request.width // factor), max(1, request.height // factor)
    sizes = [(width * factor, height * factor)]
    if request.hires is not None:
        target = request.hires.target(request.width, request.height)
        width, height = target.width // factor, target.height // factor
        cut_x, cut_y = target.cut_x // factor, target.cut_y // factor
        sizes.append(((width - cut_x) * factor, (height - cut_y) * factor))
    return sizes


def _to_size(models: Models, request: GenerationRequest, counter: _Counter) -> Resize:
    """How img2img's pictures are enlarged."""
    if request.start is None:
        return exactly
    upscaler = _ready(request.start.upscaler, models, request)
    return partial(upscaler.resize, look=counter.look)


def _ready(
    upscaler: AnyPictureUpscaler, models: Models, request: GenerationRequest
) -> PictureUpscaler:
    if not isinstance(upscaler, UpscalerFile):
        return upscaler
    assert models.upscaler is not None, "choose_files has found it"
    return ModelUpscaler(models.upscaler, request.tiles)
