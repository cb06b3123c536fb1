"""The container's program with an engine that waits, as for a GPU, where the real one computes."""

from __future__ import annotations

import io
import json
import time
from typing import ClassVar

from PIL import Image

from middleware_api.container import serve
from middleware_api.container.job import Answer, Job
from middleware_api.container.progress import Step
from middleware_api.contract import TaskType

SECONDS_A_PICTURE = 2.0
STEPS = 20


def wait(job: Job) -> Answer:
    """As many grey pictures as were asked for, each after its time."""
    asked = json.loads(job.content)
    keys = []
    with job.until_cancelled():
        for index in range(int(asked.get("batch_size", 1)) * int(asked.get("n_iter", 1))):
            for step in range(STEPS):
                job.progress.step(Step(step, STEPS, None))
                job.stop_if_asked()
                time.sleep(SECONDS_A_PICTURE / STEPS)
            stream = io.BytesIO()
            Image.new("RGB", (64, 64), "grey").save(stream, "PNG")
            keys.append(job.save_picture(index, "png", stream.getvalue()))
    return Answer(tuple(keys), json.dumps({"infotexts": []}))


class WaitingEngine:
    """As much of a `WorkerEngine` as there is to it."""

    tasks: ClassVar = {TaskType.TXT2IMG.value: wait}

    def check(self) -> None:
        """It can always wait."""

    def close(self) -> None:
        """It has started nothing."""

    kill = close


if __name__ == "__main__":
    serve.main(open_engine=lambda settings: WaitingEngine())
