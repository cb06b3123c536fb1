"""Whether an answer has the fields, types and forms of a documented one."""

from __future__ import annotations

import re
from typing import Any

# Texts that a caller takes apart, and what may stand for each.
_FORMS = (
    (re.compile(r"s3://"), "an s3:// location"),
    (re.compile(r"https?://"), "a URL"),
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6}$"), "a time with microseconds"),
    (re.compile(r"\d{4}-\d\d-\d\d-\d\d-\d\d-\d\d$"), "a time with dashes"),
)


def differences(
    documented: Any,
    actual: Any,
    *,
    null_while: dict[str, frozenset[str]] | None = None,
    filled: bool = False,
    place: str = "",
) -> list[str]:
    """Where `actual` lacks a documented field, or has another type or form there.

    More fields are no difference. `null_while` has fields that may be null, and the `status` of
    the object around them in which they may. `filled`: documented lists must not be empty, but
    for those inside a list's items.
    """
    here = place or "the body"
    if documented is None:
        return []
    if isinstance(documented, dict):
        if not isinstance(actual, dict):
            return [f"{here} is {_kind(actual)}, not an object"]
        found = []
        for name, value in documented.items():
            inner = f"{place}.{name}" if place else name
            if name not in actual:
                found.append(f"{inner} is missing")
            elif actual[name] is None and actual.get("status") in (null_while or {}).get(name, ()):
                pass
            else:
                found += differences(
                    value, actual[name], null_while=null_while, filled=filled, place=inner
                )
        return found
    if isinstance(documented, list):
        if not isinstance(actual, list):
            return [f"{here} is {_kind(actual)}, not a list"]
        if filled and documented and not actual:
            return [f"{here} is empty"]
        item = _any_item(documented)
        return [
            difference
            for index, value in enumerate(actual)
            for difference in differences(
                item, value, null_while=null_while, place=f"{place}[{index}]"
            )
        ]
    if _kind(documented) != _kind(actual):
        return [f"{here} is {_kind(actual)}, not {_kind(documented)}"]
    if isinstance(documented, str):
        for form, name in _FORMS:
            if form.match(documented) and not form.match(actual):
                return [f"{here} is not {name}: {actual!r}"]
    return []


def _any_item(items: list[Any]) -> Any:
    """What the items show together: the document's examples leave different fields out."""
    if all(isinstance(item, dict) for item in items):
        return {name: value for item in items for name, value in item.items()}
    return items[0]


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return {str: "string", list: "list", dict: "object", type(None): "null"}[type(value)]
