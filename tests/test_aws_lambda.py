"""The two Lambda functions, fed with the events that AWS sends them, on moto."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, fields, replace
from typing import Any
from unittest import mock

import pytest
import requests
from botocore.exceptions import ConnectTimeoutError

from middleware_api import contract
from middleware_api.api.waiting import Gateway
from middleware_api.aws import handlers
from middleware_api.aws.clients import Clients
from middleware_api.aws.middleware import OnAws
from middleware_api.contract import (
    CheckpointState,
    CheckpointStep,
    CheckpointType,
    EndpointState,
    InferenceState,
)
from middleware_api.records import Checkpoint, Endpoint, InferenceJob
from middleware_api.services import admission
from middleware_api.services.access import ADMIN
from tests.aws import REGION, Aws, aws
from tests.test_aws_endpoints import SETTINGS
from tests.weights import safetensors

TOKEN = "the deployment's own token"
QUEUE = "events"


@dataclass
class Minutes:
    """Lambda's context: how long the function may still run."""

    milliseconds: int = 900_000
    aws_request_id: str = "c6af9ac6-7b61-11e6-9a41-93e8deadbeef"

    def get_remaining_time_in_millis(self) -> int:
        return self.milliseconds


class Deployment:
    """What the template makes, as far as the functions see it."""

    def __init__(self, account: Aws, clients: Clients) -> None:
        self.account = account
        self.clients = clients
        account.client("secretsmanager").create_secret(
            Name=SETTINGS.admin_token_secret, SecretString=TOKEN
        )
        self.sqs = account.client("sqs")
        self.queue_url = self.sqs.create_queue(QueueName=QUEUE)["QueueUrl"]
        self.middleware: OnAws = handlers.middleware()

    def call(
        self, method: str, path: str, body: object = None, token: str = TOKEN, **query: str
    ) -> tuple[int, Any]:
        """A request as API Gateway hands it on (REST API, proxy integration)."""
        event = {
            "resource": path,
            "path": path,
            "httpMethod": method,
            "headers": {"host": "abc.execute-api.eu-central-1.amazonaws.com", "x-api-key": token},
            "multiValueHeaders": {
                "host": ["abc.execute-api.eu-central-1.amazonaws.com"],
                "x-api-key": [token],
                "content-type": ["application/json"],
            },
            "queryStringParameters": query or None,
            "multiValueQueryStringParameters": {k: [v] for k, v in query.items()} or None,
            "pathParameters": None,
            "stageVariables": None,
            "requestContext": {
                "resourcePath": path,
                "httpMethod": method,
                "path": f"/prod{path}",
                "stage": "prod",
                "protocol": "HTTP/1.1",
                "identity": {"sourceIp": "203.0.113.7", "userAgent": "python-requests/2.34"},
                "requestId": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef",
                "apiId": "abc",
            },
            "body": None if body is None else json.dumps(body),
            "isBase64Encoded": False,
        }
        answer = handlers.api_handler(event, Minutes())
        text = answer["body"]
        if answer["isBase64Encoded"]:
            text = base64.b64decode(text).decode()
        return answer["statusCode"], json.loads(text) if text else None

    def tell(self, *bodies: object, milliseconds: int = 900_000) -> list[str]:
        """Messages as SQS hands them on; returns the ids of those that failed."""
        event = {
            "Records": [
                {
                    "messageId": f"message-{number}",
                    "receiptHandle": "AQEB",
                    "body": body if isinstance(body, str) else json.dumps(body),
                    "attributes": {"ApproximateReceiveCount": "1"},
                    "messageAttributes": {},
                    "eventSource": "aws:sqs",
                    "eventSourceARN": f"arn:aws:sqs:{REGION}:111122223333:{QUEUE}",
                    "awsRegion": REGION,
                }
                for number, body in enumerate(bodies)
            ]
        }
        answer = handlers.event_handler(event, Minutes(milliseconds))
        return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]

    def messages(self) -> list[dict[str, Any]]:
        """What waits in the queue."""
        found = self.sqs.receive_message(QueueUrl=self.queue_url, MaxNumberOfMessages=10)
        return [json.loads(message["Body"]) for message in found.get("Messages", ())]

    def endpoint(self) -> Endpoint:
        """One in service."""
        status, _ = self.call(
            "POST",
            "/endpoints",
            {
                "endpoint_name": "studio",
                "instance_type": "ml.p3.2xlarge",
                "initial_instance_count": 1,
            },
        )
        assert status == 200
        (endpoint,) = self.middleware.services.endpoints.page(10, None).items
        assert self.tell(endpoint_change(endpoint, "IN_SERVICE")) == []
        return self.middleware.services.endpoints.get(endpoint.id)

    def checkpoint(self) -> Checkpoint:
        """An Active one."""
        _, made = self.call(
            "POST",
            "/checkpoint",
            {
                "checkpoint_type": CheckpointType.STABLE_DIFFUSION.value,
                "filenames": [{"filename": "m.safetensors", "parts_number": 1}],
            },
        )
        (upload,) = made["s3PresignUrl"]
        key, upload_id = upload["key"], upload["upload_id"]
        etag = self.middleware.objects.write_part(key, upload_id, 1, safetensors())
        status, _ = self.call(
            "PUT",
            "/checkpoint",
            {
                "checkpoint_id": made["checkpoint"]["id"],
                "status": "Active",
                "multi_parts_tags": {"m.safetensors": [{"PartNumber": 1, "ETag": etag}]},
            },
        )
        assert status == 200
        return self.middleware.records.get(Checkpoint, made["checkpoint"]["id"])

    def submit(self) -> InferenceJob:
        """A job with that checkpoint at that endpoint."""
        status, answer = self.call(
            "POST",
            "/inference/v2",
            {
                "task_type": "txt2img",
                "models": {"Stable-diffusion": ["m.safetensors"]},
                "prompt": "a red circle",
            },
        )
        assert status == 200, answer
        return self.job(answer["inference_id"])

    def job(self, job_id: str) -> InferenceJob:
        """The job as it is now."""
        return self.middleware.services.inference.get(ADMIN, job_id)


