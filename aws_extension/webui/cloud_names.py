"""Cloud checkpoints under the names by which the WebUI looks for its own."""

from __future__ import annotations

import os
from collections.abc import Sequence

from aws_extension.answers import Checkpoint
from aws_extension.model_needs import parse_name
from middleware_api.contract import CheckpointType
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


def find_cloud_checkpoint(
    checkpoints: Sequence[Checkpoint], wanted: str
) -> CloudCheckpointInfo | None:
    """The one of Active `checkpoints` that a title, a name or a hash means, or else one that has
    it in its name, as the WebUI matches them."""
    known = [
        CloudCheckpointInfo(*file)
        for checkpoint in checkpoints
        if checkpoint.type == CheckpointType.STABLE_DIFFUSION.value
        for file in checkpoint.files
    ]
    plain = os.path.basename(parse_name(wanted)[0])
    for info in known:
        if plain and plain in (info.name, info.stem, info.sha256, info.short_hash):
            return info
    return next((info for info in known if plain.lower() in info.name.lower()), None)
