"""Row 16 over HTTP, on a compute side that does only what it is told: who may, what is refused
before anything starts, what becomes a checkpoint, and that nothing is left of what does not."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import load, save

from middleware_api import contract
from middleware_api.api.app import create_app
from middleware_api.container.job import JobRunner
from middleware_api.container.storage import FolderStorage
from middleware_api.container.weights.merge import merge
from middleware_api.contract import (
    CheckpointState,
    CheckpointType,
    InferenceState,
    MergeMethod,
    Scope,
    TaskType,
)
from middleware_api.ports import InvocationFinished
from middleware_api.records import Checkpoint, InferenceJob
from middleware_api.services.inference import RECONCILE_SECONDS
from middleware_api.services.merging import MergeRequest
from tests.world import ADMIN_TOKEN, World, result

PATH = "/inference/run-model-merge"
ASKED: dict[str, Any] = {
    "primary_model_name": "a.safetensors",
    "secondary_model_name": "b.safetensors",
    "custom_name": "mix",
}
GIVEN = ["a.safetensors", "b.safetensors", "c.safetensors"]
ACTIVE = {"status": "Active", "types": "Stable-diffusion"}


def weights(value: float) -> bytes:
    return save({"model.diffusion_model.out.0.weight": torch.full((4,), value)})


def studio(folder: Path) -> World:
    """An endpoint, and three checkpoints that can be merged."""
    made = World(folder)
    made.deploy("studio")
    for number, name in enumerate("abc"):
        made.checkpoint(f"{name}.safetensors", content=weights(number))
    return made


def client_of(world: World) -> TestClient:
    return TestClient(create_app(world.services, world.objects), headers={"x-api-key": ADMIN_TOKEN})


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = studio(tmp_path)
    yield made
    made.database.close()


@pytest.fixture
def client(world: World) -> TestClient:
    return client_of(world)


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One for all requests that change nothing."""
    made = studio(tmp_path_factory.mktemp("unchanged"))
    yield made
    made.database.close()


@pytest.fixture(scope="module")
def asking(unchanged: World) -> TestClient:
    return client_of(unchanged)


def submit(world: World, client: TestClient, **changes: object) -> InferenceJob:
    answer = client.post(PATH, json={**ASKED, **changes})
    assert answer.status_code == 200, answer.text
    return world.records.get(InferenceJob, answer.json()["inference_id"])


def run(world: World, job: InferenceJob) -> InvocationFinished:
    """What a worker makes of the job, for real."""
    tasks = {TaskType.MERGE.value: merge}
    runner = JobRunner(tasks, FolderStorage(world.objects.root), threading.Event())
    return InvocationFinished(job.id, result=runner.run(world.compute.orders[job.id]))


def latest(world: World, job: InferenceJob) -> InferenceJob:
    return world.records.get(InferenceJob, job.id)


def merged(world: World, job: InferenceJob) -> Checkpoint:
    return world.services.checkpoints.get(contract.merged_checkpoint_id(job.id))


def names(client: TestClient) -> list[str]:
    listed = client.get("/checkpoints", params=ACTIVE).json()["checkpoints"]
    return sorted(name for checkpoint in listed for name in checkpoint["name"])


def results_folder(world: World, job: InferenceJob) -> Path:
    folder = world.objects.root / "Stable-diffusion/checkpoint"
    return folder / contract.merged_checkpoint_id(job.id)


def begin_to_write(world: World, job: InferenceJob) -> Path:
    """As a worker that was killed leaves it."""
    half = results_folder(world, job) / ".0123.part"
    half.parent.mkdir()
    half.write_bytes(b"half")
    return half