def endpoint_change(endpoint: Endpoint, word: str, **more: str) -> dict[str, Any]:
    """What EventBridge sends."""
    return {
        "version": "0",
        "id": "d2921b5a-b0ea-a28e-0260-f1f424d7db47",
        "detail-type": "SageMaker Endpoint State Change",
        "source": "aws.sagemaker",
        "account": "111122223333",
        "time": "2026-11-24T15:52:10Z",
        "region": REGION,
        "resources": [f"arn:aws:sagemaker:{REGION}:111122223333:endpoint/sdaws-{endpoint.id}"],
        "detail": {
            "EndpointName": f"sdaws-{endpoint.id}",
            "EndpointArn": f"arn:aws:sagemaker:{REGION}:111122223333:endpoint/sdaws-{endpoint.id}",
            "EndpointConfigName": f"sdaws-{endpoint.id}",
            "EndpointStatus": word,
            "CreationTime": 1583831889050,
            "LastModifiedTime": 1583831889050,
            "Tags": {},
            **more,
        },
    }


def invocation_end(job_id: str, **told: object) -> dict[str, Any]:
    """What SNS wraps SageMaker's word on an asynchronous invocation in."""
    result = {
        "awsRegion": REGION,
        "eventTime": "2026-11-24T15:52:10.123Z",
        "receivedTime": "2026-11-24T15:52:01.456Z",
        "inferenceId": job_id,
        "eventVersion": "1.0",
        "eventSource": "aws:sagemaker",
        "eventName": "InferenceResult",
        "requestParameters": {"contentType": "application/json", "endpointName": "sdaws-x"},
        **told,
    }
    return {
        "Type": "Notification",
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": SETTINGS.result_topic,
        "Message": json.dumps(result),
        "Timestamp": "2026-11-24T15:52:11.000Z",
        "SignatureVersion": "1",
        "Signature": "EXAMPLE",
        "SigningCertURL": "https://sns.eu-central-1.amazonaws.com/x.pem",
        "UnsubscribeURL": "https://sns.eu-central-1.amazonaws.com/?Action=Unsubscribe",
    }


@pytest.fixture
def deployment() -> Iterator[Deployment]:
    handlers.middleware.cache_clear()
    handlers.gateway.cache_clear()
    # Mangum takes the thread's loop, and would leave one open that it had to make.
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    with aws() as account, closing(loop):
        queue_url = f"https://sqs.{REGION}.amazonaws.com/123456789012/{QUEUE}"
        names = {f"SDAWS_{f.name.upper()}": getattr(SETTINGS, f.name) for f in fields(SETTINGS)}
        environment = mock.patch.dict(os.environ, {**names, "SDAWS_EVENTS_QUEUE_URL": queue_url})
        clients = Clients(account.session)
        with environment, mock.patch.object(handlers, "Clients", return_value=clients):
            yield Deployment(account, clients)
        asyncio.set_event_loop(None)


