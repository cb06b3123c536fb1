"""The container's program as a real process: its two routes, its errors, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from middleware_api import contract
from middleware_api.container.engines import DiffusersSettings
from middleware_api.container.object_store import Bucket
from middleware_api.container.serve import Settings
from middleware_api.container.storage import FolderStorage
from middleware_api.deploy.package import build_image_sources
from tests.engine_checkpoints import write_checkpoint
from tests.only_writable import landlock_version
from tests.server import REPOSITORY, until

TOKEN = "worker-secret"
CHECKPOINT = "Stable-diffusion/checkpoint/c1/tiny.safetensors"


# There is none on this machine, and whoever looks before importing it sees that.
NO_BOTO3 = """
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, *where: None if name == "boto3" else find(name, *where)
"""


class S3Double(ThreadingHTTPServer):
    """As much of S3 as the container asks for, over a folder: one process's moto cannot be asked
    by another one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        super().__init__(("127.0.0.1", 0), _S3Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def path_of(self, target: str) -> Path:
        assert target.startswith("/pictures/"), target
        return self.root / unquote(target).partition("?")[0].removeprefix("/pictures/")


class _S3Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: S3Double

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        FolderStorage(self.server.root).write(
            str(self.server.path_of(self.path).relative_to(self.server.root)), content
        )
        self._answer(200, b"")

    def do_GET(self) -> None:
        path = self.server.path_of(self.path)
        if not path.is_file():
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        elif "Range" in self.headers:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            part = path.read_bytes()[int(first) : int(last) + 1 if last else None]
            self._answer(206, part)
        else:
            self._answer(200, path.read_bytes())

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def _answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"e"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class Worker:
    """`serve` on a free port, with an object store of its own.

    `environment` tells it where that is: in the folder, unless something else is given. `command`
    starts another program than the repository's own.
    """

    def __init__(
        self,
        root: Path,
        *options: str,
        command: Sequence[str] = (sys.executable, "-m", "middleware_api.container.serve"),
        **environment: str,
    ) -> None:
        self.root = root
        self.checkpoint_size = write_checkpoint(root / CHECKPOINT).stat().st_size
        self.process = subprocess.Popen(
            [*command, "--port=0", *options],
            cwd=REPOSITORY,
            env={
                **os.environ,
                **(environment or {"SDAWS_OBJECTS": str(root)}),
                "SDAWS_WORKER_TOKEN": TOKEN,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("serving on http://"), f"did not start: {line!r}"
        self.client = httpx.Client(
            base_url=line.removeprefix("serving on ").strip().replace("0.0.0.0", "127.0.0.1"),
            headers={"Authorization": f"Bearer {TOKEN}"},
            timeout=60,
        )

    def invoke(self, job_id: str, checkpoint: str = CHECKPOINT, **fields: object) -> httpx.Response:
        params = contract.params_key(contract.TaskType.TXT2IMG, job_id)
        path = self.root / params
        path.parent.mkdir(parents=True, exist_ok=True)
        small = {"prompt": "a secret cat", "steps": 2, "width": 64, "height": 64}
        path.write_text(json.dumps(small | fields))
        file = {"type": "Stable-diffusion", "name": Path(checkpoint).name, "key": checkpoint}
        body = {
            "job_id": job_id,
            "task_type": "txt2img",
            "params_key": params,
            "output_prefix": contract.output_prefix(job_id),
            "checkpoints": [{**file, "size": self.checkpoint_size, "sha256": ""}],
        }
        return self.client.post("/invocations", json=body)

    def progress(self, job_id: str) -> dict[str, Any]:
        path = self.root / contract.progress_key(job_id)
        seen: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"step": 0}
        return seen

    def ended(self) -> tuple[int, str]:
        """Exit code and log, once the process has ended."""
        self.client.close()
        _, log = self.process.communicate(timeout=20)
        return self.process.returncode, log


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    root, no_boto3 = tmp_path_factory.mktemp("objects"), tmp_path_factory.mktemp("path")
    (no_boto3 / "sitecustomize.py").write_text(NO_BOTO3)
    running = Worker(root, SDAWS_OBJECTS=str(root), PYTHONPATH=str(no_boto3))
    yield running
    running.process.terminate()
    code, log = running.ended()
    assert code == 0
    assert "finished job=good status=succeed" in log
    assert "secret" not in log
    assert len([line for line in log.splitlines() if "job=good" in line]) == 2


def test_it_answers_a_job(worker: Worker) -> None:
    assert worker.client.get("/ping").status_code == 200
    answer = worker.invoke("good")
    assert answer.status_code == 200, answer.text
    assert answer.json()["images"] == [contract.image_key("good", 0)]
    assert (worker.root / contract.image_key("good", 0)).exists()


def test_it_wants_the_worker_token(worker: Worker) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
        url = f"{worker.client.base_url}/invocations"
        answer = httpx.post(url, json={}, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


def test_errors_have_a_code_and_a_sentence_and_no_stack(worker: Worker) -> None:
    broken = worker.root / "broken.safetensors"
    broken.write_bytes(b"garbage")
    (worker.root / "out" / "blocked").mkdir(parents=True)
    (worker.root / "out" / "blocked" / "result").write_text("a file where a folder must be")
    for answer, status, code in (
        (worker.client.post("/invocations", content=b"{"), 400, "bad_invocation"),
        (worker.invoke("bad1", sampler_name="Eular"), 400, "unknown_sampler"),
        (worker.invoke("bad2", enable_hr=True, hr_upscaler="4x"), 400, "unknown_upscaler"),
        (worker.invoke("bad3", "broken.safetensors"), 400, "checkpoint_unreadable"),
        (worker.invoke("blocked"), 500, "internal_error"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        assert len(answer.json()["error"]) > 20
        assert "Traceback" not in answer.text


def test_jobs_wait_for_each_other(worker: Worker) -> None:
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda n: worker.invoke(f"job{n}", seed=1), range(3)))
    assert [answer.status_code for answer in answers] == [200] * 3
    first, *others = [
        (worker.root / contract.image_key(f"job{n}", 0)).read_bytes() for n in range(3)
    ]
    assert others == [first, first]


def test_it_answers_pings_and_shows_previews_while_a_job_runs(worker: Worker) -> None:
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(worker.invoke, "long", steps=500, n_iter=100)
        seen = until(lambda: worker.progress("long"), lambda p: p.get("has_preview", False))
        assert 0 < seen["step"] < seen["total_steps"] == 50_000
        assert seen["phase"] == "sampling"
        assert worker.client.get("/ping").status_code == 200
        preview = (worker.root / contract.preview_key("long")).read_bytes()
        assert preview.startswith(b"\xff\xd8\xff")
        (worker.root / contract.cancel_key("long")).touch()
        assert job.result(timeout=30).json()["status"] == "cancelled"


def test_a_terminated_worker_answers_its_job_and_ends_well(tmp_path: Path) -> None:
    worker = Worker(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(worker.invoke, "long", steps=500, n_iter=100)
        until(lambda: worker.progress("long"), lambda p: p["step"] > 0)
        worker.process.send_signal(signal.SIGTERM)
        answer = job.result(timeout=30)
    assert (answer.status_code, answer.json()["code"]) == (503, "worker_stopping")
    code, log = worker.ended()
    assert code == 0
    assert "Traceback" not in log


def test_it_reports_a_lost_object_store_and_ends_with_its_parent(tmp_path: Path) -> None:
    worker = Worker(tmp_path / "objects", "--exit-with-parent")
    assert worker.client.get("/ping").status_code == 200
    (tmp_path / "objects").rename(tmp_path / "elsewhere")
    answer = worker.client.get("/ping")
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unreachable")
    assert worker.process.poll() is None
    assert worker.ended()[0] == 0  # closes its stdin, as the end of the parent does


@pytest.fixture
def s3(tmp_path: Path) -> Iterator[S3Double]:
    with S3Double(tmp_path / "objects") as double:
        thread = threading.Thread(target=double.serve_forever)
        thread.start()
        yield double
        double.shutdown()
        thread.join()


@pytest.mark.skipif(landlock_version() == 0, reason="this kernel has no Landlock")
def test_it_works_from_a_bucket_as_in_its_image(s3: S3Double, tmp_path: Path) -> None:
    """As `docker run --read-only IMAGE serve`: from the image's sources, writing to /tmp alone."""
    program, scratch = tmp_path / "program", tmp_path / "scratch"
    zipfile.ZipFile(build_image_sources(tmp_path).path).extractall(program)
    scratch.mkdir()
    weights = scratch / "weights"
    sandbox = (sys.executable, "-m", "tests.only_writable", str(scratch), "--")
    outside = subprocess.run([*sandbox, "touch", str(program / "x")], cwd=REPOSITORY, check=False)
    assert outside.returncode != 0
    started = program / "middleware_api" / "container" / "serve.sh"
    worker = Worker(
        s3.root,
        command=(*sandbox, "sh", str(started)),
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        SDAWS_PROGRAM=str(program),
        SDAWS_LOGS="json",
        HOME=str(scratch),
        TMPDIR=str(scratch),
        PYTHONDONTWRITEBYTECODE="1",
        SDAWS_BUCKET="pictures",
        SDAWS_WEIGHTS_DIR=str(weights),
        AWS_REGION="eu-central-1",
        AWS_ENDPOINT_URL_S3=s3.url,
        AWS_ACCESS_KEY_ID="testing",
        AWS_SECRET_ACCESS_KEY="testing",
    )
    assert worker.client.get("/ping").status_code == 200
    answer = worker.invoke("good")
    assert answer.status_code == 200, answer.text
    (key,) = answer.json()["images"]
    assert (s3.root / key).read_bytes().startswith(b"\x89PNG")
    assert worker.progress("good")["phase"] == "done"
    assert [path.suffix for path in weights.iterdir()] == [".safetensors"]
    assert worker.invoke("good", seed=2).json() == answer.json()  # delivered twice
    weights.rename(scratch / "elsewhere")
    assert worker.client.get("/ping").status_code == 503
    worker.process.terminate()
    code, log = worker.ended()
    assert code == 0
    lines = [json.loads(line) for line in log.splitlines()]
    told = [line["message"].split()[0] for line in lines if line.get("job") == "good"]
    assert told[:2] == ["started", "finished"]


def test_settings_are_read_once_and_refused_by_name(tmp_path: Path) -> None:
    given = {"SDAWS_OBJECTS": str(tmp_path), "SDAWS_THREADS": "3", "SDAWS_CACHE_BYTES": "1000"}
    assert Settings.from_environment(given) == Settings(tmp_path, DiffusersSettings(1000, 3), "")
    with pytest.raises(ValueError, match=r"SDAWS_OBJECTS must name .* or SDAWS_BUCKET"):
        Settings.from_environment({"SDAWS_OBJECTS": "", "SDAWS_BUCKET": ""})
    with pytest.raises(ValueError, match="SDAWS_OBJECTS and SDAWS_BUCKET both"):
        Settings.from_environment(given | {"SDAWS_BUCKET": "pictures"})
    for name in ("SDAWS_THREADS", "SDAWS_CACHE_BYTES", "SDAWS_WEIGHTS_BYTES"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number above 0"):
            Settings.from_environment(given | {name: "0"})


def test_a_bucket_is_set_with_the_folder_for_weights(tmp_path: Path) -> None:
    given = {"SDAWS_BUCKET": "pictures"}
    assert Settings.from_environment(given).objects == Bucket("pictures", Path("/tmp/weights"))
    given |= {"SDAWS_WEIGHTS_DIR": str(tmp_path), "AWS_REGION": "eu-central-1"}
    assert Settings.from_environment(given).objects == Bucket(
        "pictures", tmp_path, region="eu-central-1"
    )
