"""Writing small files whole or not at all, also when two hosts do so at once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Readers see the old text or the new one; the file is its owner's alone. Makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A draft of its own: with one name for all, one host would take away the other's.
    descriptor, draft = tempfile.mkstemp(suffix=".new", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(draft, path)
    except BaseException:
        os.unlink(draft)
        raise
