"""Jobs over HTTP, on a compute side that does only what it is told: whose they are, what they cost,
and the same again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from middleware_api import contract
from middleware_api.api.app import create_app
from middleware_api.contract import EndpointState, Progress, Scope
from middleware_api.ports import EndpointChanged, InvocationFinished
from middleware_api.prices import cost, price_per_hour
from middleware_api.records import InferenceJob
from tests.world import ADMIN_TOKEN, ME, World, result

REQUEST = {
    "task_type": "txt2img",
    "models": {"Stable-diffusion": ["m.safetensors"]},
    "prompt": "a red circle",
    "seed": 7,
}
LIST = "/inference/list-inference-jobs"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.deploy("studio")
    made.checkpoint()
    yield made
    made.database.close()


@pytest.fixture
def client(world: World) -> TestClient:
    return TestClient(create_app(world.services, world.objects), headers={"x-api-key": ADMIN_TOKEN})


def for_(user: str) -> dict[str, str]:
    return {"X-On-Behalf-Of": user}


def submit(client: TestClient, **headers: str) -> str:
    answer = client.post("/inference/v2", json=REQUEST, headers=headers)
    assert answer.status_code == 200, answer.text
    job_id: str = answer.json()["inference_id"]
    return job_id


def job(client: TestClient, job_id: str) -> Any:
    answer = client.get("/inference/get-inference-job", params={"jobID": job_id})
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(client: TestClient, **headers: str) -> list[str]:
    """What the list shows, with and without filters: each has an index of its own."""
    plain = client.get(LIST, headers=headers).json()
    filters = {"status": "inprogress", "task_type": "txt2img"}
    assert client.get(LIST, params=filters, headers=headers).json() == plain
    return sorted(job["InferenceJobId"] for job in plain)


def test_in_a_users_name_not_even_an_admin_reaches_other_jobs(client: TestClient) -> None:
    own, annas = submit(client), submit(client, **for_("anna@studio"))
    berts = submit(client, **for_("bert"))
    assert ids(client) == sorted([own, annas, berts])
    assert ids(client, **for_("anna@studio")) == [annas]
    assert ids(client, **for_("bert")) == [berts]
    assert ids(client, **for_("nobody")) == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/inference/get-inference-job?jobID={}"),
        ("GET", "/inference/get-inference-job-image-output?jobID={}"),
        ("GET", "/inference/get-inference-job-param-output?jobID={}"),
        ("GET", "/inference/v2/{}/events"),
        ("PUT", "/inference/v2/{}/run"),
        ("POST", "/inference/v2/{}/cancel"),
        ("POST", "/inference/v2/{}/rerun"),
        ("DELETE", "/inference/v2/{}"),
    ],
)
def test_another_users_job_is_none(client: TestClient, method: str, path: str) -> None:
    annas = submit(client, **for_("anna"))
    for stranger in ("bert", "Anna"):
        answer = client.request(method, path.format(annas), headers=for_(stranger))
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    answer = client.request(method, path.format(annas), headers=for_("anna"))
    assert answer.status_code != 404


def test_a_users_token_acts_for_others_and_sees_only_its_own(
    world: World, client: TestClient
) -> None:
    _, text = world.services.access.create("portal", [Scope.INFER], 2)
    portal = {"x-api-key": text}
    annas = submit(client, **portal, **for_("anna"))
    assert submit(client, **for_("anna")) not in ids(client, **portal, **for_("anna"))
    assert ids(client, **portal) == []
    assert ids(client, **portal, **for_("anna")) == [annas]
    submit(client, **portal, **for_("bert"))
    third = client.post("/inference/v2", json=REQUEST, headers={**portal, **for_("carl")})
    assert (third.status_code, third.json()["code"]) == (429, "quota_exceeded")


def test_users_of_one_token_do_not_meet_by_an_idempotency_key(client: TestClient) -> None:
    key = {"Idempotency-Key": "once"}
    first = submit(client, **key, **for_("anna"))
    assert submit(client, **key, **for_("anna")) == first
    strangers = [
        submit(client, **key),
        submit(client, **key, **for_("bert")),
        submit(client, **{"Idempotency-Key": "anna/once"}),
    ]
    assert first not in strangers


@pytest.mark.parametrize("user", ["", "a/b", "a b", "a#b", "a" * 65, "é"])
def test_what_is_no_users_name_is_refused(client: TestClient, user: str) -> None:
    answer = client.get(LIST, headers=[("X-On-Behalf-Of", user.encode())])
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["header", "X-On-Behalf-Of"]


def test_what_is_no_job_ignores_the_user(client: TestClient) -> None:
    for path in ("/endpoints", "/checkpoints", "/datasets", "/tokens"):
        seen = client.get(path).json()
        assert client.get(path, headers=for_("anna")).json() == seen


def test_a_job_tells_its_time_on_an_instance_and_what_that_costs(
    world: World, client: TestClient
) -> None:
    endpoint = world.services.endpoints.create(ME, "rented", "ml.g5.xlarge", 1, None)
    world.events.endpoint_changed(EndpointChanged(endpoint.id, EndpointState.IN_SERVICE))
    made = world.submit("rented")
    waiting = job(client, made.id)
    assert (waiting["run_seconds"], waiting["estimated_cost"]) == (None, None)
    assert (waiting["instance_type"], waiting["checkpoint_names"]) == (
        "ml.g5.xlarge",
        ["m.safetensors"],
    )
    world.now += 300
    world.events.invocation_starting(made.id)
    world.now += 10
    assert job(client, made.id)["run_seconds"] == 10
    world.now += 8
    world.events.invocation_finished(result(made))
    world.now += 1000
    done = job(client, made.id)
    assert done["run_seconds"] == 18
    assert done["estimated_cost"] == pytest.approx(1.408 * 18 / 3600)


def test_where_nobody_tells_of_the_start_the_instance_has_written_it(
    world: World, client: TestClient
) -> None:
    made = world.submit()
    began = world.now + 60
    written = Progress(
        step=1,
        total_steps=4,
        fraction=0.25,
        phase="sampling",
        started_at=began,
        updated_at=began + 5,
        has_preview=False,
    )
    world.objects.write(contract.progress_key(made.id), json.dumps(written).encode())
    world.now = began + 20
    assert job(client, made.id)["run_seconds"] == 20
    world.events.invocation_finished(InvocationFinished(made.id, failure="out of memory"))
    world.now += 1000
    failed = job(client, made.id)
    assert (failed["run_seconds"], failed["estimated_cost"]) == (20, 0)


def test_a_price_that_is_not_known_is_no_number() -> None:
    assert (price_per_hour("ml.x9.huge"), cost("ml.x9.huge", 5)) == (None, None)
    assert (price_per_hour("local"), cost("local", 3600, 6)) == (0, 0)
    assert cost("ml.g5.xlarge", 1800, 2) == pytest.approx(1.408)


def test_an_endpoint_costs_the_most_it_can_have_until_it_is_gone(
    world: World, client: TestClient
) -> None:
    def rented() -> Any:
        return next(e for e in client.get("/endpoints").json() if e["endpoint_name"] == "rented")

    client.post(
        "/endpoints",
        json={
            "endpoint_name": "rented",
            "instance_type": "ml.g5.xlarge",
            "autoscaling_enabled": True,
            "max_instance_count": 3,
        },
    )
    world.now += 3600
    assert (rented()["price_per_hour"], rented()["cost_since_start"]) == (1.408, 3 * 1.408)
    endpoint = world.services.endpoints.find("rented")
    for state in (EndpointState.IN_SERVICE, EndpointState.FAILED):
        world.events.endpoint_changed(EndpointChanged(endpoint.id, state))
    world.now += 3600
    assert rented()["cost_since_start"] == 3 * 1.408
    world.services.endpoints.delete(["rented"])
    world.events.endpoint_changed(EndpointChanged(endpoint.id, EndpointState.DELETED))
    assert rented()["cost_since_start"] == 3 * 1.408
    # Deleted by a version that noted no ends.
    gone = world.services.endpoints.get(endpoint.id)
    world.records.update(replace(gone, ended_at=None))
    assert rented()["cost_since_start"] is None


def test_the_same_again_is_a_new_job_with_the_stored_request(
    world: World, client: TestClient
) -> None:
    first = submit(client, **for_("anna"))
    again = f"/inference/v2/{first}/rerun"
    early = client.post(again, headers=for_("anna"))
    assert (early.status_code, early.json()["code"]) == (409, "job_not_finished")
    world.events.invocation_finished(InvocationFinished(first, failure="out of memory"))
    key = {"Idempotency-Key": "again"}
    second = client.post(again, headers={**key, **for_("anna")}).json()["inference_id"]
    assert second != first
    assert client.post(again, headers={**key, **for_("anna")}).json()["inference_id"] == second
    stored = [
        json.loads(world.objects.read(contract.params_key(contract.TaskType.TXT2IMG, job_id)))
        for job_id in (first, second)
    ]
    assert stored[0] == stored[1] == REQUEST
    assert world.records.get(InferenceJob, second).owner == "admin/anna"
    assert second in world.compute.invoked


def test_the_same_again_goes_elsewhere_when_its_endpoint_is_gone(
    world: World, client: TestClient
) -> None:
    endpoint = world.deploy("other")
    body = {**REQUEST, "sagemaker_endpoint_name": "other"}
    first = client.post("/inference/v2", json=body).json()["inference_id"]
    world.events.invocation_finished(InvocationFinished(first, failure="out of memory"))
    again = f"/inference/v2/{first}/rerun"
    assert client.post(again).json()["endpoint_name"] == "other"
    world.services.endpoints.delete(["other"])
    leaving = client.post(again)
    assert (leaving.status_code, leaving.json()["code"]) == (409, "endpoint_not_in_service")
    world.events.endpoint_changed(EndpointChanged(endpoint.id, EndpointState.DELETED))
    assert client.post(again).json()["endpoint_name"] == "studio"


def test_a_job_without_a_request_cannot_be_run_again(client: TestClient) -> None:
    prepared = client.post(
        "/inference/v2",
        json={"upload_params": True, "task_type": "txt2img", "models": REQUEST["models"]},
    ).json()["inference_id"]
    client.post(f"/inference/v2/{prepared}/cancel")
    answer = client.post(f"/inference/v2/{prepared}/rerun")
    assert (answer.status_code, answer.json()["code"]) == (404, "params_missing")


def test_a_job_names_its_refiner_beside_its_checkpoint(world: World, client: TestClient) -> None:
    world.checkpoint("refiner.safetensors")
    names = ["m.safetensors", "refiner.safetensors"]
    body = {**REQUEST, "models": {"Stable-diffusion": names}}
    made = client.post("/inference/v2", json=body).json()["inference_id"]
    assert job(client, made)["checkpoint_names"] == names
    for wrong in ([], names * 2):
        body = {**REQUEST, "models": {"Stable-diffusion": wrong}}
        refused = client.post("/inference/v2", json=body)
        assert refused.json()["detail"][0]["loc"] == ["body", "models"]


def test_extras_need_no_checkpoint_and_leave_the_loaded_one(
    world: World, client: TestClient
) -> None:
    world.events.invocation_finished(result(world.submit()))
    (loaded,) = world.services.endpoints.find("studio").loaded
    body = {"task_type": "extra-single-image", "models": {}, "image": "", "upscaler_1": "Lanczos"}
    made = client.post("/inference/v2", json=body).json()["inference_id"]
    world.events.invocation_finished(result(world.records.get(InferenceJob, made)))
    assert job(client, made)["checkpoint_names"] == []
    assert world.services.endpoints.find("studio").loaded == (loaded,)
    again = client.post(f"/inference/v2/{made}/rerun")
    assert again.status_code == 200


def test_a_merge_is_neither_submitted_nor_run_again_here(world: World, client: TestClient) -> None:
    answer = client.post("/inference/v2", json={**REQUEST, "task_type": "merge"})
    assert answer.status_code == 422
    assert "/inference/run-model-merge" in answer.json()["detail"][0]["msg"]
    made = world.submit()
    world.events.invocation_finished(result(made))
    done = world.job(made)
    world.records.update(replace(done, task_type=contract.TaskType.MERGE))
    answer = client.post(f"/inference/v2/{made.id}/rerun")
    assert (answer.status_code, answer.json()["code"]) == (409, "not_submittable")
