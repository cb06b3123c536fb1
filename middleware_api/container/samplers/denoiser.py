"""The model's guess of a clean latent: guided by the prompts, and handed on to a refiner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce

import torch
from torch import Tensor, nn

from middleware_api.container.control.control import WITHOUT_CONTROL, Control
from middleware_api.container.prompts.conditioning import Guidance, Texts
from middleware_api.container.samplers.noise_levels import Ladder
from middleware_api.container.samplers.prediction import Prediction
from middleware_api.container.samplers.schedules import share_done


@dataclass(frozen=True)
class Moment:
    """Where in a pass a guess is asked for, and how it is to be guided.

    `call` counts the guesses of the pass from 0; samplers of second order make two a step.
    `share_done` is the part of the pass's steps that is done, as the WebUI counts them.
    `cfg_share` is the part of the CFG scale that is meant. Not `guided`: by the prompt alone.
    `picture`, (1 or batch, 5, height, width), is what an inpainting model is shown beside the
    latent: the mask, and the latent of what it leaves.
    """

    sigma: float
    timestep: float
    call: int
    share_done: float = 0.0
    cfg_share: float = 1.0
    guided: bool = True
    picture: Tensor | None = None


@dataclass(frozen=True)
class Guess:
    """Clean latents, (batch, 4, height, width): as guided, and as the negative prompt has them.

    Both are the same where the negative prompt was not asked.
    """

    clean: Tensor
    unguided: Tensor


Denoise = Callable[[Tensor, Moment], Guess]
"""From a noisy latent, (batch, 4, height, width), to the guess."""

_Told = tuple[Tensor, dict[str, Tensor] | None]


@dataclass(frozen=True)
class Guided:
    """A UNet's guess, guided away from the negative prompt, and steered by ControlNets."""

    unet: nn.Module
    guidance: Guidance
    cfg_scale: float
    dtype: torch.dtype
    prediction: Prediction = Prediction.NOISE
    sees_picture: bool = False
    control: Control = WITHOUT_CONTROL
    # By the texts' ids: `guidance` keeps them, so that no other text gets one of these.
    _kept: dict[tuple[int, ...], _Told] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, x: Tensor, at: Moment) -> Guess:
        towards, away = self.guidance.at(at.call)
        weights, scale = self.guidance.weights, self.cfg_scale * at.cfg_share
        if not at.guided or (scale == 1 and at.cfg_share == 1 and weights == (1.0,)):
            answers = self._ask(x, at, [towards], len(weights))
            base, scale = answers[0], 1.0
        elif towards.tokens.shape[1] == away.tokens.shape[1]:  # all in one call
            *answers, base = self._ask(x, at, [towards, away], len(weights))
        else:
            answers = self._ask(x, at, [towards], len(weights))
            (base,) = self._ask(x, at, [away], 0)
        answer = base
        for towards_one, weight in zip(answers, weights, strict=True):
            answer = answer + (towards_one - base) * (weight * scale)
        return Guess(self._clean(x, answer, at.sigma), self._clean(x, base, at.sigma))

    def _clean(self, x: Tensor, answer: Tensor, sigma: float) -> Tensor:
        """The clean latent by what the UNet says of a noisy one."""
        if self.prediction is Prediction.NOISE:
            return x - answer * sigma
        spread: float = sigma**2 + 1
        clean: Tensor = x / spread - answer * (sigma / spread**0.5)
        return clean

    def _answer(self, x: Tensor, clean: Tensor, sigma: float) -> Tensor:
        """What the UNet would have said of a noisy latent that has this clean one."""
        if self.prediction is Prediction.NOISE:
            return (x - clean) / sigma
        spread: float = sigma**2 + 1
        answer: Tensor = (x / spread - clean) * (spread**0.5 / sigma)
        return answer

    def _shown(self, scaled: Tensor, at: Moment) -> Tensor:
        """With what an inpainting model sees beside it."""
        if not self.sees_picture or at.picture is None:
            return scaled
        picture = at.picture.expand(len(scaled), -1, -1, -1)
        return torch.cat([scaled, picture.to(scaled)], dim=1)

    def _ask(self, x: Tensor, at: Moment, texts: Sequence[Texts], prompts: int) -> list[Tensor]:
        """What the UNet says of each latent by each of the texts, in one call.

        The first `prompts` of the texts are the prompt's.
        """
        scaled = self._shown(x / (at.sigma**2 + 1) ** 0.5, at).to(self.dtype)
        n, count = sum(len(some.tokens) for some in texts), len(scaled)
        latents = scaled.repeat(n, 1, 1, 1)
        tokens, beside = self._told(texts, scaled)
        times = torch.tensor([at.timestep], device=x.device).expand(len(latents))
        steered = self.control.added(latents, times, tokens, beside, count * prompts, at.share_done)
        answer: Tensor = self.unet(
            latents, times, tokens, added_cond_kwargs=beside, return_dict=False, **steered
        )[0]
        return self._held(x, at, [*answer.float().contiguous().chunk(n)], prompts)

    def _told(self, texts: Sequence[Texts], scaled: Tensor) -> _Told:
        """The texts for each latent, and what is told beside them: the very same tensors for the
        same texts, as the UNet keeps what it has made of them."""
        key = (len(scaled), *map(id, texts))
        if key not in self._kept:
            told, beside = reduce(Texts.and_also, texts).repeated(len(scaled)), None
            if told.beside is not None:
                pooled, numbers = (each.to(scaled) for each in told.beside)
                beside = {"text_embeds": pooled, "time_ids": numbers}
            self._kept[key] = told.tokens.to(scaled), beside
        return self._kept[key]

    def _held(self, x: Tensor, at: Moment, answers: list[Tensor], prompts: int) -> list[Tensor]:
        """The same where no ControlNet holds the guesses to its picture."""
        if not self.control.holds:
            return answers
        cleans = [
            self.control.corrected(self._clean(x, answer, at.sigma), i < prompts)
            for i, answer in enumerate(answers)
        ]
        return [self._answer(x, clean, at.sigma) for clean in cleans]


@dataclass(frozen=True)
class Refined:
    """One model's guesses, and another's once `switch_at` of the levels is done."""

    base: Denoise
    refiner: Denoise
    switch_at: float
    levels: Ladder

    def __call__(self, x: Tensor, at: Moment) -> Guess:
        is_late = share_done(at.sigma, self.levels) >= self.switch_at
        denoise = self.refiner if is_late else self.base
        return denoise(x, at)
