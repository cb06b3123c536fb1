"""The durable list of training jobs: what waits, what runs, how the last ones ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from sqlite3 import Row

from middleware_api.contract import TrainState
from middleware_api.embedded.database import Database

# The reconciler asks within minutes; people look into the log a week later.
REMEMBERED_SECONDS = 7 * 24 * 3600


@dataclass(frozen=True)
class QueuedTraining:
    """A job of the training program.

    `deaths` counts the processes that were killed over it, `seconds` is how long those before
    have run. `state` is Training until its end, also while it waits.
    """

    job_id: str
    input_prefix: str
    output_prefix: str
    state: TrainState
    error: str
    stop_asked: bool
    deaths: int
    seconds: float


class TrainingQueue:
    """First in, first out. One server uses it at a time, so a lease that is found at its start
    belongs to one that is gone: `recover` gives those jobs back."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def recover(self) -> None:
        """Give back what the last server had leased, and forget what has long ended."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE training SET leased = 0")
            connection.execute(
                "DELETE FROM training WHERE ended_at < ?", (self._clock() - REMEMBERED_SECONDS,)
            )

    def put(self, job_id: str, input_prefix: str, output_prefix: str) -> None:
        """Append a job; one that is there already, ended or not, stays what it is."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO training (job_id, input_prefix, output_prefix, state)"
                " VALUES (?, ?, ?, ?)",
                (job_id, input_prefix, output_prefix, TrainState.TRAINING.value),
            )

    def lease(self) -> QueuedTraining | None:
        """The next job, now nobody else's; None when none waits."""
        with self._database.transaction() as connection:
            row = connection.execute(
                "UPDATE training SET leased = 1 WHERE job_id = (SELECT job_id FROM training"
                " WHERE state = ? AND leased = 0 ORDER BY position LIMIT 1) RETURNING *",
                (TrainState.TRAINING.value,),
            ).fetchone()
        return _job(row) if row else None

    def find(self, job_id: str) -> QueuedTraining | None:
        """The job as it is now."""
        rows = self._database.rows("SELECT * FROM training WHERE job_id = ?", (job_id,))
        return _job(rows[0]) if rows else None

    def waits(self, job_id: str) -> int | None:
        """How many jobs begin before it; None for one that has begun, or is not here."""
        rows = self._database.rows(
            "SELECT (SELECT count(*) FROM training AS ahead WHERE ahead.state = job.state"
            " AND ahead.leased = 0 AND ahead.position < job.position) AS ahead"
            " FROM training AS job WHERE job_id = ? AND state = ? AND leased = 0",
            (job_id, TrainState.TRAINING.value),
        )
        return rows[0]["ahead"] if rows else None

    def ask_to_stop(self, job_id: str) -> bool:
        """Note that it is to stop; True when no process has it, and it has ended by that."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE training SET stop_asked = 1 WHERE job_id = ?", (job_id,))
            return bool(
                connection.execute(
                    "UPDATE training SET state = ?, ended_at = ?"
                    " WHERE job_id = ? AND state = ? AND leased = 0",
                    (
                        TrainState.STOPPED.value,
                        self._clock(),
                        job_id,
                        TrainState.TRAINING.value,
                    ),
                ).rowcount
            )

    def give_back(self, job_id: str, ran_seconds: float, *, died: bool) -> None:
        """Let a leased job be leased again, before all others."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE training SET leased = 0, seconds = seconds + ?, deaths = deaths + ?"
                " WHERE job_id = ?",
                (ran_seconds, int(died), job_id),
            )

    def end(self, job_id: str, state: TrainState, error: str) -> None:
        """Note its end."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE training SET state = ?, error = ?, leased = 0, ended_at = ?"
                " WHERE job_id = ?",
                (state.value, error, self._clock(), job_id),
            )


def _job(row: Row) -> QueuedTraining:
    return QueuedTraining(
        job_id=row["job_id"],
        input_prefix=row["input_prefix"],
        output_prefix=row["output_prefix"],
        state=TrainState(row["state"]),
        error=row["error"],
        stop_asked=bool(row["stop_asked"]),
        deaths=row["deaths"],
        seconds=row["seconds"],
    )
