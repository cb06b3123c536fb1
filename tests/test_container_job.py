"""One invocation in this process: what is written, when it stops, and what it answers."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import threading
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from PIL import Image

from middleware_api import contract
from middleware_api.container import storage as storage_module
from middleware_api.container.engine.engine import Engine
from middleware_api.container.errors import (
    BadRequest,
    CheckpointUnreadable,
    ContainerError,
    DiskFull,
    FailedBefore,
    Unforeseen,
    WorkerStopping,
)
from middleware_api.container.job import JobRunner, parse_invocation
from middleware_api.container.networks.network_files import hash_without_header
from middleware_api.container.progress import ProgressReporter, Step
from middleware_api.container.prompts.encoder import PromptEncoder
from middleware_api.container.s3_storage import S3Storage
from middleware_api.container.storage import FolderStorage, OnBytes
from middleware_api.container.tasks import tasks_of
from tests.aws import BUCKET, aws
from tests.engine_checkpoints import write_checkpoint
from tests.sample_controlnets import controlnet, write_controlnet
from tests.sample_networks import write_converted
from tests.test_engine import encoded, photo

JOB = "5a1e"
CHECKPOINT = "Stable-diffusion/checkpoint/c1/tiny.safetensors"
FIELDS = {"prompt": "a cat", "seed": 1, "steps": 3, "width": 64, "height": 64}


def invocation(**changes: Any) -> contract.Invocation:
    body: dict[str, Any] = {
        "job_id": JOB,
        "task_type": "txt2img",
        "params_key": contract.params_key(contract.TaskType.TXT2IMG, JOB),
        "checkpoints": [
            {
                "type": "Stable-diffusion",
                "name": "tiny.safetensors",
                "key": CHECKPOINT,
                "size": 1,
                "sha256": "",
            }
        ],
        "output_prefix": contract.output_prefix(JOB),
    }
    return parse_invocation(json.dumps(body | changes).encode())


class Watched(FolderStorage):
    """A real folder that remembers what was written, and runs `after_write` once it is there.

    `before_weights` runs while the job waits for its checkpoint, `before_look` when it looks
    whether an object is there.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.written: list[str] = []
        self.after_write = lambda key: None
        self.before_weights = lambda: None
        self.before_look = lambda key: None

    def exists(self, key: str) -> bool:
        self.before_look(key)
        return super().exists(key)

    def weights(
        self, checkpoint: contract.ContainerCheckpoint, look: OnBytes
    ) -> AbstractContextManager[Path]:
        self.before_weights()
        return super().weights(checkpoint, look)

    def write(self, key: str, content: bytes) -> None:
        super().write(key, content)
        self.written.append(key)
        self.after_write(key)

    def progress(self) -> contract.Progress:
        seen: contract.Progress = json.loads(self.read(contract.progress_key(JOB)))
        return seen


@pytest.fixture(scope="module")
def engine() -> Engine:
    torch.set_num_threads(1)
    return Engine(torch.device("cpu"), 10**9, PromptEncoder())


@pytest.fixture
def storage(tmp_path: Path) -> Watched:
    write_checkpoint(tmp_path / CHECKPOINT)
    return Watched(tmp_path)


@pytest.fixture
def runner(engine: Engine, storage: Watched) -> JobRunner:
    return JobRunner(tasks_of(engine), storage, threading.Event(), clock=lambda: 1_700_000_000.0)


def submit(storage: FolderStorage, **fields: object) -> None:
    """As a new job: what an earlier one under the same id has come to is gone."""
    (storage.root / contract.outcome_key(JOB)).unlink(missing_ok=True)
    key = contract.params_key(contract.TaskType.TXT2IMG, JOB)
    storage.write(key, json.dumps(FIELDS | fields).encode())


