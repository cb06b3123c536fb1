"""A pretended cloud: the rows that the extension calls, answered from memory with drawn pictures.

One handler for both test doubles: in process behind `FakeTransport`, and on a real port.
"""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image, ImageDraw, PngImagePlugin

from aws_extension.fake_transport import FakeAnswer, Sent
from middleware_api.contract import CURSOR_HEADER, ON_BEHALF_HEADER
from tests.extension.pretend_checkpoints import PretendCheckpoints
from tests.extension.pretend_datasets import PretendDatasets

TOKEN = "token-of-the-tests-0123456789"
CHECKPOINT = "demo.safetensors"
SHA256 = "ab" * 32


# Nothing is trained here.
_EMPTY = {"/trains": "trainJobs", "/models": "models"}


@dataclass
class PretendJob:
    """One job; it is seen `polls_left` times more before it is finished."""

    id: str
    body: dict[str, Any]
    polls_left: int
    state: str = "inprogress"
    error: str = ""
    made: int = 0
    owner: str = ""

    @property
    def count(self) -> int:
        return int(self.body.get("n_iter", 1)) * int(self.body.get("batch_size", 1))

    @property
    def maps(self) -> int:
        """Pictures behind the others: what ControlNet's units saw."""
        units = self.body.get("alwayson_scripts", {}).get("controlnet", {}).get("args", [])
        return sum(unit["enabled"] and unit.get("save_detected_map", True) for unit in units)

    @property
    def schedule(self) -> str:
        """As the engine: the sampler's own where it was left open."""
        asked = self.body.get("scheduler", "Automatic")
        own = "Karras" if str(self.body.get("sampler_name", "")).startswith("DPM++") else asked
        return str(own if asked == "Automatic" else asked)

    def infotext(self, index: int) -> str:
        seed = int(self.body.get("seed", 1)) + index
        body = self.body
        negative = body.get("negative_prompt") or ""
        return (
            f"{body.get('prompt', '')}\n"
            + (f"Negative prompt: {negative}\n" if negative else "")
            + f"Steps: {body.get('steps', 20)}, Sampler: {body.get('sampler_name')}, "
            f"Schedule type: {self.schedule}, CFG scale: {body.get('cfg_scale')}, Seed: {seed}, "
            f"Size: {body['width']}x{body['height']}, Model hash: {SHA256[:10]}, Model: demo"
            + (", Hires schedule type: Karras" if body.get("enable_hr") else "")
            + (", Inpaint area: Only masked, Masked content: fill" if body.get("mask") else "")
        )

    def picture(self, index: int) -> bytes:
        seed = int(self.body.get("seed", 1)) + index
        size = (int(self.body.get("width", 64)), int(self.body.get("height", 64)))
        image = Image.new("RGB", size, (seed * 37 % 256, seed * 91 % 256, 160))
        draw = ImageDraw.Draw(image)
        third = (size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4)
        draw.ellipse(third, fill=(240, seed * 53 % 256, 60))
        text = PngImagePlugin.PngInfo()
        text.add_text("parameters", self.infotext(index))
        target = io.BytesIO()
        image.save(target, "PNG", pnginfo=text)
        return target.getvalue()


