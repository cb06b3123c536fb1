"""The engines that a worker may run, behind one interface. A setting of the worker chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from middleware_api.container.job import Task
from middleware_api.container.webui.driven import WebUiSettings


class WorkerEngine(Protocol):
    """What a worker does its jobs with."""

    tasks: Mapping[str, Task]

    def check(self) -> None:
        """Raises EngineDown while it cannot work; quick enough for every ping."""

    def close(self) -> None:
        """Ends what it has started; no job runs any more."""

    def kill(self) -> None:
        """The same at once, as this process ends without further ado."""


@dataclass(frozen=True)
class DiffusersSettings:
    """Of the engine `diffusers`: `cache_bytes` of weights in memory, `threads` for torch."""

    cache_bytes: int
    threads: int


OpenEngine = Callable[[DiffusersSettings | WebUiSettings], WorkerEngine]


def open_engine(settings: DiffusersSettings | WebUiSettings) -> WorkerEngine:
    """Raises EngineDown when it cannot work here at all."""
    # Each takes seconds to import, and needs libraries that the other's image lacks.
    if isinstance(settings, WebUiSettings):
        from middleware_api.container.webui.engine import WebUiEngine

        return WebUiEngine(settings)
    from middleware_api.container.engine.diffusers_engine import DiffusersEngine

    return DiffusersEngine(settings.cache_bytes, settings.threads)
