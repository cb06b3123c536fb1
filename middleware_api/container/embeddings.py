"""Textual inversion: vectors that stand in a prompt under their file's name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePath

from torch import Tensor

from middleware_api.container.errors import CheckpointUnreadable
from middleware_api.container.network_files import read_network_file

VECTORS_MAX = 75  # what a chunk of a prompt has room for


@dataclass(frozen=True)
class Embedding:
    """`vectors` are (tokens, width of the text encoder)."""

    name: str
    sha256: str
    vectors: Tensor

    @property
    def short_hash(self) -> str:
        """As the WebUI writes it in "TI hashes"."""
        return self.sha256[:12]

    @property
    def n_bytes(self) -> int:
        return self.vectors.numel() * self.vectors.element_size()


def load_embedding(path: Path, file_name: str, sha256: str) -> Embedding:
    """One tensor of any name; raises CheckpointUnreadable."""
    content, _ = read_network_file(path, file_name)
    vectors = next(iter(content.values())) if len(content) == 1 else None
    if vectors is None or vectors.ndim not in (1, 2):
        raise CheckpointUnreadable(
            f"{file_name} is not a textual inversion embedding of Stable Diffusion 1.x (one tensor "
            "of vectors). Pick another file, or take its word out of the prompt."
        )
    vectors = vectors.float().reshape(-1, vectors.shape[-1])
    if not 0 < len(vectors) <= VECTORS_MAX:
        raise CheckpointUnreadable(
            f"{file_name} has {len(vectors)} vectors; a prompt has room for {VECTORS_MAX} at once. "
            "Pick another file, or take its word out of the prompt."
        )
    return Embedding(PurePath(file_name).stem, sha256, vectors)
