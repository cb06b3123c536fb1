"""What a UNet's output stands for: the noise in the latent, or its velocity towards the noise.

No tensor's shape tells. What is asked, in this order: the key `v_pred` that newer files carry; the
file's `modelspec.prediction_type` (https://github.com/Stability-AI/ModelSpec); for SD 2.x the
network itself, as the WebUI 1.10.1 asks it; else it is noise, as in every family's first model. A
`.yaml` beside the file stays where the file came from and is not asked.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum

import torch
from torch import nn

from middleware_api.container.engine.checkpoint_shapes import UNetShape
from middleware_api.container.engine.families import SD2, Family

VELOCITY_KEY, ZERO_SNR_KEY = "v_pred", "ztsnr"
MARKS = (VELOCITY_KEY, ZERO_SNR_KEY)
_SPECIFICATION = "modelspec.prediction_type"


class Prediction(Enum):
    """With x the noisy latent of unit spread at noise level s: the noise, or the velocity
    (Salimans and Ho 2022, https://arxiv.org/abs/2202.00512)."""

    NOISE = "epsilon"
    VELOCITY = "v"


def prediction_of(
    names: Collection[str],
    metadata: Mapping[str, str],
    family: Family,
    unet: nn.Module,
    shape: UNetShape,
) -> Prediction:
    """`unet` already has its weights."""
    if VELOCITY_KEY in names:
        return Prediction.VELOCITY
    told = metadata.get(_SPECIFICATION, "").strip().casefold()
    if told:
        return Prediction.VELOCITY if told.startswith("v") else Prediction.NOISE
    if family.name == SD2.name and _answers_with_velocity(unet, shape):
        return Prediction.VELOCITY
    return Prediction.NOISE


@torch.inference_mode()
def _answers_with_velocity(unet: nn.Module, shape: UNetShape) -> bool:
    """At the highest noise level the noise is the latent itself, and the velocity is far below."""
    if shape.in_channels != shape.out_channels:
        return False
    weight = next(unet.parameters())
    latent = torch.full((1, shape.in_channels, 8, 8), 0.5).to(weight)
    text = torch.full((1, 2, shape.context_dim), 0.5).to(weight)
    answer = unet(latent, torch.tensor([999], device=weight.device), text, return_dict=False)[0]
    return bool((answer - latent).float().mean() < -1)