def test_pictures_and_progress_are_written_and_the_answer_is_the_webuis(
    runner: JobRunner, storage: Watched
) -> None:
    submit(storage, batch_size=2, n_iter=2, image_cfg_scale=1.5)
    result = runner.run(invocation())
    assert result["status"] == "succeed"
    assert result["images"] == [contract.image_key(JOB, i) for i in range(4)]
    assert result["parameters"] == FIELDS | {"batch_size": 2, "n_iter": 2, "image_cfg_scale": 1.5}
    info = json.loads(result["info"])
    assert info["all_seeds"] == [1, 2, 3, 4]
    assert info["all_prompts"] == ["a cat"] * 4
    digest = hashlib.sha256(storage.read(CHECKPOINT)).hexdigest()
    assert (info["sd_model_name"], info["sd_model_hash"]) == ("tiny", digest[:10])
    assert info["job_timestamp"].startswith("202311")
    assert info["warnings"] == ["image_cfg_scale is not supported yet and was ignored."]
    for key, infotext in zip(result["images"], info["infotexts"], strict=True):
        picture = Image.open(io.BytesIO(storage.read(key)))
        assert picture.format == "PNG"
        assert picture.info["parameters"] == infotext
    progress = storage.progress()
    progress.pop("has_preview")  # a matter of how fast the machine is
    assert progress == {
        "step": 6,
        "total_steps": 6,
        "fraction": 1.0,
        "phase": "done",
        "started_at": 1_700_000_000.0,
        "updated_at": 1_700_000_000.0,
    }


def test_each_picture_is_written_before_the_next_batch_starts(
    runner: JobRunner, storage: Watched
) -> None:
    submit(storage, n_iter=3)
    finished: list[int] = []
    first = contract.image_key(JOB, 0)
    storage.after_write = lambda key: finished.append(
        sum(storage.exists(contract.image_key(JOB, i)) for i in range(3)) if key == first else 0
    )
    runner.run(invocation())
    assert max(finished) == 1


def test_a_cancelled_job_stops_at_the_next_step_and_keeps_what_is_finished(
    runner: JobRunner, storage: Watched
) -> None:
    submit(storage, n_iter=50)
    kept = contract.image_key(JOB, 0)

    def cancel_when_the_first_is_saved(key: str) -> None:
        if key == kept:
            storage.write(contract.cancel_key(JOB), b"")

    storage.after_write = cancel_when_the_first_is_saved
    result = runner.run(invocation())
    assert (result["status"], result["images"]) == ("cancelled", [kept])
    assert json.loads(result["info"])["all_seeds"] == [1]
    progress = storage.progress()
    assert (progress["step"], progress["total_steps"]) == (3, 150)
    assert progress["phase"] == "cancelled"


def test_a_cancelled_hires_pass_stops_at_the_next_step(runner: JobRunner, storage: Watched) -> None:
    submit(storage, steps=4, enable_hr=True, hr_scale=1.25, hr_second_pass_steps=100)
    looks: list[str] = []

    def cancel_in_the_second_pass(key: str) -> None:
        looks.append(key)
        if len(looks) == 12:
            storage.write(contract.cancel_key(JOB), b"")

    storage.before_look = cancel_in_the_second_pass
    result = runner.run(invocation())
    assert (result["status"], result["images"]) == ("cancelled", [])
    progress = storage.progress()
    assert len(looks) == 12
    assert 4 < progress["step"] < 12
    assert progress["total_steps"] == 104


def refuse_weights() -> None:
    raise AssertionError("nobody wants the weights")


def test_a_job_cancelled_before_it_starts_costs_nothing(
    runner: JobRunner, storage: Watched
) -> None:
    submit(storage, image_cfg_scale=1.5)
    storage.write(contract.cancel_key(JOB), b"")
    storage.written.clear()
    storage.before_weights = refuse_weights
    sha256 = "ab" * 32
    wanted = [{**invocation()["checkpoints"][0], "sha256": sha256}]
    result = runner.run(invocation(checkpoints=wanted))
    assert (result["status"], result["images"]) == ("cancelled", [])
    assert result["parameters"] == FIELDS | {"image_cfg_scale": 1.5}
    info = json.loads(result["info"])
    assert (info["sd_model_name"], info["sd_model_hash"]) == ("tiny", sha256[:10])
    assert (info["infotexts"], len(info["warnings"])) == ([], 1)
    assert storage.progress()["step"] == 0
    assert storage.progress()["phase"] == "cancelled"
    assert storage.written == [contract.progress_key(JOB), contract.outcome_key(JOB)]


def test_a_job_cancelled_while_its_checkpoint_is_fetched_does_not_load_it(
    runner: JobRunner, storage: Watched
) -> None:
    submit(storage)
    storage.before_weights = lambda: storage.write(contract.cancel_key(JOB), b"")
    wanted = [{**invocation()["checkpoints"][0], "key": "never opened.safetensors"}]
    assert runner.run(invocation(checkpoints=wanted))["status"] == "cancelled"


