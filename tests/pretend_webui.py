"""As much of AUTOMATIC1111's WebUI 1.10.1 as its `--api` shows to the engine that drives it.

`python -m tests.pretend_webui --port 7860 --data-dir FOLDER` is one in a process of its own. Its
pictures are grey, its steps take their time, and it lists the files that it has seen at its start
or since it was told to look again. Some prompts make it fail: `explode`, `die` and `hang`.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image, PngImagePlugin

STEP_SECONDS = 0.01
_PICTURES = ("StableDiffusionProcessingTxt2Img", "StableDiffusionProcessingImg2Img")
_PICTURE_FIELDS = (
    *("prompt", "negative_prompt", "steps", "seed", "width", "height", "n_iter", "batch_size"),
    *("sampler_name", "override_settings", "override_settings_restore_afterwards"),
    *("force_task_id", "send_images", "save_images", "alwayson_scripts", "init_images"),
    *("refiner_checkpoint", "hr_checkpoint_name", "cfg_scale", "denoising_strength"),
)
_EXTRAS = ("image", "imageList", "upscaler_1", "upscaling_resize")
_OPTIONS = {"sd_model_checkpoint": "first", "sd_vae": "Automatic", "CLIP_stop_at_last_layers": 1}
# How its folders are called, and the endings of the files in them.
_FOLDERS = {
    "Stable-diffusion": "models/Stable-diffusion",
    "VAE": "models/VAE",
    "Lora": "models/Lora",
    "hypernetworks": "models/hypernetworks",
    "embeddings": "embeddings",
    "ControlNet": "models/ControlNet",
    "ESRGAN": "models/ESRGAN",
}


class Refused(Exception):
    """Answered as the WebUI answers its own exceptions."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(status)
        self.status, self.body = status, body


class PretendWebUi(ThreadingHTTPServer):
    """The server; `asked` are the bodies of the requests for pictures, in order.

    `hashes` is what it knows of its checkpoints' content by the files' names, `credentials` those
    of its `--api-auth`.
    """

    daemon_threads = True

    def __init__(self, data: Path, port: int = 0, credentials: str = "") -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.data, self.credentials = data, credentials
        self.asked: list[dict[str, Any]] = []
        self.hashes: dict[str, str] = {}
        self.calls: list[str] = []
        self.queue_lock = threading.Lock()
        self.interrupted = self.hangs = self.has_pages = False
        self.task = ""
        self.state = {"job_count": 0, "job_no": 0, "sampling_step": 0, "sampling_steps": 0}
        self.files: dict[str, list[Path]] = {}
        for kind in _FOLDERS:
            self.look(kind)

    def look(self, kind: str) -> None:
        """Sees the files that are there now."""
        found = (
            Path(folder, name)
            for folder, _, names in os.walk(self.data / _FOLDERS[kind], followlinks=True)
            for name in names
        )
        self.files[kind] = sorted(path for path in found if path.exists())

    def title(self, path: Path) -> str:
        """A checkpoint's, as menus show it."""
        name = path.relative_to(self.data / _FOLDERS["Stable-diffusion"]).as_posix()
        short = self.hashes.get(path.name, "")[:10]
        return f"{name} [{short}]" if short else name


