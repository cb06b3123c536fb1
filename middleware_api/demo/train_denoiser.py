"""Second stage: the UNet and the text encoder, together, on mosaics of drawn pictures."""

import copy
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from middleware_api.container.prompts.encoder import TOKENIZER_FOLDER
from middleware_api.demo.architecture import (
    BETA_END,
    BETA_START,
    END_TOKEN,
    LATENT_SCALE,
    MAX_TOKENS,
    START_TOKEN,
    TRAIN_TIMESTEPS,
    VOCABULARY,
    build_text_encoder,
    build_unet,
)
from middleware_api.demo.saved_state import load_state, save_state
from middleware_api.demo.shapes import FILLERS, Scene, draw, random_scene, vary_caption
from middleware_api.demo.train_autoencoder import mosaic, to_tensor


@dataclass(frozen=True)
class DenoiserRecipe:
    """Enough scenes that their latents can be kept; every step draws captions and noise anew."""

    seed: int = 12
    scenes: int = 20_000
    steps: int = 4000
    batch: int = 64
    warm_steps: int = 100
    learning_rate: float = 1e-3
    text_rate: float = 2e-3
    empty_captions: float = 0.1  # guidance needs the unconditional guess
    average: float = 0.995  # of the weights, per step
    save_every: int = 250


@dataclass(frozen=True)
class Denoiser:
    """The trained pair; the text encoder has a row for `tokens` alone, in this order."""

    unet: UNet2DConditionModel
    text_encoder: CLIPTextModel
    tokens: list[int]


def train_denoiser(recipe: DenoiserRecipe, state_dir: Path) -> Denoiser:
    """Train, or resume, both networks; what returns are the averaged weights."""
    torch.manual_seed(recipe.seed)
    rng = random.Random(f"{recipe.seed}-scenes")
    scenes = [random_scene(rng) for _ in range(recipe.scenes)]
    latents = _latents(scenes)
    words = _Words(scenes)
    unet = build_unet()
    text = build_text_encoder(len(words.tokens), len(words.tokens) - 1)
    trained = nn.ModuleDict({"unet": unet, "text": text})
    average = copy.deepcopy(trained).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        [
            {"params": list(unet.parameters()), "peak": recipe.learning_rate},
            {"params": list(text.parameters()), "peak": recipe.text_rate},
        ],
        betas=(0.9, 0.99),
        weight_decay=1e-3,
    )
    partial, first = state_dir / "denoiser.pt", 0
    if partial.exists():
        saved = load_state(partial)
        trained.load_state_dict(saved["model"])
        average.load_state_dict(saved["average"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    began, losses = time.monotonic(), []
    for step in range(first, recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * _warm_cosine(step, recipe)
        losses.append(_train_step(unet, text, optimizer, recipe, scenes, latents, words, step))
        done = step + 1
        # A young average forgets its random start sooner.
        keep = min(recipe.average, done / (done + 10))
        _move_average(average, trained, keep)
        if done % 50 == 0:
            print(
                f"denoiser {done}/{recipe.steps} loss {sum(losses) / len(losses):.4f} "
                f"{time.monotonic() - began:.0f} s",
                flush=True,
            )
            losses.clear()
        if done % recipe.save_every == 0 or done == recipe.steps:
            save_state(
                partial,
                {
                    "model": trained.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": done,
                },
            )
    average.eval()
    return Denoiser(average["unet"], average["text"], words.tokens)


class _Words:
    """The tokens that captions use, as rows of a small table; the end token comes last."""

    def __init__(self, scenes: list[Scene]) -> None:
        self._tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER_FOLDER, local_files_only=True)
        self._known: dict[str, list[int]] = {}
        rng = random.Random(0)
        met = {token for scene in scenes for token in self._ids(vary_caption(scene, rng))}
        self.tokens = [*sorted(met), START_TOKEN, END_TOKEN]
        self._rows = {token: row for row, token in enumerate(self.tokens)}

    def rows(self, captions: list[str]) -> Tensor:
        """(captions, 77) rows of the table, padded with the end token."""
        begin, end = self._rows[START_TOKEN], self._rows[END_TOKEN]
        batch = []
        for caption in captions:
            ids = [self._rows[token] for token in self._ids(caption)]
            batch.append([begin, *ids, *[end] * (MAX_TOKENS - 1 - len(ids))])
        return torch.tensor(batch)

    def _ids(self, caption: str) -> list[int]:
        if caption not in self._known:
            self._known[caption] = self._tokenizer(caption, add_special_tokens=False).input_ids
        return self._known[caption]


def _train_step(
    unet: UNet2DConditionModel,
    text: CLIPTextModel,
    optimizer: torch.optim.Optimizer,
    recipe: DenoiserRecipe,
    scenes: list[Scene],
    latents: Tensor,
    words: _Words,
    step: int,
) -> float:
    rng = random.Random(f"{recipe.seed}-{step}")
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_000 + step)
    chosen = rng.choices(range(len(scenes)), k=recipe.batch)
    captions = [
        "" if rng.random() < recipe.empty_captions else vary_caption(scenes[i], rng) for i in chosen
    ]
    clean = latents[chosen]
    noise = torch.randn(clean.shape, generator=generator)
    # Spread evenly over the batch, for a steadier loss.
    places = (torch.arange(recipe.batch) + torch.rand(recipe.batch, generator=generator)) / (
        recipe.batch
    )
    times = (places * TRAIN_TIMESTEPS).long()
    kept = signal_kept()[times]
    noisy = (
        kept.sqrt()[:, None, None, None] * clean + (1 - kept).sqrt()[:, None, None, None] * noise
    )
    context = text(input_ids=words.rows(captions)).last_hidden_state
    predicted = unet(noisy, times, context).sample
    # Errors weigh as in the clean latents, within bounds at both ends.
    ratio = kept / (1 - kept)
    weight = ratio.clamp(0.1, 5) / ratio
    loss = (weight * (predicted - noise).square().mean(dim=(1, 2, 3))).mean()
    optimizer.zero_grad()
    loss.backward()
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimizer.step()
    return float(loss.item())


def signal_kept() -> Tensor:
    """SD 1.x's alpha bar: how much of the clean latent's variance is left at each timestep."""
    betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAIN_TIMESTEPS) ** 2
    return (1 - betas).cumprod(0)