@dataclass
class PretendCloud:
    """Answers requests; what it was asked stays in `jobs`."""

    base: str = "http://cloud.test"
    polls: int = 1
    fail_with: str = ""
    refuse_seed: int | None = None
    refuse_all: str = ""
    made_before_failing: int = 0
    instances: int = 1
    idle_polls: int = 0
    jobs: list[PretendJob] = field(default_factory=list)
    submitted: int = 0
    merges: list[dict[str, Any]] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    endpoints: list[str] = field(default_factory=lambda: ["pretend-1"])
    endpoint_states: dict[str, str] = field(default_factory=dict)
    ordered: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    prefetched: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.checkpoints = PretendCheckpoints(self.base)
        self.datasets = PretendDatasets(self.base)
        self.checkpoints.add("Stable-diffusion", CHECKPOINT, SHA256)

    def __call__(self, sent: Sent) -> FakeAnswer:
        with self.lock:
            return self._answer(sent)

    def _answer(self, sent: Sent) -> FakeAnswer:
        address = urlsplit(sent.url)
        path, query = address.path, parse_qs(address.query)
        if path.startswith("/store/"):
            return self._stored(path.split("/")[2:])
        if path.startswith("/parts/"):
            _, _, checkpoint_id, number = path.split("/")
            return self.checkpoints.take(checkpoint_id, int(number), sent)
        if path.startswith("/pictures/"):
            return self.datasets.take(path, sent)
        headers = {k.lower(): v for k, v in sent.headers.items()}
        if headers.get("x-api-key") != TOKEN:
            return _refuse(401, "The token is missing or wrong.")
        user = headers.get(ON_BEHALF_HEADER.lower(), "")
        if path == "/inference/test-connection":
            return FakeAnswer(body={"message": "Success"})
        if path == "/endpoints":
            return self._endpoints(sent)
        if path in _EMPTY:
            return FakeAnswer(body={_EMPTY[path]: []})
        if path == "/checkpoints":
            return self.checkpoints.list(query)
        if path == "/checkpoint":
            known = self.checkpoints
            if sent.method == "DELETE":
                return known.delete(query["id"][0])
            acts = {"POST": known.create, "PATCH": known.rename, "PUT": known.change}
            return acts[sent.method](sent.json)
        if path.startswith("/dataset"):
            return self.datasets.answer(sent, path, query)
        if path == "/upload_checkpoint":
            return self.checkpoints.fetch(sent.json)
        if path.endswith("/prefetch"):
            self.prefetched.append((path.split("/")[2], sent.json.get("endpoint_name", "")))
            return FakeAnswer(body={"endpoint_name": "pretend-1"})
        if path.endswith("/retry"):
            return self.checkpoints.retry(path.split("/")[2])
        if path.startswith("/checkpoint/"):
            return self.checkpoints.upload(path.split("/")[2])
        if path == "/inference/v2":
            return self._submit(sent.json, user)
        if path == "/inference/list-inference-jobs":
            return self._list(query, user)
        if path == "/inference/run-model-merge":
            self.merges.append(sent.json)
            job = self._add({**sent.json, "task_type": "merge", "n_iter": 0}, user)
            return FakeAnswer(body={"inference_id": job.id, **sent.json})
        if path.startswith("/inference/v2/"):
            return self._act(path.split("/")[3:], sent.method, user)
        if not (job := self._job(query["jobID"][0], user)):
            return _refuse(404, f"There is no job '{query['jobID'][0]}'.")
        if path == "/inference/get-inference-job":
            self._advance(job)
            return FakeAnswer(body=self._show(job))
        if path == "/inference/get-inference-job-image-output":
            urls = [f"{self.base}/store/{job.id}/{i}" for i in range(job.made)]
            return FakeAnswer(body=urls)
        assert path == "/inference/get-inference-job-param-output", path
        return FakeAnswer(body=[f"{self.base}/store/{job.id}/param"])

    def _endpoints(self, sent: Sent) -> FakeAnswer:
        if sent.method == "POST":
            self.ordered.append(sent.json)
            self.endpoints.append(sent.json.get("endpoint_name") or "pretend-2")
            return FakeAnswer(body=_endpoint(self.endpoints[-1]))
        if sent.method == "DELETE":
            for name in sent.json["delete_endpoint_list"]:
                self.endpoints.remove(name)
            return FakeAnswer(body="Endpoint deleted")
        states = self.endpoint_states
        return FakeAnswer(
            body=[
                _endpoint(name, states.get(name, "InService"), self.instances)
                for name in self.endpoints
            ]
        )

    def _list(self, query: dict[str, list[str]], user: str) -> FakeAnswer:
        found = [
            job
            for job in reversed(self.jobs)
            if (not user or job.owner == user)
            and job.state in query.get("status", [job.state])
            and job.body["task_type"] in query.get("task_type", [job.body["task_type"]])
        ]
        start, limit = int(query.get("cursor", ["0"])[0]), int(query["limit"][0])
        more = {CURSOR_HEADER: str(start + limit)} if len(found) > start + limit else {}
        page = found[start : start + limit]
        return FakeAnswer(body=[self._show(job) for job in page], headers=more)

    def _act(self, where: list[str], method: str, user: str) -> FakeAnswer:
        if not (job := self._job(where[0], user)):
            return _refuse(404, f"There is no job '{where[0]}'.")
        if method == "DELETE":
            self.jobs.remove(job)
            return FakeAnswer(body="Job deleted")
        if where[1] == "rerun":
            again = self._add(job.body, user)
            return FakeAnswer(body={"inference_id": again.id, "status": "inprogress"})
        job.state = "cancelled"
        self.cancelled.append(job.id)
        return FakeAnswer(body=self._show(job))

    def _submit(self, body: dict[str, Any], user: str) -> FakeAnswer:
        assert body["models"]["Stable-diffusion"]
        if self.refuse_all:
            return _refuse(409, self.refuse_all)
        for kind, names in body["models"].items():
            for name in names:
                if not self.checkpoints.is_active(kind, name):
                    return _refuse(404, f"There is no Active {kind} named '{name}'. Upload it.")
        job = self._add(body, user)
        return FakeAnswer(
            body={
                "inference_id": job.id, "status": "inprogress", "endpoint_name": "pretend-1",
                "output_path": "s3://b/out",
            }
        )  # fmt: skip

    def _add(self, body: dict[str, Any], user: str) -> PretendJob:
        self.submitted += 1
        job = PretendJob(f"job-{self.submitted}", body, self.polls, owner=user)
        self.jobs.append(job)
        return job

    def _advance(self, job: PretendJob) -> None:
        if job.state != "inprogress":
            return
        job.polls_left -= 1
        if job.polls_left < 0:
            refused = self.refuse_seed is not None and job.body.get("seed") == self.refuse_seed
            job.error = f"seed {self.refuse_seed} cannot be made." if refused else self.fail_with
            job.state = "failed" if job.error else "succeed"
            job.made = self.made_before_failing if job.error else job.count + job.maps

    def _show(self, job: PretendJob) -> dict[str, Any]:
        running = job.state == "inprogress"
        begun = job.polls_left < self.polls - self.idle_polls
        done = 1 - max(job.polls_left, 0) / (self.polls + 1) if begun else 0.0
        return {
            "inference_info_name": "", "startTime": "2026-01-02 03:04:05.000006",
            "taskType": job.body["task_type"], "InferenceJobId": job.id, "status": job.state,
            "completeTime": None if running else "2026-01-02-03-04-09",
            "sagemakerRaw": "", "endpoint_name": "pretend-1", "error": job.error,
            "image_names": [f"image_{i}.png" for i in range(job.made)],
            "progress": done if running else 1.0, "queue_position": None, "eta_seconds": 2.0,
            "preview_url": f"{self.base}/store/{job.id}/0" if running else None,
            "phase": "sampling", "run_seconds": None if running else 4.0,
            "instance_type": "ml.g5.xlarge",
            "estimated_cost": 0.0016,
            "checkpoint_names": job.body.get("models", {}).get("Stable-diffusion", []),
        }  # fmt: skip

    def _job(self, job_id: str, user: str = "") -> PretendJob | None:
        return next(
            (j for j in self.jobs if j.id == job_id and (not user or j.owner == user)), None
        )

    def _stored(self, where: list[str]) -> FakeAnswer:
        job = self._job(where[0])
        assert job is not None, where
        if where[1] != "param":
            return FakeAnswer(body=job.picture(int(where[1])))
        texts = [job.infotext(i) for i in range(job.count)]
        info = json.dumps({"infotexts": texts, "warnings": self.warnings})
        return FakeAnswer(body={"parameters": job.body, "info": info})