def test_a_job_by_the_gateway_and_its_end_by_sns(deployment: Deployment) -> None:
    endpoint = deployment.endpoint()
    assert endpoint.state is EndpointState.IN_SERVICE
    deployment.checkpoint()
    job = deployment.submit()
    assert job.state is InferenceState.IN_PROGRESS
    # What the container writes.
    objects = deployment.middleware.objects
    objects.write(contract.image_key(job.id, 0), b"picture")
    result = contract.InvocationResult(
        job_id=job.id,
        status="succeed",
        images=[contract.image_key(job.id, 0)],
        parameters={"prompt": "a red circle"},
        info="{}",
        checkpoints=[],
    )
    outcome = contract.Outcome(result=result, failure=None)
    objects.write(contract.outcome_key(job.id), json.dumps(outcome).encode())
    end = invocation_end(job.id, invocationStatus="Completed")
    assert deployment.tell(end, end) == []
    assert deployment.job(job.id).state is InferenceState.SUCCEEDED
    status, urls = deployment.call("GET", "/inference/get-inference-job-image-output", jobID=job.id)
    assert status == 200
    assert requests.get(urls[0], timeout=5).content == b"picture"


def test_a_container_that_never_answered_is_a_failure_with_sagemakers_reason(
    deployment: Deployment,
) -> None:
    deployment.endpoint()
    deployment.checkpoint()
    job = deployment.submit()
    reason = "ClientError: Amazon SageMaker could not get a response from the endpoint."
    end = invocation_end(job.id, invocationStatus="Failed", failureReason=reason)
    assert deployment.tell(end) == []
    failed = deployment.job(job.id)
    assert failed.state is InferenceState.FAILED
    assert reason in failed.error


def test_the_containers_own_words_go_before_sagemakers(deployment: Deployment) -> None:
    deployment.endpoint()
    deployment.checkpoint()
    job = deployment.submit()
    outcome = contract.Outcome(result=None, failure="The checkpoint is damaged.")
    deployment.middleware.objects.write(contract.outcome_key(job.id), json.dumps(outcome).encode())
    end = invocation_end(job.id, invocationStatus="Failed", failureReason="Received 400")
    assert deployment.tell(end) == []
    assert deployment.job(job.id).error == "The checkpoint is damaged."


def test_only_the_messages_that_failed_come_again(deployment: Deployment) -> None:
    endpoint = deployment.endpoint()
    unknown = {"hello": "world"}
    deleting = endpoint_change(endpoint, "DELETING")
    stranger = endpoint_change(replace(endpoint, id="another deployment's"), "DELETING")
    assert deployment.tell("no JSON", deleting, unknown, stranger) == ["message-0", "message-2"]
    after = deployment.middleware.services.endpoints.get(endpoint.id)
    assert after.state is EndpointState.DELETING


def test_a_failed_endpoint_keeps_sagemakers_reason(deployment: Deployment) -> None:
    endpoint = deployment.endpoint()
    failed = endpoint_change(endpoint, "FAILED", FailureReason="The image could not be pulled.")
    assert deployment.tell(failed, failed) == []
    after = deployment.middleware.services.endpoints.get(endpoint.id)
    assert (after.state, after.error) == (EndpointState.FAILED, "The image could not be pulled.")


def test_an_import_is_asked_for_by_a_message_and_hands_itself_on(deployment: Deployment) -> None:
    status, answer = deployment.call(
        "POST",
        "/upload_checkpoint",
        {"checkpointType": "Lora", "modelUrl": ["https://host.invalid/a.safetensors"]},
    )
    assert status == 200
    (asked,) = deployment.messages()
    assert asked == {"checkpoint": answer["checkpoint"]["id"]}
    # A function whose time is nearly over does not begin; it asks for the next one.
    assert deployment.tell(asked, milliseconds=1000) == []
    assert deployment.messages() == [asked]


def test_the_schedule_looks_after_what_is_overdue(deployment: Deployment) -> None:
    deployment.endpoint()
    deployment.checkpoint()
    job = deployment.submit()
    outcome = contract.Outcome(result=None, failure="The GPU was lost.")
    deployment.middleware.objects.write(contract.outcome_key(job.id), json.dumps(outcome).encode())
    records = deployment.middleware.records
    records.update(replace(records.get(InferenceJob, job.id), check_at=0.0))
    assert handlers.event_handler({"reconcile": True}, Minutes()) == {}
    assert deployment.job(job.id).error == "The GPU was lost."


