"""`python -m middleware_api.api.reference` writes docs/api.md and docs/api.zh.md.

What the service accepts and answers comes from its own OpenAPI document; what people should know
besides comes from docs/prose/<language>.md, one `### <operation>` section a route. A test fails
when the written pages differ from what this would write.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from middleware_api.embedded.middleware import embedded
from middleware_api.embedded.server import embedded_app
from middleware_api.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"
_REF = "#/components/schemas/"
# The two that every route shares are told once, in the introduction.
_SHARED_ERRORS = frozenset({"ErrorAnswer", "HTTPValidationError", "ValidationError"})

Json = dict[str, Any]


@dataclass(frozen=True)
class Words:
    """The generated parts' words in one language."""

    file: str
    routes: str
    parameters: str
    parameter_columns: tuple[str, ...]
    body: str
    answers: str
    types: str
    field_columns: tuple[str, ...]
    yes: str
    list_of: str
    map_of: str
    either: str


ENGLISH = Words(
    file="api.md",
    routes="Routes",
    parameters="Parameters",
    parameter_columns=("name", "in", "type", "required", "default"),
    body="Body",
    answers="Answers",
    types="Types",
    field_columns=("field", "type", "required", "default", "meaning"),
    yes="yes",
    list_of="list of {}",
    map_of="object of {}",
    either=" or ",
)
CHINESE = Words(
    file="api.zh.md",
    routes="接口列表",
    parameters="参数",
    parameter_columns=("名称", "位置", "类型", "必填", "默认值"),
    body="请求体",
    answers="响应",
    types="数据类型",
    field_columns=("字段", "类型", "必填", "默认值", "说明"),
    yes="是",
    list_of="{} 的列表",
    map_of="值为 {} 的对象",
    either=" 或 ",
)
LANGUAGES = {"en": ENGLISH, "zh": CHINESE}


@dataclass(frozen=True)
class Operation:
    """One method of one path."""

    method: str
    path: str
    details: Json

    @property
    def name(self) -> str:
        """The name that its section in the prose bears."""
        name: str = self.details["operationId"]
        return name


class MissingProse(Exception):
    """The prose of a language lacks a route, or tells of one that is not there."""


def service_description() -> Json:
    """The OpenAPI document of the embedded server."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings("127.0.0.1", 0, Path(folder), "unused", None, 3600.0)
        middleware = embedded(settings, "http://127.0.0.1:8210")
        document: Json = embedded_app(middleware).openapi()
        middleware.database.close()
    return document


def operations(document: Json) -> list[Operation]:
    """All of them, in the order of the routers."""
    return [
        Operation(method.upper(), path, details)
        for path, methods in document["paths"].items()
        for method, details in methods.items()
    ]


def page(document: Json, prose: str, words: Words) -> str:
    """The whole page of one language. Raises MissingProse."""
    introduction, sections = split_prose(prose)
    known = operations(document)
    absent = {o.name for o in known} - set(sections)
    left = set(sections) - {o.name for o in known}
    if absent or left:
        raise MissingProse(
            f"{words.file}: no prose for {sorted(absent)}, no route for {sorted(left)}"
        )
    parts = [introduction, f"## {words.routes}\n"]
    parts.append("".join(f"- [`{o.method} {o.path}`](#{o.name})\n" for o in known))
    parts += [_operation(o, sections[o.name], words) for o in known]
    parts.append(f"## {words.types}\n")
    schemas = document["components"]["schemas"]
    parts += [
        _schema(name, schema, words)
        for name, schema in schemas.items()
        if name not in _SHARED_ERRORS
    ]
    return "\n".join(part.rstrip() + "\n" for part in parts)


def split_prose(prose: str) -> tuple[str, dict[str, str]]:
    """What comes before the first `### `, and the sections by their names."""
    introduction, *rest = re.split(r"^### ", prose, flags=re.MULTILINE)
    sections = {}
    for section in rest:
        name, _, text = section.partition("\n")
        sections[name.strip()] = text.strip()
    return introduction, sections


def _operation(operation: Operation, prose: str, words: Words) -> str:
    lines = [f'### <a id="{operation.name}"></a>`{operation.method} {operation.path}`\n', prose, ""]
    parameters = operation.details.get("parameters", [])
    if parameters:
        rows = [
            (
                f"`{p['name']}`",
                p["in"],
                _type(p["schema"], words),
                words.yes if p["required"] else "",
                _default(p["schema"]),
            )
            for p in parameters
        ]
        lines += [f"**{words.parameters}**\n", _table(words.parameter_columns, rows)]
    content = operation.details.get("requestBody", {}).get("content", {})
    if "application/json" in content:
        lines.append(f"**{words.body}**: {_type(content['application/json']['schema'], words)}\n")
    answers = operation.details["responses"]
    (success,) = [answer for status, answer in answers.items() if status.startswith("2")]
    shapes = [_type(c.get("schema", {}), words) for c in success.get("content", {}).values()]
    refusals = ", ".join(status for status in sorted(answers) if not status.startswith("2"))
    lines.append(f"**{words.answers}**: 200 {words.either.join(shapes)} · {refusals}\n")
    return "\n".join(lines)


def _schema(name: str, schema: Json, words: Words) -> str:
    lines = [f'### <a id="type-{name}"></a>{name}\n', schema.get("description", ""), ""]
    if "enum" in schema:
        lines.append(" · ".join(f"`{value}`" for value in schema["enum"]))
        return "\n".join(lines)
    required = set(schema.get("required", ()))
    rows = [
        (
            f"`{field}`",
            _type(part, words),
            words.yes if field in required else "",
            _default(part),
            part.get("description", ""),
        )
        for field, part in schema["properties"].items()
    ]
    return "\n".join([*lines, _table(words.field_columns, rows)])


def _type(schema: Json, words: Words) -> str:
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_REF)
        return f"[{name}](#type-{name})"
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return words.either.join(dict.fromkeys(_type(s, words) for s in schema[key]))
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    if "enum" in schema:
        return words.either.join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type", "any")
    if kind == "array":
        return words.list_of.format(_type(schema.get("items", {}), words))
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return words.map_of.format(_type(schema["additionalProperties"], words))
    bounds = [
        f"{sign} {schema[key]:g}"
        for key, sign in (("minimum", "≥"), ("maximum", "≤"))
        if key in schema
    ]
    return " ".join([kind, *bounds])


def _default(schema: Json) -> str:
    return f"`{json.dumps(schema['default'])}`" if schema.get("default") is not None else ""


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    cells = [
        " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) for row in lines
    ]
    return "".join(f"| {line} |\n" for line in cells)


def write() -> None:
    """Both pages, from the prose beside them."""
    document = service_description()
    for language, words in LANGUAGES.items():
        prose = (DOCS / "prose" / f"{language}.md").read_text(encoding="utf-8")
        (DOCS / words.file).write_text(page(document, prose, words), encoding="utf-8")


if __name__ == "__main__":
    try:
        write()
    except MissingProse as error:
        sys.exit(str(error))
