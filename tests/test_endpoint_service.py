"""Endpoints between the records and a compute side that refuses, is busy, or says things twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from middleware_api import contract
from middleware_api.contract import (
    EndpointState,
    InferenceState,
)
from middleware_api.errors import (
    Conflict,
    Unavailable,
)
from middleware_api.ports import EndpointChanged
from middleware_api.services.inference import RECONCILE_SECONDS
from tests.world import ME, World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.database.close()


def test_scaling_is_set_up_before_an_endpoint_is_called_in_service(world: World) -> None:
    """Whoever dies in between is told of the change again, and sets it up then."""
    endpoint = world.services.endpoints.create(ME, "a", "ml.g5.xlarge", 1, (0, 2))
    in_service = EndpointChanged(endpoint.id, EndpointState.IN_SERVICE)
    world.compute.refusal = ConnectionError("pulled the plug")
    with pytest.raises(ConnectionError):
        world.events.endpoint_changed(in_service)
    assert world.services.endpoints.get(endpoint.id).state is EndpointState.CREATING
    world.compute.refusal = None
    world.events.endpoint_changed(in_service)
    world.events.endpoint_changed(in_service)
    assert world.services.endpoints.get(endpoint.id).state is EndpointState.IN_SERVICE
    assert world.compute.set_up == [endpoint.id]


def test_an_endpoint_that_cannot_be_scaled_as_asked_has_failed(world: World) -> None:
    endpoint = world.services.endpoints.create(ME, "a", "ml.g5.xlarge", 1, (0, 2))
    world.compute.refusal = Conflict("AWS does not scale it.")
    world.events.endpoint_changed(EndpointChanged(endpoint.id, EndpointState.IN_SERVICE))
    failed = world.services.endpoints.get(endpoint.id)
    assert (failed.state, failed.error) == (EndpointState.FAILED, "AWS does not scale it.")


def test_a_name_given_twice_is_deleted_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = world.deploy("a")
    gone = EndpointChanged(endpoint.id, EndpointState.DELETED)
    monkeypatch.setattr(world.compute, "delete", lambda it: world.events.endpoint_changed(gone))
    world.services.endpoints.delete(["a", "a"])
    assert world.services.endpoints.get(endpoint.id).state is EndpointState.DELETED


def test_what_an_endpoint_leaves_is_cleared_away_once_it_is_gone(world: World) -> None:
    endpoint = world.deploy("a")
    world.services.endpoints.delete(["a"])
    assert world.compute.cleared == []
    world.pass_time(RECONCILE_SECONDS + 1)
    assert world.services.endpoints.get(endpoint.id).state is EndpointState.DELETED
    assert world.compute.cleared == [endpoint.id]


def test_an_endpoint_that_is_being_scaled_takes_jobs(world: World) -> None:
    endpoint = world.deploy("a")
    world.checkpoint()
    world.events.endpoint_changed(EndpointChanged(endpoint.id, EndpointState.UPDATING))
    assert world.submit("a").endpoint_id == world.submit().endpoint_id == endpoint.id
    # The word that it is done was lost: the reconciler asks.
    world.pass_time(RECONCILE_SECONDS + 1)
    assert world.services.endpoints.get(endpoint.id).state is EndpointState.IN_SERVICE


def test_a_job_that_the_busy_compute_side_did_not_take_is_queued_later(world: World) -> None:
    world.deploy("a")
    world.checkpoint()
    world.compute.refusal = Unavailable("AWS is too busy.")
    job = world.submit()
    assert world.compute.invoked == {}
    world.compute.refusal = None
    world.pass_time(RECONCILE_SECONDS + 1)
    assert job.id in world.compute.invoked
    assert world.job(job).state is InferenceState.IN_PROGRESS


def test_a_job_that_the_compute_side_refuses_has_failed_with_its_reason(world: World) -> None:
    world.deploy("a")
    world.checkpoint()
    world.compute.refusal = Conflict("AWS does not take this job.")
    with pytest.raises(Conflict, match="does not take"):
        world.submit()
    (job,) = world.services.inference.page(ME, [], [], 10, None).items
    assert (job.state, job.error) == (InferenceState.FAILED, "AWS does not take this job.")


def test_a_job_ends_with_its_endpoint(world: World) -> None:
    endpoint = world.deploy("a")
    world.checkpoint()
    job = world.submit()
    world.services.endpoints.delete(["a"])
    world.events.endpoint_changed(EndpointChanged(endpoint.id, EndpointState.DELETED))
    world.pass_time(RECONCILE_SECONDS + 1)
    assert world.job(job).state is InferenceState.FAILED
    assert "Submit it to another" in world.job(job).error


def test_one_records_trouble_does_not_keep_the_others_from_their_turn(world: World) -> None:
    world.deploy("a")
    world.checkpoint()
    first = world.submit()
    world.objects.write(contract.outcome_key(first.id), b"no JSON")
    second = world.submit()
    world.compute.invoked.clear()
    with pytest.raises(ValueError, match="Expecting value"):
        world.pass_time(RECONCILE_SECONDS + 1)
    assert list(world.compute.invoked) == [second.id]
