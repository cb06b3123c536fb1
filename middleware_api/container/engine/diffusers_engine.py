"""The engine `diffusers` as the worker's program sees it: torch set up, its GPU looked after."""

from __future__ import annotations

from collections.abc import Callable

import diffusers.utils.logging
import torch
import transformers.utils.logging

from middleware_api.container.engine.engine import Engine
from middleware_api.container.errors import EngineDown
from middleware_api.container.prompts.encoder import PromptEncoder
from middleware_api.container.tasks import tasks_of


class DiffusersEngine:
    """See `WorkerEngine`. `probe` asks the GPU, and raises RuntimeError when it is gone."""

    def __init__(
        self, cache_bytes: int, threads: int, probe: Callable[[], object] | None = None
    ) -> None:
        transformers.utils.logging.set_verbosity_error()
        diffusers.utils.logging.set_verbosity_error()
        torch.set_num_threads(threads)
        has_gpu = torch.cuda.is_available()
        self._probe = probe or (torch.cuda.mem_get_info if has_gpu else None)
        device = torch.device("cuda" if has_gpu else "cpu")
        self.tasks = tasks_of(Engine(device, cache_bytes, PromptEncoder()))

    def check(self) -> None:
        """See `WorkerEngine`. After some of its errors CUDA answers nothing but that error."""
        if self._probe is None:
            return
        try:
            self._probe()
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise EngineDown(
                f"The GPU cannot be used any more ({reason}). A new worker has to be started."
            ) from error

    def close(self) -> None:
        """See `WorkerEngine`."""

    def kill(self) -> None:
        """See `WorkerEngine`."""
