"""The steps of a training, from the last saved state to the end or until it is asked to stop."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from middleware_api.container.errors import ContainerError, TrainingFailed
from middleware_api.container.prompts.conditioning import Reading
from middleware_api.container.training import optimizer as train_optimizer
from middleware_api.container.training.captions import shuffled
from middleware_api.container.training.data import Shown, TrainData
from middleware_api.container.training.noise import NoiseLoss, Predict, Shares, prior_weight
from middleware_api.container.training.pictures import LatentStore
from middleware_api.container.training.plan import Batch, Plan
from middleware_api.container.training.rates import rate_share
from middleware_api.container.training.report import TrainReporter
from middleware_api.container.training.state import Learning, StateFiles
from middleware_api.container.training.text import CaptionCache, CaptionReader
from middleware_api.container.training.trainee import Trainee
from middleware_api.training_fields import TrainSettings

STATE_SECONDS = 600.0
"""After so long a state is saved, however many epochs there are between two."""
_GRADIENTS_MOST = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Precision:
    """How a device computes: `autocast` is float32 where it computes in single precision."""

    device: torch.device
    autocast: torch.dtype

    def entered(self) -> AbstractContextManager[object]:
        if self.autocast is torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast)

    @property
    def name(self) -> str:
        names = {torch.float16: "fp16", torch.bfloat16: "bf16"}
        return names.get(self.autocast, "no")


@dataclass
class Loop:
    """One training. `on_pictures_due` makes sample pictures; `clock` gives seconds."""

    trainee: Trainee
    settings: TrainSettings
    data: TrainData
    store: LatentStore
    states: StateFiles
    reporter: TrainReporter
    precision: Precision
    is_stopping: Callable[[], bool]
    on_pictures_due: Callable[[int], None]
    on_saved: Callable[[], None]
    clock: Callable[[], float]
    step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        settings = self.settings
        self.plan = Plan(
            [shown.size for shown in self.data.instances],
            settings.num_train_epochs,
            settings.train_batch_size,
            settings.gradient_accumulation_steps,
            settings.seed,
        )
        groups = [
            {"params": part.listed, "lr": part.rate, "weight_decay": part.weight_decay}
            for part in self.trainee.parts
        ]
        optimizer = train_optimizer.make_optimizer(
            settings.optimizer, groups, self.precision.device, self.reporter.warn
        )
        scales = self.precision.autocast is torch.float16
        scaler = torch.amp.GradScaler(self.precision.device.type, enabled=scales)
        self.learning = Learning(self.trainee, optimizer, scaler)
        pictures = self.plan.pictures_a_step
        self._rates = [
            (part.rate, rate_share(settings, part.rate, self.plan.steps, pictures))
            for part in self.trainee.parts
        ]
        model = self.trainee.model
        self._loss = NoiseLoss(settings, model.prediction, model.zero_snr, self.precision.device)
        self._reader = CaptionReader(settings.max_token_length, settings.clip_skip)
        self._text_until = 0
        if self.trainee.texts:
            self._text_until = math.ceil(self.plan.steps * settings.stop_text_encoder)
        self._cache: CaptionCache | None = None

    @property
    def epochs_done(self) -> int:
        return self.step * self.settings.num_train_epochs // self.plan.steps

    def run(self) -> None:
        """Until the last step, or the first one after which it is to stop."""
        self.reporter.phase("preparing", 1.0)
        self.step = self.states.restore(self.learning)
        if self.step:
            logger.info("going on after step %d of %d", self.step, self.plan.steps)
            self.reporter.resume(self.step)
            self.reporter.saved(self.states.listed())
        state_steps = self._steps_of(self.settings.save_embedding_every)
        picture_steps = self._steps_of(self.settings.save_preview_every)
        saved_at = self.clock()
        while self.step < self.plan.steps and not self.is_stopping():
            loss = self.train_step()
            self.step += 1
            rate = self.learning.optimizer.param_groups[0]["lr"]
            self.reporter.step(self.step, self.plan.steps, loss, rate)
            is_last = self.step == self.plan.steps
            if picture_steps and (self.step % picture_steps == 0 or is_last):
                self.on_pictures_due(self.step)
            due = state_steps and self.step % state_steps == 0
            if not is_last and (due or self.clock() >= saved_at + STATE_SECONDS):
                self.save_state(self.on_saved)
                saved_at = self.clock()

    def save_state(self, and_then: Callable[[], None] = lambda: None) -> None:
        """What cannot be saved now is told, and training goes on: the next one may be."""
        self.reporter.phase("saving")
        try:
            with self.reporter.quiet():
                kept = self.states.save(self.learning, self.step)
                and_then()
        except (ContainerError, OSError) as fault:
            self.reporter.warn(f"The state after step {self.step} was not saved: {fault}")
        else:
            self.reporter.saved(kept)

    def _steps_of(self, epochs: int) -> int:
        return self.plan.steps_of(epochs) if epochs else 0

    def train_step(self) -> float:
        """One step's loss; raises TrainingFailed when it is no number."""
        for group, (rate, share) in zip(
            self.learning.optimizer.param_groups, self._rates, strict=True
        ):
            group["lr"] = rate * share(self.step)
        if self.step >= self._text_until and self._cache is None:
            self.trainee.stop_texts()
            self._cache = CaptionCache(self._reader, self.trainee.model.text_encoders)
        batches = self.plan.batches(self.step)
        losses = []
        for batch in batches:
            loss = self._loss_of(batch)
            scaled = self.learning.scaler.scale(loss / len(batches))
            scaled.backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        mean = float(torch.stack(losses).mean())
        if not math.isfinite(mean):
            raise TrainingFailed(
                f"The loss of step {self.step + 1} is {mean}: training has gone astray. Use a "
                "lower learning rate, or mixed_precision bf16 or no; what was saved before is kept."
            )
        self._move()
        return mean

    def _move(self) -> None:
        """The optimizer's step, on gradients that are bounded."""
        optimizer, scaler = self.learning.optimizer, self.learning.scaler
        scaler.unscale_(optimizer)
        if self.settings.tenc_grad_clip_norm:
            text = [p for part in self.trainee.texts for p in part.listed]
            train_optimizer.clip(text, self.settings.tenc_grad_clip_norm)
        every = [p for part in self.trainee.parts for p in part.listed]
        train_optimizer.clip(every, _GRADIENTS_MOST)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if self.trainee.average is not None:
            self.trainee.average.follow()

    def _loss_of(self, batch: Batch) -> Tensor:
        rng = batch.rng(self.settings.seed)
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        shown = [self.data.instances[number] for number in batch.pictures]
        size = shown[0].size
        classes = [self.data.class_picture(each, size, rng) for each in shown]
        everything = [*shown, *(each for each in classes if each is not None)]
        wanted = [(each.key, self.settings.hflip and rng.random() < 0.5) for each in everything]
        captions = [self._caption(each, rng) for each in shown]
        captions += [each.caption for each in everything[len(shown) :]]
        latents = self.store.latents(wanted, generator)
        shares = Shares(len(shown), prior_weight(self.settings, batch.epoch))
        with self.precision.entered():
            predict = self._answer(self._read(captions), everything)
            return self._loss(latents, predict, shares, generator)

    def _answer(self, texts: Reading, shown: list[Shown]) -> Predict:
        """What the UNet says of the batch's latents."""
        beside = None
        if texts.pooled is not None:
            numbers = torch.tensor([each.told for each in shown]).to(texts.pooled)
            beside = {"text_embeds": texts.pooled, "time_ids": numbers}

        def predict(noisy: Tensor, times: Tensor) -> Tensor:
            made: Tensor = self.trainee.model.unet(
                noisy, times, texts.tokens, added_cond_kwargs=beside, return_dict=False
            )[0]
            return made

        return predict

    def _caption(self, shown: Shown, rng: random.Random) -> str:
        return shuffled(shown.caption, rng) if self.settings.shuffle_tags else shown.caption

    def _read(self, captions: list[str]) -> Reading:
        if self._cache is not None:
            return self._cache.encode(captions)
        return self._reader.encode(self.trainee.model.text_encoders, captions)
