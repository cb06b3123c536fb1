"""A checkpoint that is loaded before a job asks for it: a hint, and no more."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from middleware_api.api.app import create_app
from middleware_api.contract import CheckpointType, EndpointState, Scope
from middleware_api.errors import NotFound
from middleware_api.ports import EndpointStatus, InvocationFinished
from middleware_api.records import Checkpoint, InferenceJob
from tests.world import ADMIN_TOKEN, World, result


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.database.close()


@pytest.fixture
def client(world: World) -> TestClient:
    return TestClient(create_app(world.services, world.objects), headers={"x-api-key": ADMIN_TOKEN})


def ask(client: TestClient, checkpoint: Checkpoint, **body: str) -> dict[str, str]:
    answer = client.post(f"/checkpoint/{checkpoint.id}/prefetch", json=body)
    assert answer.status_code == 200, answer.text
    hint: dict[str, str] = answer.json()
    return hint


@pytest.mark.parametrize("ends_well", [True, False])
def test_its_job_leaves_the_checkpoint_loaded_and_no_record(
    world: World, client: TestClient, ends_well: bool
) -> None:
    world.deploy("busy", load=3)
    studio = world.deploy("studio", load=1)
    world.compute.known[studio.id] = EndpointStatus(EndpointState.IN_SERVICE, 1, 0)
    checkpoint = world.checkpoint()
    hint = ask(client, checkpoint)
    assert (hint["endpoint_name"], hint["message"]) == ("studio", "")
    job = world.records.get(InferenceJob, hint["inference_id"])
    (order,) = world.compute.orders.values()
    assert order["task_type"] == "prefetch"
    assert [told["key"] for told in order["checkpoints"]] == [checkpoint.files[0].key]
    end = result(job) if ends_well else InvocationFinished(job.id, failure="the file is gone")
    for _ in range(2):
        world.events.invocation_finished(end)
    with pytest.raises(NotFound):
        world.records.get(InferenceJob, job.id)
    assert not [key for key in world.objects.keys("out/") if job.id in key]
    loaded = world.services.endpoints.get(studio.id).loaded
    assert loaded == ((checkpoint.files[0].key,) if ends_well else ())
    if ends_well:
        assert "left it in memory" in ask(client, checkpoint)["message"]
        world.compute.known[studio.id] = EndpointStatus(EndpointState.IN_SERVICE, 1, 9)
        assert world.submit().endpoint_name == "studio", "the one that holds it is preferred"


@pytest.mark.parametrize(("instances", "load"), [(0, 0), (1, 1)], ids=["asleep", "busy"])
def test_it_wakes_nobody_and_waits_behind_nobody(
    world: World, client: TestClient, instances: int, load: int
) -> None:
    studio = world.deploy("studio")
    world.compute.known[studio.id] = EndpointStatus(EndpointState.IN_SERVICE, instances, load)
    hint = ask(client, world.checkpoint(), endpoint_name="studio")
    assert (hint["inference_id"], hint["endpoint_name"]) == ("", "studio")
    assert "busy, or has no instance awake" in hint["message"]
    assert world.compute.orders == {}


def test_it_counts_for_nobodys_day(world: World, client: TestClient) -> None:
    world.deploy("studio")
    checkpoint = world.checkpoint()
    _, token = world.services.access.create("anna", [Scope.INFER], 1)
    client.headers["x-api-key"] = token
    assert ask(client, checkpoint)["inference_id"]
    assert world.submit().state.value == "inprogress"


def test_only_a_checkpoint_that_can_be_loaded_is(world: World, client: TestClient) -> None:
    lora = world.checkpoint("l.safetensors", CheckpointType.LORA)
    main = world.checkpoint()
    for checkpoint_id, status, code in (
        (lora.id, 409, "checkpoint_not_usable"),
        (main.id, 409, "no_endpoint_in_service"),
        ("none", 404, "not_found"),
    ):
        answer = client.post(f"/checkpoint/{checkpoint_id}/prefetch", json={})
        assert (answer.status_code, answer.json()["code"]) == (status, code)