@contextmanager
def pretending(data: Path, **more: Any) -> Iterator[PretendWebUi]:
    """One in a thread of this process."""
    with PretendWebUi(data, **more) as webui:
        thread = threading.Thread(target=webui.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield webui
        finally:
            webui.shutdown()
            thread.join()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def png(grey: int, text: dict[str, str]) -> str:
    """A picture in base64 with text in it."""
    told = PngImagePlugin.PngInfo()
    for name, value in text.items():
        told.add_text(name, value)
    target = io.BytesIO()
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(target, "PNG", pnginfo=told)
    return base64.b64encode(target.getvalue()).decode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: PretendWebUi

    def do_GET(self) -> None:
        self._do()

    def do_POST(self) -> None:
        self._do()

    def log_message(self, format: str, *args: object) -> None:
        """Silent."""

    def _do(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        content = self.rfile.read(length)
        webui = self.server
        while webui.hangs:
            time.sleep(0.05)
        path, query = urlsplit(self.path).path, parse_qs(urlsplit(self.path).query)
        webui.calls.append(path)
        token = base64.b64encode(webui.credentials.encode()).decode()
        try:
            if webui.credentials and self.headers.get("Authorization") != f"Basic {token}":
                raise Refused(401, {"detail": "Incorrect username or password"})
            route: Callable[[Any, Any], Any] | None = _ROUTES.get(path)
            if route is None or (path.startswith("/internal/") and not webui.has_pages):
                raise Refused(404, {"detail": "Not Found"})
            self._answer(200, route(webui, json.loads(content or b"null") or query))
        except Refused as refusal:
            self._answer(refusal.status, refusal.body)

    def _answer(self, status: int, body: Any) -> None:
        content = json.dumps(body).encode()
        with suppress(ConnectionError):  # who asked has hung up
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)


def _pictures(webui: PretendWebUi, body: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(body.get("steps", 20), int):
        entry = {"loc": ["body", "steps"], "msg": "value is not a valid integer", "type": "t"}
        raise Refused(422, {"detail": [entry]})
    for name in body.get("alwayson_scripts", {}):
        if name != "controlnet":
            known = {"error": "HTTPException", "body": "", "errors": ""}
            raise Refused(422, {**known, "detail": f"Script '{name}' not found"})
    with webui.queue_lock:
        webui.asked.append(body)
        return _make(webui, body)


def _make(webui: PretendWebUi, body: dict[str, Any]) -> dict[str, Any]:
    steps, batches = body.get("steps", 20), body.get("n_iter", 1)
    webui.task, webui.interrupted = body.get("force_task_id", ""), False
    webui.state.update(job_count=batches, job_no=0, sampling_step=0, sampling_steps=steps)
    prompt, made, texts = body.get("prompt", ""), [], []
    if prompt == "explode":
        words = "CUDA out of memory. Tried to allocate 2.00 GiB"
        raise Refused(500, {"error": "OutOfMemoryError", "detail": "", "body": "", "errors": words})
    if prompt == "die":
        print("RuntimeError: that was too much", flush=True)
        os._exit(3)
    webui.hangs = prompt == "hang"
    while webui.hangs:
        time.sleep(0.05)
    for number in range(batches):
        webui.state["job_no"] = number
        for step in range(steps):
            if webui.interrupted:
                break
            webui.state["sampling_step"] = step
            time.sleep(STEP_SECONDS)
        model = body.get("override_settings", {}).get("sd_model_checkpoint")
        texts.append(f"{prompt}\nSteps: {steps}, Seed: {number}, Model: {model}, Version: 1.10.1")
        made.append(png(10 * number, {"parameters": texts[-1]}))
        if webui.interrupted:
            break
    webui.task = ""
    webui.state["job_count"] = 0
    info = {"prompt": prompt, "infotexts": texts, "index_of_first_image": 0}
    return {"images": made, "parameters": body, "info": json.dumps(info)}


def _progress(webui: PretendWebUi, query: dict[str, list[str]]) -> dict[str, Any]:
    with_picture = query.get("skip_current_image") != ["true"] and webui.state["job_count"] > 0
    return {
        "progress": 0.5,
        "eta_relative": 1.0,
        "state": dict(webui.state),
        "current_image": png(99, {}) if with_picture else None,
        "textinfo": None,
    }


def _interrupt(webui: PretendWebUi, _: object) -> dict[str, Any]:
    webui.interrupted = True
    return {}


def _extras(webui: PretendWebUi, body: dict[str, Any]) -> dict[str, Any]:
    webui.asked.append(body)
    text = f"Postprocess upscale by: 2, Postprocess upscaler: {body.get('upscaler_1')}"
    made = png(1, {"postprocessing": text})
    if "imageList" in body:
        return {"html_info": "<p>two</p>", "images": [made for _ in body["imageList"]]}
    return {"html_info": f"<p>{text}</p>", "image": made}


def _interrogate(webui: PretendWebUi, body: dict[str, Any]) -> dict[str, Any]:
    if body.get("model") not in ("clip", "deepdanbooru"):
        words = {"error": "HTTPException", "detail": "Model not found", "body": "", "errors": ""}
        raise Refused(404, words)
    return {"caption": "a grey square"}


def _checkpoints(webui: PretendWebUi, _: object) -> list[dict[str, Any]]:
    return [
        {
            "title": webui.title(path),
            "model_name": path.stem,
            "hash": webui.hashes.get(path.name, "")[:10] or None,
            "sha256": webui.hashes.get(path.name),
            "filename": str(path),
            "config": None,
        }
        for path in webui.files["Stable-diffusion"]
    ]


def _named(kind: str) -> Callable[[PretendWebUi, object], list[dict[str, Any]]]:
    def route(webui: PretendWebUi, _: object) -> list[dict[str, Any]]:
        return [{"name": path.stem, "path": str(path)} for path in webui.files[kind]]

    return route


def _looking(kind: str) -> Callable[[PretendWebUi, object], dict[str, Any]]:
    def route(webui: PretendWebUi, _: object) -> dict[str, Any]:
        with webui.queue_lock:
            webui.look(kind)
        return {}

    return route


def _controlnet(webui: PretendWebUi, query: dict[str, list[str]]) -> dict[str, Any]:
    if (query or {}).get("update") == ["true"]:
        webui.look("ControlNet")
    return {"model_list": [f"{path.stem} [0123abcd]" for path in webui.files["ControlNet"]]}


def _flags(webui: PretendWebUi, _: object) -> dict[str, Any]:
    return {
        "data_dir": str(webui.data),
        "models_dir": None,
        "lora_dir": str(webui.data / _FOLDERS["Lora"]),
        "hypernetwork_dir": str(webui.data / _FOLDERS["hypernetworks"]),
        "esrgan_models_path": str(webui.data / _FOLDERS["ESRGAN"]),
        "embeddings_dir": str(webui.data / _FOLDERS["embeddings"]),
    }


def _options(webui: PretendWebUi, body: dict[str, Any]) -> dict[str, Any] | None:
    if not body:
        return _OPTIONS
    webui.asked.append(body)
    return None


def _openapi(webui: PretendWebUi, _: object) -> dict[str, Any]:
    fields = dict.fromkeys(_PICTURES, _PICTURE_FIELDS)
    fields |= dict.fromkeys(("ExtrasSingleImageRequest", "ExtrasBatchImagesRequest"), _EXTRAS)
    fields["InterrogateRequest"] = ("image", "model")
    schemas = {
        name: {"properties": {field: {} for field in known}} for name, known in fields.items()
    }
    return {"components": {"schemas": schemas}}


_ROUTES: dict[str, Callable[[PretendWebUi, Any], Any]] = {
    "/openapi.json": _openapi,
    "/internal/progress": lambda webui, body: {"active": webui.task == body["id_task"]},
    "/sdapi/v1/latent-upscale-modes": lambda webui, _: [{"name": "Latent"}],
    "/sdapi/v1/cmd-flags": _flags,
    "/sdapi/v1/options": _options,
    "/sdapi/v1/txt2img": _pictures,
    "/sdapi/v1/img2img": _pictures,
    "/sdapi/v1/progress": _progress,
    "/sdapi/v1/interrupt": _interrupt,
    "/sdapi/v1/extra-single-image": _extras,
    "/sdapi/v1/extra-batch-images": _extras,
    "/sdapi/v1/interrogate": _interrogate,
    "/sdapi/v1/sd-models": _checkpoints,
    "/sdapi/v1/sd-vae": lambda webui, _: [
        {"model_name": path.name, "filename": str(path)} for path in webui.files["VAE"]
    ],
    "/sdapi/v1/loras": _named("Lora"),
    "/sdapi/v1/hypernetworks": _named("hypernetworks"),
    "/sdapi/v1/upscalers": lambda webui, _: [
        {"name": "None", "model_path": None},
        {"name": "ESRGAN_4x", "model_path": "https://github.com/cszn/KAIR"},
        *({"name": path.stem, "model_path": str(path)} for path in webui.files["ESRGAN"]),
    ],
    "/sdapi/v1/embeddings": lambda webui, _: {
        "loaded": {path.stem: {} for path in webui.files["embeddings"]},
        "skipped": {},
    },
    "/sdapi/v1/refresh-checkpoints": _looking("Stable-diffusion"),
    "/sdapi/v1/refresh-vae": _looking("VAE"),
    "/sdapi/v1/refresh-loras": _looking("Lora"),
    "/sdapi/v1/refresh-embeddings": _looking("embeddings"),
    "/controlnet/model_list": _controlnet,
}


def main() -> None:
    """Until it is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    options = parser.parse_args()
    with PretendWebUi(options.data_dir, options.port) as webui:
        print("Running on local URL", flush=True)
        webui.serve_forever()


if __name__ == "__main__":
    main()
