"""The engine `webui` before a pretended WebUI: what it is asked, what comes back, what can fail."""

from __future__ import annotations

import hashlib
import io
import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save

from middleware_api import contract
from middleware_api.container.errors import (
    BadRequest,
    EngineDown,
    EngineFailed,
    WorkerStopping,
)
from middleware_api.container.job import JobRunner
from middleware_api.container.storage import FolderStorage
from middleware_api.container.webui import client
from middleware_api.container.webui.driven import WebUiSettings
from middleware_api.container.webui.engine import WebUiEngine
from tests.pretend_webui import free_port, png, pretending
from tests.sample_networks import hypernetwork, unpickled_tensors
from tests.sample_upscalers import repeating
from tests.server import REPOSITORY, until

WEIGHTS = {
    "Stable-diffusion": ("paints.safetensors", b"paints"),
    "VAE": ("colours.safetensors", b"colours"),
    "Lora": ("style.safetensors", b"style"),
    "embeddings": ("word.safetensors", b"word"),
    "ControlNet": ("edges.safetensors", b"edges"),
}


@dataclass
class Bench:
    """An engine between an object store and a WebUI."""

    root: Path
    webui: Any
    engine: WebUiEngine
    stopping: threading.Event = field(default_factory=threading.Event)

    def upload(self, kind: str, name: str, content: bytes) -> contract.ContainerCheckpoint:
        digest = hashlib.sha256(content).hexdigest()
        key = f"{kind}/checkpoint/{digest[:6]}/{name}"
        FolderStorage(self.root).write(key, content)
        return {"type": kind, "name": name, "key": key, "size": len(content), "sha256": digest}

    def run(
        self, job_id: str, task: str = "txt2img", files: Any = None, **fields: Any
    ) -> contract.InvocationResult:
        params = f"{task}/infer_v2/{job_id}/api_param.json"
        FolderStorage(self.root).write(params, json.dumps(fields).encode())
        if files is None:
            files = [self.upload("Stable-diffusion", *WEIGHTS["Stable-diffusion"])]
        runner = JobRunner(self.engine.tasks, FolderStorage(self.root), self.stopping)
        return runner.run(
            {
                "job_id": job_id,
                "task_type": task,
                "params_key": params,
                "checkpoints": files,
                "output_prefix": contract.output_prefix(job_id),
            }
        )

    def progress(self, job_id: str) -> dict[str, Any]:
        path = self.root / contract.progress_key(job_id)
        seen: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"step": 0}
        return seen


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    (tmp_path / "webui").mkdir()
    with pretending(tmp_path / "webui") as webui:
        bench = Bench(tmp_path / "objects", webui, WebUiEngine(WebUiSettings(webui.url)))
        yield bench
        bench.engine.close()