def test_progress_tells_of_the_fetching_while_it_lasts(runner: JobRunner, storage: Watched) -> None:
    phases: list[str] = []
    told = threading.Event()

    def look(key: str) -> None:
        if key == contract.progress_key(JOB):
            phases.append(storage.progress()["phase"])
            told.set()

    def fetch() -> None:
        assert told.wait(10)

    submit(storage)
    storage.after_write, storage.before_weights = look, fetch
    runner.run(invocation())
    assert (phases[0], phases[-1]) == ("fetching checkpoint", "done")


def test_a_stopping_worker_gives_the_job_back(runner: JobRunner, storage: Watched) -> None:
    submit(storage, n_iter=50)
    storage.after_write = lambda key: (
        runner.stopping.set() if key == contract.image_key(JOB, 0) else None
    )
    with pytest.raises(WorkerStopping, match="can be queued again"):
        runner.run(invocation())
    assert storage.progress()["step"] == 3
    with pytest.raises(WorkerStopping):
        runner.run(invocation())


def test_a_job_that_comes_again_after_its_end_is_not_run_again(
    runner: JobRunner, storage: Watched
) -> None:
    submit(storage)
    first = runner.run(invocation())
    assert storage.written[-1] == contract.outcome_key(JOB)
    storage.written.clear()
    storage.before_weights = refuse_weights
    assert runner.run(invocation()) == first
    assert storage.written == []


def test_a_cancelled_job_that_comes_again_is_still_cancelled(
    runner: JobRunner, storage: Watched
) -> None:
    submit(storage)
    storage.write(contract.cancel_key(JOB), b"")
    first = runner.run(invocation())
    (storage.root / contract.cancel_key(JOB)).unlink()
    assert runner.run(invocation()) == first


def test_a_failed_job_that_comes_again_fails_in_the_same_words(
    runner: JobRunner, storage: Watched
) -> None:
    submit(storage, sampler_name="Eular")
    with pytest.raises(BadRequest) as first:
        runner.run(invocation())
    key = contract.params_key(contract.TaskType.TXT2IMG, JOB)
    storage.write(key, json.dumps(FIELDS).encode())
    storage.written.clear()
    with pytest.raises(FailedBefore) as second:
        runner.run(invocation())
    assert str(second.value) == str(first.value)
    assert storage.written == []


def test_a_job_that_was_given_back_is_run_when_it_comes_again(
    runner: JobRunner, storage: Watched
) -> None:
    submit(storage)
    storage.before_weights = runner.stopping.set
    with pytest.raises(WorkerStopping):
        runner.run(invocation())
    assert not storage.exists(contract.outcome_key(JOB))
    runner.stopping.clear()
    storage.before_weights = lambda: None
    assert runner.run(invocation())["images"] == [contract.image_key(JOB, 0)]


def test_an_outcome_that_cannot_be_read_is_not_written_over(
    runner: JobRunner, storage: Watched
) -> None:
    submit(storage)
    (storage.root / contract.outcome_key(JOB)).mkdir(parents=True)
    storage.written.clear()
    with pytest.raises(Unforeseen, match=r"IsADirectoryError.*Its log has the details"):
        runner.run(invocation())
    assert storage.written == []


def test_sampling_from_s3_costs_no_request_a_step(engine: Engine, tmp_path: Path) -> None:
    weights = write_checkpoint(tmp_path / "tiny.safetensors").read_bytes()
    wanted = [{**invocation()["checkpoints"][0], "size": len(weights)}]
    with aws() as account:
        storage = S3Storage(account.client("s3"), BUCKET, tmp_path / "weights", 10**9, lambda: 0.0)
        storage.write(CHECKPOINT, weights)
        fields = FIELDS | {"steps": 40}
        storage.write(
            contract.params_key(contract.TaskType.TXT2IMG, JOB), json.dumps(fields).encode()
        )
        with account.counted() as calls:
            result = JobRunner(tasks_of(engine), storage, threading.Event()).run(
                invocation(checkpoints=wanted)
            )
        assert storage.read(result["images"][0]).startswith(b"\x89PNG")
        assert calls[:3] == ["GetObject", "GetObject", "HeadObject"]  # outcome, params, marker
        assert calls.count("HeadObject") == 2  # the other one belongs to the download
        assert calls[-1] == "PutObject"


