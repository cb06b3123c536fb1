"""The GPUs that a process may use, without asking torch, which takes seconds."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping

VARIABLE = "CUDA_VISIBLE_DEVICES"
_LIST_SECONDS = 30


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """Their names, each as CUDA_VISIBLE_DEVICES takes it; none where there is no driver."""
    if VARIABLE in environment:
        return [name.strip() for name in environment[VARIABLE].split(",") if name.strip()]
    program = shutil.which("nvidia-smi", path=environment.get("PATH"))
    if program is None:
        return []
    listed = subprocess.run(
        [program, "-L"], capture_output=True, text=True, timeout=_LIST_SECONDS, check=False
    )
    lines = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(lines))]