@pytest.fixture
def elsewhere(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The same, but for a WebUI that is another machine's."""
    monkeypatch.setattr(WebUiSettings, "is_on_this_machine", False)
    bench.engine.close()
    bench.engine = WebUiEngine(WebUiSettings(bench.webui.url))
    return bench


def test_a_request_goes_to_the_webui_as_it_was_asked(bench: Bench) -> None:
    scripts = {"controlnet": {"args": [{"model": "edges [0123abcd]", "image": "AAAA"}]}}
    asked = {"prompt": "a cat", "steps": 2, "seed": 7, "n_iter": 2, "alwayson_scripts": scripts}
    result = bench.run("j1", sagemaker_endpoint_name="e", models={"x": []}, **asked)
    (sent,) = bench.webui.asked
    settings = sent.pop("override_settings")
    assert settings == {
        "sd_model_checkpoint": bench.webui.title(bench.webui.files["Stable-diffusion"][0])
    }
    ours = {"force_task_id": "task(sdaws-j1)", "send_images": True}
    assert sent == {**asked, **ours, "override_settings_restore_afterwards": True}
    assert (result["status"], len(result["images"])) == ("succeed", 2)
    first = Image.open(bench.root / result["images"][1])
    assert (first.format, first.getpixel((0, 0))) == ("PNG", (10, 10, 10))
    info = json.loads(result["info"])
    assert first.info["parameters"] == info["infotexts"][1]
    assert (info["prompt"], info["warnings"]) == ("a cat", [])


def test_what_this_webui_does_not_know_is_told_and_left_out(bench: Bench) -> None:
    settings = {"CLIP_stop_at_last_layers": 2, "of_another_extension": 1}
    result = bench.run("j1", steps=1, styling="x", nothing=None, override_settings=settings)
    assert json.loads(result["info"])["warnings"] == [
        "styling is not a field of this WebUI and was ignored.",
        "override_settings.of_another_extension is not a setting of this WebUI and was ignored.",
    ]
    sent = bench.webui.asked[0]
    assert "styling" not in sent
    assert "of_another_extension" not in sent["override_settings"]
    assert sent["override_settings"]["CLIP_stop_at_last_layers"] == 2


def test_each_kind_of_weights_lies_where_the_webui_finds_it(bench: Bench) -> None:
    files = [bench.upload(kind, *named) for kind, named in WEIGHTS.items()]
    bench.run("j1", steps=1, files=files, override_settings={"sd_vae": "colours"})
    for kind, (name, content) in WEIGHTS.items():
        (found,) = bench.webui.files[kind]
        assert (found.name, found.read_bytes(), found.is_symlink()) == (name, content, True)
    assert bench.webui.asked[0]["override_settings"]["sd_vae"] == "colours.safetensors"
    refreshes = [call for call in bench.webui.calls if "refresh" in call]
    assert len(refreshes) == 4  # and ControlNet's, by its own way
    bench.run("j2", steps=1, files=files)
    assert [call for call in bench.webui.calls if "refresh" in call] == refreshes


def test_the_request_names_its_other_checkpoints_by_the_webuis_words(bench: Bench) -> None:
    kind = "Stable-diffusion"
    files = [bench.upload(kind, f"{name}.safetensors", name.encode()) for name in "abc"]
    asked = {"refiner_checkpoint": "b", "hr_checkpoint_name": f"c [{files[2]['sha256'][:10]}]"}
    settings = {"sd_model_checkpoint": "nobody knows it"}
    bench.run("j1", steps=1, files=files, override_settings=settings, **asked)
    sent = bench.webui.asked[0]
    words = [sent["override_settings"]["sd_model_checkpoint"], *(sent[name] for name in asked)]
    assert [Path(word).name for word in words] == [file["name"] for file in files]
    assert set(words) == {bench.webui.title(path) for path in bench.webui.files[kind]}


def test_another_content_by_the_same_name_takes_its_place(bench: Bench) -> None:
    base = bench.upload("Stable-diffusion", *WEIGHTS["Stable-diffusion"])
    for number, content in enumerate((b"old", b"new")):
        lora = bench.upload("Lora", "style.safetensors", content)
        bench.run(f"j{number}", steps=1, files=[base, lora])
        assert [path.read_bytes() for path in bench.webui.files["Lora"]] == [content]


def test_the_webuis_own_files_are_used_where_they_are_the_same(bench: Bench) -> None:
    for kind, (name, content) in WEIGHTS.items():
        folder = bench.webui.data / ("embeddings" if kind == "embeddings" else f"models/{kind}")
        folder.mkdir(parents=True)
        (folder / name).write_bytes(content)
        bench.webui.look(kind)
    files = [bench.upload(kind, *named) for kind, named in WEIGHTS.items()]
    bench.run("j1", steps=1, files=files)
    assert bench.webui.asked[0]["override_settings"]["sd_model_checkpoint"] == "paints.safetensors"
    assert not [*bench.webui.data.rglob("sdaws")]
    with pytest.raises(BadRequest, match="has another Lora file by the name style"):
        bench.run("j2", steps=1, files=[files[0], bench.upload("Lora", "style.safetensors", b"z")])


def test_a_hypernetwork_needs_a_webui_that_can_be_started_again(bench: Bench) -> None:
    files = [bench.upload("Stable-diffusion", *WEIGHTS["Stable-diffusion"])]
    files.append(bench.upload("hypernetworks", "net.safetensors", converted_hypernetwork()))
    with pytest.raises(BadRequest, match=r"does not show net.safetensors .* has to be restarted"):
        bench.run("j1", steps=1, files=files)
    assert not [*bench.webui.data.rglob("net.*")]


def test_links_to_files_that_are_gone_go_too(bench: Bench) -> None:
    gone = bench.webui.data / "models/Lora/sdaws/0/gone.safetensors"
    gone.parent.mkdir(parents=True)
    gone.symlink_to(bench.webui.data / "nothing")
    bench.run("j1", steps=1)
    assert not gone.is_symlink()


def test_elsewhere_files_are_known_by_hash_then_by_name(elsewhere: Bench) -> None:
    folder = elsewhere.webui.data / "models/Stable-diffusion"
    folder.mkdir(parents=True)
    for name in ("mine", "paints"):
        (folder / f"{name}.safetensors").touch()
    elsewhere.webui.look("Stable-diffusion")
    digest = hashlib.sha256(WEIGHTS["Stable-diffusion"][1]).hexdigest()
    result = elsewhere.run("j1", steps=1)
    assert (
        elsewhere.webui.asked[-1]["override_settings"]["sd_model_checkpoint"]
        == "paints.safetensors"
    )
    (warning,) = json.loads(result["info"])["warnings"]
    assert "by its name alone" in warning
    elsewhere.webui.hashes = {"mine.safetensors": digest, "paints.safetensors": "f" * 64}
    result = elsewhere.run("j2", steps=1)
    word = f"mine.safetensors [{digest[:10]}]"
    assert elsewhere.webui.asked[-1]["override_settings"]["sd_model_checkpoint"] == word
    assert json.loads(result["info"])["warnings"] == []
    elsewhere.webui.hashes.pop("mine.safetensors")
    with pytest.raises(BadRequest, match=r"has another file of the name paints.safetensors"):
        elsewhere.run("j3", steps=1)
    (folder / "paints.safetensors").unlink()
    elsewhere.webui.look("Stable-diffusion")
    with pytest.raises(BadRequest, match=r"has no file paints.safetensors .*Put the file into"):
        elsewhere.run("j4", steps=1)


def test_progress_and_previews_come_from_the_webui(bench: Bench) -> None:
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(bench.run, "long", steps=1000, n_iter=3)
        seen = until(lambda: bench.progress("long"), lambda p: p.get("has_preview", False))
        assert 0 < seen["step"] < seen["total_steps"] == 3000
        preview = (bench.root / contract.preview_key("long")).read_bytes()
        assert Image.open(io.BytesIO(preview)).format == "JPEG"
        (bench.root / contract.cancel_key("long")).touch()
        result = job.result(timeout=30)
    assert (result["status"], len(result["images"])) == ("cancelled", 1)


def test_a_job_that_was_cancelled_before_costs_nothing(bench: Bench) -> None:
    FolderStorage(bench.root).write(contract.cancel_key("j1"), b"")
    assert bench.run("j1", steps=1)["status"] == "cancelled"
    assert bench.webui.asked == []


def test_somebody_elses_work_at_the_same_webui_is_not_interrupted(bench: Bench) -> None:
    bench.run("before", steps=1)
    bench.webui.has_pages = True
    bench.webui.task = "task(somebody's)"
    with ThreadPoolExecutor(1) as pool, bench.webui.queue_lock:
        job = pool.submit(bench.run, "mine", steps=500)
        until(lambda: {"calls": [*bench.webui.calls]}, lambda c: "/internal/progress" in c["calls"])
        (bench.root / contract.cancel_key("mine")).touch()
        bench.webui.calls.clear()
        until(lambda: {"calls": [*bench.webui.calls]}, lambda c: "/internal/progress" in c["calls"])
        assert not bench.webui.interrupted
        assert bench.progress("mine")["phase"] == "waiting for the WebUI"
        bench.webui.queue_lock.release()
        try:
            assert job.result(timeout=30)["status"] == "cancelled"
        finally:
            bench.webui.queue_lock.acquire()


def test_a_worker_that_must_end_interrupts_and_hands_its_job_back(bench: Bench) -> None:
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(bench.run, "long", steps=1000)
        until(lambda: bench.progress("long"), lambda p: p["step"] > 0)
        bench.stopping.set()
        with pytest.raises(WorkerStopping):
            job.result(timeout=30)
    until(lambda: dict(bench.webui.state), lambda state: state["job_count"] == 0)


@pytest.mark.parametrize(
    ("fields", "kind", "reason"),
    [
        ({"steps": "many"}, BadRequest, r"\(422\): steps: value is not a valid integer"),
        ({"alwayson_scripts": {"x": {}}}, BadRequest, r"\(422\): Script 'x' not found"),
        ({"prompt": "explode"}, EngineFailed, r"\(500\): OutOfMemoryError: CUDA out of memory"),
    ],
)
def test_the_webuis_own_reason_is_the_jobs(
    bench: Bench, fields: dict[str, Any], kind: type[Exception], reason: str
) -> None:
    with pytest.raises(kind, match=reason) as failure:
        bench.run("j1", **{"steps": 1, **fields})
    outcome = json.loads((bench.root / contract.outcome_key("j1")).read_text())
    assert (outcome["result"], outcome["failure"]) == (None, str(failure.value))


def test_the_extras_and_the_description_of_pictures(bench: Bench) -> None:
    picture = png(3, {})
    result = bench.run("e1", "extra-single-image", [], image=picture, upscaler_1="ESRGAN_4x")
    assert len(result["images"]) == 1
    (text,) = json.loads(result["info"])["infotexts"]
    assert text == "Postprocess upscale by: 2, Postprocess upscaler: ESRGAN_4x"
    many = [{"data": picture, "name": "a"}, {"data": picture, "name": "b"}]
    result = bench.run("e2", "extra-batch-images", [], imageList=many)
    assert len(result["images"]) == 2
    assert json.loads(result["info"])["html_info"] == "<p>two</p>"
    result = bench.run("i1", "interrogate", [], image=picture, model="clip")
    assert json.loads(result["info"])["caption"] == "a grey square"
    with pytest.raises(BadRequest, match=r"\(404\): Model not found"):
        bench.run("i2", "interrogate", [], image=picture, model="nobody")


def test_prefetching_shows_the_webui_its_file(bench: Bench) -> None:
    bench.run("p1", "prefetch")
    assert [path.name for path in bench.webui.files["Stable-diffusion"]] == ["paints.safetensors"]


def test_a_webui_that_hangs_fails_the_job(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "HUNG_SECONDS", 0.5)
    monkeypatch.setattr(client, "ANSWER_SECONDS", 0.2)
    bench.engine.close()
    bench.engine = WebUiEngine(WebUiSettings(bench.webui.url))
    with pytest.raises(EngineFailed, match="has answered nothing for 0 s: it hangs"):
        bench.run("j1", prompt="hang", steps=1)
    bench.webui.hangs = False


def test_credentials_are_sent_and_never_told(tmp_path: Path) -> None:
    with pretending(tmp_path, credentials="studio:secret") as webui:
        settings = WebUiSettings(webui.url, credentials="studio:secret")
        WebUiEngine(settings).close()
        assert "secret" not in repr(settings)
        with pytest.raises(EngineDown, match=r"refuses our credentials .* SDAWS_WEBUI_AUTH"):
            WebUiEngine(WebUiSettings(webui.url))


def test_a_webui_that_is_not_there(tmp_path: Path) -> None:
    with pretending(tmp_path) as webui:
        url = webui.url
    with pytest.raises(EngineDown, match=re.escape(f"{url} does not answer (ConnectError")):
        WebUiEngine(WebUiSettings(url))


def test_a_webui_of_its_own_is_started_again_when_it_ends(tmp_path: Path) -> None:
    data, port = tmp_path / "webui", free_port()
    data.mkdir()
    command = f"{sys.executable} -m tests.pretend_webui --port {port} --data-dir {data}"
    engine = WebUiEngine(WebUiSettings(f"http://127.0.0.1:{port}", command))
    bench = Bench(tmp_path / "objects", None, engine)
    with pytest.raises(EngineDown, match=r"cannot be used: it is starting"):
        engine.check()
    assert bench.run("j1", steps=1)["status"] == "succeed"  # waits for it
    engine.check()
    words = r"does not answer \(it ended with exit code 3 after: RuntimeError: that was too much"
    with pytest.raises(EngineFailed, match=words):
        bench.run("j2", prompt="die", steps=1)
    with pytest.raises(EngineDown, match="it is being started again"):
        engine.check()
    # Its API cannot make it look for hypernetworks: for those it is started again too.
    files = [bench.upload("Stable-diffusion", *WEIGHTS["Stable-diffusion"])]
    files.append(bench.upload("hypernetworks", "net.safetensors", converted_hypernetwork()))
    assert bench.run("j3", steps=1, files=files)["status"] == "succeed"
    (found,) = (data / "models/hypernetworks").rglob("*.pt")
    told = torch.load(found, weights_only=True)
    asked = hypernetwork([1, 2, 1], "relu", with_norm=False)
    assert told["layer_structure"] == asked["layer_structure"]
    assert told["activate_output"] is False
    for side in (0, 1):
        assert told[64][side].keys() == asked[64][side].keys()
        assert all(tensor.equal(asked[64][side][name]) for name, tensor in told[64][side].items())
    # And for upscalers, which are named by their files' names in requests.
    model = {f"params.{name}": tensor for name, tensor in repeating(2).items()}
    files = [bench.upload("ESRGAN", "big.safetensors", save(model))]
    many = {"image": png(3, {}), "upscaler_1": "big.safetensors"}
    result = bench.run("e1", "extra-single-image", files, **many)
    assert "Postprocess upscaler: big" in result["info"]
    (found,) = (data / "models/ESRGAN").rglob("big.pth")
    assert torch.load(found, weights_only=True).keys() == repeating(2).keys()
    engine.close()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port))


