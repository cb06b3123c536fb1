"""Models and training jobs: their whole lives on a pretend compute side, killed and stopped at the
worst moments."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from middleware_api import contract
from middleware_api.contract import (
    CheckpointState,
    CheckpointType,
    DatasetState,
    ModelState,
    PartTag,
    Scope,
    TrainOutcome,
    TrainProgress,
    TrainState,
)
from middleware_api.errors import (
    Conflict,
    ContentDiffers,
    FileRefused,
    InvalidRequest,
    NotFound,
    QuotaExceeded,
)
from middleware_api.ports import TrainingChanged, TrainingStatus
from middleware_api.records import Dataset, Model, TrainJob
from middleware_api.services.access import ADMIN, Principal
from middleware_api.services.events import reconcile
from middleware_api.services.models import NewModel
from middleware_api.services.orders import RECONCILE_SECONDS
from middleware_api.services.training import START_DEADLINE_SECONDS, NewTrainJob
from middleware_api.services.training_output import output_prefix
from middleware_api.services.uploads import UPLOAD_DEADLINE_SECONDS, NewFile
from tests.weights import safetensors
from tests.world import WEIGHTS
from tests.world import World as InferenceWorld

ME = Principal("me", frozenset({Scope.TRAIN, Scope.MODELS}))
OTHER = Principal("other", ME.scopes)
KIND = CheckpointType.STABLE_DIFFUSION


class World(InferenceWorld):
    """The services over a compute side that a test speaks for."""

    def new_model(self, *files: NewFile, caller: Principal = ME, key: str | None = None) -> Model:
        """A model whose upload has begun."""
        announced = files or (NewFile("v1-5.safetensors", 1),)
        request = NewModel("dog", KIND, announced, "", {"is_512": True})
        return self.services.models.create(caller, request, key)[0]

    def tags(self, model: Model, content: bytes = WEIGHTS) -> dict[str, list[PartTag]]:
        """What the store answers for each file's only part."""
        return {
            file.name: [
                PartTag(
                    PartNumber=1,
                    ETag=self.objects.write_part(file.key, file.upload_id, 1, content),
                )
            ]
            for file in model.files
        }

    def creating_model(self) -> Model:
        """A model that is being made."""
        model = self.new_model()
        return self.services.models.make(model, self.tags(model))

    def complete_model(self) -> Model:
        """A model to train."""
        model = self.creating_model()
        self.events.training_changed(TrainingChanged(model.id, TrainState.COMPLETE))
        return self.model(model)

    def dataset(self, name: str = "dogs", *, enabled: bool = True) -> Dataset:
        """A data set with one picture."""
        service = self.services.datasets
        dataset, _ = service.create(ME, name, [("one.png", "png")], {})
        self.objects.write(dataset.files[0].key, b"png")
        return service.set_state(dataset, DatasetState.ENABLED) if enabled else dataset

    def new_job(
        self, model: Model, *datasets: str, caller: Principal = ME, key: str | None = None
    ) -> TrainJob:
        """A job that waits to be started."""
        request = NewTrainJob(KIND, model.id, datasets, "ml.g5.2xlarge", {"epochs": 1})
        return self.services.training.create(caller, request, key)

    def running_job(self) -> TrainJob:
        """A job that trains."""
        return self.services.training.start(ME, self.new_job(self.complete_model()))

    def tell(self, job: TrainJob | Model, state: TrainState, error: str = "") -> None:
        """What the compute side says of it, told as an event."""
        self.events.training_changed(TrainingChanged(job.id, state, error))

    def write_weights(
        self, job: TrainJob, name: str = "dog.safetensors", content: bytes = WEIGHTS
    ) -> str:
        """What the training program leaves."""
        key = f"{contract.train_prefix(job.type, job.model_name, job.id)}output/{name}"
        self.objects.write(key, content)
        return key

    def write_words(self, job: TrainJob, **words: Any) -> None:
        """What the training program tells of itself."""
        progress = TrainProgress(
            phase="training", fraction=0.5, step=5, steps=10, loss=0.1, learning_rate=1e-4,
            seconds_left=20.0, losses=[(5, 0.1)], samples=[], checkpoints=[], warnings=[],
            updated_at=self.now,
        )  # fmt: skip
        key = contract.train_progress_key(output_prefix(job))
        self.objects.write(key, json.dumps({**progress, **words}).encode())

    def write_outcome(self, job: TrainJob, kind: CheckpointType, *keys: str) -> None:
        """What the training program says at its end."""
        files = [
            {"type": kind.value, "name": "x", "key": key, "size": 1, "sha256": "ab" * 32}
            for key in keys
        ]
        outcome = TrainOutcome(state="Complete", error="", weights=files, warnings=[])  # type: ignore[typeddict-item]
        key = contract.train_outcome_key(output_prefix(job))
        self.objects.write(key, json.dumps(outcome).encode())

    def model(self, model: Model) -> Model:
        """The model as it is now."""
        return self.services.models.get(ME, model.id)

    def train_job(self, job: TrainJob) -> TrainJob:
        """The job as it is now."""
        return self.services.training.get(ME, job.id)

    def order(self, job: TrainJob | Model) -> dict[str, Any]:
        """What the program was told."""
        input_prefix, _ = self.training.prefixes[job.id]
        order: dict[str, Any] = json.loads(self.objects.read(contract.order_key(input_prefix)))
        return order


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.database.close()


