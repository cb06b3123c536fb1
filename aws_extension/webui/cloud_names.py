"""Cloud checkpoints under the names by which the WebUI looks for its own."""

from __future__ import annotations

import os
import re

from aws_extension.client import CloudClient
from middleware_api.contract import CheckpointState, CheckpointType
from middleware_api.weights_name import WeightsName


class CloudCheckpointInfo(WeightsName):
    """With the attributes of the WebUI's own `CheckpointInfo` that its scripts read."""

    @property
    def name_for_extra(self) -> str:
        """Without its extension."""
        return self.stem

    @property
    def shorthash(self) -> str:
        """As infotexts have it; empty when the hash is not known."""
        return self.short_hash


def find_cloud_checkpoint(client: CloudClient, wanted: str) -> CloudCheckpointInfo | None:
    """The Active checkpoint that a title, a name or a hash means, or else one that has it in its
    name, as the WebUI matches them."""
    found = client.list_checkpoints([CheckpointState.ACTIVE], [CheckpointType.STABLE_DIFFUSION])
    known = [CloudCheckpointInfo(*file) for checkpoint in found for file in checkpoint.files]
    plain = os.path.basename(re.sub(r"\s*\[[0-9a-f]+\]$", "", wanted))
    for info in known:
        if plain and plain in (info.name, info.stem, info.sha256, info.short_hash):
            return info
    return next((info for info in known if plain.lower() in info.name.lower()), None)
