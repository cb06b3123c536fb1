"""First stage: the autoencoder, on demo pictures and on freer ones so that others survive it.

The encoder is set by hand and stays: its latents are a mosaic of the picture, 8 x 8 mean colours,
and in the fourth channel which way each tile brightens. Only the decoder is trained.
"""

import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from middleware_api.demo.architecture import LATENT_CHANNELS, LATENT_SCALE, build_autoencoder
from middleware_api.demo.saved_state import load_state, save_state
from middleware_api.demo.shapes import SHAPES, SIDE, Pixels, coverage, draw, random_scene

_GROUP = 3  # channels in a norm group: 96 over LDM's 32
_GROUPS = 32
_CARRIER = 2.0
_ENCODER_CARRIER = 30.0  # so large that the encoder's last norm is all but linear
_LATENT_SPREAD = 0.61  # of the demo pictures' mosaics, all four channels together
_LOG_VARIANCE = -6.0


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Crops first, because a step on a quarter of the picture costs a quarter; whole ones last."""

    seed: int = 11
    crop_steps: int = 1700
    whole_steps: int = 900
    crop_side: int = 32
    crop_batch: int = 8
    whole_batch: int = 3
    learning_rate: float = 1e-3
    trunk_rate: float = 0.1  # times the learning rate, outside the residual branches
    latent_noise: float = 0.07  # what the decoder must bear from a denoiser that is never exact
    save_every: int = 100

    @property
    def steps(self) -> int:
        return self.crop_steps + self.whole_steps


def train_autoencoder(recipe: AutoencoderRecipe, state_dir: Path) -> AutoencoderKL:
    """Train, or resume, the decoder.

    Every step draws from its own seed, so that a resumed run takes the steps an unbroken one
    would have taken.
    """
    torch.manual_seed(recipe.seed)
    autoencoder = build_autoencoder().to(memory_format=torch.channels_last)
    start_as_mosaic(autoencoder)
    finished = state_dir / "autoencoder.pt"
    if finished.exists():
        autoencoder.load_state_dict(load_state(finished)["model"])
        return autoencoder.eval().requires_grad_(False)
    optimizer = _optimizer(autoencoder, recipe)
    partial, first = state_dir / "autoencoder-partial.pt", 0
    if partial.exists():
        saved = load_state(partial)
        autoencoder.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    began, errors = time.monotonic(), []
    for step in range(first, recipe.steps):
        rate = recipe.learning_rate * _warm_cosine(step, recipe.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        errors.append(_train_step(autoencoder, optimizer, recipe, step))
        done = step + 1
        if done % 50 == 0:
            psnr = -10 * math.log10(sum(errors) / len(errors) / 4)
            print(
                f"autoencoder {done}/{recipe.steps} psnr {psnr:.1f} dB "
                f"{time.monotonic() - began:.0f} s",
                flush=True,
            )
            errors.clear()
        if done % recipe.save_every == 0:
            save_state(
                partial,
                {
                    "model": autoencoder.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": done,
                },
            )
    autoencoder.eval().requires_grad_(False)
    save_state(finished, {"model": autoencoder.state_dict()})
    return autoencoder


@torch.no_grad()
def start_as_mosaic(autoencoder: AutoencoderKL) -> None:
    """Set the encoder for good, and the decoder so that training has only edges to add.

    Residual branches start at zero, down- and upsampling as mean and interpolation. Each norm
    group of three channels carries a signal, its negative and a constant: without the constant
    normalisation would erase flat colour, of which the pictures are made, and with the negative
    a signal passes the last activation unchanged, since silu(x) - silu(-x) = x.
    """
    encoder, decoder = autoencoder.encoder, autoencoder.decoder
    for module in autoencoder.modules():
        if hasattr(module, "conv2"):
            module.conv2.weight.zero_()
            module.conv2.bias.zero_()
        if hasattr(module, "to_out"):
            module.to_out[0].weight.zero_()
            module.to_out[0].bias.zero_()
    for conv in (autoencoder.quant_conv, autoencoder.post_quant_conv):
        conv.weight.copy_(torch.eye(conv.weight.shape[0])[..., None, None])
        conv.bias.zero_()
    for block in decoder.up_blocks[:-1]:
        _start_sampling(block.upsamplers[0].conv, torch.tensor([0.25, 0.5, 0.25]))
    spread = functional.normalize(torch.randn(_GROUPS, 3), dim=1)
    _start_ends(decoder, spread, _CARRIER)
    decoder.conv_in.weight *= _LATENT_SPREAD * LATENT_SCALE

    # The last signal is the slope: how much the signal before it, brightness, grows along x + y.
    spread = torch.cat([spread[:-2], torch.full((1, 3), 1 / 3), torch.zeros(1, 3)])
    _start_ends(encoder, spread, _ENCODER_CARRIER)
    members = encoder.conv_in.weight.unflatten(0, (_GROUPS, _GROUP))
    members[:, :2] = 0
    members[:, 0, :, 1, 1] = spread
    members[:, 1] = -members[:, 0]
    slope, brightness = _GROUP * (_GROUPS - 1), _GROUP * (_GROUPS - 2)
    for level, block in enumerate(encoder.down_blocks[:-1]):
        conv = block.downsamplers[0].conv
        _start_sampling(conv, torch.tensor([0.5, 0.5, 0]))
        tile_offset = 2**level / 2
        towards = torch.tensor([[-2.0, 0, 0], [0, 2, 0], [0, 0, 0]]) / 4 * tile_offset
        for sign in range(2):
            conv.weight[slope + sign, brightness + sign] = towards
    read = encoder.conv_out.weight
    read[:LATENT_CHANNELS] /= _LATENT_SPREAD * LATENT_SCALE
    read[LATENT_CHANNELS:] = 0
    encoder.conv_out.bias[LATENT_CHANNELS:] = _LOG_VARIANCE


def mosaic(pictures: torch.Tensor) -> torch.Tensor:
    """The encoder's latents, without the arithmetic of its zero branches."""
    colours = functional.avg_pool2d(pictures, 8)
    ticks = torch.arange(pictures.shape[-1]) % 8 - 3.5
    slopes = pictures.mean(dim=1, keepdim=True) * (ticks[:, None] + ticks)
    latents = torch.cat([colours, functional.avg_pool2d(slopes, 8)], dim=1)
    return latents / (_LATENT_SPREAD * LATENT_SCALE)


