"""The examples of the API's original document, taken out of its text.

The text has lost its line breaks. JavaScript does without them; Python's are put back before each
statement.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT = Path(__file__).parent / "api-v2023-07-05.original.txt"

_SECTION = re.compile(r"^# (?=/)", re.MULTILINE)
_STATEMENT = re.compile(r" (?=(?:headers|body|inputBody|r) = |print\()")
_HOST = re.compile(
    r"https://(?:\{api_id\})?\.execute-api\.\{region\}\.amazonaws\.com(?:/\{basePath\})?"
)
_KEY = "API_TOKEN_VALUE"

# What keeps an example from being a program at all, or from asking what its section is about.
CORRECTIONS: dict[str, list[tuple[str, str, str]]] = {
    "python": [
        ("const inputBody", "inputBody", "a JavaScript word in Python"),
        ("import requests", "import requests; true, false = True, False", "JSON's words"),
    ],
    "javascript": [
        ("{basePath}/prod/datasets", "{basePath}/datasets", "the stage's name twice"),
    ],
}
# The JavaScript example of /upload_checkpoint calls /dataset.
_MISTAKEN_PATHS = {
    ("/upload_checkpoint", "javascript"): ("{basePath}/dataset", "{basePath}/upload_checkpoint")
}


@dataclass(frozen=True)
class Example:
    """One program of the document; `answer` is the body that it documents, None for none."""

    section: str
    language: str
    code: str
    answer: Any

    @property
    def name(self) -> str:
        """For people who read test results."""
        return f"{self.section} {self.language}"

    def aimed_at(self, url: str, token: str) -> str:
        """The program with its host, base path included, and its key replaced."""
        return _HOST.sub(url, self.code).replace(_KEY, token)


def examples() -> list[Example]:
    """All of them, in the document's order."""
    found = []
    for text in _SECTION.split(TEXT.read_text())[1:]:
        section = text.split()[0]
        answer = _documented_answer(text)
        for language, mark in (("python", "Python"), ("javascript", "javascript")):
            (code,) = re.findall(rf"```{mark} (.*?) ```", text, re.DOTALL)
            for wrong, right, _reason in CORRECTIONS[language]:
                code = code.replace(wrong, right)
            if language == "python":
                code = _STATEMENT.sub("\n", code)
            if (section, language) in _MISTAKEN_PATHS:
                code = code.replace(*_MISTAKEN_PATHS[section, language])
            found.append(Example(section, language, code, answer))
    return found


def _documented_answer(text: str) -> Any:
    (answer,) = re.findall(r"> 200 响应 ```json (.*?) ```", text, re.DOTALL)
    answer = answer.replace("{ ... }", "{}")
    try:
        return json.loads(answer)
    except json.JSONDecodeError:
        return answer  # `Endpoint deleted`, without its quotation marks


def differences(documented: Any, actual: Any, place: str = "") -> list[str]:
    """Where `actual` lacks a documented field, or has another type there; more is no difference."""
    if documented is None:
        return []
    if isinstance(documented, dict):
        if not isinstance(actual, dict):
            return [f"{place or 'the body'} is {_kind(actual)}, not an object"]
        missing = [f"{place}{name} is missing" for name in documented if name not in actual]
        return missing + [
            difference
            for name in documented
            if name in actual
            for difference in differences(documented[name], actual[name], f"{place}{name}.")
        ]
    if isinstance(documented, list):
        if not isinstance(actual, list):
            return [f"{place or 'the body'} is {_kind(actual)}, not a list"]
        return [
            difference
            for item in (actual if documented else ())
            for difference in differences(documented[-1], item, f"{place}[].")
        ]
    if _kind(documented) != _kind(actual):
        return [f"{place} is {_kind(actual)}, not {_kind(documented)}"]
    return []


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return {str: "string", list: "list", dict: "object", type(None): "null"}[type(value)]
