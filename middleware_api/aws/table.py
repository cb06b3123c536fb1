"""The one DynamoDB table: its key, its indexes, and how a record lies in it.

    pk = record#<kind>#<id>   a record: its JSON in `body`, and what the indexes need
    pk = key#<key>            a unique key: `value`, or `n` of a counter, and its `expires_at`

Lists are read from indexes, one for each set of filters, so that a page is one Query whatever the
filters: the index `owner-state` holds a kind's records of one owner in one state, newest first.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

from middleware_api.records import Record

KEY = "pk"
AGE = "age"
EXPIRES = "expires_at"
DUE_INDEX = "due"
CHECK_AT = "check_at"

_FILTERS = ("state", "label", "owner")
_DUE_KIND = "due_kind"

# The filters of each list index; its name is also the attribute that it is keyed by.
LIST_INDEXES: dict[frozenset[str], str] = {
    frozenset(chosen): "-".join(sorted(chosen)) or "all"
    for count in range(len(_FILTERS) + 1)
    for chosen in combinations(_FILTERS, count)
}


def list_key(kind: str, filters: dict[str, str]) -> str:
    """What a list index's attribute holds; the owner, which people choose, comes last."""
    return "#".join([kind, *(filters[name] for name in _FILTERS if name in filters)])


def age(created_at: float, record_id: str) -> str:
    """Sorts as (created_at, id) does, to the microsecond."""
    return f"{created_at:018.6f}#{record_id}"


def index_attributes(record: Record) -> dict[str, Any]:
    """The attributes by which the indexes find a record, in DynamoDB's notation."""
    values = {"state": record.index_state, "owner": record.owner}
    if record.index_label:
        values["label"] = record.index_label
    attributes: dict[str, Any] = {AGE: {"S": age(record.created_at, record.id)}}
    for filters, name in LIST_INDEXES.items():
        if filters <= values.keys():
            chosen = {filter_: values[filter_] for filter_ in filters}
            attributes[name] = {"S": list_key(record.KIND, chosen)}
    if record.check_at is not None:
        # An index holds only the items that have its keys: those with nothing due are not in it.
        attributes[_DUE_KIND] = {"S": record.KIND}
        attributes[CHECK_AT] = {"N": repr(record.check_at)}
    return attributes


def schema() -> dict[str, Any]:
    """The table's properties: CreateTable's parameters, and the template's, by the same names."""
    keys = {name: (name, AGE) for name in LIST_INDEXES.values()}
    keys[DUE_INDEX] = (_DUE_KIND, CHECK_AT)
    attributes = sorted({KEY, *(attribute for pair in keys.values() for attribute in pair)})
    return {
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [
            {"AttributeName": name, "AttributeType": "N" if name == CHECK_AT else "S"}
            for name in attributes
        ],
        "KeySchema": [{"AttributeName": KEY, "KeyType": "HASH"}],
        "GlobalSecondaryIndexes": [
            {
                "IndexName": name,
                "KeySchema": [
                    {"AttributeName": partition, "KeyType": "HASH"},
                    {"AttributeName": sort, "KeyType": "RANGE"},
                ],
                "Projection": {"ProjectionType": "ALL"},
            }
            for name, (partition, sort) in sorted(keys.items())
        ],
    }


DUE_KEY = _DUE_KIND
