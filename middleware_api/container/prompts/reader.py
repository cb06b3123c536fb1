"""What a pass is asked to show, and what the UNet reads of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from middleware_api.container.engine.checkpoint import StableDiffusion
from middleware_api.container.engine.families import SDXL_REFINER
from middleware_api.container.engine.model_cache import ModelCache
from middleware_api.container.networks.job_networks import JobNetworks
from middleware_api.container.prompts.conditioning import (
    Conditioning,
    Guidance,
    Reading,
    conditioning_of,
    subprompts_of,
)
from middleware_api.container.prompts.embeddings import Embedding
from middleware_api.container.prompts.emphasis import Emphasis
from middleware_api.container.prompts.encoder import PromptEncoder
from middleware_api.container.prompts.networks import Networks, networks_of
from middleware_api.container.prompts.schedule import Clock, schedule_of
from middleware_api.container.prompts.text_settings import TextSettings
from middleware_api.prompt_tags import without_tags

_KEPT_BYTES = 64 * 1024 * 1024
_FORBIDDEN_IN_NAMES = str.maketrans("", "", ":,")


@dataclass(frozen=True)
class Ask:
    """A pass's prompts, its calls of the model, how to read them, and its (width, height)."""

    positive: str
    negative: str
    clock: Clock
    settings: TextSettings
    size: tuple[int, int]

    @property
    def networks(self) -> Networks:
        """Of the prompt alone: in a negative prompt the WebUI takes such tags for words."""
        if not self.settings.networks:
            return Networks()
        return networks_of(self.positive, self.settings.block_presets)

    @property
    def subprompts(self) -> list[tuple[str, float]]:
        return subprompts_of(without_tags(self.positive))


class PromptReader:
    """Prompts to guidance; what was read before is kept for the next job with the same words."""

    def __init__(self, encoder: PromptEncoder) -> None:
        self._encoder = encoder
        self._kept: ModelCache[Conditioning] = ModelCache(_KEPT_BYTES, lambda c: c.n_bytes)

    def guidance(self, model: StableDiffusion, ask: Ask, networks: JobNetworks) -> Guidance:
        """For one pass of one model."""

        def read(text: str, clock: Clock = ask.clock) -> Conditioning:
            return self._read(model, text, clock, ask, networks)

        filler = read("", Clock(1)).states[0].tokens if ask.settings.pads else None
        towards = tuple((read(text), weight) for text, weight in ask.subprompts)
        away = read(ask.negative)
        if model.family.is_xl and _says_nothing(ask):
            away = _silent(away)
        high, low = ask.settings.telling.scores
        return Guidance(towards, away, filler, _told(model, ask, high), _told(model, ask, low))

    def _read(
        self, model: StableDiffusion, text: str, clock: Clock, ask: Ask, networks: JobNetworks
    ) -> Conditioning:
        asked, settings = ask.networks, ask.settings
        embeddings = networks.embeddings(model)
        loras = [(each.lora.hash, each.text, each.rank) for each in networks.loras(asked)]
        words = [(each.name, each.sha256) for each in embeddings]
        how = (settings.clip_skip, settings.emphasis, settings.backtrack, settings.skips_in_xl)

        def encode(texts: Sequence[str]) -> list[Reading]:
            with networks.patch(model, asked).applied():
                return self._encoder.encode(model.text_encoders, texts, settings, embeddings)

        key = repr((model.name, model.sha256, loras, words, how, clock, text))
        with self._kept.use(key, 0, lambda: conditioning_of(text, clock, encode)) as found:
            return found

    def parameters(
        self, model: StableDiffusion, asks: Sequence[Ask], networks: JobNetworks
    ) -> dict[str, str]:
        """What the WebUI adds to a picture's parameters for the prompts of its passes."""
        found: dict[str, str] = {}
        hashes: dict[str, str] = {}
        for ask in asks:
            hashes |= networks.lora_hashes(ask.networks)
        if hashes:
            pairs = ((name.translate(_FORBIDDEN_IN_NAMES), hash) for name, hash in hashes.items())
            found["Lora hashes"] = ", ".join(f"{name}: {hash}" for name, hash in pairs)
        texts = [text for ask in asks for text in (ask.negative, *(t for t, _ in ask.subprompts))]
        embeddings = self._embedding_hashes(model, asks, networks.embeddings(model))
        if embeddings:
            found["TI hashes"] = ", ".join(embeddings)
        emphasis = asks[0].settings.emphasis
        if emphasis is not Emphasis.ORIGINAL and any(c in text for text in texts for c in "(["):
            found["Emphasis"] = emphasis.value
        last = asks[-1]
        if self.guidance(model, last, networks).is_padded_at(last.clock.steps):
            found["Pad conds"] = "True"
        return found

    def _embedding_hashes(
        self, model: StableDiffusion, asks: Sequence[Ask], embeddings: Sequence[Embedding]
    ) -> list[str]:
        """The last read first, and again each time that one is read: the WebUI's order."""
        hashes: list[str] = []
        if not embeddings:
            return hashes
        for ask in asks:
            for text in dict.fromkeys([ask.negative, *(text for text, _ in ask.subprompts)]):
                used: dict[str, Embedding] = {}
                for words in schedule_of(text, ask.clock):
                    found = self._encoder.embeddings_in(words.text, ask.settings, embeddings)
                    used |= {each.name: each for each in found}
                own = [
                    f"{name.translate(_FORBIDDEN_IN_NAMES)}: {each.short_hash}"
                    for name, each in used.items()
                ]
                hashes = [*own, *hashes]
        return hashes


def _says_nothing(ask: Ask) -> bool:
    """Whether the negative prompt is empty all the way, for which SDXL has zeros in its place."""
    return all(words.text == "" for words in schedule_of(ask.negative, ask.clock))


def _silent(conditioning: Conditioning) -> Conditioning:
    def silent(reading: Reading) -> Reading:
        pooled = None if reading.pooled is None else torch.zeros_like(reading.pooled)
        return Reading(torch.zeros_like(reading.tokens), pooled)

    return Conditioning(conditioning.until, tuple(map(silent, conditioning.states)))


def _told(model: StableDiffusion, ask: Ask, score: float) -> Tensor | None:
    """The numbers beside a text: the size that the picture has had, where it was cut, and the size
    that it is to have or, for a refiner, the score."""
    if not model.family.is_xl:
        return None
    width, height = ask.size
    size = (float(height), float(width))
    end = (score,) if model.family is SDXL_REFINER else size
    told = (*size, *map(float, ask.settings.telling.crop), *end)
    return torch.tensor(told, device=model.text_encoders[0].module.device)