def test_a_model_from_its_first_part_to_complete(world: World) -> None:
    model = world.new_model(NewFile("a.safetensors", 1), NewFile("b.yaml", 1))
    assert (model.state, model.owner) == (ModelState.INITIAL, "me")
    creating = world.services.models.make(model, world.tags(model))
    assert creating.state is ModelState.CREATING
    assert creating.compute_name == f"model-{model.id}"
    order = world.order(model)
    assert [world.objects.read(key) for key in order["sources"]] == [WEIGHTS, WEIGHTS]
    assert order["params"] == {"is_512": True}
    assert world.training.prefixes[model.id][1] == contract.model_output_prefix(
        KIND, "dog", model.id
    )
    assert world.services.models.make(creating, {}) == creating, "the answer was lost"
    world.tell(model, TrainState.TRAINING)
    assert world.model(model).state is ModelState.CREATING
    world.tell(model, TrainState.COMPLETE)
    assert (world.model(model).state, world.model(model).error) == (ModelState.COMPLETE, "")
    world.tell(model, TrainState.FAILED, "late")
    assert world.model(model).state is ModelState.COMPLETE
    world.services.models.delete(world.model(model))
    with pytest.raises(NotFound):
        world.model(model)
    assert world.objects.keys("") == []


def test_a_checkpoint_that_is_there_becomes_a_model_without_an_upload(world: World) -> None:
    service, checkpoints = world.services.models, world.services.checkpoints
    checkpoint = world.checkpoint()
    request = NewModel("dog", KIND, (), checkpoint.id, {})
    model, uploads = service.create(ME, request, None)
    assert (model.files, uploads) == ((), [])
    disabled = checkpoints.set_state(checkpoint, CheckpointState.DISABLED)
    with pytest.raises(Conflict, match="state Disabled"):
        service.make(model, {})
    with pytest.raises(Conflict, match="state Disabled"):
        service.create(ME, request, None)
    checkpoints.set_state(disabled, CheckpointState.ACTIVE)
    service.make(model, {})
    assert world.order(model)["sources"] == [checkpoint.files[0].key]
    other_kind = NewModel("dog", CheckpointType.LORA, (), checkpoint.id, {})
    with pytest.raises(Conflict, match="needs an Active Lora"):
        service.create(ME, other_kind, None)
    with pytest.raises(NotFound, match="ghost"):
        service.create(ME, NewModel("dog", KIND, (), "ghost", {}), None)


def test_where_nothing_can_be_made_nothing_is_lost(world: World) -> None:
    service = world.services.models
    model = world.new_model()
    tags = world.tags(model)
    world.training.refusal = Conflict("your quota is 0")
    with pytest.raises(Conflict, match="quota"):
        service.make(model, tags)
    assert world.model(model).state is ModelState.INITIAL
    assert world.model(model).check_at == model.check_at
    world.training.refusal = None
    assert service.make(world.model(model), {}).state is ModelState.CREATING


def test_a_model_of_damaged_bytes_fails(world: World) -> None:
    model = world.new_model(NewFile("a.safetensors", 1, sha256="0" * 64))
    with pytest.raises(ContentDiffers):
        world.services.models.make(model, world.tags(model))
    assert world.model(model).state is ModelState.FAILED
    assert "sha256" in world.model(model).error
    assert world.training.started == 0
    assert world.objects.keys(contract.model_prefix(KIND, model.name, model.id)) == []


