"""The durable queue between the API and the worker processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from middleware_api.contract import Invocation
from middleware_api.embedded.database import Database


@dataclass(frozen=True)
class QueuedJob:
    """A leased invocation; `deaths` counts the workers that died over it before."""

    invocation: Invocation
    deaths: int

    @property
    def job_id(self) -> str:
        """Id of the inference job."""
        return self.invocation["job_id"]


class JobQueue:
    """First in, first out, for each endpoint; a job leaves only when its end is recorded.

    The lock on the data directory makes this process the only one that leases, so a lease found
    at the start belongs to a server that is gone: `recover` gives those jobs back.
    """

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def recover(self) -> None:
        """Give back what a killed server had leased. That is no fault of the jobs."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE queue SET leased_at = NULL")

    def put(self, endpoint_id: str, invocation: Invocation) -> None:
        """Append a job; one that is there already stays where it is."""
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO queue (job_id, endpoint_id, invocation) VALUES (?, ?, ?)",
                (invocation["job_id"], endpoint_id, json.dumps(invocation)),
            )

    def lease(self, endpoint_id: str) -> QueuedJob | None:
        """The endpoint's next job, now nobody else's; None when none waits."""
        with self._database.transaction() as connection:
            row = connection.execute(
                "UPDATE queue SET leased_at = ? WHERE job_id = (SELECT job_id FROM queue"
                " WHERE endpoint_id = ? AND leased_at IS NULL ORDER BY position LIMIT 1)"
                " RETURNING invocation, deaths",
                (self._clock(), endpoint_id),
            ).fetchone()
        return QueuedJob(json.loads(row["invocation"]), row["deaths"]) if row else None

    def give_back(self, job_id: str, *, died: bool) -> None:
        """Let a leased job be leased again; `died` when its worker ended over it."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE queue SET leased_at = NULL, deaths = deaths + ? WHERE job_id = ?",
                (int(died), job_id),
            )

    def remove(self, job_id: str) -> None:
        """Forget a job whose end is recorded."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM queue WHERE job_id = ?", (job_id,))

    def withdraw(self, job_id: str) -> bool:
        """Remove a job that nobody has leased; False when it is leased or not here."""
        with self._database.transaction() as connection:
            return bool(
                connection.execute(
                    "DELETE FROM queue WHERE job_id = ? AND leased_at IS NULL", (job_id,)
                ).rowcount
            )

    def position(self, job_id: str) -> int | None:
        """0 while leased, n for the n-th in its endpoint's queue, None when not here."""
        rows = self._database.rows(
            "SELECT leased_at, (SELECT count(*) FROM queue AS ahead WHERE"
            " ahead.endpoint_id = job.endpoint_id AND ahead.leased_at IS NULL"
            " AND ahead.position <= job.position) AS place FROM queue AS job WHERE job_id = ?",
            (job_id,),
        )
        if not rows:
            return None
        return 0 if rows[0]["leased_at"] is not None else rows[0]["place"]

    def load(self, endpoint_id: str) -> int:
        """Jobs waiting or running on an endpoint."""
        rows = self._database.rows(
            "SELECT count(*) AS jobs FROM queue WHERE endpoint_id = ?", (endpoint_id,)
        )
        count: int = rows[0]["jobs"]
        return count

    def waiting(self, endpoint_id: str) -> list[str]:
        """Ids of all jobs of an endpoint, leased or not, oldest first."""
        rows = self._database.rows(
            "SELECT job_id FROM queue WHERE endpoint_id = ? ORDER BY position", (endpoint_id,)
        )
        return [row["job_id"] for row in rows]