def test_a_merge_becomes_a_checkpoint_that_requests_can_name(
    world: World, client: TestClient
) -> None:
    answer = client.post(PATH, json=ASKED)
    assert answer.status_code == 200, answer.text
    assert answer.json() == {
        "primary_model_name": "a.safetensors",
        "secondary_model_name": "b.safetensors",
        "tertiary_model_name": None,
        "inference_id": answer.json()["inference_id"],
    }
    job = world.records.get(InferenceJob, answer.json()["inference_id"])
    (shown,) = client.get("/inference/list-inference-jobs", params={"task_type": "merge"}).json()
    assert (shown["InferenceJobId"], shown["status"]) == (job.id, "inprogress")
    assert names(client) == GIVEN
    world.events.invocation_finished(run(world, job))
    assert names(client) == [*GIVEN, "mix.safetensors"]
    checkpoint = merged(world, job)
    (file,) = checkpoint.files
    content = world.objects.read(file.key)
    assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert load(content)["model.diffusion_model.out.0.weight"].tolist() == pytest.approx([0.3] * 4)
    used = world.services.checkpoints.resolve(CheckpointType.STABLE_DIFFUSION, "mix.safetensors")
    assert used.key == file.key
    # Who has the same file need not upload it.
    announced = {"filename": "mix.safetensors", "sha256": file.sha256, "size": file.size}
    body = {"checkpoint_type": "Stable-diffusion", "filenames": [{**announced, "parts_number": 1}]}
    assert client.post("/checkpoint", json=body).json()["checkpoint"]["id"] == checkpoint.id


def test_the_result_tells_its_recipe(world: World, client: TestClient) -> None:
    job = submit(world, client)
    world.events.invocation_finished(run(world, job))
    document = json.loads(world.objects.read(contract.param_output_key(job.id)))
    recipe = json.loads(document["info"])["sd_merge_recipe"]
    used = job.checkpoints
    assert [recipe["primary_model_hash"], recipe["secondary_model_hash"]] == [
        used[0].sha256,
        used[1].sha256,
    ]
    assert document["parameters"]["multiplier"] == 0.3


def test_deleting_the_job_leaves_the_checkpoint(world: World, client: TestClient) -> None:
    job = submit(world, client)
    world.events.invocation_finished(run(world, job))
    assert client.delete(f"/inference/v2/{job.id}").status_code == 200
    assert world.objects.keys(contract.output_prefix(job.id)) == []
    assert world.objects.size(merged(world, job).files[0].key) is not None


# Names.


@pytest.mark.parametrize(
    ("changes", "stem"),
    [
        ({}, "0.7(a) + 0.3(b)"),
        ({"multiplier": 0.333}, "0.67(a) + 0.33(b)"),
        ({"interp_method": MergeMethod.ADD_DIFFERENCE}, "a + 0.3(b - c.v2)"),
        ({"interp_method": MergeMethod.NO_INTERPOLATION}, "a"),
        ({"custom_name": "mine"}, "mine"),
        ({"custom_name": "mine.safetensors"}, "mine"),
    ],
)
def test_without_a_name_it_gets_the_one_that_the_webui_would_give(
    changes: dict[str, Any], stem: str
) -> None:
    request = MergeRequest(
        primary_model_name="a.safetensors",
        secondary_model_name="b.safetensors",
        tertiary_model_name="c.v2.safetensors",
        interp_method=MergeMethod.WEIGHTED_SUM,
        multiplier=0.3,
        save_as_half=False,
        custom_name="",
        bake_in_vae=None,
        discard_weights="",
    )
    assert replace(request, **changes).file_stem == stem


def test_that_name_is_what_the_file_is_called(world: World, client: TestClient) -> None:
    job = submit(world, client, custom_name="")
    world.events.invocation_finished(run(world, job))
    assert "0.7(a) + 0.3(b).safetensors" in names(client)


@pytest.mark.parametrize("taken", ["mix.safetensors", "mix.inpainting.safetensors"])
def test_a_name_in_use_is_refused_before_anything_starts(
    world: World, client: TestClient, taken: str
) -> None:
    world.checkpoint(taken)
    answer = client.post(PATH, json=ASKED)
    assert (answer.status_code, answer.json()["code"]) == (409, "checkpoint_name_taken")
    assert f"'{taken}'" in answer.json()["error"]
    assert world.compute.orders == {}


def test_one_model_alone_cannot_take_its_own_place(client: TestClient) -> None:
    alone = {"primary_model_name": "a.safetensors", "interp_method": "No interpolation"}
    answer = client.post(PATH, json=alone)
    assert (answer.status_code, answer.json()["code"]) == (409, "checkpoint_name_taken")
    assert client.post(PATH, json={**alone, "custom_name": "b.inpainting"}).status_code == 200


def test_a_name_is_taken_while_its_merge_runs_and_free_when_that_failed(
    world: World, client: TestClient
) -> None:
    first = submit(world, client)
    answer = client.post(PATH, json={**ASKED, "multiplier": 0.5})
    assert (answer.status_code, answer.json()["code"]) == (409, "checkpoint_name_taken")
    assert "Another merge" in answer.json()["error"]
    world.events.invocation_finished(InvocationFinished(first.id, failure="out of memory"))
    second = submit(world, client, multiplier=0.5)
    world.events.invocation_finished(run(world, second))
    assert merged(world, second).state is CheckpointState.ACTIVE


