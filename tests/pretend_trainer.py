"""A training program that only pretends: it counts steps, and dies where its order says so.

It does as many steps as there are epochs, with PRETEND_PAUSE seconds between them.
`params["pretend"]` of the order may have: `steps`; `kill` (how often it kills itself, once half of
the steps are done); `fail` (its reason); `crash` (it ends without a word in the store); `waits`
(it goes on only once it is told to stop); `stubborn` (not even then); `lora` (what comes of it).
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

from middleware_api import contract
from middleware_api.contract import CheckpointType, TrainState
from tests.weights import safetensors

OUTPUT = os.environ[contract.TRAIN_OUTPUT_VARIABLE]
STORE = Path(os.environ["SDAWS_OBJECTS"])
ORDER = Path(os.environ[contract.TRAIN_ROOT_VARIABLE]) / contract.TRAIN_ORDER_FILE


def picture(step: int) -> bytes:
    """A PNG of one colour, which differs from step to step."""
    colour = bytes((step * 37 % 256, step * 91 % 256, 160))
    rows = (b"\0" + colour * 64) * 64

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def write(key: str, content: bytes) -> None:
    path = STORE / key
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".part").write_bytes(content)
    path.with_suffix(".part").replace(path)


def note(name: str, line: str) -> list[str]:
    """Remember a line for the next process of this job."""
    path = STORE / OUTPUT / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(f"{line}\n")
    return path.read_text().split()


def tell(step: int, steps: int) -> None:
    progress = contract.TrainProgress(
        phase="training",
        fraction=step / steps,
        step=step,
        steps=steps,
        loss=1 / step,
        learning_rate=1e-4,
        seconds_left=float(steps - step),
        losses=[(done, 1 / done) for done in range(1, step + 1)],
        samples=[
            contract.TrainSample(
                step=done, key=contract.train_sample_key(OUTPUT, done, 0), prompt="a dog"
            )
            for done in range(1, step + 1)
        ],
        checkpoints=[],
        warnings=[],
        updated_at=0.0,
    )
    write(contract.train_sample_key(OUTPUT, step, 0), picture(step))
    write(contract.train_progress_key(OUTPUT), json.dumps(progress).encode())


def end(state: TrainState, error: str = "", weights: tuple[str, str] | None = None) -> None:
    files = []
    if weights is not None:
        name, kind = weights
        key = contract.trained_weights_key(OUTPUT, name)
        content = safetensors()
        write(key, content)
        files.append(
            contract.ContainerCheckpoint(
                type=kind, name=f"{name}.safetensors", key=key, size=len(content), sha256=""
            )
        )
    outcome = contract.TrainOutcome(state=state.value, error=error, weights=files, warnings=[])
    write(contract.train_outcome_key(OUTPUT), json.dumps(outcome).encode())


def main() -> int:
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    order: dict[str, Any] = json.loads(ORDER.read_text())
    if "model_id" in order:
        missing = [key for key in order["sources"] if not (STORE / key).is_file()]
        end(TrainState.FAILED if missing else TrainState.COMPLETE, "; ".join(missing))
        return 1 if missing else 0
    pretend = order["params"].get("pretend", {})
    runs = len(note("runs", str(os.getpid())))
    done = [int(step) for step in note("steps", "0")]
    config = order["params"].get("config_params", {})
    steps = pretend.get("steps") or config.get("num_train_epochs", 4)
    kind = CheckpointType.STABLE_DIFFUSION
    if pretend.get("lora") or config.get("use_lora"):
        kind = CheckpointType.LORA
    weights = (config.get("custom_model_name") or "dog", kind.value)
    for step in range(max(done) + 1, steps + 1):
        stop.wait(float(os.environ.get("PRETEND_PAUSE", "0")))
        note("steps", str(step))
        tell(step, steps)
        if step * 2 >= steps:
            if runs <= pretend.get("kill", 0):
                print("out of memory, says the kernel", file=sys.stderr, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            if "crash" in pretend:
                raise RuntimeError(pretend["crash"])
            if "fail" in pretend:
                end(TrainState.FAILED, pretend["fail"])
                return 1
            if "stubborn" in pretend:
                threading.Event().wait()
            if "waits" in pretend:
                stop.wait()
        if stop.is_set():
            end(TrainState.STOPPED, weights=weights)
            return 0
    end(TrainState.COMPLETE, weights=weights)
    return 0


if __name__ == "__main__":
    sys.exit(main())
