"""What this container can do: each task type and the function that does it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from middleware_api.container.convert import convert
from middleware_api.container.engine import Engine
from middleware_api.container.extras import upscale
from middleware_api.container.generation import generate
from middleware_api.container.interrogate import interrogate
from middleware_api.container.job import Task
from middleware_api.container.merge import merge
from middleware_api.container.prefetch import prefetch
from middleware_api.contract import TaskType


def tasks_of(engine: Engine) -> Mapping[str, Task]:
    """The table that the job runner looks a job's task up in."""
    return {
        TaskType.TXT2IMG.value: partial(generate, engine),
        TaskType.IMG2IMG.value: partial(generate, engine),
        TaskType.MERGE.value: merge,
        TaskType.CONVERT.value: convert,
        TaskType.PREFETCH.value: partial(prefetch, engine),
        TaskType.EXTRA_SINGLE_IMAGE.value: partial(upscale, engine),
        TaskType.EXTRA_BATCH_IMAGES.value: partial(upscale, engine),
        TaskType.INTERROGATE.value: partial(interrogate, engine),
    }