def test_a_model_of_a_file_that_is_none_of_weights_fails_and_leaves_nothing(world: World) -> None:
    model = world.new_model(NewFile("a.safetensors.tar", 1))
    with pytest.raises(FileRefused, match=r"no whole \.safetensors file"):
        world.services.models.make(model, world.tags(model, b"<no weights>"))
    failed = world.model(model)
    assert failed.state is ModelState.FAILED
    assert "no whole .safetensors file" in failed.error
    assert world.training.started == 0
    assert world.objects.keys(contract.model_prefix(KIND, model.name, model.id)) == []


@pytest.mark.parametrize("name", ["a.ckpt", "a.pt.tar", "a.zip"])
def test_a_training_machine_opens_no_pickles(world: World, name: str) -> None:
    with pytest.raises(InvalidRequest, match="as a checkpoint, which converts them"):
        world.new_model(NewFile(name, 1))


@pytest.mark.parametrize(
    ("state", "said", "kept"),
    [
        (TrainState.FAILED, "out of memory", "out of memory"),
        (TrainState.STOPPED, "", "stopped on the compute side"),
    ],
)
def test_a_model_that_could_not_be_made_says_why(
    world: World, state: TrainState, said: str, kept: str
) -> None:
    model = world.creating_model()
    world.tell(model, state, said)
    assert world.model(model).state is ModelState.FAILED
    assert kept in world.model(model).error


def test_a_model_can_be_given_up_at_any_time_before_its_end(world: World) -> None:
    service = world.services.models
    uploading, creating = world.new_model(), world.creating_model()
    with pytest.raises(Conflict, match="being made"):
        service.delete(creating)
    for model in (uploading, creating):
        given_up = service.give_up(model)
        assert (given_up.state, given_up.error) == (
            ModelState.FAILED,
            "It was given up by its owner.",
        )
        assert service.give_up(given_up) == given_up
        with pytest.raises(Conflict, match="cannot become Creating"):
            service.make(given_up, {})
        service.delete(given_up)
    assert world.training.stopped == [creating.id]
    assert list((world.objects.root.parent / "multipart").iterdir()) == []
    with pytest.raises(Conflict, match="cannot become Fail"):
        service.give_up(world.complete_model())


def test_an_upload_that_stops_ends_its_model(world: World) -> None:
    model = world.new_model(NewFile("a.safetensors", 3))
    world.tags(model)
    world.pass_time(UPLOAD_DEADLINE_SECONDS - 1)
    assert world.model(model).state is ModelState.INITIAL
    world.pass_time(2)
    assert world.model(model).state is ModelState.FAILED
    assert "within 24 hours: 1 of 3 parts had arrived." in world.model(model).error
    assert list((world.objects.root.parent / "multipart").iterdir()) == []


def test_the_same_model_asked_for_twice_is_one(world: World) -> None:
    first = world.new_model(key="k")
    assert world.new_model(key="k") == first
    assert world.new_model(key="k", caller=OTHER) != first
    with pytest.raises(Conflict, match="another request"):
        world.new_model(NewFile("b.safetensors", 1), key="k")
    request = NewModel("dog", KIND, (NewFile("v1-5.safetensors", 1),), "", {"is_512": True})
    (upload,) = world.services.models.create(ME, request, "k")[1]
    assert ([part["PartNumber"] for part in upload.urls["parts"]], upload.arrived) == ([1], [])
    tags = world.tags(first)
    (upload,) = world.services.models.create(ME, request, "k")[1]
    assert (upload.urls["parts"], [part.number for part in upload.arrived]) == ([], [1])
    world.training.refusal = Conflict("no quota")
    with pytest.raises(Conflict):
        world.services.models.make(first, tags)
    (upload,) = world.services.models.create(ME, request, "k")[1]
    assert (upload.urls["parts"], upload.arrived) == ([], []), "it is an object by now"
    world.services.models.give_up(world.model(first))
    assert world.services.models.create(ME, request, "k")[1] == []


