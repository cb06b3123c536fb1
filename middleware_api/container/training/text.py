"""Captions to what the UNet reads, with gradients where a text encoder is trained."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from transformers import CLIPTokenizer

from middleware_api.container.engine.families import Layout
from middleware_api.container.prompts.conditioning import Reading
from middleware_api.container.prompts.encoder import CHUNK_TOKENS, TOKENIZER_FOLDER
from middleware_api.container.prompts.text_encoders import TextEncoder
from middleware_api.container.prompts.text_settings import TextSettings

KEPT_BYTES = 1024**3
"""Of encoded captions."""


@cache
def _tokenizer(folder: Path) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


class CaptionReader:
    """As many chunks of 75 tokens for every caption as `max_tokens` has; the rest is left out."""

    def __init__(self, max_tokens: int, clip_skip: int, folder: Path = TOKENIZER_FOLDER) -> None:
        self._tokenizer = _tokenizer(folder)
        self._chunks = max(1, max_tokens // CHUNK_TOKENS)
        self._settings = TextSettings(clip_skip=clip_skip)

    def encode(self, encoders: Sequence[TextEncoder], captions: Sequence[str]) -> Reading:
        """All encoders' tokens side by side, (captions, tokens, width), and what is pooled."""
        sides, pooled = [], None
        for encoder in encoders:
            chunks = [self._ids(caption, encoder.source.layout) for caption in captions]
            ids = torch.tensor(chunks, device=encoder.module.device)
            states, meaning = encoder.read(ids.flatten(0, 1), self._settings)
            sides.append(states.reshape(len(captions), -1, states.shape[-1]))
            if meaning is not None:  # the first chunk's, as for a prompt
                pooled = meaning.reshape(len(captions), self._chunks, -1)[:, 0]
        return Reading(torch.cat(sides, dim=-1), pooled)

    def _ids(self, caption: str, layout: Layout) -> list[list[int]]:
        begin, end = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        filler = end if layout is Layout.CLIP else 0
        tokens: list[int] = self._tokenizer(
            caption, add_special_tokens=False, truncation=False, verbose=False
        ).input_ids
        chunks = []
        for start in range(0, self._chunks * CHUNK_TOKENS, CHUNK_TOKENS):
            chunk = tokens[start : start + CHUNK_TOKENS]
            chunks.append([begin, *chunk, end, *[filler] * (CHUNK_TOKENS - len(chunk))])
        return chunks


class CaptionCache:
    """Captions read by text encoders that do not change: the least recently used go."""

    def __init__(self, reader: CaptionReader, encoders: Sequence[TextEncoder]) -> None:
        self._reader, self._encoders = reader, encoders
        self._kept: OrderedDict[str, Reading] = OrderedDict()

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Reading:
        """As `CaptionReader` does."""
        missing = [c for c in dict.fromkeys(captions) if c not in self._kept]
        if missing:
            read = self._reader.encode(self._encoders, missing)
            for number, caption in enumerate(missing):
                pooled = None if read.pooled is None else read.pooled[number]
                self._kept[caption] = Reading(read.tokens[number], pooled)
        found = [self._kept[caption] for caption in captions]
        for caption in captions:
            self._kept.move_to_end(caption)
        tokens = torch.stack([each.tokens for each in found])
        meanings = [each.pooled for each in found if each.pooled is not None]
        most = max(1, KEPT_BYTES // (tokens[0].numel() * tokens.element_size()))
        while len(self._kept) > most:
            self._kept.popitem(last=False)
        return Reading(tokens, torch.stack(meanings) if meanings else None)
