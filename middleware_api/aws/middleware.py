"""The middleware on AWS: all its adapters put together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from middleware_api.aws.clients import Clients
from middleware_api.aws.endpoints import SageMakerEndpoints
from middleware_api.aws.events import MessageHandler
from middleware_api.aws.objects import S3Objects
from middleware_api.aws.records import DynamoRecords
from middleware_api.aws.runners import QueuedRunners
from middleware_api.aws.settings import AwsSettings
from middleware_api.aws.training import SageMakerTrainingJobs
from middleware_api.bootstrap import make_services
from middleware_api.remote_files import Download
from middleware_api.services.events import EventHandlers, Services
from middleware_api.settings import IMPORT_MAX_BYTES


@dataclass(frozen=True)
class OnAws:
    """One deployment's middleware, as one Lambda function has it."""

    services: Services
    records: DynamoRecords
    objects: S3Objects
    messages: MessageHandler


class _LateFetcher:
    """`remote_files.RemoteFiles`, whose libraries are not loaded before a file is fetched."""

    @contextmanager
    def open(self, url: str, offset: int = 0, validator: str | None = None) -> Iterator[Download]:
        from middleware_api.fetching import Fetcher, FetchPolicy

        fetcher = Fetcher(FetchPolicy(frozenset(), IMPORT_MAX_BYTES))
        with fetcher.open(url, offset, validator) as download:
            yield download


def on_aws(settings: AwsSettings, clients: Clients) -> OnAws:
    """Asks AWS for the admin token, and for nothing else."""
    records = DynamoRecords(clients.dynamodb, settings.table, time.time)
    objects = S3Objects(clients.s3, settings.bucket)
    endpoints = SageMakerEndpoints(clients, settings, records, objects, time.time)
    runners = QueuedRunners(clients, settings.events_queue_url)
    secret = clients.secrets.get_secret_value(SecretId=settings.admin_token_secret)
    services = make_services(
        records,
        objects,
        endpoints,
        SageMakerTrainingJobs(clients, settings),
        runners,
        _LateFetcher(),
        secret["SecretString"],
        time.time,
    )
    messages = MessageHandler(EventHandlers(services), objects, runners, services, settings.prefix)
    return OnAws(services, records, objects, messages)