def test_a_name_that_would_be_too_long_is_refused(world: World, client: TestClient) -> None:
    long = f"{'l' * 230}.safetensors"
    world.checkpoint(long)
    answer = client.post(PATH, json={**ASKED, "secondary_model_name": long, "custom_name": None})
    assert answer.status_code == 422
    assert "give another custom_name" in answer.json()["detail"][0]["msg"]


# Whose it is, and how often.


def test_it_needs_the_scope_models(world: World, client: TestClient) -> None:
    _, token = world.services.access.create("anna", [Scope.INFER], None)
    answer = client.post(PATH, json=ASKED, headers={"x-api-key": token})
    assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")


def test_a_user_of_a_shared_host_has_the_job_and_the_host_the_checkpoint(
    world: World, client: TestClient
) -> None:
    _, token = world.services.access.create("studio", [Scope.MODELS, Scope.INFER], None)
    headers = {"x-api-key": token, "X-On-Behalf-Of": "anna"}
    job_id = client.post(PATH, json=ASKED, headers=headers).json()["inference_id"]
    for user, status in (("anna", 200), ("bert", 404)):
        headers["X-On-Behalf-Of"] = user
        seen = client.get("/inference/get-inference-job", params={"jobID": job_id}, headers=headers)
        assert seen.status_code == status
    job = world.records.get(InferenceJob, job_id)
    world.events.invocation_finished(run(world, job))
    assert merged(world, job).owner == "studio"


def test_the_same_key_is_the_same_merge(world: World, client: TestClient) -> None:
    def ask(**changes: object) -> Any:
        return client.post(PATH, json={**ASKED, **changes}, headers={"Idempotency-Key": "once"})

    first = ask().json()
    assert ask().json() == first
    job = world.records.get(InferenceJob, first["inference_id"])
    world.events.invocation_finished(run(world, job))
    assert ask().json() == first, "its own result has the name now"
    other = ask(multiplier=0.5)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")


