"""A prompt becomes a picture: client, HTTP API, queue, worker process, object store, client."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path

import httpx
from PIL import Image

from tests.server import Server, until
from tests.weights import safetensors

REQUEST = {
    "task_type": "txt2img",
    "models": {"Stable-diffusion": ["tiny.safetensors"]},
    "prompt": "a big red circle on a blue background",
    "width": 64,
    "height": 64,
    "steps": 4,
    "seed": 7,
    "sampler_name": "Euler",
}
# Long enough that whatever a test does happens while it runs.
LONG = {**REQUEST, "steps": 500, "n_iter": 100}


def worker_of(server: Server) -> int:
    """Process id of the server's only worker."""
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    pids = [pid for task in children.parent.parent.iterdir() for pid in _children(task)]
    assert len(pids) == 1, pids
    return pids[0]


def _children(task: Path) -> list[int]:
    return [int(pid) for pid in (task / "children").read_text().split()]


def running(server: Server, job_id: str) -> None:
    """Wait until the worker has begun to sample."""
    until(lambda: server.job(job_id), lambda job: job["progress"] > 0)


def test_a_prompt_becomes_a_picture_with_its_infotext(studio: Server) -> None:
    job = studio.finished(studio.submit(**REQUEST))
    assert (job["status"], job["error"]) == ("succeed", "")
    assert job["image_names"] == ["image_0.png"]
    (url,) = studio.client.get(
        "/inference/get-inference-job-image-output", params={"jobID": job["InferenceJobId"]}
    ).json()
    picture = Image.open(io.BytesIO(httpx.get(url).content))
    assert picture.size == (64, 64)
    assert picture.info["parameters"].startswith("a big red circle on a blue background\n")
    assert "Seed: 7" in picture.info["parameters"]
    (url,) = studio.client.get(
        "/inference/get-inference-job-param-output", params={"jobID": job["InferenceJobId"]}
    ).json()
    output = httpx.get(url).json()
    assert json.loads(output["info"])["seed"] == 7
    assert output["parameters"]["steps"] == 4
    assert output["inference_id"] == job["InferenceJobId"]


def test_a_large_body_goes_by_upload(studio: Server) -> None:
    prepared = studio.client.post(
        "/inference/v2",
        json={"upload_params": True, "task_type": "txt2img", "models": REQUEST["models"]},
    ).json()
    assert prepared["status"] == "created"
    run = f"/inference/v2/{prepared['inference_id']}/run"
    too_early = studio.client.put(run)
    assert (too_early.status_code, too_early.json()["code"]) == (409, "params_missing")
    httpx.put(prepared["api_params_s3_upload_url"], json=REQUEST).raise_for_status()
    assert studio.client.put(run).json()["status"] == "inprogress"
    assert studio.finished(prepared["inference_id"])["status"] == "succeed"


def test_cancel_stops_a_running_job_and_takes_a_waiting_one_from_the_queue(
    studio: Server,
) -> None:
    first, second = studio.submit(**LONG), studio.submit(**LONG)
    running(studio, first)
    assert studio.job(second)["queue_position"] == 1
    assert studio.client.post(f"/inference/v2/{second}/cancel").json()["status"] == "cancelled"
    studio.client.post(f"/inference/v2/{first}/cancel")
    assert studio.finished(first)["status"] == "cancelled"
    assert studio.finished(studio.submit(**REQUEST))["status"] == "succeed"


def test_progress_shows_how_far_and_what(studio: Server) -> None:
    job_id = studio.submit(**LONG)
    job = until(lambda: studio.job(job_id), lambda job: job["preview_url"] is not None)
    assert 0 < job["progress"] < 1
    assert (job["queue_position"], job["phase"]) == (0, "sampling")
    assert job["eta_seconds"] > 0
    preview = Image.open(io.BytesIO(httpx.get(job["preview_url"]).content))
    assert preview.format == "JPEG"
    part = httpx.get(job["preview_url"], headers={"Range": "bytes=0-1"})
    assert (part.status_code, part.content) == (206, b"\xff\xd8")
    studio.client.post(f"/inference/v2/{job_id}/cancel")
    assert studio.finished(job_id)["status"] == "cancelled"