def test_a_training_job_becomes_a_checkpoint(world: World) -> None:
    model = world.complete_model()
    world.dataset()
    job = world.new_job(model, "dogs")
    assert (job.state, job.model_name) == (TrainState.INITIAL, "dog")
    training = world.services.training.start(ME, job)
    assert (training.state, training.compute_name) == (TrainState.TRAINING, f"train-{job.id}")
    assert world.services.training.start(ME, training) == training, "the answer was lost"
    assert world.order(job) == {
        "job_id": job.id,
        "type": "Stable-diffusion",
        "model_prefix": contract.model_output_prefix(KIND, "dog", model.id),
        "datasets": {"dogs": "dataset/dogs/"},
        "params": {"epochs": 1},
    }
    world.write_words(job)
    assert world.services.training.latest(training).progress == 0.5
    world.pass_time(RECONCILE_SECONDS + 1)
    noted = world.train_job(job)
    assert (noted.progress, noted.loss, noted.steps, noted.step_seconds) == (0.5, 0.1, 10, 4.0)
    key = world.write_weights(job)
    world.write_weights(job, "samples/not-weights.safetensors")
    for _ in range(2):
        world.tell(job, TrainState.COMPLETE)
    done = world.train_job(job)
    assert (done.state, done.progress, done.error) == (TrainState.COMPLETE, 1.0, "")
    assert done.completed_at == world.now
    used = world.services.checkpoints.resolve(KIND, "dog.safetensors")
    assert (used.key, used.size) == (key, len(WEIGHTS))
    checkpoint = world.services.checkpoints.get(done.checkpoint_id)
    assert (checkpoint.owner, checkpoint.state) == ("me", CheckpointState.ACTIVE)
    assert [file.name for file in checkpoint.files] == ["dog.safetensors"]
    world.tell(job, TrainState.FAILED, "late")
    world.tell(job, TrainState.STOPPED)
    assert world.train_job(job) == done
    world.services.training.delete(done)
    assert world.objects.keys(output_prefix(job)) == [key], "the checkpoint stays"
    assert world.objects.size(contract.order_key(world.training.prefixes[job.id][0])) is None


def test_a_checkpoint_that_was_adopted_before_a_crash_is_not_adopted_twice(world: World) -> None:
    job = world.running_job()
    key = world.write_weights(job)
    world.services.checkpoints.adopt(job.id, "me", KIND, {key: ""})
    world.tell(job, TrainState.COMPLETE)
    assert world.train_job(job).checkpoint_id == job.id
    assert len(world.services.checkpoints.page([], [], 10, None).items) == 1


def test_a_training_that_leaves_no_weights_has_failed(world: World) -> None:
    job = world.running_job()
    world.tell(job, TrainState.COMPLETE)
    assert world.train_job(job).state is TrainState.FAILED
    assert "ended without weights" in world.train_job(job).error


@pytest.mark.parametrize(
    ("state", "error"), [(TrainState.STOPPED, ""), (TrainState.FAILED, "CUDA out of memory")]
)
def test_what_was_learned_until_then_is_kept(world: World, state: TrainState, error: str) -> None:
    job = world.running_job()
    world.write_words(job)
    key = world.write_weights(job, "dog.safetensors", safetensors(tensor="lora_unet_x.lora_up"))
    world.objects.write(f"{contract.train_state_prefix(output_prefix(job))}5/state", b"much")
    world.tell(job, state, error)
    ended = world.train_job(job)
    assert (ended.state, ended.error, ended.progress) == (state, error, 0.5)
    checkpoint = world.services.checkpoints.get(ended.checkpoint_id)
    assert (checkpoint.type, checkpoint.state) == (CheckpointType.LORA, CheckpointState.ACTIVE)
    assert not [k for k in world.objects.keys(output_prefix(job)) if "state" in k]
    assert world.services.training.look(ended).checkpoint == checkpoint
    world.services.checkpoints.delete(checkpoint)
    assert world.objects.size(key) is None
    seen = world.services.training.look(ended)
    assert seen.checkpoint is None
    assert seen.progress is not None, "the job and its curve stay"


def test_the_program_says_what_its_weights_are(world: World) -> None:
    job = world.running_job()
    key = world.write_weights(job)
    world.write_weights(job, "other.safetensors")
    world.write_outcome(job, CheckpointType.LORA, key)
    world.tell(job, TrainState.COMPLETE)
    used = world.services.checkpoints.resolve(CheckpointType.LORA, "dog.safetensors")
    assert (used.key, used.sha256) == (key, "ab" * 32)
    assert len(world.services.checkpoints.get(job.id).files) == 1


