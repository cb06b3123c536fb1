"""Long work on checkpoints, asked for by messages to the event function."""

from __future__ import annotations

import json
import logging

from botocore.exceptions import BotoCoreError, ClientError

from middleware_api.aws.clients import Clients

logger = logging.getLogger(__name__)

CHECKPOINT_FIELD = "checkpoint"


class QueuedRunners:
    """`ports.Runners` by the queue of events."""

    def __init__(self, clients: Clients, queue_url: str) -> None:
        self._clients = clients
        self._queue_url = queue_url

    def begin(self, checkpoint_id: str) -> None:
        """See `ports.Runners`. A message that cannot be sent is not lost: the reconciler asks
        again for every checkpoint that nobody is at."""
        try:
            self._clients.sqs.send_message(
                QueueUrl=self._queue_url, MessageBody=json.dumps({CHECKPOINT_FIELD: checkpoint_id})
            )
        except (BotoCoreError, ClientError):
            logger.exception("checkpoint %s could not be queued; it will be", checkpoint_id)