def test_the_second_job_finds_the_weights_in_memory(runner: JobRunner, storage: Watched) -> None:
    submit(storage)
    first = runner.run(invocation())
    (storage.root / CHECKPOINT).unlink()
    submit(storage)
    assert runner.run(invocation())["info"].split("subseed")[0] == first["info"].split("subseed")[0]


def test_other_formats_are_saved_under_their_extension(runner: JobRunner, storage: Watched) -> None:
    submit(storage, override_settings={"samples_format": "jpg"})
    (key,) = runner.run(invocation())["images"]
    assert key.endswith("image_0.jpg")
    assert Image.open(io.BytesIO(storage.read(key))).format == "JPEG"


def test_files_that_the_engine_cannot_use_are_warned_of(
    runner: JobRunner, storage: Watched
) -> None:
    submit(storage)
    wanted = [
        {**invocation()["checkpoints"][0], "type": kind, "name": "ink.safetensors"}
        for kind in ("Lora", "ControlNet")
    ]
    result = runner.run(invocation(checkpoints=[*wanted, *invocation()["checkpoints"]]))
    assert json.loads(result["info"])["warnings"] == [
        "Lora file ink.safetensors is not named by the request and was ignored.",
        "ControlNet file ink.safetensors is not named by the request and was ignored.",
    ]


def test_networks_are_found_by_the_names_in_the_prompts(
    runner: JobRunner, storage: Watched
) -> None:
    """Missing, unmeant and unfit ones are told; the pictures are made without them."""
    write_converted(storage.root)
    wanted = [
        *invocation()["checkpoints"],
        named("Lora", "style.safetensors", "style.safetensors"),
        named("Lora", "conv.safetensors", "conv.safetensors"),
        named("embeddings", "soft-glow2.safetensors", "soft-glow2.safetensors"),
        named("embeddings", "wide.safetensors", "wide.safetensors"),
        named("embeddings", "sparkle.safetensors", "never opened"),
        named("hypernetworks", "wave.safetensors", "wave.safetensors"),
        named("hypernetworks", "ripple.safetensors", "never opened"),
    ]
    submit(
        storage,
        prompt="a Soft-Glow2 circle <lora:styled:1> <lora:gone:1> <hypernet:wave:0.5> <ink:1>"
        "<hypernet:lost:1><lora:style:much><lora:style:1:lbw=ALL:start=3>",
        negative_prompt="wide <lora:style:1>",
    )
    info = json.loads(runner.run(invocation(checkpoints=wanted))["info"])
    lora, glow = (
        hash_without_header(storage.root / "style.safetensors"),
        hashlib.sha256(storage.read("soft-glow2.safetensors")).hexdigest(),
    )
    assert info["extra_generation_params"] == {
        "Lora hashes": f"styled: {lora[:12]}, style: {lora[:12]}",
        "TI hashes": f"soft-glow2: {glow[:12]}",
    }
    assert f'Lora hashes: "styled: {lora[:12]}, style' in info["infotexts"][0]
    assert info["warnings"] == [
        "embeddings file sparkle.safetensors is not named by the request and was ignored.",
        "hypernetworks file ripple.safetensors is not named by the request and was ignored.",
        "Lora file conv is not named by the request and was ignored.",
        "<ink:1> is no kind of network that there is; it was left out.",
        "<lora:style:much> has a weight that is no number; it was left out.",
        "<lora:style:1:lbw=ALL:start=3>: start= is not supported yet.",
        "LoRA 'gone' is not among the job's Lora files and was left out. Add it to the job's "
        "models.",
        "Hypernetwork 'lost' is not among the job's hypernetworks files and was left out. Add it "
        "to the job's models.",
        "LoRA style: 20 of its layers do not fit tiny.safetensors and were left out.",
        "Embedding wide was made for another kind of model than tiny.safetensors, which is of "
        "Stable Diffusion 1.x: it was left out.",
        "<lora:style:1> does nothing in a negative prompt: it was read as words.",
    ]


def named(kind: str, name: str, key: str = CHECKPOINT) -> dict[str, object]:
    return {"type": kind, "name": name, "key": key, "size": 1, "sha256": ""}


