"""Small pieces of HTML; every value that comes from outside is escaped here.

The WebUI translates text nodes that match an entry of localizations/ exactly. So a sentence of
ours is a text node of its own (a `str` part), and what varies is a `Value` beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape as escape  # the pages take it from here
from typing import Literal

# The pages take these from here too.
from aws_extension.quantities import duration as duration
from aws_extension.quantities import money as money
from aws_extension.quantities import size as size
from aws_extension.quantities import when as when

Kind = Literal["good", "busy", "bad", "idle"]


@dataclass(frozen=True)
class Value:
    """Text that varies: names, numbers, errors of the server. Not translated."""

    text: str


Part = str | Value


def words(*parts: Part) -> str:
    """A line of words and values."""
    return " ".join(
        f"<span class='sdaws-value'>{escape(part.text)}</span>"
        if isinstance(part, Value)
        else f"<span>{escape(part)}</span>"
        for part in parts
    )


def notice(kind: Kind, *lines: Part | tuple[Part, ...]) -> str:
    """A coloured box of one or more lines; a Value's own line breaks are kept."""
    role = "alert" if kind == "bad" else "status"
    body = "".join(
        f"<div>{words(*line) if isinstance(line, tuple) else words(line)}</div>" for line in lines
    )
    return f"<div class='sdaws-notice sdaws-{kind}' role='{role}'>{body}</div>"


def badge(kind: Kind, text: str) -> str:
    """A state in a word."""
    return f"<span class='sdaws-badge sdaws-{kind}'>{escape(text)}</span>"


def bar(fraction: float, *parts: Part, kind: Kind = "busy") -> str:
    """A progress bar with its line of text."""
    percent = round(100 * min(1.0, max(0.0, fraction)), 1)
    return _track(
        kind,
        f"aria-valuenow='{percent}'",
        f"<div class='sdaws-fill' style='width:{percent}%'></div>",
        parts,
    )


def endless_bar(*parts: Part) -> str:
    """Work whose end is not known."""
    return _track("busy", "", "<div class='sdaws-fill sdaws-endless'></div>", parts)


def _track(kind: Kind, value: str, fill: str, parts: tuple[Part, ...]) -> str:
    told = " ".join(part.text if isinstance(part, Value) else part for part in parts)
    return (
        f"<div class='sdaws-progress sdaws-{kind}'><div class='sdaws-track' role='progressbar' "
        f"aria-valuemin='0' aria-valuemax='100' {value} aria-label='{escape(told)}'>{fill}</div>"
        f"<div>{words(*parts)}</div></div>"
    )


def facts(*rows: tuple[str, Part]) -> str:
    """Names and what they are, for a card."""
    body = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{words(part)}</dd></div>" for name, part in rows
    )
    return f"<dl class='sdaws-facts'>{body}</dl>"


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f"<th scope='col'>{escape(text)}</th>" for text in headings)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        "<div class='sdaws-scroll'><table class='sdaws-table'>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


# What a click does is said in attributes that sdaws.js knows.


def send_button(text: str, box: str, order: str, kind: str = "", hint: str = "") -> str:
    """A button that writes `order` into the page's hidden box with that elem_id."""
    return (
        f"<button type='button' class='sdaws-button {kind}' data-sdaws-send='{escape(box)}' "
        f"data-sdaws-order='{escape(order)}' title='{escape(hint)}'>{escape(text)}</button>"
    )


def post_button(text: str, link: str) -> str:
    """A button that posts to a signed link; its listing shows what came of it."""
    return (
        f"<button type='button' class='sdaws-button' data-sdaws-post='{escape(link)}'>"
        f"{escape(text)}</button>"
    )


def picked_button(text: str, box: str) -> str:
    """A button that writes the order to upload all that is picked into that box."""
    return (
        "<button type='button' class='sdaws-button sdaws-primary' "
        f"data-sdaws-picked='{escape(box)}'>{escape(text)}</button>"
    )


def ask_button(text: str) -> str:
    """A button that shows the `question` of the surrounding `askable`."""
    return f"<button type='button' class='sdaws-button' data-sdaws-ask=''>{escape(text)}</button>"


def ask_name_button(text: str) -> str:
    """A button that shows its `name_question`."""
    return (
        f"<button type='button' class='sdaws-button' data-sdaws-ask='name'>{escape(text)}</button>"
    )


def name_question(parts: Sequence[Part], present: str, yes: str, box: str, order: str) -> str:
    """Asks for another name; it goes to the end of `order`, which is a JSON list."""
    told = " ".join(part.text if isinstance(part, Value) else part for part in parts)
    return (
        "<div class='sdaws-question sdaws-mild' data-sdaws-question='name' role='dialog' hidden>"
        f"<div>{words(*parts)}</div>"
        f"<input type='text' value='{escape(present)}' aria-label='{escape(told)}' "
        "data-sdaws-answer='' spellcheck='false'><div class='sdaws-buttons'>"
        + send_button(yes, box, order, "sdaws-primary")
        + "<button type='button' class='sdaws-button' data-sdaws-keep=''>Keep</button></div></div>"
    )


