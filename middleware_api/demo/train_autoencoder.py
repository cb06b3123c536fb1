"""First stage: the autoencoder, on demo pictures and on freer ones so that others survive it."""

import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch.nn import functional

from middleware_api.demo.architecture import LATENT_CHANNELS, LATENT_SCALE, build_autoencoder
from middleware_api.demo.saved_state import load_state, save_state
from middleware_api.demo.shapes import SHAPES, SIDE, Pixels, coverage, draw, random_scene

_GROUP = 3  # channels in a norm group: 96 over LDM's 32
_CARRIER = 2.0
_START_LOG_VARIANCE = -6.0


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Crops first, because a step on a quarter of the picture costs a quarter; whole ones last."""

    seed: int = 11
    crop_steps: int = 1600
    whole_steps: int = 300
    crop_side: int = 32
    crop_batch: int = 16
    whole_batch: int = 6
    learning_rate: float = 1e-3
    latent_noise: float = 0.05  # what the decoder must bear from a denoiser that is never exact
    save_every: int = 100

    @property
    def steps(self) -> int:
        return self.crop_steps + self.whole_steps


def train_autoencoder(recipe: AutoencoderRecipe, state_dir: Path) -> AutoencoderKL:
    """Train, or resume, the autoencoder; its latents times `LATENT_SCALE` have unit spread.

    Every step draws from its own seed, so that a resumed run takes the steps an unbroken one
    would have taken.
    """
    torch.manual_seed(recipe.seed)
    autoencoder = build_autoencoder().to(memory_format=torch.channels_last)
    start_linear(autoencoder)
    finished = state_dir / "autoencoder.pt"
    if finished.exists():
        autoencoder.load_state_dict(load_state(finished)["model"])
        return autoencoder.eval().requires_grad_(False)
    optimizer = torch.optim.AdamW(autoencoder.parameters(), recipe.learning_rate, weight_decay=1e-4)
    partial, first = state_dir / "autoencoder-partial.pt", 0
    if partial.exists():
        saved = load_state(partial)
        autoencoder.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    began, errors = time.monotonic(), []
    for step in range(first, recipe.steps):
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * _warm_cosine(step, recipe.steps)
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
    _fold_latent_spread(autoencoder, recipe)
    save_state(finished, {"model": autoencoder.state_dict()})
    return autoencoder


@torch.no_grad()
def start_linear(autoencoder: AutoencoderKL) -> None:
    """Start as an 8 x 8 mosaic of the picture, so that training has only edges to add.

    Residual branches start at zero, down- and upsampling as plain mean and repetition. Each norm
    group of three channels carries a signal, its negative and a constant: without the constant
    normalisation would erase flat colour, of which the pictures are made, and with the negative
    a signal passes the last activation unchanged, since silu(x) - silu(-x) = x.
    """
    encoder, decoder = autoencoder.encoder, autoencoder.decoder
    for module in autoencoder.modules():
        if hasattr(module, "conv2"):
            module.conv2.weight.zero_()
        if hasattr(module, "to_out"):
            module.to_out[0].weight.zero_()
            module.to_out[0].bias.zero_()
    for block in encoder.down_blocks[:-1]:
        _repeat_trunk(block.downsamplers[0].conv, slice(0, 2), 1 / 4)
    for block in decoder.up_blocks[:-1]:
        _repeat_trunk(block.upsamplers[0].conv, slice(1, 2), 1)
    for conv in (autoencoder.quant_conv, autoencoder.post_quant_conv):
        conv.weight.copy_(torch.eye(conv.weight.shape[0])[..., None, None])
        conv.bias.zero_()

    groups = encoder.conv_in.out_channels // _GROUP
    spread = functional.normalize(torch.randn(groups, 3), dim=1)
    # Within a group: mean a third of the carrier; variance the carrier's and the signals'.
    norm_std = math.sqrt(_CARRIER**2 * (1 / _GROUP - 1 / _GROUP**2) + 2 / _GROUP * 0.3)
    read = torch.linalg.pinv(spread) * norm_std
    for conv in (encoder.conv_in, decoder.conv_in):
        conv.weight.mul_(0.1)
        members = conv.weight.unflatten(0, (groups, _GROUP))
        members[:, 0, :3, 1, 1] += spread
        members[:, 1] = -members[:, 0]
        members[:, 2] = 0
        conv.bias.copy_(torch.tensor([0.0, 0.0, _CARRIER]).repeat(groups))
    for side in (encoder, decoder):
        side.conv_norm_out.bias.fill_(_CARRIER / _GROUP / norm_std)
        readers = side.conv_out.weight.unflatten(1, (groups, _GROUP))
        readers[:3] = 0
        readers[:3, :, 0, 1, 1] = read
        readers[:3, :, 1, 1, 1] = -read
        side.conv_out.bias.zero_()
    encoder.conv_out.weight[LATENT_CHANNELS:] = 0
    encoder.conv_out.bias[LATENT_CHANNELS:] = _START_LOG_VARIANCE


def _repeat_trunk(conv: torch.nn.Conv2d, taps: slice, weight: float) -> None:
    """Every channel to itself, with this weight at these taps."""
    conv.weight.zero_()
    torch.nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    channels = torch.arange(conv.out_channels)
    conv.weight[channels, channels, taps, taps] = weight


def _train_step(
    autoencoder: AutoencoderKL,
    optimizer: torch.optim.Optimizer,
    recipe: AutoencoderRecipe,
    step: int,
) -> float:
    """One step; returns the mean squared error on values -1 to 1."""
    rng = random.Random(f"{recipe.seed}-{step}")
    noise = torch.Generator().manual_seed(recipe.seed * 1_000_000 + step)
    if step < recipe.crop_steps:
        pictures = [
            _crop(_any_picture(rng), recipe.crop_side, rng) for _ in range(recipe.crop_batch)
        ]
    else:
        pictures = [_any_picture(rng) for _ in range(recipe.whole_batch)]
    target = to_tensor(pictures)
    latents = autoencoder.encode(target).latent_dist.mean
    latents = latents + recipe.latent_noise * torch.randn(latents.shape, generator=noise)
    output = autoencoder.decode(latents).sample
    squared = functional.mse_loss(output, target)
    loss = functional.l1_loss(output, target) + 0.5 * squared
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), 1.0)
    optimizer.step()
    return squared.item()


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


@torch.no_grad()
def _fold_latent_spread(autoencoder: AutoencoderKL, recipe: AutoencoderRecipe) -> None:
    """Rescale the latents inside the weights, since SD 1.x loaders fix the scale at 0.18215.

    `quant_conv` gives means and log variances (hence the shift by 2 log scale);
    `post_quant_conv` takes the factor back.
    """
    rng = random.Random(f"{recipe.seed}-spread")
    pictures = to_tensor([draw(random_scene(rng)) for _ in range(256)])
    parts = torch.split(pictures, 32)
    means = torch.cat([autoencoder.encode(part).latent_dist.mean for part in parts])
    factor = 1 / (means.std().item() * LATENT_SCALE)
    channels = means.shape[1]
    autoencoder.quant_conv.weight[:channels] *= factor
    autoencoder.quant_conv.bias[:channels] *= factor
    autoencoder.quant_conv.bias[channels:] += 2 * math.log(factor)
    autoencoder.post_quant_conv.weight /= factor
    print(f"autoencoder latents scaled by {factor:.4f}", flush=True)
