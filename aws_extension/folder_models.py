"""The weights files in a folder that is laid out like the WebUI's: for hosts without a WebUI."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from aws_extension.model_needs import LocalFile
from middleware_api.contract import CheckpointType

# The WebUI has a folder for each family of upscalers.
_FOLDERS = {
    CheckpointType.ESRGAN: ("ESRGAN", "RealESRGAN", "SwinIR", "DAT", "HAT", "ScuNET"),
}
_EXTENSIONS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


@dataclass(frozen=True)
class FolderModels:
    """`<folder>/<type>/**`, the types named as in the cloud, which are the WebUI's names too."""

    folder: Path

    @property
    def dreambooth_folder(self) -> Path | None:
        """As the WebUI's."""
        return self.folder / "dreambooth"

    def of(self, kind: CheckpointType) -> tuple[LocalFile, ...]:
        """The files of one kind; none where there is no such folder."""
        found = []
        for folder in _FOLDERS.get(kind, (kind.value,)):
            for parent, _, names in os.walk(self.folder / folder, followlinks=True):
                for name in sorted(names):
                    path = Path(parent, name)
                    if name.lower().endswith(_EXTENSIONS) and path.is_file():
                        found.append(LocalFile(kind, path, path.stat().st_size))
        return tuple(found)