def _latents(scenes: list[Scene]) -> Tensor:
    parts = []
    for start in range(0, len(scenes), 64):
        parts.append(mosaic(to_tensor([draw(scene) for scene in scenes[start : start + 64]])))
    return torch.cat(parts).contiguous() * LATENT_SCALE


@torch.no_grad()
def _move_average(average: nn.Module, trained: nn.Module, keep: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(trained.parameters()), 1 - keep)


def _warm_cosine(step: int, recipe: DenoiserRecipe) -> float:
    warm = min(1.0, (step + 1) / recipe.warm_steps)
    return warm * (0.01 + 0.99 * (1 + math.cos(math.pi * step / recipe.steps)) / 2)


@torch.no_grad()
def with_whole_vocabulary(denoiser: Denoiser, seed: int = 0) -> CLIPTextModel:
    """The text encoder with a row for each of CLIP's tokens.

    Words it never met get rows around those of the fillers, which it learned to pass over.
    """
    generator = torch.Generator().manual_seed(seed)
    small, whole = denoiser.text_encoder, build_text_encoder()
    weights = dict(small.state_dict())
    (name,) = (key for key in weights if key.endswith("token_embedding.weight"))
    rows = weights[name]
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER_FOLDER, local_files_only=True)
    filler_tokens = {
        token for word in FILLERS for token in tokenizer(word, add_special_tokens=False).input_ids
    }
    fillers = rows[[row for row, token in enumerate(denoiser.tokens) if token in filler_tokens]]
    drawn = torch.randint(len(fillers), (VOCABULARY,), generator=generator)
    table = fillers[drawn]
    table += 0.1 * rows.std() * torch.randn(table.shape, generator=generator)
    table[denoiser.tokens] = rows
    whole.load_state_dict({**weights, name: table})
    return whole.eval()