def test_a_merge_counts_as_a_job_of_the_day(world: World, client: TestClient) -> None:
    _, token = world.services.access.create("anna", [Scope.MODELS], 1)
    headers = {"x-api-key": token}
    assert client.post(PATH, json=ASKED, headers=headers).status_code == 200
    answer = client.post(PATH, json={**ASKED, "custom_name": "other"}, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")


# Ends that come late, twice, or not at all.


def test_a_late_or_second_end_changes_nothing(world: World, client: TestClient) -> None:
    job = submit(world, client)
    end = run(world, job)
    world.events.invocation_finished(end)
    done, checkpoint = latest(world, job), merged(world, job)
    assert done.state is InferenceState.SUCCEEDED
    world.events.invocation_finished(end)
    world.events.invocation_finished(InvocationFinished(job.id, failure="late"))
    assert (latest(world, job), merged(world, job)) == (done, checkpoint)
    client.request("DELETE", "/checkpoint", params={"id": checkpoint.id})
    world.events.invocation_finished(end)
    assert "mix.safetensors" not in names(client), "what was deleted stays deleted"


def test_an_end_that_nobody_told_is_found_by_the_reconciler(
    world: World, client: TestClient
) -> None:
    job = submit(world, client)
    run(world, job)
    assert "mix.safetensors" not in names(client)
    world.pass_time(RECONCILE_SECONDS + 1)
    assert latest(world, job).state is InferenceState.SUCCEEDED
    assert merged(world, job).state is CheckpointState.ACTIVE


def test_a_server_that_died_after_adopting_it_goes_on(world: World, client: TestClient) -> None:
    job = submit(world, client)
    end = run(world, job)
    assert end.result is not None
    made = {c["key"]: c["sha256"] for c in end.result["checkpoints"]}
    kind = CheckpointType.STABLE_DIFFUSION
    world.services.checkpoints.adopt(contract.merged_checkpoint_id(job.id), "admin", kind, made)
    client.post(f"/inference/v2/{job.id}/cancel")
    assert not world.events.invocation_starting(job.id), "the cancel came too late for the worker"
    assert latest(world, job).state is InferenceState.CANCELLED
    assert world.objects.size(merged(world, job).files[0].key) is not None, "it is Active"


@pytest.mark.parametrize("cancelled", [False, True])
def test_nothing_is_left_of_a_merge_that_comes_to_nothing(
    world: World, client: TestClient, cancelled: bool
) -> None:
    job = submit(world, client)
    begin_to_write(world, job)
    if cancelled:
        client.post(f"/inference/v2/{job.id}/cancel")
        world.events.invocation_finished(result(job, "cancelled"))
    else:
        world.events.invocation_finished(InvocationFinished(job.id, failure="died twice"))
    state = InferenceState.CANCELLED if cancelled else InferenceState.FAILED
    assert latest(world, job).state is state
    assert not results_folder(world, job).exists()
    assert names(client) == GIVEN


def test_a_whole_file_whose_outcome_was_never_told_is_no_checkpoint(
    world: World, client: TestClient
) -> None:
    """The worker was killed between the file and the outcome; then its endpoint was deleted."""
    job = submit(world, client)
    run(world, job)
    (world.objects.root / contract.outcome_key(job.id)).unlink()
    assert "mix.safetensors" not in names(client)
    world.events.invocation_finished(InvocationFinished(job.id, failure="endpoint deleted"))
    assert not results_folder(world, job).exists()


def test_a_job_that_goes_again_after_a_kill_ends_like_any_other(
    world: World, client: TestClient
) -> None:
    job = submit(world, client)
    half = begin_to_write(world, job)
    world.events.invocation_finished(run(world, job))
    assert not half.exists()
    assert merged(world, job).state is CheckpointState.ACTIVE


# What is refused at once.


@pytest.mark.parametrize(
    ("changes", "status", "says"),
    [
        ({"primary_model_name": "ghost.safetensors"}, 404, "ghost.safetensors"),
        ({"bake_in_vae": "ghost.pt"}, 404, "VAE"),
        ({"secondary_model_name": None}, 422, "needs a secondary"),
        ({"secondary_model_name": ""}, 422, "needs a secondary"),
        ({"interp_method": "Add difference"}, 422, "needs a tertiary"),
        ({"interp_method": "Guess"}, 422, "Weighted sum"),
        ({"multiplier": 1.5}, 422, "multiplier"),
        ({"custom_name": "../mix"}, 422, "custom_name"),
        ({"discard_weights": "("}, 422, "no regular expression"),
        ({"discard_weights": "(" * 990}, 422, "no regular expression"),
        ({"discard_weights": "a" * 1001}, 422, "discard_weights"),
    ],
)
def test_a_merge_is_checked_before_it_starts(
    unchanged: World, asking: TestClient, changes: dict[str, object], status: int, says: str
) -> None:
    answer = asking.post(PATH, json={**ASKED, **changes})
    assert answer.status_code == status, answer.text
    assert says in answer.text
    assert unchanged.compute.orders == {}


def test_a_merge_without_a_body_is_refused(asking: TestClient) -> None:
    assert asking.post(PATH).status_code == 422


def test_what_the_webuis_forms_say_where_nothing_is_chosen_is_nothing(
    world: World, client: TestClient
) -> None:
    unset = {"bake_in_vae": "None", "tertiary_model_name": "", "custom_name": ""}
    assert [used.name for used in submit(world, client, **unset).checkpoints] == GIVEN[:2]
    alone = {"interp_method": "No interpolation", "secondary_model_name": ""}
    assert [used.name for used in submit(world, client, **alone).checkpoints] == GIVEN[:1]


def test_a_vae_is_found_among_the_vaes(world: World, client: TestClient) -> None:
    world.checkpoint("a.safetensors", CheckpointType.VAE)
    job = submit(world, client, bake_in_vae="a.safetensors")
    assert [(used.type.value, used.name) for used in job.checkpoints] == [
        ("Stable-diffusion", "a.safetensors"),
        ("Stable-diffusion", "b.safetensors"),
        ("VAE", "a.safetensors"),
    ]


def test_without_an_endpoint_it_says_so(tmp_path: Path) -> None:
    world = World(tmp_path)
    for name in "ab":
        world.checkpoint(f"{name}.safetensors")
    client = client_of(world)
    answer = client.post(PATH, json=ASKED)
    assert (answer.status_code, answer.json()["code"]) == (409, "no_endpoint_in_service")
    world.deploy("studio")
    assert client.post(PATH, json=ASKED).status_code == 200, "the name is still free"
    world.database.close()
