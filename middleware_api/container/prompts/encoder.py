"""Prompts to the numbers that the UNet reads, in chunks of 75 tokens, as the WebUI 1.10.1 does."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import ftfy
import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from middleware_api.container.engine.families import Layout
from middleware_api.container.prompts.conditioning import Reading
from middleware_api.container.prompts.embeddings import Embedding
from middleware_api.container.prompts.emphasis import Emphasis, weighted_parts
from middleware_api.container.prompts.text_encoders import TextEncoder
from middleware_api.container.prompts.text_settings import TextSettings

TOKENIZER_FOLDER = Path(__file__).parent / "clip_tokenizer"
CHUNK_TOKENS = 75
_CALL_TEXTS = 16  # texts that go through the text encoder at once


class PromptEncoder:
    """CLIP's tokenizer beside whichever text encoders a checkpoint brings."""

    def __init__(self, folder: Path = TOKENIZER_FOLDER) -> None:
        self._tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self._comma: int = self._tokenizer.get_vocab()[",</w>"]

    @torch.inference_mode()
    def encode(
        self,
        text_encoders: Sequence[TextEncoder],
        texts: Sequence[str],
        settings: TextSettings,
        embeddings: Sequence[Embedding] = (),
    ) -> list[Reading]:
        """Each text as all encoders read it, side by side.

        All are of as many chunks of 77 tokens as the longest one needs. The texts of one prompt's
        schedule belong into one call: "Original" emphasis keeps the mean of them all.
        """
        counts = Counter(texts)
        read = [
            [self._chunks(text, settings, embeddings, each.source.layout) for text in counts]
            for each in text_encoders
        ]
        length = max(len(chunks) for column in read for chunks in column)
        sides, pooled = [], None
        for encoder, column in zip(text_encoders, read, strict=True):
            chunks = []
            for i in range(length):
                some = [own[i] if i < len(own) else _Chunk() for own in column]
                states, meaning = self._read(encoder, some, settings)
                chunks.append(_emphasised(states, some, [*counts.values()], settings.emphasis))
                pooled = meaning if pooled is None else pooled  # the first chunk's, as in the WebUI
            sides.append(torch.cat(chunks, dim=1))
        meanings = [None] * len(counts) if pooled is None else [*pooled]
        readings = map(Reading, torch.cat(sides, dim=-1), meanings)
        by_text = dict(zip(counts, readings, strict=True))
        return [by_text[text] for text in texts]

    def embeddings_in(
        self, text: str, settings: TextSettings, embeddings: Sequence[Embedding]
    ) -> list[Embedding]:
        """Those whose words stand in the text, in its order, each once."""
        chunks = self._chunks(text, settings, embeddings)
        found = {one.name: one for chunk in chunks for _, one in chunk.placed}
        return [*found.values()]

    def _chunks(
        self,
        text: str,
        settings: TextSettings,
        embeddings: Sequence[Embedding],
        layout: Layout = Layout.CLIP,
    ) -> list[_Chunk]:
        words = sorted(((self._tokens(e.name), e) for e in embeddings), key=lambda w: -len(w[0]))
        writer = _Writer(self._comma, settings.backtrack)
        for part in weighted_parts(text, settings.emphasis):
            if part.is_break:
                writer.next_chunk()
                continue
            tokens, at = self._tokens(part.text, layout), 0
            while at < len(tokens):
                here = (w for w in words if w[0] and tokens[at : at + len(w[0])] == w[0])
                name, embedding = next(here, ([tokens[at]], None))
                writer.write(tokens[at], embedding, part.weight)
                at += len(name)
        return writer.finish()

    def _read(
        self, encoder: TextEncoder, chunks: Sequence[_Chunk], settings: TextSettings
    ) -> tuple[Tensor, Tensor | None]:
        """(chunks, 77, width) from the layer that counts, and the pooled (chunks, width)."""
        read, pooled = [], []
        for start in range(0, len(chunks), _CALL_TEXTS):
            some = chunks[start : start + _CALL_TEXTS]
            ids = [self._ids(chunk, encoder.source.layout) for chunk in some]
            table = encoder.module.embeddings.token_embedding
            with _placed(table, encoder.source.embedding, some):
                found = encoder.read(torch.tensor(ids, device=encoder.module.device), settings)
            read.append(found[0])
            pooled += [] if found[1] is None else [found[1]]
        return torch.cat(read), torch.cat(pooled) if pooled else None

    def _ids(self, chunk: _Chunk, layout: Layout) -> list[int]:
        begin, end = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        filler = end if layout is Layout.CLIP else 0
        return [begin, *chunk.tokens, end, *[filler] * (CHUNK_TOKENS - len(chunk.tokens))]

    def _tokens(self, text: str, layout: Layout = Layout.CLIP) -> list[int]:
        """Of a text that is mended first, as in the WebUI: curly quotes become straight ones, and
        `&amp;` what it stands for, for OpenCLIP even twice over."""
        mended = ftfy.fix_text(text)
        if layout is Layout.OPEN_CLIP:
            mended = html.unescape(html.unescape(mended))
        tokens: list[int] = self._tokenizer(
            mended, add_special_tokens=False, truncation=False, verbose=False
        ).input_ids
        return tokens


