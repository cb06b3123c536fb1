"""The Lambda functions: one answers the HTTP API, one takes in events and reconciles."""

from __future__ import annotations

import logging
import os
import time
from functools import cache
from typing import Any

from mangum import Mangum

from middleware_api.api.app import create_app
from middleware_api.api.waiting import Gateway
from middleware_api.aws.clients import Clients
from middleware_api.aws.faults import explain_fault
from middleware_api.aws.middleware import OnAws, on_aws
from middleware_api.aws.settings import read_aws_settings
from middleware_api.services.events import reconcile

logger = logging.getLogger(__name__)

# An import stores what it has and hands itself on; the slowest part takes less than this.
_SPARE_MILLISECONDS = 90_000

# API Gateway gives up after 29 seconds, and a function answers at most 6 MB.
_GATEWAY = Gateway(seconds=25.0, answer_bytes=5_900_000)

Event = dict[str, Any]


def api_handler(event: Event, context: Any) -> Event:
    """An API Gateway request (REST, payload 1.0)."""
    answer: Event = gateway()(event, context)
    return answer


def event_handler(event: Event, context: Any) -> Event:
    """Messages of the queue, or the schedule's `{"reconcile": true}`.

    Answers which messages failed: those alone come again, and after five times they wait in the
    dead-letter queue.
    """
    ours = middleware()
    if event.get("reconcile"):
        reconcile(ours.services, ours.records, time.time)
        return {}
    failures = []
    for message in event["Records"]:
        try:
            ours.messages.handle(
                message["body"],
                lambda: context.get_remaining_time_in_millis() < _SPARE_MILLISECONDS,
            )
        except Exception:  # the function's edge: the queue brings the message again
            logger.exception("message %s", message["messageId"])
            failures.append({"itemIdentifier": message["messageId"]})
    return {"batchItemFailures": failures}


@cache
def middleware() -> OnAws:
    """Made once in the life of the function's process, at its first call."""
    logging.getLogger("middleware_api").setLevel(logging.INFO)
    return on_aws(read_aws_settings(os.environ), Clients())


@cache
def gateway() -> Mangum:
    """Turns API Gateway's events into requests to the application."""
    ours = middleware()
    app = create_app(ours.services, ours.objects, explain=explain_fault, gateway=_GATEWAY)
    return Mangum(app, lifespan="off")
