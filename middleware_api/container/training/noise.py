"""One step's question to the model, and how far off its answer is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from middleware_api.container.samplers.noise_levels import STANDARD, TRAIN_STEPS, ZERO_SNR
from middleware_api.container.samplers.prediction import Prediction
from middleware_api.training_fields import TrainSettings

Predict = Callable[[Tensor, Tensor], Tensor]
"""From noisy latents, (batch, 4, height, width), and timesteps to what the model makes of them."""


@dataclass(frozen=True)
class Shares:
    """`instances` of a batch come first, the class pictures after them."""

    instances: int
    prior_weight: float


class NoiseLoss:
    """Of a model that predicts the noise, or v. With `zero_snr` nothing of a picture is left at the
    last timestep."""

    def __init__(
        self,
        settings: TrainSettings,
        prediction: Prediction,
        zero_snr: bool,
        device: torch.device,
    ) -> None:
        self._settings, self._device = settings, device
        self._velocity = prediction is Prediction.VELOCITY
        levels = ZERO_SNR if zero_snr else STANDARD
        self._alphas = torch.tensor(levels.alphas, dtype=torch.float32, device=device)

    def __call__(
        self, latents: Tensor, predict: Predict, shares: Shares, generator: torch.Generator
    ) -> Tensor:
        """The batch's mean; `generator` is on the CPU, so that chance is the same everywhere."""
        noise = torch.randn(latents.shape, generator=generator)
        if self._settings.offset_noise:
            flat = torch.randn((*latents.shape[:2], 1, 1), generator=generator)
            noise += self._settings.offset_noise * flat
        times = torch.randint(0, TRAIN_STEPS, (len(latents),), generator=generator)
        noise, times = noise.to(self._device), times.to(self._device)
        alpha = self._alphas[times][:, None, None, None]
        noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
        target = self._target(latents, noise, alpha)
        if self._settings.use_dream:
            noisy, target = self._dreamt(noisy, target, times, alpha, predict)
        errors = (predict(noisy, times).float() - target).square().mean(dim=(1, 2, 3))
        errors = errors * self._weights(alpha.flatten())
        if not self._settings.split_loss or shares.instances == len(latents):
            return errors.mean()
        own, prior = errors[: shares.instances], errors[shares.instances :]
        return own.mean() + shares.prior_weight * prior.mean()

    def _target(self, latents: Tensor, noise: Tensor, alpha: Tensor) -> Tensor:
        if not self._velocity:
            return noise
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents

    def _dreamt(
        self, noisy: Tensor, target: Tensor, times: Tensor, alpha: Tensor, predict: Predict
    ) -> tuple[Tensor, Tensor]:
        """DREAM: the model's own error is part of what it is asked, and of what it is to say."""
        with torch.no_grad():
            missed = target - predict(noisy, times).float()
        part = missed * (1 - alpha) ** self._settings.dream_detail_preservation
        if self._velocity:
            # The noise is off by alpha's root times as much as v, and v by that of the noise.
            return noisy + (alpha * (1 - alpha)).sqrt() * part, target + alpha * part
        return noisy + (1 - alpha).sqrt() * part, target + part

    def _weights(self, alpha: Tensor) -> Tensor:
        gamma = self._settings.min_snr_gamma
        if not gamma:
            return torch.ones_like(alpha)
        snr = alpha / (1 - alpha)
        return snr.clamp(max=gamma) / (snr + 1 if self._velocity else snr)


def prior_weight(settings: TrainSettings, epoch: int) -> float:
    """Of the class pictures' loss in an epoch, counted from 0."""
    if not settings.prior_loss_scale:
        return settings.prior_loss_weight
    done = min(1.0, epoch / settings.prior_loss_target)
    return settings.prior_loss_weight * (1 - done) + settings.prior_loss_weight_min * done
