"""Which jobs' pictures lie on this machine's disk already."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CollectedJobs:
    """One small file a job, so that several programs can note at once."""

    folder: Path

    def has(self, job_id: str) -> bool:
        """Whether its pictures have been saved here."""
        return self._path(job_id).exists()

    def add(self, job_id: str, files: Sequence[str] = ()) -> None:
        """Its pictures are on disk, as `files`.

        A note that cannot be written is let go: the job is then shown as still to be collected.
        """
        with suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path(job_id).write_text("\n".join(files), encoding="utf-8")

    def files(self, job_id: str) -> tuple[str, ...]:
        """Where they were saved; empty when that is not known."""
        try:
            return tuple(self._path(job_id).read_text(encoding="utf-8").splitlines())
        except OSError:
            return ()

    def forget(self, job_id: str) -> None:
        """The job is gone from the cloud."""
        with suppress(OSError):
            self._path(job_id).unlink()

    def _path(self, job_id: str) -> Path:
        # The id comes from outside: never a path of its own making.
        return self.folder / hashlib.sha256(job_id.encode()).hexdigest()[:40]
