"""What SageMaker and the container tell each other: botocore's requests, /ping, /invocations."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
from botocore.awsrequest import AWSRequest, AWSResponse
from starlette.testclient import TestClient

from middleware_api import contract
from middleware_api.container.engine.diffusers_engine import DiffusersEngine
from middleware_api.container.errors import EngineDown
from middleware_api.container.job import Answer, Job, JobRunner
from middleware_api.container.serve import create_app
from middleware_api.container.storage import FolderStorage
from tests.test_aws_endpoints import ENDPOINT, JOB, Cloud
from tests.test_aws_endpoints import cloud as cloud  # a fixture


def paint(job: Job) -> Answer:
    return Answer((job.save_picture(0, "png", b"painted"),), "{}")


class Painting:
    """An engine that can always work, until it is told otherwise."""

    tasks: ClassVar = {"txt2img": paint}
    is_down = False

    def check(self) -> None:
        if self.is_down:
            raise EngineDown("The WebUI of this worker cannot be used: it is starting.")

    def close(self) -> None:
        raise AssertionError

    kill = close


@pytest.fixture
def objects(tmp_path: Path) -> FolderStorage:
    storage = FolderStorage(tmp_path)
    storage.write(JOB["params_key"], b"{}")
    return storage


class Asynchronous:
    """SageMaker between InvokeEndpointAsync and the container's POST /invocations."""

    def __init__(self, cloud: Cloud) -> None:
        self.requests: list[Any] = []
        events = cloud.clients.sagemaker_runtime.meta.events
        events.register("before-send.sagemaker-runtime.InvokeEndpointAsync", self._take)

    def _take(self, request: AWSRequest, **_: object) -> AWSResponse:
        self.requests.append(request)
        headers = {
            "x-amzn-sagemaker-outputlocation": "s3://b/o",
            "content-type": "application/json",
        }
        return AWSResponse(request.url, 202, headers, _Raw(b'{"InferenceId": "job-1"}'))


class _Raw:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def stream(self, **_: object) -> list[bytes]:
        return [self._content]


def test_what_invoke_endpoint_async_sends_is_a_job_for_the_container(
    cloud: Cloud, objects: FolderStorage
) -> None:
    queue = Asynchronous(cloud)
    cloud.endpoints.invoke(ENDPOINT.id, JOB)
    (request,) = queue.requests
    assert urlsplit(request.url).path == "/endpoints/sdaws-0d5e6f/async-invocations"
    headers = {
        name: value if isinstance(value, str) else value.decode()
        for name, value in request.headers.items()
    }
    told = {name.lower(): value for name, value in headers.items()}
    assert told["x-amzn-sagemaker-content-type"] == "application/json"
    assert told["x-amzn-sagemaker-inference-id"] == JOB["job_id"]
    assert int(told["x-amzn-sagemaker-invocationtimeoutseconds"]) == 3600
    assert int(told["x-amzn-sagemaker-requestttlseconds"]) == 6 * 3600
    place = urlsplit(told["x-amzn-sagemaker-inputlocation"])
    body = cloud.objects.read(place.path.lstrip("/"))
    # The container gets the object as its body, and whatever of the headers is for it.
    passed = {
        "Content-Type": told["x-amzn-sagemaker-content-type"],
        "Accept": told["x-amzn-sagemaker-accept"],
        "X-Amzn-SageMaker-Custom-Attributes": "of=somebody",
        "X-Amzn-SageMaker-Inference-Id": told["x-amzn-sagemaker-inference-id"],
        "X-Amzn-Trace-Id": "Root=1-0-0",
    }
    runner = JobRunner(Painting.tasks, objects, threading.Event())
    with TestClient(create_app("", runner, Painting())) as container:
        answer = container.post("/invocations", content=body, headers=passed)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["images"] == [contract.image_key(JOB["job_id"], 0)]
    outcome = json.loads(objects.read(contract.outcome_key(JOB["job_id"])))
    assert outcome["result"] == answer.json()


def test_ping_is_healthy_only_while_jobs_can_be_done(objects: FolderStorage) -> None:
    stopping, engine = threading.Event(), Painting()
    runner = JobRunner(engine.tasks, objects, stopping)
    with TestClient(create_app("", runner, engine)) as container:
        assert container.get("/ping").status_code == 200
        engine.is_down = True
        answer = container.get("/ping")
        assert (answer.status_code, answer.json()["code"]) == (503, "engine_down")
        engine.is_down = False
        stopping.set()
        answer = container.get("/ping")
        assert (answer.status_code, answer.json()["code"]) == (503, "worker_stopping")


def test_a_gpu_that_is_lost_is_told(objects: FolderStorage) -> None:
    def lost() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure\nCompile with ...")

    engine = DiffusersEngine(1 << 20, 1, probe=lambda: None)
    engine.check()
    broken = DiffusersEngine(1 << 20, 1, probe=lost)
    with pytest.raises(EngineDown, match=r"\(CUDA error: unspecified launch failure\)\. A new"):
        broken.check()