@pytest.mark.parametrize("content", [b"no weights", WEIGHTS[:-1]])
def test_weights_that_are_none_fail_the_job(world: World, content: bytes) -> None:
    job = world.running_job()
    world.write_weights(job, content=content)
    world.tell(job, TrainState.COMPLETE)
    ended = world.train_job(job)
    assert (ended.state, ended.checkpoint_id) == (TrainState.FAILED, "")
    assert "'dog.safetensors' is no whole .safetensors file" in ended.error


def test_weights_that_the_program_names_and_has_not_written_fail_the_job(world: World) -> None:
    job = world.running_job()
    world.write_outcome(job, KIND, f"{output_prefix(job)}ghost.safetensors")
    world.tell(job, TrainState.COMPLETE)
    assert world.train_job(job).state is TrainState.FAILED
    assert "ghost" in world.train_job(job).error


def test_a_job_from_near(world: World) -> None:
    service = world.services.training
    job = world.running_job()
    world.training.known[job.id] = TrainingStatus(TrainState.TRAINING, phase="waiting")
    seen = service.look(job)
    assert (seen.phase, seen.progress, seen.samples) == ("waiting", None, [])
    sample = {"step": 5, "key": f"{output_prefix(job)}samples/5.png", "prompt": "a dog"}
    world.write_words(job, samples=[sample])
    seen = service.look(job)
    assert seen.phase == "training"
    assert seen.job.progress == 0.5
    ((shown, url),) = seen.samples
    assert (shown["prompt"], "samples/5.png" in url) == ("a dog", True)


def test_a_failed_training_keeps_the_compute_sides_reason(world: World) -> None:
    job = world.running_job()
    world.tell(job, TrainState.FAILED, "CUDA out of memory")
    world.tell(job, TrainState.FAILED, "something else")
    assert (world.train_job(job).state, world.train_job(job).error) == (
        TrainState.FAILED,
        "CUDA out of memory",
    )


def test_a_stop_waits_for_the_machines_word(world: World) -> None:
    service = world.services.training
    job = world.running_job()
    assert service.stop(job).state is TrainState.TRAINING, "it has not stopped yet"
    assert world.training.stopped == [job.id]
    world.tell(job, TrainState.STOPPED)
    stopped = world.train_job(job)
    assert (stopped.state, stopped.error) == (TrainState.STOPPED, "")
    assert service.stop(stopped) == stopped
    with pytest.raises(Conflict, match=r"is Stopped and cannot become Training.*nothing"):
        service.start(ME, stopped)
    waiting = world.new_job(world.complete_model())
    assert service.stop(waiting).state is TrainState.STOPPED
    finished = world.running_job()
    world.write_weights(finished)
    world.tell(finished, TrainState.COMPLETE)
    with pytest.raises(Conflict, match="cannot become Stopped"):
        service.stop(world.train_job(finished))


def test_an_end_that_was_lost_is_asked_for(world: World) -> None:
    job, model = world.running_job(), world.creating_model()
    world.write_weights(job)
    for lost in (job, model):
        world.training.known[lost.id] = TrainingStatus(TrainState.COMPLETE)
    world.pass_time(RECONCILE_SECONDS - 1)
    assert world.train_job(job).state is TrainState.TRAINING
    world.pass_time(2)
    assert world.train_job(job).state is TrainState.COMPLETE
    assert world.model(model).state is ModelState.COMPLETE


def test_what_still_runs_is_asked_about_again(world: World) -> None:
    job, model = world.running_job(), world.creating_model()
    world.pass_time(RECONCILE_SECONDS + 1)
    assert world.train_job(job).check_at == world.now + RECONCILE_SECONDS
    assert world.model(model).check_at == world.now + RECONCILE_SECONDS


def test_what_the_compute_side_does_not_know_has_failed(world: World) -> None:
    job, model = world.running_job(), world.creating_model()
    world.training.known.clear()
    world.pass_time(RECONCILE_SECONDS + 1)
    assert world.train_job(job).state is TrainState.FAILED
    assert f"does not know the job 'train-{job.id}'" in world.train_job(job).error
    assert world.model(model).state is ModelState.FAILED
    assert "does not know" in world.model(model).error


@dataclass
class Killed(Exception):
    """The server died here."""


