"""`python -m benchmarks.merge`: merging two checkpoints, against doing so in memory.

In memory is what the WebUI does: load both, merge them with torch, save the result. Each side is a
process of its own, in turn, in the same run. The peak is the whole process's; importing torch is
left out of the time. The bars, for two files of 2 GiB in half precision: the middle one of the
pairs' ratios is at most 0.7 of the time, and the peak stays below 1 GiB.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from safetensors.torch import load_file, save_file

from middleware_api.container.storage import FolderStorage, sha256_of
from middleware_api.container.weights.merge import write_tensors
from middleware_api.container.weights.merge_plan import Ingredients, Source, plan_merge
from middleware_api.container.weights.tensor_file import (
    LazyTensor,
    TensorFile,
    header_of,
    open_tensor_file,
)
from middleware_api.contract import MergeMethod

TIME_BAR = 0.7
PEAK_BAR = 1 << 30
MULTIPLIER = 0.3
# One of SD 1.5's larger convolutions; 2 GiB are 145 of them, and each is 15 MB.
SHAPE = (1280, 640, 3, 3)


@dataclass(frozen=True)
class Measured:
    """Wall-clock seconds of a merge, and the most memory that its process had."""

    seconds: float
    peak_bytes: int


def write_random(path: Path, n_bytes: int, seed: int) -> None:
    """A file of random half precision tensors, one in memory at a time."""
    generator = torch.Generator().manual_seed(seed)
    one = torch.randn(SHAPE, generator=generator).half().flatten()

    def values(start: int, stop: int) -> torch.Tensor:
        return one[start:stop].clone()

    tensors = {
        f"model.diffusion_model.block.{number:04}.weight": LazyTensor(one.dtype, SHAPE, values)
        for number in range(n_bytes // (one.numel() * 2))
    }
    header = header_of(tensors, {"format": "pt"})
    with path.open("wb") as file:
        write_tensors(file, header, tensors, lambda done: one.add_(0.001))


def piece_by_piece(a: Path, b: Path, out: Path) -> None:
    """As the container does it."""
    with open_tensor_file(a, a.name) as first, open_tensor_file(b, b.name) as second:

        def source(path: Path, file: TensorFile) -> Source:
            return Source.of(path.name, file.tensors)

        plan = plan_merge(
            Ingredients(
                method=MergeMethod.WEIGHTED_SUM,
                multiplier=MULTIPLIER,
                as_half=True,
                a=source(a, first),
                b=source(b, second),
                c=None,
                vae=None,
            )
        )
        header = header_of(plan.tensors, {"format": "pt"})
        size = len(header) + sum(tensor.n_bytes for tensor in plan.tensors.values())
        with FolderStorage(out.parent).writing(out.name, size) as sink:
            write_tensors(sink, header, plan.tensors, lambda done: None)


def in_memory(a: Path, b: Path, out: Path) -> None:
    """As the WebUI does it."""
    second = load_file(b)
    first = load_file(a)
    for name in first:
        merged = (1 - MULTIPLIER) * first[name] + MULTIPLIER * second[name]
        first[name] = merged.half() if merged.dtype is torch.float32 else merged
    save_file(first, out, {"format": "pt"})


SIDES: dict[str, Callable[[Path, Path, Path], None]] = {
    "piece by piece": piece_by_piece,
    "in memory": in_memory,
}


def measure(side: str, folder: Path) -> Measured:
    """One side in a fresh process; its result stays as `<side>.safetensors`."""
    (folder / f"{side}.safetensors").unlink(missing_ok=True)
    os.sync()  # what the other side has written is not this one's to wait for
    command = [sys.executable, "-m", "benchmarks.merge", "--side", side, "--folder", str(folder)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    seconds, peak = done.stdout.split()
    return Measured(float(seconds), int(peak))


def run_side(side: str, folder: Path) -> None:
    """In that process: prints its seconds and its peak."""
    began = time.perf_counter()
    SIDES[side](folder / "a.safetensors", folder / "b.safetensors", folder / f"{side}.safetensors")
    seconds = time.perf_counter() - began
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> int:
    """Exit code 0 when both bars are reached, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=2048, help="size of each of the two files")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where the files go, instead of a new one")
    options = parser.parse_args()
    if options.side:
        run_side(options.side, options.folder)
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        return compare(Path(made), options.mib << 20, options.rounds)


def compare(folder: Path, n_bytes: int, rounds: int) -> int:
    for seed, name in enumerate("ab"):
        write_random(folder / f"{name}.safetensors", n_bytes, seed)
    found: dict[str, list[Measured]] = {side: [] for side in SIDES}
    for _ in range(rounds):
        for side in SIDES:
            found[side].append(measure(side, folder))
    sums = {hash_of(folder / f"{side}.safetensors") for side in SIDES}
    seconds = {side: [m.seconds for m in runs] for side, runs in found.items()}
    peaks = {side: max(m.peak_bytes for m in runs) for side, runs in found.items()}
    for side in SIDES:
        each = " ".join(f"{s:.2f}" for s in seconds[side])
        print(
            f"{side:15} median {median(seconds[side]):6.2f} s  best {min(seconds[side]):6.2f} s  "
            f"{peaks[side] / 2**20:6.0f} MiB  (all: {each})"
        )
    ours, theirs = SIDES
    ratios = sorted(a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True))
    ratio = median(ratios)
    print(
        f"time {ratio:.2f} (bar {TIME_BAR}; all: {' '.join(f'{r:.2f}' for r in ratios)}), "
        f"peak {peaks[ours] / PEAK_BAR:.2f} GiB (bar 1)"
    )
    print("the results are the same file" if len(sums) == 1 else "the results DIFFER")
    return 0 if ratio <= TIME_BAR and peaks[ours] < PEAK_BAR and len(sums) == 1 else 1


def hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return sha256_of(file)


if __name__ == "__main__":
    sys.exit(main())