def test_a_request_names_the_files_it_is_made_with(runner: JobRunner, storage: Watched) -> None:
    other = "Stable-diffusion/checkpoint/c2/other.safetensors"
    write_checkpoint(storage.root / other, seed=1)
    wanted = [
        named("Stable-diffusion", "tiny.safetensors"),
        named("Stable-diffusion", "other.safetensors", other),
        named("Stable-diffusion", "third.safetensors", "never opened"),
        named("VAE", "soft.safetensors", other),  # a whole checkpoint brings its VAE along
    ]
    submit(
        storage,
        refiner_checkpoint="tiny.safetensors [0123456789]",
        refiner_switch_at=0.5,
        override_settings={"sd_model_checkpoint": "other", "sd_vae": "soft.safetensors"},
    )
    info = json.loads(runner.run(invocation(checkpoints=wanted))["info"])
    assert (info["sd_model_name"], info["sd_vae_name"]) == ("other", "soft.safetensors")
    assert info["sd_vae_hash"] == info["sd_model_hash"]
    tiny = hashlib.sha256(storage.read(CHECKPOINT)).hexdigest()[:10]
    assert info["extra_generation_params"] == {
        "Refiner": f"tiny [{tiny}]",
        "Refiner switch at": 0.5,
    }
    assert info["warnings"] == [
        "Stable-diffusion file third.safetensors is not named by the request and was ignored."
    ]


def test_a_vae_that_the_job_does_not_bring_is_warned_of(
    runner: JobRunner, storage: Watched
) -> None:
    submit(storage, override_settings={"sd_vae": "soft.pt", "sd_model_checkpoint": "elsewhere"})
    info = json.loads(runner.run(invocation())["info"])
    assert info["sd_vae_name"] is None
    assert info["warnings"] == [
        "override_settings.sd_vae 'soft.pt' is not among the job's VAE files: the checkpoint's own "
        "was used."
    ]


def test_each_failure_says_what_to_do(runner: JobRunner, storage: Watched) -> None:
    def refused(kind: type[ContainerError], words: str, **changes: Any) -> None:
        (storage.root / contract.outcome_key(JOB)).unlink(missing_ok=True)
        with pytest.raises(kind, match=words):
            runner.run(invocation(**changes))

    refused(BadRequest, "are not in the object store. Submit the job again")
    submit(storage, sampler_name="Eular")
    refused(BadRequest, "Sampler 'Eular' is not available. Choose one of: DPM")
    submit(storage, refiner_checkpoint="absent")
    refused(BadRequest, r"refiner_checkpoint 'absent' is not among .*\(tiny.safetensors\)")
    submit(storage, enable_hr=True, hr_checkpoint_name="absent")
    refused(BadRequest, "hr_checkpoint_name 'absent' is not among the job's checkpoints")
    submit(storage)
    refused(BadRequest, "names no Stable-diffusion checkpoint", checkpoints=[])
    refused(BadRequest, "Task type 'restyle'", task_type="restyle")
    refused(BadRequest, "is not a relative path", params_key="../secrets")
    gone = {**invocation()["checkpoints"][0], "key": "gone.safetensors"}
    refused(CheckpointUnreadable, "is not in the object store", checkpoints=[gone])
    storage.write("gone.safetensors", b"garbage")
    refused(CheckpointUnreadable, "is not a readable .safetensors", checkpoints=[gone])