def killed_in_start(world: World) -> tuple[TrainJob, Model]:
    """A job and a model whose records say that they run, and whose orders went nowhere."""
    job, model = world.new_job(world.complete_model()), world.new_model()
    tags = world.tags(model)
    world.training.refusal = Killed()  # type: ignore[assignment]
    with pytest.raises(Killed):
        world.services.training.start(ME, job)
    with pytest.raises(Killed):
        world.services.models.make(model, tags)
    world.training.refusal = None
    assert world.train_job(job).state is TrainState.TRAINING
    assert world.model(model).state is ModelState.CREATING
    return job, model


def test_a_kill_between_the_record_and_the_start_starts_it_later(world: World) -> None:
    job, model = killed_in_start(world)
    begun = world.training.started
    world.pass_time(RECONCILE_SECONDS + 1)
    assert world.training.started == begun + 2
    assert world.train_job(job).compute_name == f"train-{job.id}"
    assert world.model(model).compute_name == f"model-{model.id}"
    assert world.order(job)["job_id"] == job.id
    world.pass_time(5)
    assert world.train_job(job).state is TrainState.TRAINING
    assert world.model(model).state is ModelState.CREATING


def test_a_kill_between_the_start_and_its_answer_starts_no_second_machine(world: World) -> None:
    job, model = killed_in_start(world)
    for begun in (job, model):
        world.training.start(begun, "", "")
    started = world.training.started
    world.pass_time(RECONCILE_SECONDS + 1)
    assert world.training.started == started
    assert world.train_job(job).compute_name


def test_a_lost_start_that_is_refused_later_fails_with_the_reason(world: World) -> None:
    job, model = killed_in_start(world)
    world.training.refusal = Conflict("your quota is 0")
    world.pass_time(RECONCILE_SECONDS + 1)
    assert (world.train_job(job).state, world.train_job(job).error) == (
        TrainState.FAILED,
        "your quota is 0",
    )
    assert (world.model(model).state, world.model(model).error) == (
        ModelState.FAILED,
        "your quota is 0",
    )


def test_a_lost_start_can_be_stopped(world: World) -> None:
    job, _ = killed_in_start(world)
    assert world.services.training.stop(world.train_job(job)).state is TrainState.STOPPED


def test_what_was_stopped_while_it_was_being_started_does_not_run_on(world: World) -> None:
    service = world.services.training
    job = world.new_job(world.complete_model())
    start = world.training.start

    def stopped_meanwhile(*order: Any) -> str:
        service.stop(world.train_job(job))
        return start(*order)

    world.training.start = stopped_meanwhile  # type: ignore[method-assign]
    assert service.start(ME, job).state is TrainState.STOPPED
    assert world.training.known[job.id].state is TrainState.TRAINING
    assert world.training.stopped == [job.id, job.id], "the machine that came too late"


def test_an_answer_that_comes_after_the_reconcilers_look_is_still_noted(world: World) -> None:
    job = world.new_job(world.complete_model())
    start = world.training.start

    def slow(*order: Any) -> str:
        name = start(*order)
        world.now += RECONCILE_SECONDS + 1
        world.training.start = start  # type: ignore[method-assign]
        reconcile(world.services, world.records, world.clock)
        return name

    world.training.start = slow  # type: ignore[method-assign]
    started = world.services.training.start(ME, job)
    assert (started.state, started.compute_name) == (TrainState.TRAINING, f"train-{job.id}")


def test_a_refused_start_can_be_tried_again(world: World) -> None:
    service = world.services.training
    job = world.new_job(world.complete_model())
    world.training.refusal = Conflict("no ml.g5.2xlarge here")
    with pytest.raises(Conflict, match="no ml"):
        service.start(ME, world.train_job(job))
    assert world.train_job(job).state is TrainState.INITIAL
    assert world.train_job(job).check_at == job.check_at
    world.training.refusal = None
    assert service.start(ME, world.train_job(job)).state is TrainState.TRAINING


def test_a_job_that_nobody_starts_ends(world: World) -> None:
    job = world.new_job(world.complete_model())
    world.pass_time(START_DEADLINE_SECONDS + 1)
    assert world.train_job(job).state is TrainState.FAILED
    assert "not started within 24 hours" in world.train_job(job).error


