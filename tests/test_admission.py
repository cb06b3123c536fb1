"""What may become a checkpoint: files are examined where they lie, those of torch are converted by
a worker, and nothing is left of what is refused."""

from __future__ import annotations

import hashlib
import io
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import load

from middleware_api.api.app import create_app
from middleware_api.container.errors import ContainerError
from middleware_api.container.job import JobRunner
from middleware_api.container.storage import FolderStorage
from middleware_api.container.weights import unpickle
from middleware_api.container.weights.convert import convert
from middleware_api.contract import (
    CheckpointState,
    CheckpointStep,
    CheckpointType,
    InferenceState,
    PartTag,
    TaskType,
    conversion_id,
)
from middleware_api.errors import Conflict, FileRefused, NotFound
from middleware_api.ports import InvocationFinished
from middleware_api.records import Checkpoint, InferenceJob
from middleware_api.services.admission import DEADLINE_SECONDS, RECONCILE_SECONDS
from middleware_api.services.checkpoints import RETRY_SECONDS
from middleware_api.services.uploads import NewFile
from tests.hostile_weights import BROKEN_PICKLES, BROKEN_TENSORS, NAMES, payload, saved, tarred
from tests.weights import safetensors
from tests.world import ADMIN_TOKEN, ME, World, result

KIND = CheckpointType.STABLE_DIFFUSION
STATE = {"a.weight": torch.arange(6.0).reshape(2, 3).half(), "steps": torch.tensor(7)}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.database.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One for all that leaves nothing behind."""
    made = World(tmp_path_factory.mktemp("shared"))
    yield made
    made.database.close()


def now_of(world: World, checkpoint: Checkpoint) -> Checkpoint:
    return world.services.checkpoints.get(checkpoint.id)


def leftovers(world: World) -> list[str]:
    """Objects and parts, but for what jobs have written of themselves."""
    root = world.objects.root.parent
    found = (p for name in ("objects", "multipart", "incoming") for p in (root / name).rglob("*"))
    names = sorted(p.relative_to(root).as_posix() for p in found if p.is_file())
    return [name for name in names if not name.startswith(("objects/out/", "objects/convert/"))]


def job_of(world: World, checkpoint: Checkpoint) -> InferenceJob:
    return world.records.get(InferenceJob, checkpoint.conversion_id)


def run(world: World, checkpoint: Checkpoint) -> Checkpoint:
    """What a worker makes of the conversion, for real; then the checkpoint."""
    job = job_of(world, checkpoint)
    storage = FolderStorage(world.objects.root)
    runner = JobRunner({TaskType.CONVERT.value: convert}, storage, threading.Event())
    try:
        end = InvocationFinished(job.id, result=runner.run(world.compute.orders[job.id]))
    except ContainerError as failure:
        end = InvocationFinished(job.id, failure=str(failure))
    world.events.invocation_finished(end)
    return now_of(world, checkpoint)


# Files of tensors.


@pytest.mark.parametrize("case", BROKEN_TENSORS)
def test_a_broken_file_of_tensors_is_refused_and_leaves_nothing(shared: World, case: str) -> None:
    content, says = BROKEN_TENSORS[case]
    checkpoint, _ = shared.services.checkpoints.create(ME, KIND, [NewFile("m.safetensors", 1)], {})
    tags = [PartTag(PartNumber=1, ETag=shared.put_part(checkpoint, content))]
    with pytest.raises(FileRefused) as refused:
        shared.services.admission.complete(checkpoint, {"m.safetensors": tags})
    assert says in refused.value.message
    assert refused.value.message.isprintable()
    failed = now_of(shared, checkpoint)
    assert (failed.state, failed.error) == (CheckpointState.FAILED, refused.value.message)
    assert leftovers(shared) == []
    with pytest.raises(NotFound):
        shared.services.checkpoints.resolve(KIND, "m.safetensors")


def test_one_broken_file_of_several_takes_the_others_along(world: World) -> None:
    files = [NewFile("a.safetensors", 1), NewFile("b.safetensors", 1)]
    checkpoint, _ = world.services.checkpoints.create(ME, KIND, files, {})
    tags = {}
    for file, content in zip(checkpoint.files, (safetensors(), b"broken"), strict=True):
        one = replace(checkpoint, files=(file,))
        tags[file.name] = [PartTag(PartNumber=1, ETag=world.put_part(one, content))]
    with pytest.raises(FileRefused, match=r"'b\.safetensors'"):
        world.services.admission.complete(checkpoint, tags)
    assert leftovers(world) == []


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_more_than_names_are_refused_before_a_byte_is_sent(
    shared: World, name: str
) -> None:
    client = TestClient(
        create_app(shared.services, shared.objects), headers={"x-api-key": ADMIN_TOKEN}
    )
    body = {"checkpoint_type": "Lora", "filenames": [{"filename": name}]}
    answer = client.post("/checkpoint", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["detail"][0]["loc"] == ["body", "filenames", 0, "filename"]
    assert leftovers(shared) == []


def test_an_old_clients_tar_is_only_a_way_to_write_the_name(world: World) -> None:
    client = TestClient(
        create_app(world.services, world.objects), headers={"x-api-key": ADMIN_TOKEN}
    )

    def uploaded(content: bytes) -> tuple[int, str]:
        body = {"checkpoint_type": "Lora", "filenames": [{"filename": "m.safetensors.tar"}]}
        made = client.post("/checkpoint", json=body).json()
        checkpoint = world.services.checkpoints.get(made["checkpoint"]["id"])
        etag = world.put_part(checkpoint, content)
        tags = {"m.safetensors.tar": [{"PartNumber": 1, "ETag": etag}]}
        end = {"checkpoint_id": checkpoint.id, "status": "Active", "multi_parts_tags": tags}
        return client.put("/checkpoint", json=end).status_code, checkpoint.files[0].name

    assert uploaded(tarred()) == (409, "m.safetensors"), "archives are not unpacked"
    assert uploaded(safetensors()) == (200, "m.safetensors")
    assert client.get("/inference/get-lora-list").json() == ["m.safetensors"]


# Files of torch.


def test_a_file_of_torch_is_a_checkpoint_once_it_is_converted(world: World) -> None:
    world.deploy("studio")
    waiting = world.checkpoint("m.ckpt", content=saved({"state_dict": STATE, "epoch": 3}))
    assert waiting.state is CheckpointState.INITIAL
    assert "Endpoint 'studio' converts it to .safetensors" in waiting.waits_for
    with pytest.raises(NotFound):
        world.services.checkpoints.resolve(KIND, "m.ckpt")
    active = run(world, waiting)
    assert (active.state, active.waits_for, active.error) == (CheckpointState.ACTIVE, "", "")
    (file,) = active.files
    assert leftovers(world) == [f"objects/{file.key}"], "the pickle is gone"
    tensors = load(world.objects.read(file.key))
    assert {name: t.tolist() for name, t in tensors.items()} == {
        name: t.tolist() for name, t in STATE.items()
    }
    for name in ("m.ckpt", "m.safetensors"):  # by its old name too
        used = world.services.checkpoints.resolve(KIND, name)
        assert (used.name, used.key, used.sha256) == (name, file.key, file.sha256)
    again, uploads = world.services.checkpoints.create(
        ME, KIND, [NewFile("m.ckpt", 1, sha256=file.original_sha256)], {}
    )
    assert (again.id, uploads) == (active.id, []), "the same file is not sent again"
    world.services.checkpoints.delete(active)
    assert leftovers(world) == []


def test_the_original_is_kept_when_asked_for(world: World) -> None:
    world.deploy("studio")
    client = TestClient(
        create_app(world.services, world.objects), headers={"x-api-key": ADMIN_TOKEN}
    )
    body = {
        "checkpoint_type": "embeddings",
        "filenames": [{"filename": "soft.pt"}],
        "params": {"keep_original": True},
    }
    made = client.post("/checkpoint", json=body).json()["checkpoint"]
    content = saved({"string_to_param": {"*": torch.ones(2, 8)}, "name": "soft"}, is_zip=False)
    etag = world.put_part(world.services.checkpoints.get(made["id"]), content)
    end = {
        "checkpoint_id": made["id"],
        "status": "Active",
        "multi_parts_tags": {"soft.pt": [{"PartNumber": 1, "ETag": etag}]},
    }
    answered = client.put("/checkpoint", json=end).json()["checkpoint"]
    assert (answered["status"], answered["error"]) == ("Initial", "")
    assert "as job convert-" in answered["message"]
    assert client.put("/checkpoint", json=end).json()["checkpoint"] == answered, "asked twice"
    active = run(world, world.services.checkpoints.get(made["id"]))
    assert list(load(world.objects.read(active.files[0].key))) == ["emb_params"]
    (listed,) = client.get("/checkpoints").json()["checkpoints"]
    assert (listed["name"], listed["message"]) == (["soft.safetensors"], "")
    assert listed["sha256"] == [active.files[0].original_sha256]
    assert world.objects.read(f"embeddings/checkpoint/{active.id}/soft.pt") == content
    world.services.checkpoints.delete(active)
    assert leftovers(world) == []


def test_a_program_in_a_file_of_torch_does_not_run(world: World, tmp_path: Path) -> None:
    world.deploy("studio")
    mark = tmp_path / "mark"
    failed = run(world, world.checkpoint("m.pt", content=saved(payload(mark))))
    assert failed.state is CheckpointState.FAILED
    assert "m.pt was refused" in failed.error
    assert "posix.system" in failed.error
    assert "from a source that you trust" in failed.error
    assert not mark.exists()
    assert leftovers(world) == []
    assert job_of(world, failed).state is InferenceState.FAILED


@pytest.mark.parametrize("case", BROKEN_PICKLES)
def test_what_torch_would_not_write_is_refused(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the sandbox does it, which takes a process's start each time."""
    monkeypatch.chdir(tmp_path)
    make, says = BROKEN_PICKLES[case]
    content = make()
    with pytest.raises(unpickle.Refused) as refused:
        unpickle._tensors(unpickle._read(io.BytesIO(content), len(content)), len(content))
    assert says in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_tensors_of_all_forms_have_names_of_their_own() -> None:
    layer = {"linear.weight": torch.ones(1)}
    made, metadata = unpickle._tensors({768: (layer, layer), "step": 9, "name": "net"}, 100)
    assert list(made) == ["768.0.linear.weight", "768.1.linear.weight"]
    assert metadata == {"step": "9", "name": '"net"'}


