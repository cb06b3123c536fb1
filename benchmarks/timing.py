"""Whole commands beside each other: what they take on the clock, of the processor and of memory."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Took:
    """Seconds on the clock, and of the processor; the most bytes in memory."""

    seconds: float
    cpu: float
    peak: int


def run(command: list[str], **environment: str) -> Took:
    """A whole command."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    seconds = time.perf_counter() - began
    return Took(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


@contextmanager
def program(*arguments: str, **environment: str) -> Iterator[str]:
    """A server of this repository; its URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.wait(30)
        process.stdout.close()


def tell(what: str, ours: list[Took], theirs: list[Took], bar: float, more: str) -> None:
    """One row: ours over theirs, at most `bar`."""
    pairs = list(zip(ours, theirs, strict=True))
    clock = statistics.median(o.seconds / t.seconds for o, t in pairs)
    cpu = statistics.median(o.cpu / t.cpu for o, t in pairs)
    verdict = "holds" if clock <= bar else "MISSED"
    print(f"{what:<36}{clock:6.2f} of at most {bar:.2f}  {verdict:<6}  cpu {cpu:.2f}  {more}",
          flush=True)  # fmt: skip


def speed(size: int, took: list[Took]) -> str:
    """MB/s and CPU seconds a GiB, medians."""
    seconds = statistics.median(one.seconds for one in took)
    cpu = statistics.median(one.cpu for one in took)
    return f"{size / 1e6 / seconds:.0f} MB/s, {cpu / (size / 1024**3):.2f} CPU s/GiB"
