"""Records as the adapters store them: one JSON document each, and cursors into their lists."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, TypeVar

from pydantic import TypeAdapter

from middleware_api.contract import CURSOR_HEADER
from middleware_api.errors import InvalidRequest, StaleRecord
from middleware_api.records import Record

R = TypeVar("R", bound=Record)


# Made when they are first needed: all of them would lengthen every cold start.
_ADAPTERS: dict[type[Record], TypeAdapter[Any]] = {}


def _adapter(kind: type[Record]) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def dump_record(record: Record) -> str:
    """The record as JSON."""
    return _adapter(type(record)).dump_json(record).decode()


def load_record(kind: type[R], text: str) -> R:
    """What `dump_record` wrote."""
    record: R = _adapter(kind).validate_json(text)
    return record


def make_cursor(record: Record) -> str:
    """A cursor to what is older than `record`."""
    text = json.dumps([record.created_at, record.id])
    return base64.urlsafe_b64encode(text.encode()).decode()


def parse_cursor(cursor: str) -> tuple[float, str]:
    """Age and id of the last record seen. Raises InvalidRequest for what is no cursor."""
    try:
        created_at, record_id = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        return float(created_at), str(record_id)
    except (binascii.Error, ValueError, TypeError) as error:
        raise InvalidRequest(
            f"Not a cursor: take it from the {CURSOR_HEADER} header of the page before.",
            ("query", "cursor"),
        ) from error


def stale(record: Record) -> StaleRecord:
    """The refusal for the second of two writers."""
    return StaleRecord(
        f"{record.KIND} '{record.id}' was changed by somebody else meanwhile. Try again."
    )