def test_a_controlnet_steers_a_job_and_what_it_saw_is_saved_behind_the_pictures(
    runner: JobRunner, storage: Watched
) -> None:
    write_controlnet(storage.root / "canny.safetensors", controlnet())
    named_net = named("ControlNet", "control_canny.safetensors", "canny.safetensors")
    unit = {"model": "control_canny [d14c016b]", "image": encoded(photo(200, 200))}
    scripts = {"controlnet": {"args": [unit | {"module": "invert", "weight": 1.5}]}}
    submit(storage, n_iter=2, alwayson_scripts=scripts)
    result = runner.run(invocation(checkpoints=[*invocation()["checkpoints"], named_net]))
    assert result["images"] == [contract.image_key(JOB, i) for i in range(3)]
    info = json.loads(result["info"])
    assert (len(info["infotexts"]), info["all_seeds"], info["warnings"]) == (2, [1, 2], [])
    assert "ControlNet 0" in info["extra_generation_params"]
    seen = Image.open(io.BytesIO(storage.read(result["images"][2])))
    assert (seen.size, seen.info.get("parameters")) == ((64, 64), None)
    (told,) = cast(Any, result["parameters"])["alwayson_scripts"]["controlnet"]["args"]
    assert told == unit | {"module": "invert", "weight": 1.5, "image": None}
    submit(storage, alwayson_scripts=scripts)
    with pytest.raises(BadRequest, match=r"'control_canny \[d14c016b\]' is not among .*\(none\)"):
        runner.run(invocation())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"job_id": ""}, "is not a job id"),
        ({"job_id": "../x"}, "is not a job id"),
        ({"job_id": 7}, "needs the texts"),
        ({"output_prefix": "elsewhere/"}, "output_prefix is not the job's own"),
        ({"checkpoints": None}, "checkpoints must be a list"),
        ({"checkpoints": [{"type": "VAE"}]}, "checkpoints must be a list"),
        (
            {"checkpoints": [{**invocation()["checkpoints"][0], "size": "1"}]},
            "checkpoints must be a list",
        ),
    ],
    ids=str,
)
def test_malformed_invocations_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        invocation(**change)


def test_a_full_disk_is_told_apart(
    runner: JobRunner, storage: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(storage)
    replace = storage_module.os.replace

    def full(source: Path, target: Path) -> None:
        if target.suffix == ".png":
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(storage_module.os, "replace", full)
    with pytest.raises(DiskFull, match="Free disk space under the object store"):
        runner.run(invocation())
    assert not list(storage.root.rglob("*.part"))


def test_progress_is_written_with_a_preview_at_most_twice_a_second(storage: Watched) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def draw(clean: torch.Tensor) -> bytes:
        entered.set()
        assert go_on.wait(10)
        return b"jpeg %d" % int(clean)

    reporter = ProgressReporter(storage, JOB, clock=lambda: 5.0)
    reporter.draw = draw
    reporter.step(Step(0, 100, torch.tensor(0)))
    assert entered.wait(10)
    for done in range(1, 60):  # all of them while the first is being drawn, and soon after
        reporter.step(Step(done, 100, torch.tensor(done)))
    go_on.set()
    reporter.close()
    assert storage.written == [contract.preview_key(JOB), contract.progress_key(JOB)] * 2
    assert storage.read(contract.preview_key(JOB)) == b"jpeg 59"
    assert storage.progress()["step"] == 59
    assert storage.progress()["has_preview"] is True


def test_a_slow_preview_is_followed_by_a_pause(storage: Watched) -> None:
    now = 0.0

    def draw(clean: torch.Tensor) -> bytes:
        nonlocal now
        now += 2.0
        return b"jpeg %d" % int(clean)

    reporter = ProgressReporter(storage, JOB, clock=lambda: now)
    reporter.draw = draw
    previews = []
    for done, at in enumerate((0.0, 10.0, 19.9, 20.1)):
        now = at
        reporter._write("sampling", Step(done, 4, torch.tensor(done)))
        previews.append(storage.read(contract.preview_key(JOB)))
    reporter.close()
    assert previews == [b"jpeg 0", b"jpeg 0", b"jpeg 0", b"jpeg 3"]
    assert storage.progress()["step"] == 3


def test_a_preview_that_fails_does_not_fail_the_job(storage: Watched) -> None:
    def draw(clean: torch.Tensor) -> bytes:
        raise RuntimeError("out of memory")

    reporter = ProgressReporter(storage, JOB)
    reporter.draw = draw
    reporter.step(Step(1, 2, torch.tensor(0)))
    reporter.phase("done")
    reporter.close()
    assert storage.progress()["phase"] == "done"


def test_a_prefetch_leaves_the_checkpoint_in_memory_and_makes_nothing(storage: Watched) -> None:
    engine = Engine(torch.device("cpu"), 10**9, PromptEncoder())
    runner = JobRunner(tasks_of(engine), storage, threading.Event())
    key = contract.params_key(contract.TaskType.PREFETCH, JOB)
    storage.write(key, b"{}")
    asked = {**invocation(), "task_type": "prefetch", "params_key": key}
    result = runner.run(cast(contract.Invocation, asked))
    assert (result["status"], result["images"]) == ("succeed", [])
    told = asked["checkpoints"][0]
    assert engine.loader.checkpoints.keys == [told["sha256"] or told["key"]]
