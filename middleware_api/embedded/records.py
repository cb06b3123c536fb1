"""Records in SQLite."""

from __future__ import annotations

import heapq
import sqlite3
from collections.abc import Callable, Collection
from dataclasses import replace
from itertools import product
from typing import TypeVar

from middleware_api.embedded.database import Database
from middleware_api.errors import Conflict, NotFound
from middleware_api.ports import Page
from middleware_api.record_json import (
    dump_record,
    load_record,
    make_cursor,
    parse_cursor,
    stale,
)
from middleware_api.records import Record

R = TypeVar("R", bound=Record)


class SqliteRecords:
    """`ports.Records` on the embedded database."""

    def __init__(self, database: Database, clock: Callable[[], float]) -> None:
        self._database = database
        self._clock = clock

    def add(self, record: Record) -> None:
        """See `ports.Records`."""
        try:
            with self._database.transaction() as connection:
                connection.execute(
                    "INSERT INTO records (kind, id, owner, state, label, created_at, check_at,"
                    " version, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        record.KIND,
                        record.id,
                        record.owner,
                        record.index_state,
                        record.index_label,
                        record.created_at,
                        record.check_at,
                        record.version,
                        dump_record(record),
                    ),
                )
        except sqlite3.IntegrityError as error:
            raise Conflict(f"{record.KIND} '{record.id}' exists already.") from error

    def get(self, kind: type[R], record_id: str) -> R:
        """See `ports.Records`."""
        rows = self._database.rows(
            "SELECT body FROM records WHERE kind = ? AND id = ?", (kind.KIND, record_id)
        )
        if not rows:
            raise NotFound(f"There is no {kind.KIND} with the id '{record_id}'.")
        return load_record(kind, rows[0]["body"])

    def update(self, record: R) -> R:
        """See `ports.Records`."""
        after = replace(record, version=record.version + 1)
        with self._database.transaction() as connection:
            changed = connection.execute(
                "UPDATE records SET state = ?, check_at = ?, version = ?, body = ?"
                " WHERE kind = ? AND id = ? AND version = ?",
                (
                    after.index_state,
                    after.check_at,
                    after.version,
                    dump_record(after),
                    record.KIND,
                    record.id,
                    record.version,
                ),
            ).rowcount
        if not changed:
            raise stale(record)
        return after

    def remove(self, record: Record) -> None:
        """See `ports.Records`."""
        with self._database.transaction() as connection:
            removed = connection.execute(
                "DELETE FROM records WHERE kind = ? AND id = ? AND version = ?",
                (record.KIND, record.id, record.version),
            ).rowcount
        if not removed:
            raise stale(record)

    def page(
        self,
        kind: type[R],
        *,
        owner: str | None = None,
        states: Collection[str] = (),
        labels: Collection[str] = (),
        limit: int,
        cursor: str | None = None,
    ) -> Page[R]:
        """See `ports.Records`. One short index range a pair of filters, merged by age."""
        before = parse_cursor(cursor) if cursor else (float("inf"), "")
        ranges = [
            self._range(kind, owner, state, label, before, limit + 1)
            for state, label in product(set(states) or (None,), set(labels) or (None,))
        ]
        merged = heapq.merge(*ranges, key=lambda row: (row["created_at"], row["id"]), reverse=True)
        rows = [row for row, _ in zip(merged, range(limit + 1), strict=False)]
        items = [load_record(kind, row["body"]) for row in rows[:limit]]
        more = len(rows) > limit
        return Page(items, make_cursor(items[-1]) if more else None)

    def due(self, kind: type[R], now: float, limit: int) -> list[R]:
        """See `ports.Records`."""
        rows = self._database.rows(
            "SELECT body FROM records WHERE kind = ? AND check_at <= ? ORDER BY check_at LIMIT ?",
            (kind.KIND, now, limit),
        )
        return [load_record(kind, row["body"]) for row in rows]

    def claim(self, key: str, value: str, seconds: float | None = None) -> str:
        """See `ports.Records`."""
        now = self._clock()
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM keys WHERE expires_at <= ?", (now,))
            connection.execute(
                "INSERT OR IGNORE INTO keys VALUES (?, ?, ?)",
                (key, value, None if seconds is None else now + seconds),
            )
            row = connection.execute("SELECT value FROM keys WHERE key = ?", (key,)).fetchone()
        bound: str = row["value"]
        return bound

    def count(self, key: str, limit: int, seconds: float) -> bool:
        """See `ports.Records`."""
        now = self._clock()
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM keys WHERE expires_at <= ?", (now,))
            connection.execute(
                "INSERT OR IGNORE INTO keys VALUES (?, '0', ?)", (key, now + seconds)
            )
            return bool(
                connection.execute(
                    "UPDATE keys SET value = value + 1 WHERE key = ? AND value + 0 < ?",
                    (key, limit),
                ).rowcount
            )

    def lookup(self, key: str) -> str | None:
        """See `ports.Records`."""
        rows = self._database.rows(
            "SELECT value FROM keys WHERE key = ? AND (expires_at IS NULL OR expires_at > ?)",
            (key, self._clock()),
        )
        return rows[0]["value"] if rows else None

    def bind(self, key: str, value: str) -> None:
        """See `ports.Records`."""
        with self._database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO keys VALUES (?, ?, NULL)", (key, value))

    def release(self, key: str, value: str) -> None:
        """See `ports.Records`."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM keys WHERE key = ? AND value = ?", (key, value))

    def _range(
        self,
        kind: type[R],
        owner: str | None,
        state: str | None,
        label: str | None,
        before: tuple[float, str],
        limit: int,
    ) -> list[sqlite3.Row]:
        where = "kind = ?"
        values: list[object] = [kind.KIND]
        for column, value in (("owner", owner), ("state", state), ("label", label)):
            if value is not None:
                where += f" AND {column} = ?"
                values.append(value)
        return self._database.rows(
            f"SELECT id, created_at, body FROM records WHERE {where}"
            " AND (created_at, id) < (?, ?) ORDER BY created_at DESC, id DESC LIMIT ?",
            (*values, *before, limit),
        )
