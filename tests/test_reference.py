"""The written API pages are what the service itself would have written today."""

from __future__ import annotations

import pytest

from middleware_api.api.reference import (
    DOCS,
    ENGLISH,
    LANGUAGES,
    Json,
    MissingProse,
    page,
    service_description,
)


@pytest.fixture(scope="module")
def document() -> Json:
    return service_description()


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_pages_are_up_to_date(document: Json, language: str) -> None:
    words = LANGUAGES[language]
    prose = (DOCS / "prose" / f"{language}.md").read_text(encoding="utf-8")
    written = (DOCS / words.file).read_text(encoding="utf-8")
    assert written == page(document, prose, words), "run `make docs`"


def test_a_route_without_prose_and_prose_without_a_route_are_refused(document: Json) -> None:
    prose = (DOCS / "prose" / "en.md").read_text(encoding="utf-8")
    with pytest.raises(MissingProse, match="no route for \\['gone'\\]"):
        page(document, prose + "\n### gone\n\nA route that was removed.\n", ENGLISH)
    with pytest.raises(MissingProse, match="no prose for \\['test_connection'\\]"):
        page(document, prose.replace("### test_connection", "#### test_connection"), ENGLISH)
