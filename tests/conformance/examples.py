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

from tests.conformance import corrections

TEXT = Path(__file__).parent / "api-v2023-07-05.original.txt"

_SECTION = re.compile(r"^# (?=/)", re.MULTILINE)
_LISTED = re.compile(r"\| (\d+) \| (GET|POST|PUT|DELETE) \| \[([^]]+)\]")
_STATEMENT = re.compile(r" (?=(?:headers|body|inputBody|r) = |print\()")
_HOST = re.compile(
    r"https://(?:\{api_id\})?\.execute-api\.\{region\}\.amazonaws\.com(?:/\{basePath\})?"
)
_KEY = "API_TOKEN_VALUE"
_FENCES = (("python", "Python"), ("javascript", "javascript"))


@dataclass(frozen=True)
class Section:
    """What the document says of one act; `answer` is its example of a success, None for `null`.

    `structures` has what it calls the body of each status code.
    """

    title: str
    method: str
    path: str
    answer: Any
    structures: dict[int, str]
    printed: dict[str, str]


@dataclass(frozen=True)
class Example:
    """One program of the document."""

    section: Section
    language: str
    code: str

    @property
    def name(self) -> str:
        """For people who read test results."""
        return f"{self.section.title} {self.language}"

    def aimed_at(self, url: str, token: str) -> str:
        """The program with its host, base path included, and its key replaced."""
        return _HOST.sub(lambda _: url, self.code).replace(_KEY, token)


def listed_rows() -> dict[int, tuple[str, str]]:
    """Method and path of every row of the document's table of acts, by number."""
    return {
        int(number): (method, path) for number, method, path in _LISTED.findall(TEXT.read_text())
    }


def sections() -> list[Section]:
    """In the document's order."""
    return [_section(text) for text in _SECTION.split(TEXT.read_text())[1:]]


def examples() -> list[Example]:
    """All of them, in the document's order."""
    return [
        Example(section, language, _program(section, language))
        for section in sections()
        for language, _ in _FENCES
    ]


def _section(text: str) -> Section:
    title = text.split()[0]
    ((method, path),) = re.findall(r"(?<!`)`(GET|POST|PUT|DELETE) (\S+)`(?!`)", text)
    (answer,) = re.findall(r"> 200 响应 ```json (.*?) ```", text, re.DOTALL)
    if title in corrections.ANSWERS:
        answer = corrections.ANSWERS[title].apply(answer)
    printed = {}
    for language, fence in _FENCES:
        (printed[language],) = re.findall(rf"```{fence} (.*?) ```", text, re.DOTALL)
    codes = re.findall(r"\|(\d{3})\|[^|]+\|[^|]+\|([^|]+)\|", text)
    return Section(
        title,
        method,
        path,
        json.loads(answer),
        {int(code): structure for code, structure in codes},
        printed,
    )


def _program(section: Section, language: str) -> str:
    code = section.printed[language]
    for correction in corrections.CODE.get((section.title, language), []):
        code = correction.apply(code)
    return _STATEMENT.sub("\n", code) if language == "python" else code