def test_a_webui_of_its_own_does_not_outlive_a_worker_that_was_killed() -> None:
    program = (
        "import os, time; from middleware_api.container.kept_process import KeptProcess\n"
        "kept = KeptProcess('It', ['sh', '-c', 'echo $$; exec sleep 60'], lambda: False, print)\n"
        "kept.start(); time.sleep(60)"
    )
    worker = subprocess.Popen(
        [sys.executable, "-u", "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    with worker.stdout:
        pid = int(worker.stdout.readline())
    worker.kill()
    worker.wait()
    until(lambda: {"there": _is_running(pid)}, lambda seen: not seen["there"])


def _is_running(pid: int) -> bool:
    """Whether it is there, and no zombie that nobody has asked about."""
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(") ")[2][0] != "Z"


def test_a_webui_that_cannot_be_started_is_told_of(tmp_path: Path) -> None:
    engine = WebUiEngine(WebUiSettings("http://127.0.0.1:1", "no-such-webui --api"))
    try:
        seen = until(lambda: {"why": _why_down(engine)}, lambda s: "no-such-webui" in s["why"])
        assert "no-such-webui cannot be started: there is no such program" in seen["why"]
    finally:
        engine.close()


def converted_hypernetwork() -> bytes:
    """As an upload leaves it."""
    content = hypernetwork([1, 2, 1], "relu", with_norm=False)
    tensors, metadata = unpickled_tensors(content, 1 << 20)
    return save(dict(sorted(tensors.items())), metadata)


def _why_down(engine: WebUiEngine) -> str:
    with pytest.raises(EngineDown) as down:
        engine.check()
    return str(down.value)


def test_settings(tmp_path: Path) -> None:
    read: Callable[..., WebUiSettings] = WebUiSettings.from_environment
    assert read({"SDAWS_WEBUI_COMMAND": "start"}) == WebUiSettings(command="start")
    far = read({"SDAWS_WEBUI_URL": "https://studio:7860/", "SDAWS_WEBUI_AUTH": "me:x"})
    assert (far, far.is_on_this_machine) == (
        WebUiSettings("https://studio:7860", "", "me:x"),
        False,
    )
    assert read({"SDAWS_WEBUI_URL": "http://127.0.0.1:7860"}).is_on_this_machine
    for wrong in (
        {},
        {"SDAWS_WEBUI_URL": "ftp://studio"},
        {"SDAWS_WEBUI_URL": "http://me:x@studio"},
        {"SDAWS_WEBUI_URL": "http://studio", "SDAWS_WEBUI_AUTH": "me"},
    ):
        with pytest.raises(ValueError, match="SDAWS_WEBUI_"):
            read(wrong)