def _endpoint(name: str, state: str = "InService", instances: int = 1) -> dict[str, Any]:
    return {
        "EndpointDeploymentJobId": f"d-{name}", "startTime": "2026-01-02 03:04:05.000006",
        "endpoint_name": name, "endpoint_status": state, "status": "success",
        "instance_type": "local", "current_instance_count": instances, "error": "",
        "price_per_hour": 0, "cost_since_start": 0,
    }  # fmt: skip


def _refuse(status: int, text: str) -> FakeAnswer:
    return FakeAnswer(
        status, {"statusCode": status, "error": text, "code": "c", "request_id": "7f3a0000"}
    )


def decode(picture: str) -> Image.Image:
    """A picture of a request's body."""
    return Image.open(io.BytesIO(base64.b64decode(picture)))


@contextmanager
def serve(cloud: PretendCloud, port: int = 0) -> Iterator[str]:
    """The same cloud on a real port; its URL."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            content = self.rfile.read(length)
            sent = Sent(self.command, self.path, dict(self.headers.items()), content)
            answer = cloud(sent)
            body = answer.body
            if not isinstance(body, bytes):
                body = json.dumps(body).encode()
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(body)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_OPTIONS(self) -> None:
            """A browser asks before it puts a part from another origin's page."""
            self.send_response(204)
            for name in ("Origin", "Methods", "Headers"):
                self.send_header(
                    f"Access-Control-Allow-{name}", "PUT" if name == "Methods" else "*"
                )
            self.end_headers()

        do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = answer

        def log_message(self, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    cloud.base = cloud.checkpoints.base = cloud.datasets.base = (
        f"http://127.0.0.1:{server.server_port}"
    )
    try:
        yield cloud.base
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    with serve(PretendCloud(polls=6), port=8399) as address:
        print(address, flush=True)
        while True:
            time.sleep(60)
