"""How large the parts of an upload are, and how many go out at once: learned while sending."""

from __future__ import annotations

from collections.abc import Callable

from middleware_api.contract import MIB

PART_MIN, PART_MAX = 8 * MIB, 64 * MIB
# What one connection sends in this time is a good part: few requests, and little is lost with one.
PART_SECONDS = 1.0
PARTS_FIRST = 100  # of a large file, as long as nothing is known
PARTS_MOST = 1000  # their URLs come in one answer
LANES_FIRST, LANES_MOST = 4, 16
TRY_SECONDS = 2.0
SETTLED_SECONDS = 30.0
FASTER = 1.05


class Pace:
    """What has been learned of the line to one server; for one upload at a time.

    More lanes help where a distant server makes each of them slow, and hurt where processor or
    disk are what is short: so two more are tried, and taken back when they bring nothing.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.lanes = LANES_FIRST
        self._clock = clock
        self._lane_speed = 0.0
        self._began, self._before = clock(), 0
        self._tried: float | None = None
        self._settled_until = 0.0

    def part_size(self, size: int) -> int:
        """Bytes of each part of a file of `size`, whole MiB."""
        if size <= 2 * PART_MIN:
            return max(MIB, -(-size // MIB) * MIB)
        wanted = int(self._lane_speed * PART_SECONDS) or size // PARTS_FIRST
        bounded = max(PART_MIN, min(PART_MAX, wanted), size // PARTS_MOST)
        return -(-bounded // MIB) * MIB

    def begin(self, done: int) -> None:
        """Sending begins, with so many bytes there already."""
        self._began, self._before = self._clock(), done

    def note(self, done: int) -> None:
        """So many bytes are sent now: adapt, every few seconds."""
        now = self._clock()
        if now - self._began < TRY_SECONDS:
            return
        speed = (done - self._before) / (now - self._began)
        self._lane_speed = speed / self.lanes
        self._began, self._before = now, done
        if now < self._settled_until:
            return
        if self._tried is not None and speed < FASTER * self._tried:
            self.lanes -= 2
            self._tried, self._settled_until = None, now + SETTLED_SECONDS
        elif self.lanes + 2 <= LANES_MOST:
            self.lanes += 2
            self._tried = speed
        else:
            self._tried, self._settled_until = None, now + SETTLED_SECONDS