def test_the_sandbox_can_open_and_start_nothing(tmp_path: Path) -> None:
    """Should a pickle get past torch's reader: what it would run finds no way out."""
    mark = tmp_path / "mark"
    program = f"""
import os, socket, subprocess, sys
sys.path.insert(0, {str(Path(unpickle.__file__).parent)!r})
import unpickle
unpickle._warm_up()
unpickle._lock(1000, 60)
def tried(act):
    try:
        act()
    except (OSError, MemoryError) as error:
        print(type(error).__name__)
    else:
        print("done")
tried(lambda: open("/etc/passwd"))
tried(lambda: open({str(mark)!r}, "w"))
tried(lambda: socket.socket())
tried(lambda: subprocess.run(["touch", {str(mark)!r}]))
tried(lambda: bytearray(2 << 30))
os.system("touch {mark}")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.stdout.split() == ["OSError"] * 4 + ["MemoryError"], ended
    assert not mark.exists()


# Where no worker is, or it does not come to an end.


def test_without_an_endpoint_it_waits_and_says_for_what(world: World) -> None:
    waiting = world.checkpoint("m.pt", content=saved(STATE))
    assert waiting.state is CheckpointState.INITIAL
    assert "waits for an endpoint in service" in waiting.waits_for
    assert world.compute.orders == {}
    world.deploy("studio")
    world.pass_time(RECONCILE_SECONDS + 1)
    assert "Endpoint 'studio' converts it" in now_of(world, waiting).waits_for
    assert list(world.compute.orders) == [conversion_id(waiting.id)]


def test_it_does_not_wait_for_ever(world: World) -> None:
    waiting = world.checkpoint("m.pt", content=saved(STATE))
    world.pass_time(DEADLINE_SECONDS + 1)
    failed = now_of(world, waiting)
    assert failed.state is CheckpointState.FAILED
    assert "No endpoint was in service for 24 hours" in failed.error
    world.pass_time(RETRY_SECONDS + 1)
    assert leftovers(world) == []


def test_an_end_that_nobody_told_is_found_by_the_reconciler(world: World) -> None:
    world.deploy("studio")
    waiting = world.checkpoint("m.pt", content=saved(STATE))
    job = job_of(world, waiting)
    storage = FolderStorage(world.objects.root)
    runner = JobRunner({TaskType.CONVERT.value: convert}, storage, threading.Event())
    runner.run(world.compute.orders[job.id])
    assert now_of(world, waiting).state is CheckpointState.INITIAL
    world.pass_time(61)
    world.pass_time(RECONCILE_SECONDS + 1)
    assert now_of(world, waiting).state is CheckpointState.ACTIVE


@pytest.mark.parametrize("is_deleted", [True, False])
def test_a_checkpoint_that_is_given_up_stops_its_conversion(world: World, is_deleted: bool) -> None:
    world.deploy("studio")
    waiting = world.checkpoint("m.pt", content=saved(STATE))
    if is_deleted:
        world.services.checkpoints.delete(waiting)
    else:
        world.services.checkpoints.set_state(waiting, CheckpointState.FAILED)
    assert not world.events.invocation_starting(conversion_id(waiting.id))
    assert job_of(world, waiting).state is InferenceState.CANCELLED
    assert leftovers(world) == []
    world.events.invocation_finished(result(job_of(world, waiting)))  # too late
    assert leftovers(world) == []


def test_a_cancelled_conversion_fails_its_checkpoint(world: World) -> None:
    world.deploy("studio")
    waiting = world.checkpoint("m.pt", content=saved(STATE))
    world.services.inference.cancel(job_of(world, waiting))
    assert run(world, waiting).error == (
        "Its conversion to .safetensors was cancelled. Its bytes are kept for 24 hours: try it "
        "again."
    )


def lose(world: World, checkpoint: Checkpoint) -> Checkpoint:
    """Its worker is lost before it has written anything."""
    job_id = checkpoint.conversion_id
    world.events.invocation_finished(InvocationFinished(job_id, failure="The GPU was lost."))
    return now_of(world, checkpoint)


def test_a_conversion_that_did_not_fail_by_its_file_can_be_tried_again(world: World) -> None:
    world.deploy("studio")
    content = saved(STATE)
    failed = lose(world, world.checkpoint("m.pt", content=content))
    assert (failed.state, failed.can_retry) == (CheckpointState.FAILED, True)
    assert failed.error.startswith("The GPU was lost.")
    again = world.services.admission.retry(failed)
    assert (again.step, again.error) == (CheckpointStep.CONVERTING, "")
    assert world.services.admission.retry(again) == again, "the answer was lost"
    # SageMaker's word on the first attempt comes once more.
    world.events.invocation_finished(InvocationFinished(failed.conversion_id, failure="late"))
    assert now_of(world, again).state is CheckpointState.INITIAL
    active = run(world, again)
    assert active.state is CheckpointState.ACTIVE
    (file,) = active.files
    assert (file.original_name, file.original_size) == ("m.pt", len(content))
    assert file.original_sha256 == hashlib.sha256(content).hexdigest()
    assert world.objects.size(file.key) == file.size
    world.services.checkpoints.delete(active)
    assert leftovers(world) == []


def test_what_nobody_tries_again_is_forgotten_after_a_day(world: World) -> None:
    world.deploy("studio")
    failed = lose(world, world.checkpoint("m.pt", content=saved(STATE)))
    world.pass_time(RETRY_SECONDS - 1)
    assert leftovers(world) != []
    world.pass_time(2)
    assert leftovers(world) == []
    forgotten = now_of(world, failed)
    assert (forgotten.state, forgotten.can_retry) == (CheckpointState.FAILED, False)
    with pytest.raises(Conflict, match="nothing to try again"):
        world.services.admission.retry(forgotten)


def test_a_refused_file_is_not_tried_again(world: World) -> None:
    world.deploy("studio")
    failed = run(world, world.checkpoint("m.bin", content=pickle.dumps({"a": [1, 2]})))
    assert not failed.can_retry
    with pytest.raises(Conflict, match="did not fail by its file"):
        world.services.admission.retry(failed)


def test_what_a_worker_says_it_has_written_is_examined_too(world: World) -> None:
    world.deploy("studio")
    waiting = world.checkpoint("m.pt", content=saved(STATE))
    key = f"{KIND.value}/checkpoint/{conversion_id(waiting.id)}/m.safetensors"
    world.objects.write(key, b"nothing of the kind")
    world.events.invocation_finished(result(job_of(world, waiting)))
    failed = now_of(world, waiting)
    assert failed.state is CheckpointState.FAILED
    assert "'m.safetensors' is no whole .safetensors file" in failed.error
    assert leftovers(world) == []


def test_two_files_that_would_have_one_name_are_refused(world: World) -> None:
    files = [NewFile("m.pt", 1), NewFile("m.safetensors", 1)]
    checkpoint, _ = world.services.checkpoints.create(ME, KIND, files, {})
    tags = {}
    for file, content in zip(checkpoint.files, (saved(STATE), safetensors()), strict=True):
        one = replace(checkpoint, files=(file,))
        tags[file.name] = [PartTag(PartNumber=1, ETag=world.put_part(one, content))]
    with pytest.raises(FileRefused, match="would be named"):
        world.services.admission.complete(checkpoint, tags)
    assert leftovers(world) == []


def test_a_pickle_of_another_time_is_not_even_tried(world: World) -> None:
    """Not of torch at all, but of the right name: the worker finds out."""
    world.deploy("studio")
    failed = run(world, world.checkpoint("m.bin", content=pickle.dumps({"a": [1, 2]})))
    assert failed.state is CheckpointState.FAILED
    assert leftovers(world) == []
