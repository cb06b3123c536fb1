"""Prompts to the numbers that the UNet reads: plain CLIP, one chunk of 75 tokens."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

TOKENIZER_FOLDER = Path(__file__).parent / "clip_tokenizer"
CHUNK_TOKENS = 75
# Brackets that a backslash does not protect, extra networks, and the two keywords.
_SYNTAX = re.compile(r"(?<!\\)[(\[]|<\w+:|\bBREAK\b|\bAND\b")


class PromptEncoder:
    """CLIP's tokenizer beside whichever text encoder a checkpoint brings."""

    def __init__(self, folder: Path = TOKENIZER_FOLDER) -> None:
        self._tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)

    def warnings(self, field: str, prompt: str) -> list[str]:
        """What of this prompt does not reach the model as written."""
        found = []
        if _SYNTAX.search(prompt):
            found.append(
                f"{field}: emphasis brackets, <extra networks>, BREAK and AND are not supported "
                "yet and were read as plain text."
            )
        excess = len(self._tokens(prompt)) - CHUNK_TOKENS
        if excess > 0:
            found.append(f"{field}: longer than {CHUNK_TOKENS} tokens, the last {excess} were cut.")
        return found

    @torch.inference_mode()
    def encode(self, text_encoder: CLIPTextModel, prompt: str, clip_skip: int) -> Tensor:
        """(1, 77, width); `clip_skip` 1 is the last layer, 2 the one before it."""
        begin, end = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        tokens = self._tokens(prompt)[:CHUNK_TOKENS]
        padded = [begin, *tokens, *[end] * (CHUNK_TOKENS + 1 - len(tokens))]
        ids = torch.tensor([padded], device=text_encoder.device)
        layers = text_encoder(input_ids=ids, output_hidden_states=True).hidden_states
        chosen = layers[-min(clip_skip, len(layers))]
        encoded: Tensor = text_encoder.final_layer_norm(chosen)
        return encoded

    def _tokens(self, prompt: str) -> list[int]:
        tokens: list[int] = self._tokenizer(
            prompt, add_special_tokens=False, truncation=False, verbose=False
        ).input_ids
        return tokens
