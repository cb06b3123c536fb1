"""Holding a request until its job has ended."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from anyio import sleep, to_thread
from starlette.requests import ClientDisconnect

from middleware_api.contract import INFERENCE_FINAL
from middleware_api.errors import StillRunning, Unavailable
from middleware_api.records import InferenceJob

# A quick job's caller shall not wait for us; a slow one's shall not keep us busy. So what a caller
# may wait for nothing is a share of what the job has taken.
_LEAST_SECONDS, _MOST_SECONDS, _SHARE = 0.02, 1.0, 0.08


@dataclass(frozen=True)
class Gateway:
    """What a gateway before the server allows: how long it waits, and bytes of an answer."""

    seconds: float
    answer_bytes: int


async def ended(
    job: InferenceJob,
    look: Callable[[], InferenceJob],
    has_hung_up: Callable[[], Awaitable[bool]],
    stopping: Callable[[], bool] | None,
    gateway: Gateway | None,
) -> InferenceJob:
    """The job once it has ended. Many can wait at once: each holds a thread only while it looks.

    Raises StillRunning when the gateway would wait no longer, Unavailable when the server ends,
    ClientDisconnect when the caller has hung up; the job goes on after each of them.
    """
    began = time.monotonic()
    while job.state not in INFERENCE_FINAL:
        waited = time.monotonic() - began
        delay = min(max(_LEAST_SECONDS, waited * _SHARE), _MOST_SECONDS)
        if gateway is not None and waited + delay > gateway.seconds:
            raise StillRunning(_still_running(job, gateway.seconds))
        if stopping is not None and stopping():
            raise Unavailable(f"The server is being stopped. {_how_to_fetch(job)}")
        if await has_hung_up():
            raise ClientDisconnect
        await sleep(delay)
        job = await to_thread.run_sync(look)
    return job


def _still_running(job: InferenceJob, seconds: float) -> str:
    return (
        f"Job '{job.id}' is not finished after {seconds:.0f} s, and a request is not held longer "
        f"here. {_how_to_fetch(job)} A request with an Idempotency-Key can also be sent again: it "
        "goes on waiting for the same job."
    )


def _how_to_fetch(job: InferenceJob) -> str:
    return (
        f"The job goes on: ask GET /inference/get-inference-job?jobID={job.id} until it is "
        f"finished, then GET /inference/get-inference-job-image-output?jobID={job.id}."
    )
