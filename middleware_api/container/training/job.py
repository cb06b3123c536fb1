"""A training from its order to its finished weights."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from middleware_api import contract
from middleware_api.container.engine.checkpoint import load_checkpoint
from middleware_api.container.engine.families import SDXL_REFINER
from middleware_api.container.errors import BadRequest, CheckpointUnreadable, ContainerError
from middleware_api.container.storage import Storage
from middleware_api.container.training import export as train_export
from middleware_api.container.training.buckets import Size
from middleware_api.container.training.data import TrainData
from middleware_api.container.training.export import Done
from middleware_api.container.training.loop import Loop, Precision
from middleware_api.container.training.make_model import SOURCE_NAME, SOURCE_SHA256
from middleware_api.container.training.pictures import LatentStore
from middleware_api.container.training.report import TrainReporter
from middleware_api.container.training.sampler import PictureMaker, Wish, sampler_of
from middleware_api.container.training.state import StateFiles
from middleware_api.container.training.trainee import Trainee
from middleware_api.contract import ContainerCheckpoint, TrainOrder, TrainSample
from middleware_api.training_fields import (
    ConceptSettings,
    TrainRequest,
    TrainSettings,
    read_request,
)

_DEFAULT_SAMPLER = "DDIM"


class StopAsked(Exception):
    """Unwinds what comes before the first step when the program is asked to stop."""


class TrainRun:
    """One training. `is_stopping` becomes true when it is to end; `clock` gives epoch seconds."""

    def __init__(
        self,
        storage: Storage,
        reporter: TrainReporter,
        output_prefix: str,
        is_stopping: Callable[[], bool],
        clock: Callable[[], float],
    ) -> None:
        self._storage, self._reporter, self._prefix = storage, reporter, output_prefix
        self._is_stopping, self._clock = is_stopping, clock
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def train(self, order: TrainOrder) -> list[ContainerCheckpoint]:
        """The finished weights: none where it was stopped before its first step.

        Raises ContainerError and BadSetting; StopAsked before the first step.
        """
        began = self._clock()
        request = read_request(order["params"])
        for warning in request.warnings:
            self._reporter.warn(warning)
        base = self._base(order["model_prefix"])
        with self._storage.weights(base, lambda count: self._stop_if_asked()) as path:
            self._reporter.phase("loading model")
            training = self.prepare(request, order, path, began)
            training.loop.run()
            if not training.loop.step:
                raise StopAsked
            return self._finish(training, request.settings, order["job_id"], path, began)

    def _base(self, model_prefix: str) -> ContainerCheckpoint:
        key = contract.working_model_key(model_prefix)
        self._reporter.phase("fetching model")
        size = self._storage.sizes(model_prefix).get(key)
        if size is None:
            raise CheckpointUnreadable(
                f"The model to train has no weights ({key}). Make the model again (PUT /model)."
            )
        return ContainerCheckpoint(
            type=contract.CheckpointType.STABLE_DIFFUSION.value,
            name="model.safetensors",
            key=key,
            size=size,
            sha256="",
        )

    def prepare(
        self, request: TrainRequest, order: TrainOrder, path: Path, began: float
    ) -> Training:
        """All that comes before the first step; `path` is the working model."""
        settings = request.settings
        precision = self._precision(settings)
        name, sha256 = _source_of(path)
        # What is trained stays in single precision; what a LoRA stands beside need not.
        dtype = precision.autocast if settings.use_lora else torch.float32
        model = load_checkpoint(path, name, sha256, self._device, dtype)
        if model.family is SDXL_REFINER or model.is_inpainting:
            kind = "an inpainting model" if model.is_inpainting else f"a {model.family.name}"
            raise BadRequest(f"{name} is {kind}, which cannot be trained. Choose its base model.")
        model.vae.float()
        store = LatentStore(model.vae, self._device, model.vae_scale, caches=settings.cache_latents)
        data = TrainData(
            request,
            order["datasets"],
            self._storage,
            store,
            model.latent_factor,
            self._reporter,
            self._stop_if_asked,
        )
        data.gather()
        maker = self._maker(settings, precision)
        data.complete_classes(maker, model, self._prefix)
        trainee = Trainee(model, settings)
        samples = _Samples(
            request, data, trainee, maker, self._storage, self._reporter, self._prefix
        )

        def export() -> None:
            # A training that comes to no good end leaves these.
            self._export(training, settings, order["job_id"], path, began)

        loop = Loop(
            trainee,
            settings,
            data,
            store,
            StateFiles(self._storage, self._prefix),
            self._reporter,
            precision,
            self._is_stopping,
            samples.make,
            export,
            self._clock,
        )
        training = Training(loop, data, name, sha256, precision)
        return training

    def _precision(self, settings: TrainSettings) -> Precision:
        torch.backends.cuda.matmul.allow_tf32 = settings.tf32_enable
        asked = settings.mixed_precision
        if self._device.type == "cpu":
            if asked not in ("", "no"):
                self._reporter.warn(
                    f"config_params.mixed_precision {asked} was left out: this machine has no GPU, "
                    "and a CPU trains in single precision."
                )
            return Precision(self._device, torch.float32)
        if not asked:
            asked = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        kinds = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
        return Precision(self._device, kinds[asked])

    def _maker(self, settings: TrainSettings, precision: Precision) -> PictureMaker:
        sampler = sampler_of(settings.scheduler)
        if sampler is None:
            self._reporter.warn(
                f"config_params.scheduler {settings.scheduler!r} is not there: sample pictures are "
                f"made with {_DEFAULT_SAMPLER}."
            )
        return PictureMaker(
            self._device,
            sampler or _DEFAULT_SAMPLER,
            precision.entered,
            self._stop_if_asked,
        )

    def _finish(
        self,
        training: Training,
        settings: TrainSettings,
        job_id: str,
        base: Path,
        began: float,
    ) -> list[ContainerCheckpoint]:
        loop = training.loop
        self._reporter.phase("saving")
        with self._reporter.quiet():
            made = self._export(training, settings, job_id, base, began)
        if loop.step < loop.plan.steps:
            loop.save_state()
        else:
            for state in loop.states.listed():
                self._storage.delete(state["key"])
            self._reporter.saved([])
        return [made]

    def _export(
        self,
        training: Training,
        settings: TrainSettings,
        job_id: str,
        base: Path,
        began: float,
    ) -> ContainerCheckpoint:
        done = training.done(began, self._clock())
        stem = train_export.finished_name(settings, job_id)
        key = contract.trained_weights_key(self._prefix, stem)
        trainee = training.loop.trainee
        if settings.use_lora:
            return train_export.save_lora(trainee, settings, done, self._storage, key)
        return train_export.save_checkpoint(trainee, settings, done, self._storage, key, base)

    def _stop_if_asked(self) -> None:
        if self._is_stopping():
            raise StopAsked


@dataclass(frozen=True)
class Training:
    """A training that is ready to run; `base_name` and `base_sha256` tell what it begins with."""

    loop: Loop
    data: TrainData
    base_name: str
    base_sha256: str
    precision: Precision

    def done(self, began: float, ended: float) -> Done:
        shown = self.data.instances
        return Done(
            base_name=self.base_name,
            base_sha256=self.base_sha256,
            pictures=len(shown),
            class_pictures=sum(map(len, self.data.classes.values())),
            captions=Counter(each.caption for each in shown),
            buckets=Counter(f"{width}x{height}" for width, height in (s.size for s in shown)),
            steps=self.loop.step,
            all_steps=self.loop.plan.steps,
            epochs=self.loop.epochs_done,
            began=began,
            ended=ended,
            precision=self.precision.name,
            optimizer=type(self.loop.learning.optimizer).__name__,
        )


@dataclass(frozen=True)
class _Samples:
    """The sample pictures that are made now and then; one that fails is told, and no more."""

    request: TrainRequest
    data: TrainData
    trainee: Trainee
    maker: PictureMaker
    storage: Storage
    reporter: TrainReporter
    prefix: str

    def make(self, step: int) -> None:
        self.reporter.phase("sampling")
        settings, average = self.request.settings, self.trainee.average
        averaged = average.in_place() if average and settings.ema_predict else nullcontext()
        try:
            with averaged:
                self._make(step)
        except StopAsked:
            return  # the loop sees it too, and saves what there is
        except (ContainerError, OSError) as fault:
            self.reporter.warn(f"No sample pictures after step {step}: {fault}")

    def _make(self, step: int) -> None:
        batch = self.request.settings.sample_batch_size
        index = 0
        for wish, count in self._wishes():
            for first in range(0, count, batch):
                some = replace(wish, seed=wish.seed + first)
                pictures = self.maker.make(
                    self.trainee.model, f"step {step}", some, min(batch, count - first)
                )
                for picture in pictures:
                    content = io.BytesIO()
                    picture.save(content, "PNG")
                    key = contract.train_sample_key(self.prefix, step, index)
                    self.storage.write(key, content.getvalue())
                    self.reporter.sample(TrainSample(step=step, key=key, prompt=wish.prompt))
                    index += 1

    def _wishes(self) -> Iterator[tuple[Wish, int]]:
        settings, size = self.request.settings, self.data.square
        for number, concept in enumerate(self.request.concepts):
            if concept.n_save_sample:
                yield self._wish(concept, number, size), concept.n_save_sample
        if settings.sanity_prompt:
            yield Wish(settings.sanity_prompt, "", settings.sanity_seed, 20, 7.5, size), 1

    def _wish(self, concept: ConceptSettings, number: int, size: Size) -> Wish:
        first = next(each for each in self.data.instances if each.concept == number)
        seed = concept.sample_seed
        if seed < 0:
            seed = random.Random(f"{self.request.settings.seed} sample {number}").getrandbits(31)
        return Wish(
            concept.save_sample_prompt or first.caption,
            concept.save_sample_negative_prompt,
            seed,
            concept.save_infer_steps,
            concept.save_guidance_scale,
            size,
        )


def _source_of(path: Path) -> tuple[str, str]:
    """Name and SHA-256 of the file that a working model was made of, from its metadata."""
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointUnreadable(
            f"The model's weights cannot be read ({error}). Make the model again."
        ) from error
    return told.get(SOURCE_NAME, path.name), told.get(SOURCE_SHA256, "")
