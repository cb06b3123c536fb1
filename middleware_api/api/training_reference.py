"""`python -m middleware_api.api.training_reference` writes docs/training.md.

The tables come from the code that reads the fields; what people should know besides comes from
docs/prose/training.md. A test fails when the page differs from what this would write.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from middleware_api.model_params import HONOURED_MODEL_FIELDS, OTHER_MODEL_FIELDS
from middleware_api.training_fields import (
    OTHER_CONCEPT_FIELDS,
    OTHER_FIELDS,
    Bounds,
    ConceptSettings,
    OtherField,
    TrainSettings,
)

DOCS = Path(__file__).parents[2] / "docs"
_PLACES = ("{config_params}", "{concepts_list}", "{create_model_params}")
Row = tuple[str, str, str, str, str]


def page(prose: str) -> str:
    """The whole page: each table stands where the prose names its field."""
    model = [
        (f"`{name}`", "honoured", "", "", meaning)
        for name, meaning in HONOURED_MODEL_FIELDS.items()
    ]
    tables = (
        table([*_honoured(TrainSettings), *_others(OTHER_FIELDS)]),
        table([*_honoured(ConceptSettings), *_others(OTHER_CONCEPT_FIELDS)]),
        table([*model, *_others(OTHER_MODEL_FIELDS)]),
    )
    for place, written in zip(_PLACES, tables, strict=True):
        prose = prose.replace(place, written)
    return prose


def table(rows: list[Row]) -> str:
    """In the alphabet's order."""
    lines = ["| field | | default | values | meaning |", "|---|---|---|---|---|"]
    lines += [f"| {' | '.join(row)} |" for row in sorted(rows)]
    return "\n".join(lines)


def _honoured(kind: type[TrainSettings] | type[ConceptSettings]) -> list[Row]:
    rows = []
    for field in dataclasses.fields(kind):
        bounds: Bounds = field.metadata["bounds"]
        default = "" if field.default in ("", -1) else f"`{_plain(field.default)}`"
        values = _values(field.default, bounds)
        rows.append((f"`{field.name}`", "honoured", default, values, bounds.meaning))
    return rows


def _others(fields: Mapping[str, OtherField]) -> list[Row]:
    return [
        (
            f"`{name}`",
            "refused" if other.refused else "mapped",
            " ".join(f"`{_plain(value)}`" for value in other.neutral[:1] if value != ""),
            "",
            other.instead,
        )
        for name, other in fields.items()
    ]


def _values(default: object, bounds: Bounds) -> str:
    if bounds.choices:
        return " ".join(f"`{choice}`" for choice in bounds.choices if choice != "")
    if isinstance(default, bool | str):
        return ""
    if bounds.high == math.inf:
        return f"from {bounds.low:g}"
    return f"{bounds.low:g} to {bounds.high:.12g}"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Write the page anew."""
    prose = (DOCS / "prose" / "training.md").read_text(encoding="utf-8")
    (DOCS / "training.md").write_text(page(prose), encoding="utf-8")


if __name__ == "__main__":
    main()
