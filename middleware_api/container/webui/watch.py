"""What goes on while the WebUI works at a job: progress out of it, and interrupts into it."""

from __future__ import annotations

import base64
import io
import logging
import time
from typing import Any

from PIL import Image

from middleware_api.container.errors import ContainerError, JobCancelled
from middleware_api.container.job import Job
from middleware_api.container.progress import Step
from middleware_api.container.webui.driven import DrivenWebUi

logger = logging.getLogger(__name__)

PREVIEW_SECONDS = 2.0
"""A preview costs the WebUI a picture to encode, so that they are fetched less often."""

PREVIEW_SIDE = 256


class Watch:
    """Called twice a second while a job is with the WebUI.

    `task_id` is the one that it knows the job by, "" for tasks that it gives none. Others may use
    the same WebUI: only a job that it is at is reported on, and interrupted.
    """

    def __init__(self, webui: DrivenWebUi, job: Job, task_id: str) -> None:
        self.cancelled = False
        self._webui, self._job, self._task_id = webui, job, task_id
        self._previewed = 0.0
        job.progress.draw = _small_jpeg

    def begin(self) -> None:
        """Waits until the WebUI can be asked. Raises EngineDown, JobCancelled, WorkerStopping."""
        self._job.stop_if_asked()
        self._webui.wait_until_up(self._job.stop_if_asked)

    def __call__(self) -> None:
        """Raises WorkerStopping; what the WebUI does not answer is asked for the next time."""
        try:
            self._job.stop_if_asked()
        except JobCancelled:
            self.cancelled = True
        try:
            if not self._is_at_it():
                return
            if self.cancelled:
                self.interrupt()
            self._report()
        except ContainerError as error:  # who waits for the job's own answer decides what that is
            logger.info("the WebUI tells no progress: %s", error)

    def interrupt(self) -> None:
        """Ends the WebUI's work at this job, if it can be told."""
        try:
            if self._is_at_it():
                self._webui.client.post("/sdapi/v1/interrupt")
        except ContainerError as error:
            logger.info("the WebUI was not interrupted: %s", error)

    def _is_at_it(self) -> bool:
        return self._webui.is_at(self._task_id)

    def _report(self) -> None:
        wants_picture = time.monotonic() - self._previewed > PREVIEW_SECONDS
        skip = "false" if wants_picture else "true"
        told = self._webui.client.get(f"/sdapi/v1/progress?skip_current_image={skip}")
        step = _step(told)
        if step is None:
            return
        if wants_picture:
            self._previewed = time.monotonic()
        self._job.progress.step(step)


def _step(told: Any) -> Step | None:
    """None while it has not begun to sample."""
    try:
        state = told["state"]
        steps, batches = int(state["sampling_steps"]), max(1, int(state["job_count"]))
        done = int(state["job_no"]) * steps + int(state["sampling_step"])
        picture = base64.b64decode(told["current_image"]) if told["current_image"] else None
    except (KeyError, TypeError, ValueError):
        return None
    if steps < 1:
        return None
    total = steps * batches
    return Step(min(done, total - 1), total, picture)  # its answer alone tells that it is done


def _small_jpeg(picture: bytes) -> bytes:
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    target = io.BytesIO()
    image.save(target, "JPEG", quality=80)
    return target.getvalue()
