"""The services over any adapters; `embedded.middleware` and `aws.middleware` bring theirs."""

from __future__ import annotations

import uuid
from collections.abc import Callable

from middleware_api.ports import Endpoints, Objects, Records, Runners, TrainingJobs
from middleware_api.remote_files import RemoteFiles
from middleware_api.services.access import AccessService
from middleware_api.services.admission import AdmissionService
from middleware_api.services.checkpoints import CheckpointService
from middleware_api.services.datasets import DatasetService
from middleware_api.services.endpoints import EndpointService
from middleware_api.services.events import Services
from middleware_api.services.imports import ImportService
from middleware_api.services.inference import InferenceService
from middleware_api.services.job_files import JobFiles
from middleware_api.services.merging import MergingService
from middleware_api.services.models import ModelService
from middleware_api.services.prefetching import PrefetchService
from middleware_api.services.training import TrainingService
from middleware_api.services.verification import VerificationService
from middleware_api.services.webui_api import WebUiService
from middleware_api.services.webui_models import WebUiModels


def new_id() -> str:
    """A random id for a record."""
    return str(uuid.uuid4())


def make_services(
    records: Records,
    objects: Objects,
    endpoints: Endpoints,
    training_jobs: TrainingJobs,
    runners: Runners,
    fetcher: RemoteFiles,
    admin_token: str,
    clock: Callable[[], float],
) -> Services:
    """The services over any set of adapters."""
    access_service = AccessService(records, admin_token, clock, new_id)
    checkpoint_service = CheckpointService(records, objects, clock, new_id)
    endpoint_service = EndpointService(records, endpoints, clock, new_id)
    job_files = JobFiles(objects)
    inference_service = InferenceService(
        records,
        job_files,
        endpoints,
        checkpoint_service,
        endpoint_service,
        access_service,
        clock,
        new_id,
    )
    admission_service = AdmissionService(
        records, objects, checkpoint_service, inference_service, runners, clock
    )
    import_service = ImportService(
        records, objects, runners, fetcher, checkpoint_service, admission_service, clock, new_id
    )
    merging_service = MergingService(records, inference_service, checkpoint_service, new_id)
    dataset_service = DatasetService(records, objects, clock, new_id)
    model_service = ModelService(records, objects, training_jobs, checkpoint_service, clock, new_id)
    training_service = TrainingService(
        records,
        objects,
        training_jobs,
        model_service,
        dataset_service,
        admission_service,
        access_service,
        clock,
        new_id,
    )
    return Services(
        inference=inference_service,
        merging=merging_service,
        endpoints=endpoint_service,
        checkpoints=checkpoint_service,
        imports=import_service,
        verification=VerificationService(
            records, objects, runners, checkpoint_service, admission_service, clock
        ),
        admission=admission_service,
        prefetching=PrefetchService(
            inference_service, checkpoint_service, endpoint_service, new_id
        ),
        datasets=dataset_service,
        models=model_service,
        training=training_service,
        access=access_service,
        webui=WebUiService(records, inference_service, job_files, WebUiModels(checkpoint_service)),
    )
