"""Records in DynamoDB."""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Callable, Collection
from dataclasses import replace
from itertools import product
from math import ceil
from typing import Any, TypeVar

from botocore.exceptions import ClientError

from middleware_api.aws.faults import error_code
from middleware_api.aws.table import (
    AGE,
    CHECK_AT,
    DUE_INDEX,
    DUE_KEY,
    EXPIRES,
    KEY,
    LIST_INDEXES,
    age,
    index_attributes,
    list_key,
)
from middleware_api.errors import Conflict, NotFound, TooLarge
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
Item = dict[str, Any]

# An item may have 400 KB. A long list of files takes a tenth of its length when compressed.
_PLAIN_MAX_BYTES = 32 * 1024
_BODY_MAX_BYTES = 380 * 1024


class DynamoRecords:
    """`ports.Records` on the deployment's table (see `aws.table`)."""

    def __init__(self, dynamodb: Any, table: str, clock: Callable[[], float]) -> None:
        """`dynamodb` is a boto3 client."""
        self._dynamodb = dynamodb
        self._table = table
        self._clock = clock

    def add(self, record: Record) -> None:
        """See `ports.Records`. Raises TooLarge too."""
        try:
            self._put(record, ConditionExpression=f"attribute_not_exists({KEY})")
        except _Refused as error:
            raise Conflict(f"{record.KIND} '{record.id}' exists already.") from error

    def get(self, kind: type[R], record_id: str) -> R:
        """See `ports.Records`."""
        item = self._item(_record_key(kind, record_id))
        if item is None:
            raise NotFound(f"There is no {kind.KIND} with the id '{record_id}'.")
        return _load(kind, item)

    def update(self, record: R) -> R:
        """See `ports.Records`. Raises TooLarge too."""
        after = replace(record, version=record.version + 1)
        try:
            self._put(after, **_unchanged(record))
        except _Refused as error:
            raise stale(record) from error
        return after

    def remove(self, record: Record) -> None:
        """See `ports.Records`."""
        try:
            self._write(
                "delete_item", Key=_record_key(type(record), record.id), **_unchanged(record)
            )
        except _Refused as error:
            raise stale(record) from error

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
        """See `ports.Records`. One Query a pair of filters, merged by age.

        The indexes follow the table within moments: what was just added may be missing.
        """
        before = age(*parse_cursor(cursor)) if cursor else None
        ranges = [
            self._range(kind, {"owner": owner, "state": state, "label": label}, before, limit + 1)
            for state, label in product(set(states) or (None,), set(labels) or (None,))
        ]
        merged = heapq.merge(*ranges, key=lambda item: item[AGE]["S"], reverse=True)
        found = [item for item, _ in zip(merged, range(limit + 1), strict=False)]
        items = [_load(kind, item) for item in found[:limit]]
        return Page(items, make_cursor(items[-1]) if len(found) > limit else None)

    def due(self, kind: type[R], now: float, limit: int) -> list[R]:
        """See `ports.Records`."""
        found = self._query(
            limit,
            IndexName=DUE_INDEX,
            KeyConditionExpression=f"{DUE_KEY} = :kind AND {CHECK_AT} <= :now",
            ExpressionAttributeValues={":kind": {"S": kind.KIND}, ":now": {"N": repr(now)}},
        )
        return [_load(kind, item) for item in found]

    def claim(self, key: str, value: str, seconds: float | None = None) -> str:
        """See `ports.Records`."""
        now = self._clock()
        item = {**_key(key), "value": {"S": value}}
        if seconds is not None:
            item[EXPIRES] = _time(now + seconds)
        try:
            self._write(
                "put_item",
                Item=item,
                # DynamoDB deletes what has expired within days only.
                ConditionExpression=f"attribute_not_exists({KEY}) OR {EXPIRES} <= :now",
                ExpressionAttributeValues={":now": {"N": repr(now)}},
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
        except _Refused as error:
            bound: str = error.item["value"]["S"]
            return bound
        return value

    def count(self, key: str, limit: int, seconds: float) -> bool:
        """See `ports.Records`."""
        now = self._clock()
        end = _time(now + seconds)
        try:
            self._write(
                "update_item",
                Key=_key(key),
                UpdateExpression=f"SET {EXPIRES} = if_not_exists({EXPIRES}, :end) ADD n :one",
                ConditionExpression=(
                    f"attribute_not_exists({KEY}) OR ({EXPIRES} > :now AND n < :limit)"
                ),
                ExpressionAttributeValues={
                    ":end": end,
                    ":one": {"N": "1"},
                    ":now": {"N": repr(now)},
                    ":limit": {"N": str(limit)},
                },
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
        except _Refused as error:
            if float(error.item[EXPIRES]["N"]) > now:
                return False
            self._forget_counter(key, error.item)
            return self.count(key, limit, seconds)
        return True

    def lookup(self, key: str) -> str | None:
        """See `ports.Records`."""
        item = self._item(_key(key))
        if item is None or (EXPIRES in item and float(item[EXPIRES]["N"]) <= self._clock()):
            return None
        value: str = item["value"]["S"]
        return value

    def bind(self, key: str, value: str) -> None:
        """See `ports.Records`."""
        self._write("put_item", Item={**_key(key), "value": {"S": value}})

    def release(self, key: str, value: str) -> None:
        """See `ports.Records`."""
        try:
            self._write(
                "delete_item",
                Key=_key(key),
                ConditionExpression="#value = :value",
                ExpressionAttributeNames={"#value": "value"},
                ExpressionAttributeValues={":value": {"S": value}},
            )
        except _Refused:
            return  # somebody else's by now

    def _put(self, record: Record, **condition: Any) -> None:
        item = {
            **_record_key(type(record), record.id),
            **index_attributes(record),
            "version": {"N": str(record.version)},
            "body": _dump(record),
        }
        self._write("put_item", Item=item, **condition)

    def _write(self, operation: str, **parameters: Any) -> None:
        """Raises _Refused when the write's condition does not hold."""
        try:
            getattr(self._dynamodb, operation)(TableName=self._table, **parameters)
        except ClientError as error:
            if error_code(error) != "ConditionalCheckFailedException":
                raise
            raise _Refused(error.response.get("Item", {})) from error

    def _item(self, key: Item) -> Item | None:
        answer = self._dynamodb.get_item(TableName=self._table, Key=key, ConsistentRead=True)
        item: Item | None = answer.get("Item")
        return item

    def _range(
        self, kind: type[Record], filters: dict[str, str | None], before: str | None, limit: int
    ) -> list[Item]:
        chosen = {name: value for name, value in filters.items() if value is not None}
        index = LIST_INDEXES[frozenset(chosen)]
        condition = "#index = :key"
        values = {":key": {"S": list_key(kind.KIND, chosen)}}
        if before is not None:
            condition += f" AND {AGE} < :before"
            values[":before"] = {"S": before}
        return self._query(
            limit,
            IndexName=index,
            KeyConditionExpression=condition,
            ExpressionAttributeNames={"#index": index},
            ExpressionAttributeValues=values,
            ScanIndexForward=False,
        )

    def _query(self, limit: int, **parameters: Any) -> list[Item]:
        """At most `limit` items: one call, and one more for each MB that they have."""
        found: list[Item] = []
        while True:
            answer = self._dynamodb.query(
                TableName=self._table, Limit=limit - len(found), **parameters
            )
            found += answer["Items"]
            if len(found) >= limit or "LastEvaluatedKey" not in answer:
                return found
            parameters["ExclusiveStartKey"] = answer["LastEvaluatedKey"]

    def _forget_counter(self, key: str, item: Item) -> None:
        try:
            self._write(
                "delete_item",
                Key=_key(key),
                ConditionExpression=f"{EXPIRES} = :end",
                ExpressionAttributeValues={":end": item[EXPIRES]},
            )
        except _Refused:
            return  # somebody else has begun to count anew


class _Refused(Exception):
    """A conditional write whose condition did not hold; `item` is what is stored."""

    def __init__(self, item: Item) -> None:
        super().__init__("the condition does not hold")
        self.item = item


def _record_key(kind: type[Record], record_id: str) -> Item:
    return {KEY: {"S": f"record#{kind.KIND}#{record_id}"}}


def _key(key: str) -> Item:
    return {KEY: {"S": f"key#{key}"}}


def _unchanged(record: Record) -> Item:
    return {
        "ConditionExpression": "version = :read",
        "ExpressionAttributeValues": {":read": {"N": str(record.version)}},
    }


def _time(seconds: float) -> Item:
    """DynamoDB's time to live wants whole seconds."""
    return {"N": str(ceil(seconds))}


def _dump(record: Record) -> Item:
    text = dump_record(record)
    if len(text) <= _PLAIN_MAX_BYTES:
        return {"S": text}
    compressed = zlib.compress(text.encode())
    if len(compressed) > _BODY_MAX_BYTES:
        raise TooLarge(
            f"This {record.KIND} has too many files or parameters to be remembered "
            f"({len(compressed)} bytes compressed; at most {_BODY_MAX_BYTES}). Divide it."
        )
    return {"B": compressed}


def _load(kind: type[R], item: Item) -> R:
    body = item["body"]
    return load_record(kind, body["S"] if "S" in body else zlib.decompress(body["B"]).decode())
