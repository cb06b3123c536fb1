"""What this container can do: each task type and the function that does it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from middleware_api.container.engine.engine import Engine
from middleware_api.container.engine.generation import generate
from middleware_api.container.engine.prefetch import prefetch
from middleware_api.container.extras.extras import upscale
from middleware_api.container.extras.interrogate import interrogate
from middleware_api.container.job import Task
from middleware_api.container.weights.convert import convert
from middleware_api.container.weights.merge import merge
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
