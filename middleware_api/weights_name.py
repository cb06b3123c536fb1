"""How the WebUI names a weights file, in its lists and in infotexts.

Standard library only: the WebUI's process, the API and the container share it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

# So many of a SHA-256's begin, and the WebUI knows the file by them.
SHORT_HASH_DIGITS = 10


@dataclass(frozen=True)
class WeightsName:
    """A weights file as the WebUI writes of it; `sha256` is "" while nobody knows it."""

    name: str
    sha256: str = ""

    @property
    def stem(self) -> str:
        """Its name without the ending."""
        return PurePath(self.name).stem

    @property
    def short_hash(self) -> str:
        """As titles show it."""
        return self.sha256[:SHORT_HASH_DIGITS]

    @property
    def title(self) -> str:
        """`name.safetensors [hash]`, as in the WebUI's lists."""
        return self._with_hash(self.name)

    @property
    def short_title(self) -> str:
        """`name [hash]`, as in infotexts."""
        return self._with_hash(self.stem)

    def _with_hash(self, name: str) -> str:
        return f"{name} [{self.short_hash}]" if self.sha256 else name
