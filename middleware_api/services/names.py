"""Unique names for records, taken so that a kill at any moment leaves none taken for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from middleware_api.errors import Conflict, NotFound
from middleware_api.ports import Records
from middleware_api.records import Record

R = TypeVar("R", bound=Record)

# Longer than any request lives: whoever still holds it then is dead.
_TAKING_SECONDS = 60.0


def _always(_holder: Record) -> bool:
    return True


@contextmanager
def taking_name(
    records: Records,
    key: str,
    record: R,
    refusal: Callable[[], Conflict],
    holds: Callable[[R], bool] = _always,
) -> Iterator[None]:
    """Bind `key` to the record, which is to be added within the block.

    Of several at once one gets it. A key whose record is not there belongs to somebody who died
    before adding it, and is taken over, as is one whose record no longer `holds` it. Raises
    `refusal` when the name is in use.
    """
    lock = f"taking/{key}"
    if records.claim(lock, record.id, _TAKING_SECONDS) != record.id:
        raise Conflict(
            "Somebody else is taking this name at the moment. Try again in a minute, or choose "
            "another one.",
            "name_being_taken",
        )
    try:
        holder = records.claim(key, record.id)
        if holder != record.id:
            if _is_held(records, type(record), holder, holds):
                raise refusal()
            records.bind(key, record.id)
        yield
    finally:
        records.release(lock, record.id)


def _is_held(records: Records, kind: type[R], holder: str, holds: Callable[[R], bool]) -> bool:
    try:
        return holds(records.get(kind, holder))
    except NotFound:
        return False
