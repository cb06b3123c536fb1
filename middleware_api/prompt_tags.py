"""The WebUI's tags in prompts, `<kind:name:...>`, which name weights files.

Standard library only: the WebUI's process, the API and the container read prompts by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from middleware_api.contract import CheckpointType

# The WebUI's own idea of a tag (its `extra_networks.py`).
_TAG = re.compile(r"<(\w+):([^>]+)>")
_KINDS = {
    "lora": CheckpointType.LORA,
    "lyco": CheckpointType.LORA,  # the same thing by its older name
    "hypernet": CheckpointType.HYPERNETWORKS,
}


@dataclass(frozen=True)
class Tag:
    """A tag as it stands at `start` of a prompt, its name first among its parts.

    `kind` is None for a word that names no weights.
    """

    text: str
    start: int
    kind: CheckpointType | None
    parts: tuple[str, ...]

    @property
    def end(self) -> int:
        return self.start + len(self.text)

    @property
    def name(self) -> str:
        return self.parts[0]

    def renamed(self, name: str) -> str:
        """The same tag with another name."""
        word = self.text[1 : self.text.index(":")]
        return f"<{word}:{':'.join((name, *self.parts[1:]))}>"


def tags_in(prompt: str) -> Iterator[Tag]:
    """Every tag, in the prompt's order."""
    for found in _TAG.finditer(prompt):
        parts = tuple(found[2].split(":"))
        yield Tag(found[0], found.start(), _KINDS.get(found[1]), parts)


def without_tags(prompt: str) -> str:
    """The words alone."""
    return _TAG.sub("", prompt)
