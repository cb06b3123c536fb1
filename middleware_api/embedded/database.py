"""One SQLite file in WAL mode, its numbered migrations, and a connection for each thread."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Number n brings a file from version n to n + 1. Never change one that was released: add one.
MIGRATIONS = (
    """
    CREATE TABLE records (
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        owner TEXT NOT NULL,
        state TEXT NOT NULL,
        label TEXT NOT NULL,
        created_at REAL NOT NULL,
        check_at REAL,
        version INTEGER NOT NULL,
        body TEXT NOT NULL,
        PRIMARY KEY (kind, id)
    );
    CREATE INDEX newest ON records (kind, created_at, id);
    CREATE INDEX newest_state ON records (kind, state, created_at, id);
    CREATE INDEX newest_label ON records (kind, label, created_at, id);
    CREATE INDEX newest_state_label ON records (kind, state, label, created_at, id);
    CREATE INDEX newest_owner ON records (kind, owner, created_at, id);
    CREATE INDEX newest_owner_state ON records (kind, owner, state, created_at, id);
    CREATE INDEX newest_owner_label ON records (kind, owner, label, created_at, id);
    CREATE INDEX newest_owner_state_label
        ON records (kind, owner, state, label, created_at, id);
    CREATE INDEX due ON records (kind, check_at) WHERE check_at IS NOT NULL;
    CREATE TABLE keys (
        key TEXT PRIMARY KEY,
        value TEXT NOT NULL,
        expires_at REAL
    ) WITHOUT ROWID;
    CREATE INDEX keys_expired ON keys (expires_at) WHERE expires_at IS NOT NULL;
    CREATE TABLE queue (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        job_id TEXT NOT NULL UNIQUE,
        endpoint_id TEXT NOT NULL,
        invocation TEXT NOT NULL,
        leased_at REAL,
        deaths INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX queue_next ON queue (endpoint_id, leased_at, position);
    """,
    """
    CREATE TABLE training (
        position INTEGER PRIMARY KEY AUTOINCREMENT,
        job_id TEXT NOT NULL UNIQUE,
        input_prefix TEXT NOT NULL,
        output_prefix TEXT NOT NULL,
        state TEXT NOT NULL,
        error TEXT NOT NULL DEFAULT '',
        leased INTEGER NOT NULL DEFAULT 0,
        stop_asked INTEGER NOT NULL DEFAULT 0,
        deaths INTEGER NOT NULL DEFAULT 0,
        seconds REAL NOT NULL DEFAULT 0,
        ended_at REAL
    );
    CREATE INDEX training_next ON training (state, leased, position);
    """,
)


class Database:
    """Thread-safe access to the file; each thread has a connection of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._local = threading.local()
        self._lock = threading.Lock()
        self._open: list[sqlite3.Connection] = []
        with self.transaction() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > len(MIGRATIONS):
                raise RuntimeError(
                    f"{path} was written by a newer version of this program. Update it, or "
                    "choose another data directory."
                )
            for number, script in enumerate(MIGRATIONS[version:], version + 1):
                # Not executescript(): that would commit the transaction half way.
                for statement in script.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {number}")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: all of it is kept, or, when the block raises, none."""
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield connection
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def rows(self, sql: str, values: tuple[object, ...] = ()) -> list[sqlite3.Row]:
        """The rows of one SELECT."""
        return self._connection().execute(sql, values).fetchall()

    def close(self) -> None:
        """Close every thread's connection; nobody may use the database afterwards."""
        with self._lock:
            for connection in self._open:
                connection.close()
            self._open.clear()

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            # check_same_thread: only `close` touches it from elsewhere.
            connection = sqlite3.connect(
                self._path, timeout=30, isolation_level=None, check_same_thread=False
            )
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA journal_mode = WAL")
            # An accepted job must outlive a power cut, not only a killed process.
            connection.execute("PRAGMA synchronous = FULL")
            self._local.connection = connection
            with self._lock:
                self._open.append(connection)
        return connection