def test_the_gateways_callers_are_told_apart(deployment: Deployment) -> None:
    assert deployment.call("GET", "/endpoints", token="wrong")[0] == 401
    _, made = deployment.call("POST", "/tokens", {"user": "ann", "scopes": ["infer"]})
    assert deployment.call("GET", "/endpoints", token=made["token"])[0] == 200
    body = {"endpoint_name": "x", "instance_type": "ml.g5.xlarge"}
    assert deployment.call("POST", "/endpoints", body, token=made["token"])[0] == 403
    status, refusal = deployment.call("GET", "/nothing")
    assert (status, refusal["code"]) == (404, "not_found")


def test_a_function_imports_nothing_that_it_does_not_need() -> None:
    """Its package has none of these, and each would make every cold start longer."""
    code = "import sys, middleware_api.aws.handlers; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    unwanted = {"torch", "gradio", "numpy", "PIL", "uvicorn", "sqlite3", "filelock", "diffusers"}
    assert loaded & unwanted == set()
    ours = {name.split(".")[1] for name in loaded if name.startswith("middleware_api.")}
    assert ours & {"embedded", "container", "demo", "deploy"} == set()


def test_aws_that_does_not_answer_is_told_in_words(deployment: Deployment) -> None:
    deployment.clients.dynamodb.meta.events.register_first("before-send.*.*", _time_out)
    status, refusal = deployment.call("GET", "/checkpoints")
    assert (status, refusal["code"]) == (503, "unavailable")
    assert "could not be reached" in refusal["error"]


def test_a_submit_costs_the_same_number_of_calls_however_many_jobs_there_are(
    deployment: Deployment,
) -> None:
    deployment.endpoint()
    deployment.checkpoint()
    counts = []
    for _ in range(12):
        with deployment.account.counted() as calls:
            deployment.submit()
        counts.append(sorted(calls))
    assert "InvokeEndpointAsync" in counts[0]
    assert all(count == counts[0] for count in counts), counts
    assert len(counts[0]) <= 13, counts[0]
    assert "Scan" not in {name for name, _ in deployment.account.calls}


def test_the_webuis_own_route_is_held_as_long_as_the_gateway_waits(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handlers, "_GATEWAY", Gateway(seconds=0.15, answer_bytes=5_900_000))
    deployment.endpoint()
    deployment.checkpoint()
    path = "/sdapi/v1/txt2img"
    status, refusal = deployment.call("POST", path, {"prompt": "a red circle"})
    assert (status, refusal["code"]) == (504, "still_running")
    assert "get-inference-job?jobID=" in refusal["error"]
    assert deployment.call("POST", "/sdapi/v1/interrupt") == (200, {})
    status, answer = deployment.call("POST", "/sdapi/v1/options", {"CLIP_stop_at_last_layers": 2})
    assert (status, answer) == (200, None)
    assert deployment.call("GET", "/sdapi/v1/options")[1]["CLIP_stop_at_last_layers"] == 2


def test_progress_costs_the_same_number_of_calls_however_many_jobs_there_are(
    deployment: Deployment,
) -> None:
    deployment.endpoint()
    deployment.checkpoint()
    counts = []
    for _ in range(4):
        deployment.submit()
        with deployment.account.counted() as calls:
            status, _ = deployment.call("GET", "/sdapi/v1/progress")
        assert status == 200
        counts.append(sorted(calls))
    assert all(count == counts[0] for count in counts), counts
    assert "Scan" not in counts[0]


def _time_out(**_: object) -> None:
    raise ConnectTimeoutError(endpoint_url=f"https://dynamodb.{REGION}.amazonaws.com")


def test_a_large_upload_is_checked_by_the_event_function(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "HASH_NOW_BYTES", 0)
    waiting = deployment.checkpoint()
    assert waiting.step is CheckpointStep.CHECKING
    (asked,) = deployment.messages()
    assert asked == {"checkpoint": waiting.id}
    # A function whose time is nearly over does not begin; it asks for the next one.
    assert deployment.tell(asked, milliseconds=1000) == []
    assert deployment.messages() == [asked]
    assert deployment.tell(asked, asked) == []
    active = deployment.middleware.records.get(Checkpoint, waiting.id)
    assert active.state is CheckpointState.ACTIVE
    assert active.files[0].sha256 == hashlib.sha256(safetensors()).hexdigest()
