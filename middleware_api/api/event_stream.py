"""A job's life as server-sent events, where the server can hold a connection (ours).

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable

from anyio import sleep, to_thread
from fastapi import APIRouter
from starlette.responses import StreamingResponse

from middleware_api.api.body import StrictRoute
from middleware_api.api.common import JobCaller, needs
from middleware_api.api.inference import job_answer
from middleware_api.contract import INFERENCE_FINAL, Scope
from middleware_api.errors import NotAvailable, NotFound
from middleware_api.services.access import Principal
from middleware_api.services.inference import InferenceService

# As often as a worker writes its progress.
LOOK_SECONDS = 0.5
# Proxies close a connection that is silent for long.
HEARTBEAT_SECONDS = 15.0

# What changes at every look though nothing happened: an estimate, a URL's expiry, a clock.
_VOLATILE = {"eta_seconds", "preview_url", "run_seconds", "estimated_cost"}


def event_router(service: InferenceService, stopping: Callable[[], bool] | None) -> APIRouter:
    """The route over one service; `stopping` tells when the server is about to end.

    It is None where the server cannot hold a connection (AWS Lambda): the route refuses then.
    """
    router = APIRouter(route_class=StrictRoute, tags=["inference"])

    async def events(
        principal: Principal, job_id: str, stopping: Callable[[], bool]
    ) -> AsyncIterator[str]:
        told: object = None
        told_at = time.monotonic()
        while not stopping():
            try:
                job = await to_thread.run_sync(service.get, principal, job_id)
            except NotFound:  # deleted meanwhile: there is nothing more to tell
                return
            answer = await to_thread.run_sync(job_answer, service, job)
            news = (answer.model_dump(exclude=_VOLATILE), answer.preview_url is None)
            if news != told:
                told, told_at = news, time.monotonic()
                yield f"event: job\ndata: {answer.model_dump_json()}\n\n"
            elif time.monotonic() - told_at > HEARTBEAT_SECONDS:
                told_at = time.monotonic()
                yield ": still there\n\n"
            if job.state in INFERENCE_FINAL:
                return
            await sleep(LOOK_SECONDS)

    @router.get(
        "/inference/v2/{job_id}/events",
        response_class=StreamingResponse,
        **needs(Scope.INFER, 404, 501),
    )
    async def watch_inference(principal: JobCaller, job_id: str) -> StreamingResponse:
        """A job's state and progress as they change, until its end."""
        service.get(principal, job_id)
        if stopping is None:
            raise NotAvailable(
                "This server cannot hold a connection open. Ask GET /inference/get-inference-job"
                f"?jobID={job_id} now and then instead."
            )
        return StreamingResponse(
            events(principal, job_id, stopping),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    return router
