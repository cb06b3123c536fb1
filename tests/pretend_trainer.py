"""A training program that only pretends: it counts steps, and dies where its order says so.

`params["pretend"]` of the order may have: `steps`; `kill` (how often it kills itself, once half of
the steps are done); `fail` (its reason); `crash` (it ends without a word in the store); `waits`
(it goes on only once it is told to stop); `stubborn` (not even then); `lora` (what comes of it).
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from middleware_api import contract
from middleware_api.contract import CheckpointType, TrainState
from tests.weights import safetensors

OUTPUT = os.environ[contract.TRAIN_OUTPUT_VARIABLE]
STORE = Path(os.environ["SDAWS_OBJECTS"])
ORDER = Path(os.environ[contract.TRAIN_ROOT_VARIABLE]) / contract.TRAIN_ORDER_FILE


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
                step=step, key=contract.train_sample_key(OUTPUT, step, 0), prompt="a dog"
            )
        ],
        checkpoints=[],
        warnings=[],
        updated_at=0.0,
    )
    write(contract.train_sample_key(OUTPUT, step, 0), b"\x89PNG")
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
    steps = pretend.get("steps", 4)
    for step in range(max(done) + 1, steps + 1):
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
            end(TrainState.STOPPED, weights=("dog", _kind(pretend)))
            return 0
    end(TrainState.COMPLETE, weights=("dog", _kind(pretend)))
    return 0


def _kind(pretend: dict[str, Any]) -> str:
    kind = CheckpointType.LORA if pretend.get("lora") else CheckpointType.STABLE_DIFFUSION
    return kind.value


if __name__ == "__main__":
    sys.exit(main())
