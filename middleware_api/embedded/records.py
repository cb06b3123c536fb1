"""Records in SQLite."""

from __future__ import annotations

import base64
import binascii
import heapq
import json
import sqlite3
from collections.abc import Collection
from dataclasses import replace
from itertools import product
from typing import Any, TypeVar

from pydantic import TypeAdapter

from middleware_api.contract import CURSOR_HEADER
from middleware_api.embedded.database import Database
from middleware_api.errors import Conflict, InvalidRequest, NotFound, StaleRecord
from middleware_api.ports import Page
from middleware_api.records import Checkpoint, Endpoint, InferenceJob, Record

R = TypeVar("R", bound=Record)

_ADAPTERS: dict[type[Record], TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (InferenceJob, Endpoint, Checkpoint)
}


class SqliteRecords:
    """`ports.Records` on the embedded database."""

    def __init__(self, database: Database) -> None:
        self._database = database

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
                        _dump(record),
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
        return _load(kind, rows[0]["body"])

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
                    _dump(after),
                    record.KIND,
                    record.id,
                    record.version,
                ),
            ).rowcount
        if not changed:
            raise StaleRecord(
                f"{record.KIND} '{record.id}' was changed by somebody else meanwhile. Try again."
            )
        return after

    def page(
        self,
        kind: type[R],
        *,
        states: Collection[str] = (),
        labels: Collection[str] = (),
        limit: int,
        cursor: str | None = None,
    ) -> Page[R]:
        """See `ports.Records`. One short index range a pair of filters, merged by age."""
        before = _parse_cursor(cursor) if cursor else (float("inf"), "")
        ranges = [
            self._range(kind, state, label, before, limit + 1)
            for state, label in product(set(states) or (None,), set(labels) or (None,))
        ]
        merged = heapq.merge(*ranges, key=lambda row: (row["created_at"], row["id"]), reverse=True)
        rows = [row for row, _ in zip(merged, range(limit + 1), strict=False)]
        items = [_load(kind, row["body"]) for row in rows[:limit]]
        more = len(rows) > limit
        return Page(items, _make_cursor(items[-1]) if more else None)

    def due(self, kind: type[R], now: float, limit: int) -> list[R]:
        """See `ports.Records`."""
        rows = self._database.rows(
            "SELECT body FROM records WHERE kind = ? AND check_at <= ? ORDER BY check_at LIMIT ?",
            (kind.KIND, now, limit),
        )
        return [_load(kind, row["body"]) for row in rows]

    def claim(self, key: str, value: str) -> str:
        """See `ports.Records`."""
        with self._database.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO keys VALUES (?, ?)", (key, value))
            row = connection.execute("SELECT value FROM keys WHERE key = ?", (key,)).fetchone()
        bound: str = row["value"]
        return bound

    def lookup(self, key: str) -> str | None:
        """See `ports.Records`."""
        rows = self._database.rows("SELECT value FROM keys WHERE key = ?", (key,))
        return rows[0]["value"] if rows else None

    def bind(self, key: str, value: str) -> None:
        """See `ports.Records`."""
        with self._database.transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO keys VALUES (?, ?)", (key, value))

    def release(self, key: str, value: str) -> None:
        """See `ports.Records`."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM keys WHERE key = ? AND value = ?", (key, value))

    def _range(
        self,
        kind: type[R],
        state: str | None,
        label: str | None,
        before: tuple[float, str],
        limit: int,
    ) -> list[sqlite3.Row]:
        where = "kind = ?"
        values: list[object] = [kind.KIND]
        if state is not None:
            where += " AND state = ?"
            values.append(state)
        if label is not None:
            where += " AND label = ?"
            values.append(label)
        return self._database.rows(
            f"SELECT id, created_at, body FROM records WHERE {where}"
            " AND (created_at, id) < (?, ?) ORDER BY created_at DESC, id DESC LIMIT ?",
            (*values, *before, limit),
        )


def _dump(record: Record) -> str:
    return _ADAPTERS[type(record)].dump_json(record).decode()


def _load(kind: type[R], body: str) -> R:
    record: R = _ADAPTERS[kind].validate_json(body)
    return record


def _make_cursor(record: Record) -> str:
    text = json.dumps([record.created_at, record.id])
    return base64.urlsafe_b64encode(text.encode()).decode()


def _parse_cursor(cursor: str) -> tuple[float, str]:
    try:
        created_at, record_id = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        return float(created_at), str(record_id)
    except (binascii.Error, ValueError, TypeError) as error:
        raise InvalidRequest(
            f"Not a cursor: take it from the {CURSOR_HEADER} header of the page before.",
            ("query", "cursor"),
        ) from error
