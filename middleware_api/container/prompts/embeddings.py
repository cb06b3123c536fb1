"""Textual inversion: vectors that stand in a prompt under their file's name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from torch import Tensor

from middleware_api.container.errors import CheckpointUnreadable
from middleware_api.container.networks.network_files import read_network_file

VECTORS_MAX = 75  # what a chunk of a prompt has room for
_XL_KEYS = {"clip_l", "clip_g"}


@dataclass(frozen=True)
class Embedding:
    """`vectors` are (tokens, width of the text encoder), by the encoder that they are for.

    A file for one encoder has them under "", one for SDXL under "clip_l" and "clip_g".
    """

    name: str
    sha256: str
    vectors: Mapping[str, Tensor]

    @property
    def count(self) -> int:
        return len(next(iter(self.vectors.values())))

    @property
    def widths(self) -> dict[str, int]:
        return {key: vectors.shape[1] for key, vectors in self.vectors.items()}

    @property
    def short_hash(self) -> str:
        """As the WebUI writes it in "TI hashes"."""
        return self.sha256[:12]

    @property
    def n_bytes(self) -> int:
        return sum(each.numel() * each.element_size() for each in self.vectors.values())


def load_embedding(path: Path, file_name: str, sha256: str) -> Embedding:
    """One tensor of any name, or one for each of SDXL's encoders; raises CheckpointUnreadable."""
    content, _ = read_network_file(path, file_name)
    tensors = dict(content) if content.keys() == _XL_KEYS else _alone(content)
    is_known = len(tensors) == len(content) and all(t.ndim in (1, 2) for t in tensors.values())
    vectors = {key: t.float().reshape(-1, t.shape[-1]) for key, t in tensors.items() if is_known}
    counts = {len(each) for each in vectors.values()}
    if len(counts) != 1:
        raise CheckpointUnreadable(
            f"{file_name} is not a textual inversion embedding (one tensor of vectors, or clip_l "
            "and clip_g). Pick another file, or take its word out of the prompt."
        )
    (count,) = counts
    if not 0 < count <= VECTORS_MAX:
        raise CheckpointUnreadable(
            f"{file_name} has {count} vectors; a prompt has room for {VECTORS_MAX} at once. "
            "Pick another file, or take its word out of the prompt."
        )
    return Embedding(PurePath(file_name).stem, sha256, vectors)


def _alone(content: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The only tensor of a file; none when there are more."""
    return {"": next(iter(content.values()))} if len(content) == 1 else {}
