"""Prompts to the numbers that the UNet reads, in chunks of 75 tokens, as the WebUI 1.10.1 does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from middleware_api.container.embeddings import Embedding
from middleware_api.container.emphasis import Emphasis, weighted_parts
from middleware_api.container.text_settings import TextSettings

TOKENIZER_FOLDER = Path(__file__).parent / "clip_tokenizer"
CHUNK_TOKENS = 75
_CALL_TEXTS = 16  # texts that go through the text encoder at once


class PromptEncoder:
    """CLIP's tokenizer beside whichever text encoder a checkpoint brings."""

    def __init__(self, folder: Path = TOKENIZER_FOLDER) -> None:
        self._tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
        self._comma: int = self._tokenizer.get_vocab()[",</w>"]

    @torch.inference_mode()
    def encode(
        self,
        text_encoder: CLIPTextModel,
        texts: Sequence[str],
        settings: TextSettings,
        embeddings: Sequence[Embedding] = (),
    ) -> list[Tensor]:
        """Each text's (tokens, width), all of as many chunks of 77 as the longest one needs.

        The texts of one prompt's schedule belong into one call: "Original" emphasis keeps the mean
        of them all.
        """
        counts = Counter(texts)
        chunks = {text: self._chunks(text, settings, embeddings) for text in counts}
        encoded = []
        for i in range(max(map(len, chunks.values()))):
            column = [own[i] if i < len(own) else _Chunk() for own in chunks.values()]
            states = self._read(text_encoder, column, settings.clip_skip)
            encoded.append(_emphasised(states, column, [*counts.values()], settings.emphasis))
        by_text = dict(zip(counts, torch.cat(encoded, dim=1), strict=True))
        return [by_text[text] for text in texts]

    def embeddings_in(
        self, text: str, settings: TextSettings, embeddings: Sequence[Embedding]
    ) -> list[Embedding]:
        """Those whose words stand in the text, in its order, each once."""
        chunks = self._chunks(text, settings, embeddings)
        found = {one.name: one for chunk in chunks for _, one in chunk.placed}
        return [*found.values()]

    def _chunks(
        self, text: str, settings: TextSettings, embeddings: Sequence[Embedding]
    ) -> list[_Chunk]:
        words = sorted(((self._tokens(e.name), e) for e in embeddings), key=lambda w: -len(w[0]))
        writer = _Writer(self._comma, settings.backtrack)
        for part in weighted_parts(text, settings.emphasis):
            if part.is_break:
                writer.next_chunk()
                continue
            tokens, at = self._tokens(part.text), 0
            while at < len(tokens):
                here = (w for w in words if w[0] and tokens[at : at + len(w[0])] == w[0])
                name, embedding = next(here, ([tokens[at]], None))
                writer.write(tokens[at], embedding, part.weight)
                at += len(name)
        return writer.finish()

    def _read(
        self, text_encoder: CLIPTextModel, chunks: Sequence[_Chunk], clip_skip: int
    ) -> Tensor:
        """(chunks, 77, width) from the chosen layer."""
        read = []
        for start in range(0, len(chunks), _CALL_TEXTS):
            some = chunks[start : start + _CALL_TEXTS]
            ids = torch.tensor([self._ids(c) for c in some], device=text_encoder.device)
            with _placed(text_encoder.embeddings.token_embedding, some):
                layers = text_encoder(input_ids=ids, output_hidden_states=True).hidden_states
            read.append(text_encoder.final_layer_norm(layers[-min(clip_skip, len(layers))]))
        return torch.cat(read)

    def _ids(self, chunk: _Chunk) -> list[int]:
        begin, end = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        return [begin, *chunk.tokens, *[end] * (CHUNK_TOKENS + 1 - len(chunk.tokens))]

    def _tokens(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer(
            text, add_special_tokens=False, truncation=False, verbose=False
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
        count = len(embedding.vectors)
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
def _placed(table: nn.Module, chunks: Sequence[_Chunk]) -> Iterator[None]:
    """Has embeddings' vectors take the place of their tokens'."""

    def place(module: nn.Module, inputs: object, found: Tensor) -> Tensor:
        for own, chunk in zip(found, chunks, strict=True):
            for at, embedding in chunk.placed:
                vectors = embedding.vectors[: len(own) - at - 1]
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
