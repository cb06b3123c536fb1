"""The deployed API called from outside: API Gateway, Lambda, the table, the bucket and the queue
run in the emulator, and every call is checked against the functions' roles."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.conformance.conform import conform
from tests.conformance.prepared import Prepared
from tests.deploy.conftest import Deployment
from tests.server import until
from tests.weights import safetensors

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(300)]

WEIGHTS = safetensors()
CHANGE = "SageMaker Endpoint State Change"


@pytest.fixture(scope="module")
def api(deployment: Deployment) -> httpx.Client:
    with deployment.client() as client:
        yield client


def upload(api: httpx.Client, name: str = "m.safetensors") -> str:
    created = api.post(
        "/checkpoint",
        json={
            "checkpoint_type": "Stable-diffusion",
            "filenames": [{"filename": name, "parts_number": 1, "size": len(WEIGHTS)}],
        },
    )
    assert created.status_code == 200, created.text
    (target,) = created.json()["s3PresignUrl"]
    sent = httpx.put(target["parts"][0]["url"], content=WEIGHTS)
    assert sent.status_code == 200, sent.text
    checkpoint_id: str = created.json()["checkpoint"]["id"]
    done = api.put(
        "/checkpoint",
        json={
            "checkpoint_id": checkpoint_id,
            "status": "Active",
            "multi_parts_tags": {name: [{"PartNumber": 1, "ETag": sent.headers["ETag"]}]},
        },
    )
    assert done.status_code == 200, done.text
    return checkpoint_id


def deploy(api: httpx.Client, deployment: Deployment, endpoint_name: str) -> str:
    """An endpoint in service; its name in SageMaker."""
    made = api.post(
        "/endpoints", json={"endpoint_name": endpoint_name, "instance_type": "ml.g4dn.xlarge"}
    )
    assert made.status_code == 200, made.text
    name = f"sdaws-{made.json()['EndpointDeploymentJobId']}"
    described = deployment.aws.client("sagemaker").describe_endpoint(EndpointName=name)
    assert described["EndpointStatus"] == "InService"
    tell(deployment, CHANGE, EndpointName=name, EndpointStatus="IN_SERVICE")
    until(lambda: newest_endpoint(api), lambda e: e["endpoint_status"] == "InService")
    return name


def newest_endpoint(api: httpx.Client) -> dict[str, Any]:
    found: list[dict[str, Any]] = api.get("/endpoints").json()
    return found[0]


def tell(deployment: Deployment, kind: str, **detail: str) -> None:
    """An event as the rule hands it to the queue. Nobody but AWS may put one that names AWS as
    its source; the emulator keeps to that, so the rule itself is only read by a test here."""
    sqs = deployment.aws.client("sqs")
    (queue,) = [url for url in sqs.list_queues()["QueueUrls"] if "EventsQueue" in url]
    event = {"source": "aws.sagemaker", "detail-type": kind, "detail": detail}
    sqs.send_message(QueueUrl=queue, MessageBody=json.dumps(event))


def test_a_stranger_is_refused_and_the_documents_are_open(deployment: Deployment) -> None:
    with httpx.Client(base_url=deployment.api_url, timeout=60) as stranger:
        assert stranger.get("/endpoints").status_code == 401
        assert stranger.get("/openapi.json").json()["paths"]
        assert "swagger" in stranger.get("/docs").text


def test_weights_go_to_the_bucket_by_presigned_urls(api: httpx.Client) -> None:
    checkpoint_id = upload(api)
    listed = api.get("/checkpoints", params={"status": "Active"}).json()["checkpoints"]
    assert checkpoint_id in {checkpoint["id"] for checkpoint in listed}


def test_users_tokens_open_what_they_may(api: httpx.Client, deployment: Deployment) -> None:
    made = api.post("/tokens", json={"user": "ann", "scopes": ["infer"]}).json()
    headers = {"x-api-key": made["token"]}
    with httpx.Client(base_url=deployment.api_url, headers=headers, timeout=60) as ann:
        assert ann.get("/endpoints").status_code == 200
        assert ann.get("/tokens").status_code == 403


def test_an_import_is_done_by_the_event_function(api: httpx.Client) -> None:
    """Refused, because no public host is to be had here; but by the function, with the reason."""
    body = {"checkpointType": "Lora", "modelUrl": ["http://127.0.0.1:9/a.safetensors"]}
    answer = api.post("/upload_checkpoint", json=body)
    assert answer.status_code == 200, answer.text
    checkpoint_id = answer.json()["checkpoint"]["id"]

    def now() -> dict[str, Any]:
        found: dict[str, Any] = api.get("/checkpoint", params={"id": checkpoint_id}).json()
        return found["checkpoint"]

    failed = until(now, lambda checkpoint: checkpoint["status"] == "Fail")
    assert "is not on the public internet" in failed["error"]


def test_options_of_the_webuis_api_are_each_tokens_own(
    api: httpx.Client, deployment: Deployment
) -> None:
    made = api.post("/tokens", json={"user": "ann", "scopes": ["infer"]}).json()
    # As the WebUI's clients send it.
    with httpx.Client(
        base_url=deployment.api_url, auth=("anybody", made["token"]), timeout=60
    ) as ann:
        kept = ann.post("/sdapi/v1/options", json={"CLIP_stop_at_last_layers": 2})
        assert kept.status_code == 200, kept.text
        assert ann.get("/sdapi/v1/options").json()["CLIP_stop_at_last_layers"] == 2
    assert api.get("/sdapi/v1/options").json()["CLIP_stop_at_last_layers"] == 1


def test_the_webuis_api_lists_and_refuses_as_the_other_does(api: httpx.Client) -> None:
    upload(api, "for-webui.safetensors")
    shown = {checkpoint["model_name"] for checkpoint in api.get("/sdapi/v1/sd-models").json()}
    assert "for-webui" in shown
    no_endpoint = api.post("/sdapi/v1/txt2img", json={"prompt": "a red circle"})
    assert (no_endpoint.status_code, no_endpoint.json()["code"]) == (409, "no_endpoint_in_service")


def test_jobs_of_a_hosts_users_are_kept_apart_and_pictures_waited_for(
    api: httpx.Client, deployment: Deployment
) -> None:
    upload(api, "for-users.safetensors")
    deploy(api, deployment, "shared")
    ann, bob = {"X-On-Behalf-Of": "ann"}, {"X-On-Behalf-Of": "bob"}
    # SageMaker is simulated: nobody makes the picture.
    held = api.post("/sdapi/v1/txt2img", json={"prompt": "a red circle"}, headers=ann)
    assert (held.status_code, held.json()["code"]) == (504, "still_running"), held.text
    (job,) = api.get("/inference/list-inference-jobs", headers=ann).json()
    assert api.get("/inference/list-inference-jobs", headers=bob).json() == []
    job_id = job["InferenceJobId"]
    assert job_id in held.json()["error"]
    for headers, seen in ((ann, 200), (bob, 404)):
        found = api.get("/inference/get-inference-job", params={"jobID": job_id}, headers=headers)
        assert found.status_code == seen, found.text
    assert api.post(f"/inference/v2/{job_id}/rerun", headers=bob).status_code == 404
    cancelled = api.post(f"/inference/v2/{job_id}/cancel", headers=ann)
    assert cancelled.status_code == 200, cancelled.text
    again = api.post(f"/inference/v2/{job_id}/rerun", headers=ann)
    assert again.status_code == 200, again.text
    assert again.json()["inference_id"] != job_id
    merge = api.post(
        "/inference/run-model-merge",
        json={
            "primary_model_name": "for-users.safetensors",
            "interp_method": "No interpolation",
            "save_as_half": True,
            "custom_name": "merged",
        },
    )
    assert merge.status_code == 200, merge.text
    gone = api.request("DELETE", "/endpoints", json={"delete_endpoint_list": ["shared"]})
    assert gone.status_code == 200, gone.text


def test_an_endpoint_lives_and_a_job_reaches_its_queue(
    api: httpx.Client, deployment: Deployment
) -> None:
    upload(api, "for-jobs.safetensors")
    name = deploy(api, deployment, "studio")
    sagemaker = deployment.aws.client("sagemaker")
    job = api.post(
        "/inference/v2",
        json={
            "task_type": "txt2img",
            "models": {"Stable-diffusion": ["for-jobs.safetensors"]},
            "prompt": "a red circle",
        },
    )
    assert job.status_code == 200, job.text
    job_id = job.json()["inference_id"]
    # What SageMaker tells when the container does not answer.
    word = {"inferenceId": job_id, "invocationStatus": "Failed", "failureReason": "no GPU here"}
    topics = deployment.aws.client("sns").list_topics()["Topics"]
    (errors,) = [t["TopicArn"] for t in topics if "ErrorTopic" in t["TopicArn"]]
    deployment.aws.client("sns").publish(TopicArn=errors, Message=json.dumps(word))

    def state() -> dict[str, Any]:
        found: dict[str, Any] = api.get(
            "/inference/get-inference-job", params={"jobID": job_id}
        ).json()
        return found

    failed = until(state, lambda job: job["status"] == "failed")
    assert "no GPU here" in failed["error"]
    deleted = api.request("DELETE", "/endpoints", json={"delete_endpoint_list": ["studio"]})
    assert deleted.status_code == 200, deleted.text
    assert name not in {e["EndpointName"] for e in sagemaker.list_endpoints()["Endpoints"]}
    tell(deployment, CHANGE, EndpointName=name, EndpointStatus="DELETED")
    until(lambda: newest_endpoint(api), lambda e: e["endpoint_status"] == "Deleted")
    assert name not in {m["ModelName"] for m in sagemaker.list_models()["Models"]}


def test_the_reconciler_runs_by_schedule_and_on_call(deployment: Deployment) -> None:
    functions = deployment.aws.client("lambda").list_functions()["Functions"]
    (name,) = [f["FunctionName"] for f in functions if "EventFunction" in f["FunctionName"]]
    answer = deployment.aws.client("lambda").invoke(
        FunctionName=name, Payload=json.dumps({"reconcile": True})
    )
    assert "FunctionError" not in answer, answer["Payload"].read()


def test_the_original_documents_examples_that_need_no_container(
    deployment: Deployment, api: httpx.Client
) -> None:
    prepared = Prepared(api, weights=None)
    # The emulator's secrets hold quotation marks, which AWS is asked to leave out.
    token = api.post("/tokens", json={"user": "reader", "scopes": ["admin"]}).json()["token"]
    verdicts = list(conform(deployment.api_url, token, prepared, container=False))
    faults = [f"{v.example.name}: {v.faults}" for v in verdicts if v.faults]
    assert len(verdicts) == 52
    assert faults == []
