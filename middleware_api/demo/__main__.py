"""`make demo`: four prompts become four pictures by the product's own path, on this machine.

The extension's client and uploader talk to an embedded server in a process of its own, which
runs the inference container's program as its worker.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageDraw

from aws_extension.client import CloudClient
from aws_extension.errors import CloudError
from aws_extension.upload_progress import UploadProgress
from aws_extension.uploader import upload_checkpoint
from middleware_api.contract import CheckpointType, EndpointState, TaskType

CHECKPOINT = Path(__file__).parent / "demo.safetensors"
OUTPUT = Path("demo-output")
PROMPTS = (
    "a big red circle on a blue background",
    "a small yellow square on a green background",
    "a white triangle on a purple background",
    "a black ring on an orange background",
)
SEED = 1
# The checkpoint draws 64 pixels a side; on the contact sheet they should be seen.
SHEET_SCALE = 4


class DemoFailed(Exception):
    """The demo cannot go on; the message says why."""


def main() -> int:
    """Exit code 0 when four pictures are saved, 1 otherwise."""
    started = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="sdaws-demo-") as folder, server(Path(folder)) as c:
            saved = run(c)
    except (DemoFailed, CloudError) as failure:
        print(f"The demo stopped: {failure}", file=sys.stderr)
        return 1
    print(f"\n{len(saved)} pictures in {time.monotonic() - started:.0f} s:")
    for path in saved:
        print(f"  {path}")
    print(
        f"  {OUTPUT / 'contact-sheet.png'} shows them side by side.\n\n"
        "Next:\n"
        "  make serve   keeps a server running for your WebUI or your own programs\n"
        "  make ui      opens the pages in a browser, without a WebUI\n"
        "  README.md    tells how to connect the WebUI"
    )
    return 0


@contextmanager
def server(data_dir: Path) -> Iterator[CloudClient]:
    """A client of an embedded server that lives as long as the block."""
    print("Starting the middleware on a free port ...", flush=True)
    log = data_dir / "server.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "middleware_api", "serve", "--port=0"],
            env={**os.environ, "SDAWS_DATA_DIR": str(data_dir / "var"), "SDAWS_HOST": "127.0.0.1"},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("listening on "):
        raise DemoFailed(f"the server did not start: {log.read_text().strip()}")
    url = line.removeprefix("listening on ").strip()
    token = (
        os.environ.get("SDAWS_API_TOKEN") or (data_dir / "var" / "api_token").read_text().strip()
    )
    try:
        yield CloudClient(url, token)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
        process.stdout.close()


def run(client: CloudClient) -> list[Path]:
    """Deploy, upload, generate, save; returns the pictures' paths."""
    endpoint = client.create_endpoint("local", name="demo")
    print(f"Endpoint '{endpoint.name}' is starting its worker process ...", flush=True)
    upload_checkpoint(client, CHECKPOINT, CheckpointType.STABLE_DIFFUSION, on_progress=_show_upload)
    print()
    _wait_for_endpoint(client)
    OUTPUT.mkdir(exist_ok=True)
    models = {CheckpointType.STABLE_DIFFUSION: [CHECKPOINT.name]}
    jobs = [
        client.submit(
            TaskType.TXT2IMG,
            models,
            {"prompt": prompt, "width": 64, "height": 64, "steps": 20, "seed": SEED},
        ).job_id
        for prompt in PROMPTS
    ]
    saved = []
    for number, (job_id, prompt) in enumerate(zip(jobs, PROMPTS, strict=True), 1):
        client.wait_for(job_id, lambda status: _show_line(f"  {status.describe()}"))
        (content,) = client.download_images(job_id)
        path = OUTPUT / f"{number:02}-{prompt.replace(' ', '-')}.png"
        path.write_bytes(content)
        (infotext,) = client.get_output(job_id).infotexts
        path.with_suffix(".txt").write_text(infotext + "\n")
        _show_line(f"  {prompt}: done")
        print()
        saved.append(path)
    _contact_sheet(saved).save(OUTPUT / "contact-sheet.png")
    return saved


def _wait_for_endpoint(client: CloudClient) -> None:
    while True:
        (endpoint,) = client.list_endpoints()
        if endpoint.state is EndpointState.FAILED:
            raise DemoFailed(f"the endpoint failed: {endpoint.error}")
        if endpoint.state is EndpointState.IN_SERVICE:
            return
        time.sleep(0.2)


def _contact_sheet(paths: list[Path]) -> Image.Image:
    pictures = [Image.open(io.BytesIO(path.read_bytes())) for path in paths]
    side, caption = 64 * SHEET_SCALE, 24
    sheet = Image.new("RGB", (side * len(pictures), side + caption), "white")
    draw = ImageDraw.Draw(sheet)
    for column, (picture, prompt) in enumerate(zip(pictures, PROMPTS, strict=True)):
        enlarged = picture.resize((side, side), Image.Resampling.BICUBIC)
        sheet.paste(enlarged, (column * side, 0))
        draw.text((column * side + 4, side + 6), prompt, fill="black")
    return sheet


def _show_upload(progress: UploadProgress) -> None:
    filled = round(30 * progress.fraction)
    _show_line(f"  [{'#' * filled}{'.' * (30 - filled)}] {progress.describe()}")


def _show_line(text: str) -> None:
    # Over the line before, so that progress stays on one line.
    print(f"\r{text:<78}", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