def test_two_workers_run_two_jobs_at_once(server: Server, weights: bytes) -> None:
    server.upload(weights)
    assert server.deploy("pair", count=2)["endpoint_status"] == "InService"
    server.endpoint("pair", lambda e: e["current_instance_count"] == 2)
    first, second = server.submit(**LONG), server.submit(**LONG)
    running(server, first)
    running(server, second)


def test_a_job_outlives_one_worker_and_ends_with_the_reason_after_two(studio: Server) -> None:
    job_id = studio.submit(**LONG)
    for _ in range(2):
        running(studio, job_id)
        killed = worker_of(studio)
        os.kill(killed, signal.SIGKILL)
        until(
            lambda: studio.job(job_id),
            lambda job: job["progress"] == 0 or job["status"] == "failed",
        )
    job = studio.finished(job_id)
    assert job["status"] == "failed"
    assert "died twice" in job["error"]
    assert "signal 9" in job["error"]
    assert studio.finished(studio.submit(**REQUEST))["status"] == "succeed"


def test_nothing_is_lost_when_the_server_is_killed(own_studio: Server) -> None:
    running_job = own_studio.submit(**{**REQUEST, "steps": 300})
    waiting_job = own_studio.submit(**REQUEST)
    running(own_studio, running_job)
    worker = worker_of(own_studio)
    own_studio.kill()
    until(lambda: {"alive": _is_alive(worker)}, lambda seen: not seen["alive"])
    again = Server(own_studio.data_dir)
    assert again.finished(running_job)["status"] == "succeed"
    assert again.finished(waiting_job)["status"] == "succeed"
    again.stop()


def _is_alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_deleting_an_endpoint_ends_its_jobs_with_the_reason(own_studio: Server) -> None:
    job_id = own_studio.submit(**LONG)
    running(own_studio, job_id)
    answer = own_studio.client.request(
        "DELETE", "/endpoints", json={"delete_endpoint_list": ["studio", "ghost"]}
    )
    assert answer.status_code == 404
    assert "ghost" in answer.json()["error"]
    deleted = own_studio.endpoint("studio", lambda e: e["endpoint_status"] == "Deleted")
    assert deleted["status"] == "deleted"
    job = own_studio.finished(job_id)
    assert job["status"] == "failed"
    assert "endpoint was deleted" in job["error"]
    assert own_studio.client.post("/inference/v2", json=REQUEST).json()["code"] == (
        "no_endpoint_in_service"
    )


def test_a_broken_checkpoint_fails_the_job_and_not_the_worker(studio: Server) -> None:
    studio.upload(safetensors(b"no weights of a model"), "broken.safetensors")
    broken = {**REQUEST, "models": {"Stable-diffusion": ["broken.safetensors"]}}
    job = studio.finished(studio.submit(**broken))
    assert job["status"] == "failed"
    assert "broken.safetensors" in job["error"]
    assert studio.finished(studio.submit(**REQUEST))["status"] == "succeed"


def test_the_same_idempotency_key_is_the_same_job(studio: Server) -> None:
    headers = {"Idempotency-Key": "once"}
    first = studio.client.post("/inference/v2", json=REQUEST, headers=headers).json()
    second = studio.client.post("/inference/v2", json=REQUEST, headers=headers).json()
    assert first["inference_id"] == second["inference_id"]
    other = studio.client.post("/inference/v2", json={**REQUEST, "seed": 8}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")


def test_an_endpoint_whose_workers_cannot_start_fails_with_their_reason(tmp_path: Path) -> None:
    server = Server(tmp_path / "var", SDAWS_CACHE_BYTES="plenty")
    endpoint = server.deploy()
    assert endpoint["endpoint_status"] == "Failed"
    assert "SDAWS_CACHE_BYTES must be a whole number" in endpoint["error"]
    server.stop()
