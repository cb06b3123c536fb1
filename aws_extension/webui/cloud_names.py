"""Cloud checkpoints under the names by which the WebUI looks for its own."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from aws_extension.client import CloudClient
from middleware_api.contract import CheckpointState, CheckpointType

SHORT_HASH_DIGITS = 10


@dataclass(frozen=True)
class CloudCheckpointInfo:
    """The attributes of the WebUI's own `CheckpointInfo` that its scripts read."""

    name: str
    sha256: str

    @property
    def name_for_extra(self) -> str:
        """Without its extension."""
        return os.path.splitext(self.name)[0]

    @property
    def shorthash(self) -> str:
        """As infotexts have it; empty when the hash is not known."""
        return self.sha256[:SHORT_HASH_DIGITS]

    @property
    def title(self) -> str:
        """As the WebUI's lists have it."""
        return f"{self.name} [{self.shorthash}]" if self.sha256 else self.name

    @property
    def short_title(self) -> str:
        """As infotexts have it."""
        return f"{self.name_for_extra} [{self.shorthash}]" if self.sha256 else self.name_for_extra


def find_cloud_checkpoint(client: CloudClient, wanted: str) -> CloudCheckpointInfo | None:
    """The Active checkpoint that a title, a name or a hash means, or else one that has it in its
    name, as the WebUI matches them."""
    found = client.list_checkpoints([CheckpointState.ACTIVE], [CheckpointType.STABLE_DIFFUSION])
    known = [CloudCheckpointInfo(*file) for checkpoint in found for file in checkpoint.files]
    plain = os.path.basename(re.sub(r"\s*\[[0-9a-f]+\]$", "", wanted))
    for info in known:
        if plain in (info.name, info.name_for_extra, info.sha256, info.shorthash):
            return info
    return next((info for info in known if plain.lower() in info.name.lower()), None)
