"""One runner at a time has a checkpoint, by a lease that each of its writes renews."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from middleware_api.contract import CheckpointStep
from middleware_api.errors import NotFound, StaleRecord
from middleware_api.ports import Records
from middleware_api.records import Checkpoint

# Longer than any single step takes: a host's patience, or the store's work on a whole file.
LEASE_SECONDS = 300.0


class Lease:
    """A runner's hold on a checkpoint that it took.

    Each write renews it, and raises StaleRecord once the checkpoint is in other hands.
    """

    def __init__(
        self, records: Records, clock: Callable[[], float], checkpoint: Checkpoint
    ) -> None:
        self.checkpoint = checkpoint
        self._records = records
        self._clock = clock

    def note(self, checkpoint: Checkpoint) -> None:
        """Write its new state, and hold on."""
        self._write(_leased(checkpoint, self._clock()))

    def release(self, seconds: float) -> None:
        """Let any runner have it; after `seconds` the reconciler begins it."""
        check_at = self._clock() + seconds
        self._write(replace(self.checkpoint, leased_until=0.0, check_at=check_at))

    def _write(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = self._records.update(checkpoint)


def take(
    records: Records, clock: Callable[[], float], checkpoint_id: str, step: CheckpointStep
) -> Checkpoint | None:
    """Take hold of a checkpoint at `step`; None when it is not, or another runner has it."""
    while True:
        try:
            checkpoint = records.get(Checkpoint, checkpoint_id)
        except NotFound:
            return None
        if checkpoint.step is not step or checkpoint.leased_until > clock():
            return None
        with suppress(StaleRecord):
            return records.update(_leased(checkpoint, clock()))


def _leased(checkpoint: Checkpoint, now: float) -> Checkpoint:
    until = now + LEASE_SECONDS
    return replace(checkpoint, leased_until=until, check_at=until)
