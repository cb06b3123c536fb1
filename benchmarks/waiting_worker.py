"""The container's program with an engine that waits, as for a GPU, where the real one computes."""

from __future__ import annotations

import io
import json
import time

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


if __name__ == "__main__":
    serve.main(tasks=lambda engine: {TaskType.TXT2IMG.value: wait})
