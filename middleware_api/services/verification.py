"""The content of what was uploaded or imported, read once more where the store has not hashed it.

S3 puts an upload together without looking at it as a whole. So a runner reads the object and
computes its SHA-256, before anybody can use it. SHA-256 cannot be stopped in the middle and gone on
with elsewhere: a file is read within one call of a runner, which bounds its size
(`Objects.hash_max_bytes`); of several files those that are done stay done.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from middleware_api.contract import CheckpointStep
from middleware_api.errors import (
    ContentDiffers,
    FileRefused,
    ServiceError,
    StaleRecord,
)
from middleware_api.ports import Objects, Records, Runners
from middleware_api.records import Checkpoint, CheckpointFile
from middleware_api.services.admission import AdmissionService
from middleware_api.services.checkpoints import CheckpointService
from middleware_api.services.hashing import hashed
from middleware_api.services.leases import Lease, take

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0
RECONCILE_SECONDS = 60.0
TRIES_ALLOWED = 4
DEADLINE_SECONDS = 24 * 3600


class VerificationService:
    """Between the last byte of a checkpoint and its examination, where the store does not hash."""

    def __init__(
        self,
        records: Records,
        objects: Objects,
        runners: Runners,
        checkpoint_service: CheckpointService,
        admission_service: AdmissionService,
        clock: Callable[[], float],
    ) -> None:
        self._records = records
        self._objects = objects
        self._runners = runners
        self._checkpoint_service = checkpoint_service
        self._admission_service = admission_service
        self._clock = clock

    def go_on(self, checkpoint_id: str, enough: Callable[[], bool]) -> bool:
        """Check a checkpoint's content, and admit it; called by runners.

        Returns False when `enough` came first: call again. True is that nothing is to be done
        now: it has ended, another runner has it, or the reconciler will begin its next try.
        """
        if enough():  # a try that cannot come to an end would be counted
            return False
        checkpoint = take(self._records, self._clock, checkpoint_id, CheckpointStep.CHECKING)
        if checkpoint is None:
            return True
        lease = Lease(self._records, self._clock, checkpoint)
        try:
            return self._run(lease, enough)
        except StaleRecord:  # given up, deleted, or in another runner's hands
            return True

    def reconcile(self, checkpoint: Checkpoint) -> None:
        """Begin what nobody runs; end what has taken too long."""
        if self._clock() > (checkpoint.arrived_at or 0.0) + DEADLINE_SECONDS:
            hours = DEADLINE_SECONDS // 3600
            self._checkpoint_service.fail(
                checkpoint,
                f"Its content could not be checked within {hours} hours. {checkpoint.waits_for} "
                "Upload it again.",
            )
            return
        self._records.update(replace(checkpoint, check_at=self._clock() + RECONCILE_SECONDS))
        self._runners.begin(checkpoint.id)

    def _run(self, lease: Lease, enough: Callable[[], bool]) -> bool:
        """Raises StaleRecord when it is in other hands."""
        tries = lease.checkpoint.checks + 1
        if tries > TRIES_ALLOWED:
            # Whoever was at it has not even come to say why.
            reason = f"Checking its content was begun {TRIES_ALLOWED} times and never finished. "
            self._fail(lease, f"{reason}{lease.checkpoint.waits_for} Upload it again.")
            return True
        lease.note(replace(lease.checkpoint, checks=tries))
        try:
            while (file := _unhashed(lease.checkpoint)) is not None:
                self._check(lease, file, enough)
            self._admission_service.admit(lease.checkpoint)
        except _Enough as stopped:
            return self._stop(lease, stopped.message)
        except StaleRecord:
            raise
        except (ContentDiffers, FileRefused) as refusal:
            self._fail(lease, refusal.message)
        except ServiceError as fault:
            self._try_later(lease, fault.message)
        except Exception as fault:
            logger.exception("checking %s", lease.checkpoint.id)
            kind = type(fault).__name__
            self._try_later(lease, f"A fault in the server ({kind}: {fault}); see its log.")
        return True

    def _check(self, lease: Lease, file: CheckpointFile, enough: Callable[[], bool]) -> None:
        """Hash one file and note it. Raises ContentDiffers, NotFound, _Enough."""
        beat_at = self._clock() + HEARTBEAT_SECONDS

        def watch(done: int, size: int) -> None:
            nonlocal beat_at
            if enough() and done < size:
                raise _Enough(
                    f"Of the {size:,} bytes of '{file.name}' only {done:,} could be read in the "
                    "time that one call has."
                )
            if self._clock() >= beat_at:
                told = f"Its content is checked: {100 * done // size} % of '{file.name}' are read."
                lease.note(replace(lease.checkpoint, waits_for=told))
                beat_at = self._clock() + HEARTBEAT_SECONDS

        done = hashed(self._objects, file, watch)
        files = tuple(done if one.key == file.key else one for one in lease.checkpoint.files)
        # What is done is done: the next file has tries of its own.
        lease.note(replace(lease.checkpoint, files=files, checks=1))

    def _stop(self, lease: Lease, reason: str) -> bool:
        if lease.checkpoint.checks >= TRIES_ALLOWED:
            self._fail(lease, f"{reason} It was tried {TRIES_ALLOWED} times. Upload it again.")
            return True
        logger.info("checking %s: %s", lease.checkpoint.id, reason)
        lease.release(RECONCILE_SECONDS)
        return False

    def _try_later(self, lease: Lease, reason: str) -> None:
        tries = lease.checkpoint.checks
        if tries >= TRIES_ALLOWED:
            self._fail(lease, f"{reason} (Its content was to be checked; {tries} tries.)")
            return
        logger.info("checking %s: try %d: %s", lease.checkpoint.id, tries, reason)
        waits_for = f"Its content could not be checked yet: {reason} It is tried again."
        lease.note(replace(lease.checkpoint, waits_for=waits_for))
        lease.release(RECONCILE_SECONDS)

    def _fail(self, lease: Lease, reason: str) -> None:
        logger.info("checking %s failed: %s", lease.checkpoint.id, reason)
        self._checkpoint_service.fail(lease.checkpoint, reason)


class _Enough(Exception):
    """The runner's time is over."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def _unhashed(checkpoint: Checkpoint) -> CheckpointFile | None:
    return next((file for file in checkpoint.files if not file.is_hashed), None)