def test_training_starts_only_from_what_is_ready(world: World) -> None:
    service = world.services.training
    model = world.creating_model()
    dataset = world.dataset(enabled=False)
    job = world.new_job(model, "dogs")
    with pytest.raises(Conflict, match=r"'dog'.*is Creating"):
        service.start(ME, job)
    world.tell(model, TrainState.COMPLETE)
    with pytest.raises(Conflict, match=r"'dogs' is Initialed"):
        service.start(ME, job)
    world.services.datasets.set_state(dataset, DatasetState.ENABLED)
    world.services.datasets.delete(world.services.datasets.find(ME, "dogs"))
    with pytest.raises(NotFound, match="dogs"):
        service.start(ME, job)
    world.services.models.delete(world.model(model))
    with pytest.raises(NotFound, match=model.id):
        service.start(ME, job)
    assert world.train_job(job) == job


def test_training_reads_only_what_is_the_callers(world: World) -> None:
    model = world.complete_model()
    world.dataset()
    with pytest.raises(NotFound):
        world.new_job(model, caller=OTHER)
    others = world.new_model(caller=OTHER)
    with pytest.raises(NotFound, match="dogs"):
        world.new_job(others, "dogs", caller=OTHER)
    request = NewTrainJob(CheckpointType.LORA, model.id, (), "", {})
    with pytest.raises(Conflict, match="of type Stable-diffusion"):
        world.services.training.create(ME, request, None)


def test_users_see_their_own_models_and_jobs_and_an_admin_sees_all(world: World) -> None:
    models, training = world.services.models, world.services.training
    mine, others = world.new_model(), world.new_model(caller=OTHER)
    my_job, others_job = world.new_job(mine), world.new_job(others, caller=OTHER)
    with pytest.raises(NotFound):
        models.get(ME, others.id)
    with pytest.raises(NotFound):
        training.get(ME, others_job.id)
    for caller, wanted in ((ME, 1), (OTHER, 1), (ADMIN, 2)):
        assert len(models.page(caller, [], [], 10, None).items) == wanted
        assert len(training.page(caller, [], [], 10, None).items) == wanted
    assert models.get(ADMIN, others.id) == others
    assert models.page(ADMIN, [ModelState.COMPLETE], [], 10, None).items == []
    assert models.page(ADMIN, [], [CheckpointType.VAE], 10, None).items == []
    assert training.page(ME, [TrainState.INITIAL], [KIND], 10, None).items == [my_job]
    assert training.page(ME, [TrainState.TRAINING], [], 10, None).items == []


def test_training_jobs_count_against_the_quota_once(world: World) -> None:
    model = world.complete_model()
    bounded = Principal("me", ME.scopes, "token", 1)
    first = world.new_job(model, caller=bounded, key="k")
    assert world.new_job(model, caller=bounded, key="k") == first
    with pytest.raises(QuotaExceeded):
        world.new_job(model, caller=bounded)
    with pytest.raises(Conflict, match="another request"):
        world.new_job(world.complete_model(), caller=bounded, key="k")


def test_a_job_that_trains_cannot_be_deleted(world: World) -> None:
    service = world.services.training
    job = world.running_job()
    with pytest.raises(Conflict, match="Stop it first"):
        service.delete(job)
    world.write_weights(job, "half.ckpt")
    world.tell(job, TrainState.FAILED, "disk full")
    service.delete(world.train_job(job))
    with pytest.raises(NotFound):
        world.train_job(job)
    assert [key for key in world.objects.keys("") if job.id in key] == []


def test_words_on_jobs_that_nobody_knows_change_nothing(world: World) -> None:
    world.events.training_changed(TrainingChanged("ghost", TrainState.COMPLETE))
    waiting = world.new_job(world.complete_model())
    world.tell(waiting, TrainState.COMPLETE)
    uploading = world.new_model()
    world.tell(uploading, TrainState.COMPLETE)
    assert (world.train_job(waiting), world.model(uploading)) == (waiting, uploading)


def test_tags_fit_their_files_with_and_without_tar(world: World) -> None:
    model = world.new_model(NewFile("a.safetensors.tar", 1), NewFile("b.safetensors", 1))
    tags = world.tags(model)
    with pytest.raises(InvalidRequest, match=r"has no file 'c\.tar'"):
        world.services.models.make(model, {**tags, "c.tar": []})
    with pytest.raises(Conflict, match=r"'b\.safetensors' has no parts"):
        world.services.models.make(model, {"a.safetensors": tags["a.safetensors.tar"]})
    made = world.services.models.make(
        model,
        {
            "a.safetensors": tags["a.safetensors.tar"],
            "b.safetensors.tar": tags["b.safetensors"],
        },
    )
    assert made.state is ModelState.CREATING
