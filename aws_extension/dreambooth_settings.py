"""The local Dreambooth extension's saved settings, and what the cloud makes of each of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import Enum
from pathlib import Path
from typing import Any

from aws_extension.errors import UploadFailed
from middleware_api.training_fields import (
    OTHER_CONCEPT_FIELDS,
    OTHER_FIELDS,
    ConceptSettings,
    TrainSettings,
)

FILE = "db_config.json"


class Verdict(Enum):
    """What becomes of a setting."""

    HONOURED = "Honoured"
    MAPPED = "Done in another way"
    UNUSED = "Switched off"
    LEFT_OUT = "Left out"


@dataclass(frozen=True)
class Judged:
    """One setting; `why` says how it is done, or that it is not."""

    name: str
    value: object
    verdict: Verdict
    why: str


def saved_settings(folder: Path | None) -> dict[str, Path]:
    """The files of all of the extension's models, by the models' names."""
    if folder is None or not folder.is_dir():
        return {}
    return {
        file.parent.name: file
        for file in sorted(folder.glob(f"*/{FILE}"), key=lambda file: file.parent.name.lower())
    }


def read_settings(file: Path) -> dict[str, Any]:
    """Raises UploadFailed for what is no such file."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except OSError as fault:
        raise UploadFailed(
            f"'{file}' cannot be read ({fault.strerror}). Check its path."
        ) from fault
    except ValueError as fault:
        raise UploadFailed(
            f"'{file}' is no JSON ({fault}). Choose the Dreambooth extension's {FILE}."
        ) from fault
    if not isinstance(raw, dict):
        raise UploadFailed(f"'{file}' holds no settings. Choose the Dreambooth extension's {FILE}.")
    return {name.removeprefix("db_"): value for name, value in raw.items()}


def judge(config: dict[str, Any]) -> list[Judged]:
    """Every setting and its concepts', in the order of the file."""
    return list(_judge(config))


def _judge(config: dict[str, Any]) -> Iterator[Judged]:
    known = {field.name: field for field in fields(TrainSettings)}
    in_concepts = {field.name: field for field in fields(ConceptSettings)}
    for name, value in config.items():
        if name == "concepts_list" and isinstance(value, list):
            for number, concept in enumerate(each for each in value if isinstance(each, dict)):
                for inner, found in concept.items():
                    place = f"concepts_list[{number}].{inner}"
                    yield _one(place, inner, found, in_concepts, OTHER_CONCEPT_FIELDS)
        else:
            yield _one(name, name, value, known, OTHER_FIELDS)


def _one(place: str, name: str, value: object, known: Any, others: Any) -> Judged:
    if name in known:
        return Judged(place, value, Verdict.HONOURED, known[name].metadata["bounds"].meaning)
    other = others.get(name)
    if other is None:
        return Judged(place, value, Verdict.LEFT_OUT, "Not a setting that is known here.")
    if not other.refused:
        return Judged(place, value, Verdict.MAPPED, other.instead)
    is_unused = value is None or value in other.neutral
    return Judged(place, value, Verdict.UNUSED if is_unused else Verdict.LEFT_OUT, other.instead)