def _start_ends(half: Any, spread: torch.Tensor, carrier: float) -> None:
    """For an encoder or decoder: three values to signals and constants, and back at its end."""
    half.conv_in.weight.mul_(0.1)
    members = half.conv_in.weight.unflatten(0, (_GROUPS, _GROUP))
    members[:, 0, :3, 1, 1] += spread
    members[:, 1] = -members[:, 0]
    members[:, 2] = 0
    half.conv_in.bias.copy_(torch.tensor([0.0, 0.0, carrier]).repeat(_GROUPS))
    # Within a group: mean a third of the constant; variance the constant's and the signals'.
    norm_std = math.sqrt(carrier**2 * (1 / _GROUP - 1 / _GROUP**2) + 2 / _GROUP * 0.3)
    half.conv_norm_out.bias.fill_(carrier / _GROUP / norm_std)
    half.conv_out.bias.zero_()
    half.conv_out.weight.zero_()
    readers = half.conv_out.weight.unflatten(1, (_GROUPS, _GROUP))
    read = torch.linalg.pinv(spread) * norm_std
    if len(readers) > 3:
        read = torch.cat([read, torch.eye(_GROUPS)[-1:] * norm_std])
    for sign in range(2):
        readers[: len(read), :, sign, 1, 1] = read * (-1) ** sign


def _start_sampling(conv: torch.nn.Conv2d, taps: torch.Tensor) -> None:
    """Every signal through these taps, both ways; every constant as it is."""
    assert conv.bias is not None
    conv.weight.zero_()
    conv.bias.zero_()
    for channel in range(conv.out_channels):
        if channel % _GROUP == _GROUP - 1:
            conv.weight[channel, channel, 1, 1] = 1
        else:
            conv.weight[channel, channel] = taps[:, None] * taps


def _train_step(
    autoencoder: AutoencoderKL,
    optimizer: torch.optim.Optimizer,
    recipe: AutoencoderRecipe,
    step: int,
) -> float:
    """One step; returns the mean squared error on values -1 to 1."""
    rng = random.Random(f"{recipe.seed}-{step}")
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_000 + step)
    if step < recipe.crop_steps:
        pictures = [
            _crop(_any_picture(rng), recipe.crop_side, rng) for _ in range(recipe.crop_batch)
        ]
    else:
        pictures = [_any_picture(rng) for _ in range(recipe.whole_batch)]
    target = to_tensor(pictures)
    latents = mosaic(target)
    noise = torch.randn(latents.shape, generator=generator)
    latents = latents + recipe.latent_noise / LATENT_SCALE * noise
    output = autoencoder.decode(latents).sample
    squared = functional.mse_loss(output, target)
    loss = functional.l1_loss(output, target) + 0.5 * squared
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
    optimizer.step()
    return squared.item()


def _optimizer(autoencoder: AutoencoderKL, recipe: AutoencoderRecipe) -> torch.optim.AdamW:
    """Slower where one weight moves the whole picture: a step there adds up over layers."""
    autoencoder.encoder.requires_grad_(False)
    autoencoder.quant_conv.requires_grad_(False)
    branches: list[torch.nn.Parameter] = []
    trunk: list[torch.nn.Parameter] = []
    for name, parameter in autoencoder.named_parameters():
        if parameter.requires_grad:
            is_branch = ".resnets." in name or ".attentions." in name
            (branches if is_branch else trunk).append(parameter)
    return torch.optim.AdamW(
        [{"params": branches, "scale": 1}, {"params": trunk, "scale": recipe.trunk_rate}],
        recipe.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=1e-4,
    )


def to_tensor(pictures: list[Pixels]) -> torch.Tensor:
    """RGB pictures with values 0 to 1 to a batch (n, 3, side, side) with values -1 to 1."""
    batch = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) * 2 - 1
    return batch.contiguous(memory_format=torch.channels_last)


def _any_picture(rng: random.Random) -> Pixels:
    """A demo picture, or as often one of any colours, shaded, with several shapes."""
    if rng.random() < 0.75:
        return draw(random_scene(rng))
    slope = np.linspace(0, 1, SIDE, dtype=np.float32)[:, None, None] * np.float32(
        rng.random() < 0.5
    )
    picture = (1 - slope) * _any_colour(rng) + slope * _any_colour(rng)
    picture = np.broadcast_to(picture, (SIDE, SIDE, 3))
    if rng.random() < 0.5:
        picture = picture.swapaxes(0, 1)
    for _ in range(rng.randint(1, 3)):
        x, y, radius = rng.random(), rng.random(), rng.uniform(0.1, 0.4)
        cover = coverage(rng.choice(SHAPES), x, y, radius, SIDE)[..., None]
        picture = cover * _any_colour(rng) + (1 - cover) * picture
    return picture


def _any_colour(rng: random.Random) -> Pixels:
    return np.array([rng.random() for _ in range(3)], dtype=np.float32)


def _crop(picture: Pixels, side: int, rng: random.Random) -> Pixels:
    top, left = (rng.randint(0, SIDE - side) for _ in range(2))
    return picture[top : top + side, left : left + side]


def _warm_cosine(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / 50) * (0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)
