"""Training from a checkpoint to a checkpoint over HTTP, on a server that is killed meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server import Server, until
from tests.weights import safetensors

KIND = "Stable-diffusion"


class PretendServer(Server):
    """A server whose training program pretends; see `pretend_trainer`."""

    PROGRAM = ("tests.pretend_training_server",)

    def model(self, name: str = "dog", **source: object) -> str:
        """A Complete model."""
        made = self.client.post("/model", json={"model_type": KIND, "name": name, **source}).json()
        tags = {}
        for target in made["job"]["s3PresignUrl"]:
            sent = httpx.put(target["parts"][0]["url"], content=safetensors())
            tags[target["filename"]] = [{"PartNumber": 1, "ETag": sent.headers["ETag"]}]
        model_id: str = made["job"]["id"]
        answer = self.client.put(
            "/model", json={"model_id": model_id, "status": "Creating", "multi_parts_tags": tags}
        )
        assert answer.status_code == 200, answer.text
        ended = self.made(model_id)
        assert (ended["status"], ended["progress"]) == ("Complete", 1.0), ended
        return model_id

    def made(self, model_id: str) -> dict[str, Any]:
        """A model, once its making has ended."""
        return until(
            lambda: next(
                model
                for model in self.client.get("/models").json()["models"]
                if model["id"] == model_id
            ),
            lambda model: model["status"] != "Creating",
        )

    def train(self, model_id: str, **pretend: object) -> str:
        """A job that trains."""
        made = self.client.post(
            "/train",
            json={"train_type": KIND, "model_id": model_id, "params": {"pretend": pretend}},
        ).json()
        job_id: str = made["job"]["id"]
        self.set_state(job_id, "Training")
        return job_id

    def set_state(self, job_id: str, status: str) -> None:
        """Row 24."""
        answer = self.client.put("/train", json={"train_job_id": job_id, "status": status})
        assert answer.status_code == 200, answer.text

    def look(self, job_id: str) -> dict[str, Any]:
        """The job from near."""
        found: dict[str, Any] = self.client.get("/train", params={"train_job_id": job_id}).json()
        return found["job"]

    def ended(self, job_id: str) -> dict[str, Any]:
        """The job once it has ended."""
        return until(lambda: self.look(job_id), lambda job: job["status"] != "Training")

    def pids(self, job_id: str) -> list[int]:
        """Of the processes that have had the job."""
        folder = self.data_dir / "objects" / KIND / "train" / "dog" / job_id / "output"
        return [int(pid) for pid in (folder / "runs").read_text().split()]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PretendServer]:
    running = PretendServer(tmp_path_factory.mktemp("training") / "var")
    yield running
    running.stop()


def test_a_checkpoint_becomes_a_model_and_the_model_a_lora(served: PretendServer) -> None:
    model_id = served.model(checkpoint_id=served.upload(safetensors(b"base"), "base.safetensors"))
    done = served.ended(served.train(model_id, steps=3, lora=True))
    assert (done["status"], done["progress"], done["error"]) == ("Complete", 1.0, "")
    assert (done["checkpoint_type"], done["checkpoint_names"]) == ("Lora", ["dog.safetensors"])
    assert done["losses"] == [[1, 1.0], [2, 0.5], [3, pytest.approx(1 / 3)]]
    assert [sample["step"] for sample in done["samples"]] == [1, 2, 3]
    assert httpx.get(done["samples"][0]["url"]).content.startswith(b"\x89PNG")
    assert served.client.get("/inference/get-lora-list").json() == ["dog.safetensors"]


def test_stop_and_keep(served: PretendServer) -> None:
    model_id = served.model(filenames=[{"filename": "up.safetensors", "parts_number": 1}])
    job_id = served.train(model_id, steps=4, waits=True)
    until(lambda: served.look(job_id), lambda job: job["step"] == 2)
    (listed, *_) = served.client.get("/trains", params={"status": "Training"}).json()["trainJobs"]
    assert (listed["progress"], listed["loss"]) == (0.5, 0.5)
    waiting = served.train(model_id)
    assert served.look(waiting)["phase"] == "waiting for its turn, 1 before it"
    served.set_state(waiting, "Stopped")
    assert served.look(waiting)["status"] == "Stopped"
    served.set_state(job_id, "Stopped")
    kept = served.ended(job_id)
    assert (kept["status"], kept["checkpoint_names"]) == ("Stopped", ["dog.safetensors"])
    checkpoint = served.client.get("/checkpoint", params={"id": kept["checkpoint_id"]}).json()
    assert checkpoint["checkpoint"]["status"] == "Active"


def test_a_model_whose_weights_are_gone_fails_with_that(served: PretendServer) -> None:
    checkpoint_id = served.upload(safetensors(b"gone"), "gone.safetensors")
    made = served.client.post(
        "/model", json={"model_type": KIND, "name": "dog", "checkpoint_id": checkpoint_id}
    ).json()["job"]
    folder = served.data_dir / "objects" / KIND / "checkpoint" / checkpoint_id
    (folder / "gone.safetensors").unlink()
    served.client.put("/model", json={"model_id": made["id"], "status": "Creating"})
    failed = served.made(made["id"])
    assert failed["status"] == "Fail"
    assert "gone.safetensors" in failed["error"]


def test_a_killed_server_and_a_killed_program_cost_no_job(tmp_path: Path) -> None:
    first = PretendServer(tmp_path / "var")
    job_id = first.train(first.model(checkpoint_id=first.upload(safetensors())), waits=True)
    until(lambda: first.look(job_id), lambda job: job["step"] == 2)
    (old,) = first.pids(job_id)
    first.kill()
    until(lambda: {"runs": is_running(old)}, lambda seen: not seen["runs"])
    second = PretendServer(tmp_path / "var")
    try:
        until(lambda: second.look(job_id), lambda job: job["step"] == 3)
        assert second.look(job_id)["status"] == "Training"
        os.kill(second.pids(job_id)[-1], signal.SIGKILL)
        until(lambda: {"pids": second.pids(job_id)}, lambda seen: len(seen["pids"]) == 3)
        until(lambda: second.look(job_id), lambda job: job["step"] == 4)
        second.set_state(job_id, "Stopped")
        ended = second.ended(job_id)
        assert ended["checkpoint_names"] == ["dog.safetensors"], ended
    finally:
        second.stop()


def is_running(pid: int) -> bool:
    """Whether a process is there."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
