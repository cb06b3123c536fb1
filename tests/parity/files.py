"""The weights that the cases are made with: the demo checkpoint, and small upscalers.

`python -m tests.parity.files FOLDER` writes the upscalers as files of torch, for a WebUI.
"""

from __future__ import annotations

import sys
from pathlib import Path

from middleware_api.container.engine.loading import CheckpointFile
from middleware_api.container.engine.request import GenerationRequest
from middleware_api.container.engine.roles import Roles
from middleware_api.demo.train import CHECKPOINT
from tests.sample_upscalers import esrgan, repeating, write_pickled, write_upscaler

UPSCALERS = {"4x_tiny": (esrgan(), ""), "2x_same": (repeating(2, blue=0.1), "params_ema")}


def write_upscalers(folder: Path) -> None:
    for name, (tensors, wrapped) in UPSCALERS.items():
        write_upscaler(folder / f"{name}.safetensors", tensors, wrapped)


def roles_of(request: GenerationRequest, upscalers: Path) -> Roles[CheckpointFile]:
    """What the engine loads for a case; `upscalers` is the folder that they were written to."""
    main = CheckpointFile(CHECKPOINT, CHECKPOINT.name, "demo", "")
    asked = request.upscaler_file
    if asked is None:
        return Roles(main)
    path = upscalers / f"{asked.name}.safetensors"
    return Roles(main, upscaler=CheckpointFile(path, path.name, path.name, ""))


if __name__ == "__main__":
    for name, (tensors, wrapped) in UPSCALERS.items():
        write_pickled(Path(sys.argv[1], f"{name}.pth"), tensors, wrapped)
