"""Deadlines, late and double events, and choices: on real records and objects, with a clock that
the test moves and a compute side that does only what it is told."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from middleware_api import contract
from middleware_api.contract import (
    CheckpointState,
    CheckpointType,
    DeploymentState,
    EndpointState,
    InferenceState,
    Outcome,
    Scope,
    TaskType,
)
from middleware_api.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    NotAvailable,
    NotFound,
    QuotaExceeded,
)
from middleware_api.ports import EndpointChanged, EndpointStatus, InvocationFinished
from middleware_api.services.access import ADMIN
from middleware_api.services.checkpoints import FINDABLE_SECONDS
from middleware_api.services.endpoints import DEPLOY_DEADLINE_SECONDS
from middleware_api.services.inference import RECONCILE_SECONDS, InferenceRequest
from middleware_api.services.uploads import UPLOAD_DEADLINE_SECONDS, NewFile, cut_into_parts
from tests.world import ADMIN_TOKEN, ME, OTHER, World, result

MIB = 1024 * 1024
KIND = CheckpointType.STABLE_DIFFUSION


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.database.close()


def test_a_late_or_second_event_changes_nothing(world: World) -> None:
    world.deploy("a")
    world.checkpoint()
    job = world.submit()
    assert world.events.invocation_starting(job.id)
    world.events.invocation_finished(result(job))
    done = world.job(job)
    assert done.state is InferenceState.SUCCEEDED
    world.events.invocation_finished(result(job))
    world.events.invocation_finished(InvocationFinished(job.id, failure="late"))
    assert world.job(job) == done
    assert not world.events.invocation_starting(job.id)
    world.events.invocation_finished(InvocationFinished("unknown", failure="?"))


def test_a_failure_keeps_the_reason_and_the_pictures_made_before(world: World) -> None:
    world.deploy("a")
    world.checkpoint()
    job = world.submit()
    for index in (10, 9):
        world.objects.write(contract.image_key(job.id, index), b"png")
    world.events.invocation_finished(InvocationFinished(job.id, failure="out of memory"))
    failed = world.job(job)
    assert (failed.state, failed.error) == (InferenceState.FAILED, "out of memory")
    assert failed.image_names == ("image_9.png", "image_10.png")
    assert len(world.services.inference.files.image_urls(failed)) == 2


def test_a_cancel_that_the_worker_did_not_answer_is_still_a_cancel(world: World) -> None:
    world.deploy("a")
    world.checkpoint()
    job = world.submit()
    assert world.services.inference.cancel(job).state is InferenceState.IN_PROGRESS
    world.events.invocation_finished(InvocationFinished(job.id, failure="worker died"))
    assert world.job(job).state is InferenceState.CANCELLED


def test_a_job_that_was_never_queued_is_queued_by_the_reconciler(world: World) -> None:
    endpoint = world.deploy("a")
    world.checkpoint()
    job = world.submit()
    world.compute.invoked.clear()
    world.pass_time(RECONCILE_SECONDS + 1)
    assert world.compute.invoked == {job.id: endpoint.id}
    assert world.job(job).state is InferenceState.IN_PROGRESS


def test_an_end_that_was_lost_is_read_from_what_the_container_wrote(world: World) -> None:
    world.deploy("a")
    world.checkpoint()
    for outcome, state in (
        (Outcome(result=result(world.submit()).result, failure=None), InferenceState.SUCCEEDED),
        (Outcome(result=None, failure="no such sampler"), InferenceState.FAILED),
    ):
        reconciled, restarted = world.submit(), world.submit()
        for job in (reconciled, restarted):
            world.objects.write(contract.outcome_key(job.id), json.dumps(outcome).encode())
        assert not world.events.invocation_starting(restarted.id), "it would draw them again"
        world.pass_time(RECONCILE_SECONDS + 1)
        for job in (reconciled, restarted):
            assert world.job(job).state is state
            assert world.job(job).error == (outcome["failure"] or "")


def test_a_job_of_which_nothing_is_ever_heard_fails(world: World) -> None:
    world.deploy("a")
    world.checkpoint()
    job = world.submit()
    world.pass_time(world.compute.patience_seconds)
    assert world.job(job).state is InferenceState.IN_PROGRESS
    world.pass_time(RECONCILE_SECONDS + 1)
    assert world.job(job).state is InferenceState.FAILED
    assert "7 hours" in world.job(job).error


def test_only_a_finished_job_can_be_deleted_and_nothing_of_it_stays(world: World) -> None:
    world.deploy("a")
    world.checkpoint()
    job = world.submit()
    with pytest.raises(Conflict, match="Cancel it first"):
        world.services.inference.delete(job)
    world.objects.write(contract.image_key(job.id, 0), b"png")
    world.events.invocation_finished(result(job))
    world.services.inference.delete(world.job(job))
    with pytest.raises(NotFound):
        world.job(job)
    assert [key for key in world.objects.keys("") if job.id in key] == []


def test_a_body_that_never_comes_ends_the_job(world: World) -> None:
    world.deploy("a")
    world.checkpoint()
    models = {CheckpointType.STABLE_DIFFUSION: ["m.safetensors"]}
    job, url = world.services.inference.prepare(
        ME, InferenceRequest(TaskType.IMG2IMG, models, None, {}), None
    )
    assert url.startswith("http://store.test/")
    world.pass_time(12 * 3600 + 1)
    ended = world.job(job)
    assert ended.state is InferenceState.FAILED
    assert "never uploaded" in ended.error


def test_an_upload_that_stops_fails_and_leaves_nothing_behind(world: World) -> None:
    service = world.services.checkpoints
    checkpoint, _ = service.create(ME, CheckpointType.LORA, [NewFile("l.safetensors", 3)], {})
    world.put_part(checkpoint, b"first")
    world.pass_time(UPLOAD_DEADLINE_SECONDS + 1)
    ended = service.get(checkpoint.id)
    assert ended.state is CheckpointState.FAILED
    assert "1 of 3 parts" in ended.error
    assert list((world.objects.root.parent / "multipart").iterdir()) == []


def test_a_deployment_that_hangs_fails_with_advice(world: World) -> None:
    endpoint = world.services.endpoints.create(ME, "slow", "local", 1, None)
    world.pass_time(DEPLOY_DEADLINE_SECONDS + 1)
    ended = world.services.endpoints.get(endpoint.id)
    assert (ended.state, ended.deployment) == (EndpointState.FAILED, DeploymentState.FAILED)
    assert "30 minutes" in ended.error
    with pytest.raises(NotFound, match=r"m\.safetensors"):
        world.submit("slow")
    world.checkpoint()
    with pytest.raises(Conflict, match=r"Failed.*30 minutes"):
        world.submit("slow")


def test_a_deployment_that_is_refused_leaves_nothing(world: World) -> None:
    world.compute.refusal = Conflict("your quota of ml.g5.xlarge is 0")
    with pytest.raises(Conflict, match="quota"):
        world.services.endpoints.create(ME, "studio", "ml.g5.xlarge", 1, None)
    assert world.services.endpoints.page(10, None).items == []
    world.compute.refusal = None
    world.deploy("studio")


def test_an_order_to_the_compute_side_that_was_lost_is_given_again(world: World) -> None:
    service = world.services.endpoints
    lost = service.create(ME, "lost", "local", 1, None)
    refused = service.create(ME, "refused", "local", 1, None)
    world.compute.known.clear()
    world.pass_time(90)
    assert set(world.compute.known) == {lost.id, refused.id}
    del world.compute.known[refused.id]
    world.compute.refusal = NotAvailable("no image yet")
    world.pass_time(90)
    assert service.get(lost.id).state is EndpointState.CREATING
    assert (service.get(refused.id).state, service.get(refused.id).error) == (
        EndpointState.FAILED,
        "no image yet",
    )
    service.delete(["lost"])
    world.compute.known[lost.id] = EndpointStatus(EndpointState.IN_SERVICE, 1)
    world.pass_time(90)
    assert lost.id not in world.compute.known
    world.pass_time(90)
    assert service.get(lost.id).state is EndpointState.DELETED


def test_the_endpoint_that_has_the_checkpoint_is_chosen_then_the_idlest(world: World) -> None:
    world.checkpoint()
    world.deploy("idle", load=0)
    world.deploy("busy", load=5)
    assert world.submit().endpoint_name == "idle"
    warm = world.deploy("warm", load=3)
    world.events.invocation_finished(result(world.submit("warm")))
    assert world.submit().endpoint_name == "warm"
    world.compute.known[warm.id] = EndpointStatus(EndpointState.IN_SERVICE, 0, 3)
    assert world.submit().endpoint_name == "idle", (
        "an endpoint without instances has nothing loaded"
    )
    assert world.submit("busy").endpoint_name == "busy"


def test_a_name_is_free_again_when_its_endpoint_is_gone(world: World) -> None:
    endpoint = world.deploy("studio")
    with pytest.raises(Conflict, match="exists already"):
        world.deploy("studio")
    world.services.endpoints.delete(["studio"])
    with pytest.raises(Conflict, match="being deleted"):
        world.services.endpoints.choose("studio", [])
    world.events.endpoint_changed(EndpointChanged(endpoint.id, EndpointState.DELETED))
    assert world.services.endpoints.get(endpoint.id).deployment is DeploymentState.DELETED
    assert world.deploy("studio").id != endpoint.id


def test_a_disabled_checkpoint_cannot_be_used_until_it_is_enabled(world: World) -> None:
    service = world.services.checkpoints
    checkpoint = world.checkpoint()
    world.deploy("a")
    disabled = service.set_state(checkpoint, CheckpointState.DISABLED)
    with pytest.raises(NotFound, match=r"m\.safetensors"):
        world.submit()
    service.set_state(disabled, CheckpointState.ACTIVE)
    assert world.submit().checkpoints[0].name == "m.safetensors"


def test_a_deleted_checkpoint_is_gone_with_its_files_and_its_name(world: World) -> None:
    service = world.services.checkpoints
    active = world.checkpoint()
    uploading, _ = service.create(ME, CheckpointType.LORA, [NewFile("l.safetensors", 3)], {})
    for checkpoint in (active, uploading):
        service.delete(checkpoint)
        with pytest.raises(NotFound):
            service.get(checkpoint.id)
    assert world.objects.keys("") == []
    assert list((world.objects.root.parent / "multipart").iterdir()) == []
    world.deploy("a")
    with pytest.raises(NotFound, match=r"m\.safetensors"):
        world.submit()


def test_users_see_their_own_jobs_and_an_admin_sees_all(world: World) -> None:
    world.deploy("a")
    world.checkpoint()
    mine, others = world.submit(), world.submit(caller=OTHER)
    service = world.services.inference
    with pytest.raises(NotFound):
        service.get(ME, others.id)
    assert service.get(ADMIN, others.id) == others
    for caller, seen in ((ME, [mine.id]), (OTHER, [others.id]), (ADMIN, [others.id, mine.id])):
        pages = [
            service.page(caller, [], [], 10, None),
            service.page(caller, [InferenceState.IN_PROGRESS], [TaskType.TXT2IMG], 10, None),
        ]
        for page in pages:
            assert sorted(job.id for job in page.items) == sorted(seen)


def test_everybody_uses_a_checkpoint_and_its_owner_alone_changes_it(world: World) -> None:
    service = world.services.checkpoints
    checkpoint = world.checkpoint()
    assert service.get(checkpoint.id) == checkpoint
    assert service.get_own(ADMIN, checkpoint.id) == service.get_own(ME, checkpoint.id)
    with pytest.raises(Forbidden, match="belongs to another user"):
        service.get_own(OTHER, checkpoint.id)


def test_a_token_opens_what_its_scopes_allow_until_it_is_revoked(world: World) -> None:
    access = world.services.access
    token, text = access.create("anna", [Scope.INFER], None)
    caller = access.authenticate(text)
    assert caller is not None
    assert caller.name == "anna"
    caller.require(Scope.INFER)
    with pytest.raises(Forbidden, match="lacks the scope 'models'"):
        caller.require(Scope.MODELS)
    for wrong in ("", "x", text + "x", token.id, f"{token.id}.", f"x.{text}", "\ud800.x"):
        assert access.authenticate(wrong) is None
    admin = access.authenticate(ADMIN_TOKEN)
    assert admin is not None
    admin.require(Scope.TRAIN)
    access.revoke(token.id)
    assert access.authenticate(text) is None
    assert text not in repr(access.page(10, None))


def test_a_tokens_jobs_of_a_day_are_bounded_and_repeats_are_not_counted(world: World) -> None:
    access = world.services.access
    world.deploy("a")
    world.checkpoint()
    _, text = access.create("anna", [Scope.INFER], 2)
    anna = access.authenticate(text)
    assert anna is not None
    models = {CheckpointType.STABLE_DIFFUSION: ["m.safetensors"]}
    request = InferenceRequest(TaskType.TXT2IMG, models, None, {"prompt": "x"})
    first = world.services.inference.submit(anna, request, "key")
    assert world.services.inference.submit(anna, request, "key") == first
    world.submit(caller=anna)
    with pytest.raises(QuotaExceeded, match="2 jobs of today"):
        world.submit(caller=anna)
    world.now += 24 * 3600
    world.submit(caller=anna)


@pytest.mark.parametrize(
    ("start", "to"),
    [
        (CheckpointState.ACTIVE, CheckpointState.FAILED),
        (CheckpointState.INITIAL, CheckpointState.DISABLED),
        (CheckpointState.FAILED, CheckpointState.ACTIVE),
    ],
)
def test_a_checkpoint_goes_only_where_its_life_cycle_goes(
    world: World, start: CheckpointState, to: CheckpointState
) -> None:
    service = world.services.checkpoints
    checkpoint = world.checkpoint()
    if start is not CheckpointState.ACTIVE:
        checkpoint, _ = service.create(ME, CheckpointType.VAE, [NewFile("v.pt", 1)], {})
    if start is CheckpointState.FAILED:
        checkpoint = service.set_state(checkpoint, CheckpointState.FAILED)
        with pytest.raises(Conflict, match="nothing is left to upload"):
            service.missing_parts(checkpoint)
    with pytest.raises(Conflict, match=f"cannot become {to.value}"):
        service.set_state(checkpoint, to)


def test_the_newest_checkpoint_of_a_name_is_the_one_that_is_used(world: World) -> None:
    world.deploy("a")
    first, second = world.checkpoint(), world.checkpoint()
    assert first.id != second.id
    assert second.id in world.submit().checkpoints[0].key


def test_a_renamed_checkpoint_is_found_by_its_new_name_alone(world: World) -> None:
    world.deploy("studio")
    service = world.services.checkpoints
    checkpoint = world.checkpoint()
    job = world.submit()
    renamed = service.rename(checkpoint, "", "new name.safetensors")
    assert [file.name for file in renamed.files] == ["new name.safetensors"]
    assert renamed.files[0].key == checkpoint.files[0].key
    assert world.objects.size(job.checkpoints[0].key) is not None, "a job runs by the key"
    assert service.resolve(KIND, "new name.safetensors").key == checkpoint.files[0].key
    assert service.find(KIND, "m.safetensors") is None
    assert renamed.check_at is None
    back = service.rename(renamed, "new name.safetensors", "m.safetensors")
    assert service.resolve(KIND, "m.safetensors").key == checkpoint.files[0].key
    assert service.find(KIND, "new name.safetensors") is None
    assert service.rename(back, "", "m.safetensors") == back
    world.services.inference.cancel(job)


def test_a_name_in_use_is_not_given_twice(world: World) -> None:
    service = world.services.checkpoints
    first, second = world.checkpoint(), world.checkpoint("n.safetensors")
    with pytest.raises(Conflict, match=r"has the name 'm\.safetensors' already"):
        service.rename(second, "", "m.safetensors")
    disabled = service.set_state(first, CheckpointState.DISABLED)
    renamed = service.rename(second, "", "m.safetensors")
    assert service.resolve(KIND, "m.safetensors").key == renamed.files[0].key
    # Who renames what is disabled takes the name from nobody.
    aside = service.rename(disabled, "", "aside.safetensors")
    assert service.find(KIND, "aside.safetensors") is None
    service.set_state(aside, CheckpointState.ACTIVE)
    assert service.resolve(KIND, "aside.safetensors").key == first.files[0].key
    assert service.resolve(KIND, "m.safetensors").key == second.files[0].key


def test_a_rename_that_was_cut_short_is_finished_by_the_reconciler(world: World) -> None:
    service = world.services.checkpoints
    checkpoint = world.checkpoint()
    (file,) = checkpoint.files
    due = world.now + FINDABLE_SECONDS
    world.records.update(
        replace(checkpoint, files=(replace(file, name="new.safetensors"),), check_at=due)
    )
    assert service.find(KIND, "m.safetensors") is None
    world.pass_time(FINDABLE_SECONDS + 1)
    assert service.resolve(KIND, "new.safetensors").key == file.key


def test_only_what_has_become_active_is_renamed(world: World) -> None:
    service = world.services.checkpoints
    begun, _ = service.create(ME, KIND, [NewFile("m.safetensors", 1)], {})
    with pytest.raises(Conflict, match="Rename it when it is Active"):
        service.rename(begun, "", "n.safetensors")
    with pytest.raises(InvalidRequest, match=r"it has: m\.safetensors"):
        service.rename(world.checkpoint(), "other.safetensors", "n.safetensors")


@pytest.mark.parametrize("size", [1, 5 * MIB, 5 * MIB + 1, 2 * 1024 * MIB, 16 * 1024 * MIB])
@pytest.mark.parametrize("parts", [1, 4, 257, 10_000])
def test_parts_cover_the_file_within_the_stores_rules(size: int, parts: int) -> None:
    count, part_size = cut_into_parts(size, parts)
    assert part_size >= 5 * MIB
    assert part_size % MIB == 0
    assert count <= parts
    lengths = [min(part_size, size - start) for start in range(0, size, part_size)]
    assert (len(lengths), sum(lengths)) == (count, size)
    assert all(length >= 5 * MIB for length in itertools.islice(lengths, len(lengths) - 1))
