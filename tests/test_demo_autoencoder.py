"""The demo's autoencoder before training: a mosaic in, a blurred picture out."""

import random

import pytest
import torch
from torch.nn import functional

from middleware_api.demo.architecture import LATENT_SCALE, build_autoencoder
from middleware_api.demo.shapes import draw, random_scene
from middleware_api.demo.train_autoencoder import mosaic, start_as_mosaic, to_tensor


@torch.inference_mode()
def test_the_encoder_is_the_mosaic_and_the_decoder_blurs_it() -> None:
    torch.manual_seed(0)
    autoencoder = build_autoencoder()
    start_as_mosaic(autoencoder)
    rng = random.Random(1)
    pictures = to_tensor([draw(random_scene(rng)) for _ in range(4)])
    latents = autoencoder.encode(pictures).latent_dist.mode()
    assert (latents - mosaic(pictures)).abs().max() * LATENT_SCALE < 0.01
    error = functional.mse_loss(autoencoder.decode(latents).sample, pictures)
    assert error < 0.1  # values span 2, so this is 16 dB


@torch.inference_mode()
def test_latents_have_the_spread_that_samplers_expect() -> None:
    rng = random.Random(2)
    latents = mosaic(to_tensor([draw(random_scene(rng)) for _ in range(300)])) * LATENT_SCALE
    assert latents.std().item() == pytest.approx(1, abs=0.05)
