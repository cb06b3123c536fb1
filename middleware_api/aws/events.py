"""What comes in by the queue: SageMaker's events, the ends of invocations, and our own orders."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from middleware_api import contract
from middleware_api.aws.endpoints import endpoint_state
from middleware_api.aws.runners import CHECKPOINT_FIELD
from middleware_api.aws.training import training_status
from middleware_api.contract import EndpointState, Outcome
from middleware_api.errors import NotFound
from middleware_api.ports import (
    EndpointChanged,
    EventSink,
    InvocationFinished,
    Objects,
    Runners,
    TrainingChanged,
)
from middleware_api.services.events import Services, go_on

logger = logging.getLogger(__name__)

ENDPOINT_CHANGE = "SageMaker Endpoint State Change"
TRAINING_CHANGE = "SageMaker Training Job State Change"


@dataclass(frozen=True)
class MessageHandler:
    """Turns one message into what the services are told. Any message may come late or twice.

    `prefix` begins the names of this deployment's things.
    """

    sink: EventSink
    objects: Objects
    runners: Runners
    services: Services
    prefix: str

    def handle(self, body: str, enough: Callable[[], bool]) -> None:
        """`enough` tells when the function's time is nearly over. Raises ValueError for a
        message of no known kind."""
        message: dict[str, Any] = json.loads(body)
        if CHECKPOINT_FIELD in message:
            self._go_on(message[CHECKPOINT_FIELD], enough)
        elif message.get("Type") == "Notification":
            self._invocation(json.loads(message["Message"]))
        elif message.get("detail-type") == ENDPOINT_CHANGE:
            self._endpoint(message["detail"])
        elif message.get("detail-type") == TRAINING_CHANGE:
            self._training(message["detail"])
        else:
            raise ValueError(f"a message of no known kind, with the fields {sorted(message)}")

    def _go_on(self, checkpoint_id: str, enough: Callable[[], bool]) -> None:
        if not go_on(self.services, checkpoint_id, enough):
            self.runners.begin(checkpoint_id)

    def _invocation(self, told: dict[str, Any]) -> None:
        """The container's own outcome says more than SageMaker does, and has the same words as
        anywhere else; without one the container never came to an end."""
        job_id = told["inferenceId"]
        try:
            outcome: Outcome = json.loads(self.objects.read(contract.outcome_key(job_id)))
        except NotFound:
            reason = told.get("failureReason") or "SageMaker gives no reason."
            event = InvocationFinished(job_id, failure=f"The endpoint did not do the job: {reason}")
        else:
            event = InvocationFinished(job_id, result=outcome["result"], failure=outcome["failure"])
        self.sink.invocation_finished(event)

    def _endpoint(self, detail: dict[str, Any]) -> None:
        endpoint_id = self._id(detail["EndpointName"])
        state = endpoint_state(detail["EndpointStatus"])
        error = ""
        if state is EndpointState.FAILED:
            error = detail.get("FailureReason") or "SageMaker gives no reason."
        try:
            self.sink.endpoint_changed(EndpointChanged(endpoint_id, state, error))
        except NotFound:
            logger.warning("an event of an endpoint that is not ours: %s", endpoint_id)

    def _training(self, detail: dict[str, Any]) -> None:
        status = training_status(detail)
        job_id = self._id(detail["TrainingJobName"])
        self.sink.training_changed(TrainingChanged(job_id, status.state, status.error))

    def _id(self, name: str) -> str:
        return name.removeprefix(f"{self.prefix}-")
