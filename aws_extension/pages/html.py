"""Small pieces of HTML; every value that comes from outside is escaped here."""

from __future__ import annotations

from datetime import datetime
from html import escape as escape  # the pages take it from here
from typing import Literal

Kind = Literal["good", "busy", "bad", "idle"]


def notice(kind: Kind, text: str) -> str:
    """A coloured line or paragraph; line breaks are kept."""
    role = "alert" if kind == "bad" else "status"
    return f'<div class="sdaws-notice sdaws-{kind}" role="{role}">{escape(text)}</div>'


def badge(kind: Kind, text: str) -> str:
    """A state in a word. A busy one makes the page refresh itself (see sdaws.js)."""
    return f'<span class="sdaws-badge sdaws-{kind}">{escape(text)}</span>'


def bar(fraction: float, text: str, kind: Kind = "busy") -> str:
    """A progress bar with its line of text."""
    percent = round(100 * min(1.0, max(0.0, fraction)), 1)
    return (
        f'<div class="sdaws-progress sdaws-{kind}"><div class="sdaws-track" role="progressbar" '
        f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{percent}" '
        f'aria-label="{escape(text)}"><div class="sdaws-fill" style="width:{percent}%"></div></div>'
        f"<span>{escape(text)}</span></div>"
    )


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f"<th scope='col'>{escape(text)}</th>" for text in headings)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        "<div class='sdaws-scroll'><table class='sdaws-table'>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def when(moment: datetime | None) -> str:
    """A UTC time as people read it."""
    return escape(moment.strftime("%d %b %H:%M")) + " UTC" if moment else "–"


def size(count: int | None) -> str:
    """Bytes as people read them."""
    if count is None:
        return "–"
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
