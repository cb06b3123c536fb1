"""Everything that the pages say in words of ours: what a translation has to cover.

The WebUI translates text nodes, titles and placeholders that match an entry exactly. Three ways
lead to them: the controls of the built pages, what the code hands to the HTML builders, and the
text nodes of HTML that has been built (without those marked as values).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[2] / "aws_extension"
FIELDS = PACKAGE.parent / "middleware_api" / "training_fields.py"
_BUILDERS = {
    "words", "notice", "bar", "endless_bar", "facts", "badge", "send_button", "ask_button",
    "question", "Error", "Warning", "Info",
}  # fmt: skip
_NO_WORDS = {"", "good", "busy", "bad", "idle"}
_KEEPS = "sdaws-value"
_HIDDEN = "sdaws-away"
# Choices of these are the server's names, or names with numbers.
_VALUES = {
    "sdaws_folder_resolution", "sdaws_machine", "sdaws_training_machine",
    "sdaws_training_scheduler",
}  # fmt: skip


def constants() -> set[str]:
    """Every text in the client's code, and in the table of a training's fields."""
    return {
        node.value
        for path in (*PACKAGE.rglob("*.py"), FIELDS)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def handed_to_builders(*folders: str) -> set[str]:
    """Texts in the arguments of the HTML builders and of gradio's boxes."""
    found: set[str] = set()
    for folder in folders:
        for path in (PACKAGE / folder).glob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and _name(node.func) in _BUILDERS:
                    for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
                        found.update(_texts(argument))
    return {text for text in found if text not in _NO_WORDS and not text.startswith("sdaws-")}


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _texts(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node.value
    elif isinstance(node, ast.IfExp):
        yield from _texts(node.body)
        yield from _texts(node.orelse)
    elif isinstance(node, (ast.Tuple, ast.List)):
        for item in node.elts:
            yield from _texts(item)


def of_controls(config: dict[str, Any]) -> set[str]:
    """Labels, hints, buttons, choices and fixed HTML of built Blocks."""
    components = {one["id"]: one for one in config["components"]}
    found: set[str] = set()

    def walk(node: dict[str, Any]) -> None:
        # The outermost node is the page itself.
        component = components.get(node["id"], {"type": "page", "props": {}})
        kind, props = component["type"], component["props"]
        if _HIDDEN in (props.get("elem_classes") or []):
            return
        shown = [props.get("placeholder")]
        if props.get("show_label") is not False:
            shown += [props.get("label"), props.get("info")]
        if kind in ("button", "markdown"):
            shown.append(props.get("value"))
        if kind in ("radio", "dropdown") and props.get("elem_id") not in _VALUES:
            # gradio has them as names, or as pairs of a name and its value.
            choices = props.get("choices") or []
            shown += [one if isinstance(one, str) else one[0] for one in choices]
        if kind == "html":
            found.update(of_html(props.get("value") or ""))
        found.update(text.strip() for text in shown if text and text.strip())
        for child in node.get("children", []):
            walk(child)

    walk(config["layout"])
    return found


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()
        self._open: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        keeps = _KEEPS in (given.get("class") or "").split() or tag == "textarea"
        if given.get("title"):
            self.found.add(str(given["title"]))
        if tag not in ("img", "input"):
            self._open.append((tag, keeps))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag, f"<{tag}> is closed where it is not open"

    def handle_data(self, data: str) -> None:
        text = data.strip()
        if text not in ("", "–", "—") and not any(keeps for _, keeps in self._open):
            self.found.add(text)


def of_html(content: str) -> set[str]:
    """Text nodes and titles of HTML that are no values."""
    reader = _Reader()
    reader.feed(content)
    reader.close()
    return reader.found
