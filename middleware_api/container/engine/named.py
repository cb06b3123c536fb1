"""Which of a job's weights files a request means, in the WebUI's words for them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from middleware_api.contract import ContainerCheckpoint
from middleware_api.weights_name import WeightsName


def find_named(wanted: str, files: Sequence[ContainerCheckpoint]) -> ContainerCheckpoint | None:
    """By file name, title with or without a hash, or hash: what the WebUI's menus show."""
    if not wanted:
        return None
    bare = re.sub(r"\s*\[[^\]]*\]\s*$", "", wanted)
    for file in files:
        name = WeightsName(file["name"], file["sha256"])
        known = {file["name"], name.stem}
        hashes = {file["sha256"], name.short_hash} - {""}
        if wanted in known | hashes or bare in known:
            return file
    return None