@dataclass
class _Chunk:
    """At most 75 tokens with their weights; `placed` are embeddings and their first token."""

    tokens: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    placed: list[tuple[int, Embedding]] = field(default_factory=list)

    def all_weights(self) -> list[float]:
        """With those of the begin, end and filling tokens."""
        return [1.0, *self.weights, *[1.0] * (CHUNK_TOKENS + 1 - len(self.weights))]


class _Writer:
    """Fills chunks one after the other."""

    def __init__(self, comma: int, backtrack: int) -> None:
        self._comma, self._backtrack = comma, backtrack
        self._done: list[_Chunk] = []
        self._chunk = _Chunk()
        self._last_comma = -1

    def write(self, token: int, embedding: Embedding | None, weight: float) -> None:
        """One token, or an embedding whose name begins with it."""
        if token == self._comma:
            self._last_comma = len(self._chunk.tokens)
        elif self._is_full and self._last_comma >= CHUNK_TOKENS - self._backtrack:
            self._move_what_follows_the_comma()
        if self._is_full:
            self.next_chunk()
        if embedding is None:
            self._add([token], weight)
            return
        count = embedding.count
        if len(self._chunk.tokens) + count > CHUNK_TOKENS:
            self.next_chunk()
        self._chunk.placed.append((len(self._chunk.tokens), embedding))
        self._add([0] * count, weight)

    def next_chunk(self) -> None:
        self._done.append(self._chunk)
        self._chunk, self._last_comma = _Chunk(), -1

    def finish(self) -> list[_Chunk]:
        if self._chunk.tokens or not self._done:
            self.next_chunk()
        return self._done

    @property
    def _is_full(self) -> bool:
        return len(self._chunk.tokens) == CHUNK_TOKENS

    def _add(self, tokens: list[int], weight: float) -> None:
        self._chunk.tokens += tokens
        self._chunk.weights += [weight] * len(tokens)

    def _move_what_follows_the_comma(self) -> None:
        """Embeddings among it stay behind: the WebUI moves their tokens and not their vectors."""
        full, keep = self._chunk, self._last_comma + 1
        moved = _Chunk(full.tokens[keep:], full.weights[keep:])
        del full.tokens[keep:], full.weights[keep:]
        self.next_chunk()
        self._chunk = moved


@contextmanager
def _placed(table: nn.Module, key: str, chunks: Sequence[_Chunk]) -> Iterator[None]:
    """Has embeddings' vectors for this encoder take the place of their tokens'."""

    def place(module: nn.Module, inputs: object, found: Tensor) -> Tensor:
        for own, chunk in zip(found, chunks, strict=True):
            for at, embedding in chunk.placed:
                vectors = embedding.vectors[key][: len(own) - at - 1]
                own[at + 1 : at + 1 + len(vectors)] = vectors.to(own)
        return found

    handle = table.register_forward_hook(place)
    try:
        yield
    finally:
        handle.remove()


def _emphasised(
    states: Tensor, chunks: Sequence[_Chunk], counts: Sequence[int], emphasis: Emphasis
) -> Tensor:
    """States times their tokens' weights; `counts` are how often each text stands in the batch."""
    if emphasis in (Emphasis.NONE, Emphasis.IGNORE):
        return states
    weights = torch.tensor([chunk.all_weights() for chunk in chunks]).to(states)
    if bool((weights == 1).all()):  # nothing to keep, and a mean may be 0
        return states
    weighted = states * weights[..., None]
    if emphasis is Emphasis.NO_NORM:
        return weighted
    shares = torch.tensor(counts).to(states) / sum(counts)
    before, after = ((each.mean(dim=(1, 2)) * shares).sum() for each in (states, weighted))
    return weighted * (before / after)
