"""How far an upload is, and how fast."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

SPEED_WINDOW_SECONDS = 5.0


@dataclass(frozen=True)
class UploadProgress:
    """How far an upload is; bytes, and bytes a second over the last seconds."""

    phase: Literal["hashing", "sending", "finishing", "checking", "converting", "done"]
    done: int
    total: int
    bytes_per_second: float = 0.0

    @property
    def fraction(self) -> float:
        """0..1 of this phase."""
        return self.done / self.total if self.total else 1.0

    @property
    def seconds_left(self) -> float | None:
        """Of this phase, at the present speed; None where there is none."""
        if not self.bytes_per_second:
            return None
        return (self.total - self.done) / self.bytes_per_second

    def describe(self) -> str:
        """One line for the user."""
        if self.phase == "done":
            return "Uploaded"
        if self.phase == "checking":
            return "Sent, the cloud checks its content…"
        if self.phase == "converting":
            return "Sent, a worker of the cloud converts it to .safetensors…"
        if self.phase == "finishing":
            return "All parts sent, the server puts them together…"
        verb = "Reading" if self.phase == "hashing" else "Sending"
        line = f"{verb} {self.done / 1e6:,.1f} of {self.total / 1e6:,.1f} MB"
        if self.seconds_left is None:
            return line
        return f"{line}, {self.bytes_per_second / 1e6:.1f} MB/s, {duration(self.seconds_left)} left"


def duration(seconds: float) -> str:
    """A time as people say it: "40 s", "3 min", "2.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Meter:
    """Bytes sent by all threads, and their speed over the last seconds."""

    def __init__(self, total: int, clock: Callable[[], float]) -> None:
        self._total = total
        self._clock = clock
        self._done = 0
        self._lock = threading.Lock()
        self._marks: deque[tuple[float, int]] = deque([(clock(), 0)])

    def begin(self, arrived: int) -> None:
        """Sending begins now; so much was there before, and is no speed of ours."""
        with self._lock:
            self._done = arrived
            self._marks = deque([(self._clock(), arrived)])

    @property
    def done(self) -> int:
        """Bytes so far."""
        return self._done

    def add(self, count: int) -> None:
        """Count bytes; negative when a part has to be sent again."""
        with self._lock:
            self._done += count

    def progress(self) -> UploadProgress:
        """As of now; call it a few times a second."""
        with self._lock:
            now, done = self._clock(), self._done
            self._marks.append((now, done))
            while len(self._marks) > 2 and now - self._marks[0][0] > SPEED_WINDOW_SECONDS:
                self._marks.popleft()
            since, before = self._marks[0]
        speed = max(0.0, (done - before) / (now - since)) if now > since else 0.0
        return UploadProgress("sending", done, self._total, speed)