def question(parts: Sequence[Part], yes: str, box: str, order: str) -> str:
    """What an `ask_button` shows: a question, a button that does it, one that does not."""
    return (
        "<div class='sdaws-question' data-sdaws-question='' role='alertdialog'>"
        f"<div>{words(*parts)}</div><div class='sdaws-buttons'>"
        + send_button(yes, box, order, "sdaws-stop")
        + "<button type='button' class='sdaws-button' data-sdaws-keep=''>Keep</button></div></div>"
    )


@dataclass(frozen=True)
class Card:
    """A part of a listing that is shown anew when its content changes."""

    key: str
    content: str

    @property
    def version(self) -> str:
        """Differs when the content does."""
        return _digest(self.content)


@dataclass(frozen=True)
class Listing:
    """What a page shows of the cloud now; `note` stands above the cards, or instead of them."""

    cards: tuple[Card, ...] = ()
    note: str = ""
    is_busy: bool = False

    @property
    def version(self) -> str:
        """Differs when anything does."""
        return _digest(self.note + "".join(f"{c.key} {c.version} " for c in self.cards))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def listing(
    shown: Listing,
    reader: str,
    watch: str = "",
    kind: str = "sdaws-grid",
    is_written_in: bool = False,
) -> str:
    """A listing that sdaws.js keeps up to date; card by card alone where `is_written_in`.

    `reader` is the elem_id of the page's hidden button that reads it anew: pressed when it comes
    into view. `watch` is the signed link that answers with what has changed since.
    """
    cells = "".join(
        f"<div class='sdaws-cell' data-sdaws-key='{escape(card.key)}' "
        f"data-sdaws-version='{card.version}'>{card.content}</div>"
        for card in shown.cards
    )
    return (
        f"<div class='sdaws-listing' data-sdaws-read='{escape(reader)}' "
        f"data-sdaws-watch='{escape(watch)}' data-sdaws-version='{shown.version}' "
        f"data-sdaws-busy='{'yes' if shown.is_busy else ''}' "
        f"data-sdaws-written='{'yes' if is_written_in else ''}'>"
        f"<div class='sdaws-note'>{shown.note}</div><div class='{kind}'>{cells}</div></div>"
    )


def failed(fault: Exception) -> Listing:
    """A listing that could not be read; the next look that succeeds replaces it."""
    return Listing(note=notice("bad", Value(str(fault))))


def unread(reader: str, kind: str = "sdaws-grid") -> str:
    """A listing before its page was opened."""
    return listing(Listing(note=endless_bar("Asking the server…")), reader, kind=kind)


def browser_upload(kinds: Sequence[str]) -> str:
    """Where files of the browser's own machine are chosen; sdaws_upload.js sends them."""
    options = "".join(f"<option>{escape(kind)}</option>" for kind in kinds)
    states = "".join(
        f"<span class='sdaws-when-{state}'>{escape(text)}</span>"
        for state, text in _BROWSER_STATES.items()
    )
    return (
        "<div class='sdaws-browser'><div class='sdaws-line'>"
        "<label><span>From this browser</span> <input type='file' multiple></label>"
        f"<label><span>Type</span> <select>{options}</select></label>"
        "<button type='button' class='sdaws-button' data-sdaws-browser-send=''>Send</button></div>"
        f"<div class='sdaws-dim'>{words(*_BROWSER_HINTS)}</div>"
        "<div class='sdaws-browser-lines'></div><template><div class='sdaws-browser-line'>"
        "<div class='sdaws-value sdaws-strong'></div><div class='sdaws-progress'>"
        "<div class='sdaws-track'><div class='sdaws-fill'></div></div></div>"
        f"<div class='sdaws-line'><span class='sdaws-line-text sdaws-value'></span>{states}"
        "<button type='button' class='sdaws-button' data-sdaws-pause=''>Pause</button>"
        "<button type='button' class='sdaws-button' data-sdaws-go-on=''>Go on</button>"
        "</div></div></template></div>"
    )


def dreambooth_button() -> str:
    """What sdaws_dreambooth.js puts beside the Dreambooth extension's own “Train”."""
    return (
        "<template id='sdaws_dreambooth_button'><button type='button' "
        "title='With the settings that were saved last'>Train in the cloud</button></template>"
    )


def drop_zone() -> str:
    """Where pictures of the browser's own machine are dropped; sdaws_upload.js sends them."""
    return (
        "<label class='sdaws-drop' data-sdaws-drop=''>"
        "<span>Or drop pictures and captions (.txt) here</span>"
        "<input type='file' multiple data-sdaws-dropped=''></label>"
        "<div class='sdaws-why sdaws-value' role='status'></div>"
    )


_BROWSER_HINTS = (
    "Straight to the store: leave this page open until it is done.",
    "A file that is chosen again goes on where it was.",
)
_BROWSER_STATES = {
    "finishing": "The server puts it together…",
    "done": "Uploaded",
    "sent": "Sent. The cloud checks it now: the list tells when it can be used.",
    "paused": "Paused",
    "failed": "Not uploaded",
    "unreachable": "The store cannot be reached from here. Check your network; on AWS, this page's "
    "address must be among the deployment's CorsOrigins.",
}
