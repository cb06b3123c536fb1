"""Pictures of a data set as cards: what is kept of them, what is wrong, and their captions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from aws_extension.access import CloudAccess
from aws_extension.dataset_calls import DatasetFile
from aws_extension.pages import html, links
from aws_extension.pages.html import Value
from aws_extension.picture_folder import FolderPicture, Kept, read_caption
from middleware_api.contract import CAPTION_ENDING

PER_PAGE = 48
ORDER = "sdaws_datasets_order"


def order(act: str, *what: str) -> str:
    """What a button or a caption tells the page."""
    return json.dumps([act, *what])


@dataclass(frozen=True)
class Look:
    """A folder as it is looked at: at a training's resolution, without what is left out."""

    folder: str
    resolution: int
    page: int
    left_out: frozenset[str]

    def is_sent(self, picture: FolderPicture) -> bool:
        """Whether a data set of the folder has it: usable, wanted, and not there already."""
        is_wanted = str(picture.path) not in self.left_out
        return is_wanted and not picture.fault and not picture.same_as


def folder_cards(
    access: CloudAccess, pictures: Sequence[FolderPicture], look: Look
) -> html.Listing:
    """A page of a folder's pictures, and above them what was found in all."""
    if not pictures:
        why = "This folder has no pictures; subfolders are not looked into."
        return html.Listing(note=html.notice("idle", why))
    begin = look.page * PER_PAGE
    cards = [
        html.Card(str(picture.path), _folder_card(access, picture, look))
        for picture in pictures[begin : begin + PER_PAGE]
    ]
    note = _found(pictures, look) + pager(len(pictures), look.page, "page")
    return html.Listing(tuple(cards), note)


def _found(pictures: Sequence[FolderPicture], look: Look) -> str:
    sent = [picture for picture in pictures if look.is_sent(picture)]
    rows: list[tuple[str, html.Part]] = [
        ("Pictures", Value(str(len(pictures)))),
        ("To be sent", Value(str(len(sent)))),
        ("In all", Value(html.size(sum(picture.size for picture in sent)))),
        ("Cannot be used", Value(str(sum(bool(picture.fault) for picture in pictures)))),
        ("There twice", Value(str(sum(bool(picture.same_as) for picture in pictures)))),
        ("Look alike", Value(str(sum(bool(picture.like) for picture in pictures)))),
        (
            "Without caption",
            Value(str(sum(not picture.caption_path.is_file() for picture in sent))),
        ),
    ]
    return html.facts(*rows)


def _folder_card(access: CloudAccess, picture: FolderPicture, look: Look) -> str:
    name, path = picture.path.name, str(picture.path)
    is_readable = picture.width > 0
    kept = picture.kept(look.resolution) if is_readable else None
    source = links.model_picture(access, picture.path) if is_readable else ""
    said = html.size(picture.size)
    if kept is not None:
        size = f"{picture.width} × {picture.height}"
        said = f"{size} → {kept.width} × {kept.height} · {said}"
    caption = buttons = ""
    if not picture.fault and not picture.same_as:
        link = links.caption(access, picture.caption_path)
        caption = caption_box(name, read_caption(picture.caption_path), link)
        word = "Take it in" if path in look.left_out else "Leave it out"
        buttons = html.post_button(word, links.leave_out(access, picture.path))
    return _card(source, kept, picture, name, said, _marks(picture, look) + caption, buttons)


def _marks(picture: FolderPicture, look: Look) -> str:
    marks = []
    if picture.fault:
        why = f"<div class='sdaws-why sdaws-value'>{html.escape(picture.fault)}</div>"
        marks.append(html.badge("bad", "Cannot be used") + why)
    elif picture.same_as:
        marks.append(_mark("idle", "There twice", "The same file as", picture.same_as))
    elif str(picture.path) in look.left_out:
        marks.append(html.badge("idle", "Left out"))
    if picture.like:
        marks.append(_mark("busy", "Looks alike", "It looks like", picture.like))
    if not picture.fault and picture.width * picture.height < look.resolution**2 / 2:
        marks.append(html.badge("busy", "Small: it is enlarged"))
    return "".join(f"<div>{mark}</div>" for mark in marks)


def _mark(kind: html.Kind, badge: str, why: str, other: str) -> str:
    return (
        f"{html.badge(kind, badge)} <span class='sdaws-why'>{html.words(why, Value(other))}</span>"
    )


def _card(
    source: str,
    kept: Kept | None,
    picture: FolderPicture | None,
    name: str,
    said: str,
    body: str,
    buttons: str,
) -> str:
    frame = "<span class='sdaws-no-picture'></span>"
    if source:
        ratio = f"{picture.width} / {picture.height}" if picture is not None else "auto"
        shade = ""
        if kept is not None:
            places = (("left", kept.left), ("top", kept.top), ("width", kept.across),
                      ("height", kept.down))  # fmt: skip
            style = ";".join(f"{side}:{100 * share:.2f}%" for side, share in places)
            shade = f"<span class='sdaws-kept' style='{style}'></span>"
        frame = (
            f"<span class='sdaws-whole' style='aspect-ratio:{ratio}'>"
            f"<img src='{html.escape(source)}' alt='{html.escape(name)}' loading='lazy'>"
            f"{shade}</span>"
        )
    acts = f"<div class='sdaws-buttons'>{buttons}</div>" if buttons else ""
    return (
        f"<div class='sdaws-picture' role='group' aria-label='{html.escape(name)}'>"
        f"<div class='sdaws-stage'>{frame}</div>"
        f"<div class='sdaws-value sdaws-strong'>{html.escape(name)}</div>"
        f"<div class='sdaws-value sdaws-dim'>{html.escape(said)}</div>{body}{acts}</div>"
    )


def caption_box(name: str, text: str, link: str) -> str:
    """A caption that is edited in place; it is sent to `link` when it is left."""
    return (
        f"<textarea class='sdaws-caption' rows='3' title='Caption' "
        f"aria-label='Caption: {html.escape(name)}' data-sdaws-caption='{html.escape(link)}'>"
        f"{html.escape(text)}</textarea><div class='sdaws-why sdaws-value' role='alert'></div>"
    )


def pager(count: int, page: int, act: str) -> str:
    """Where one is among so many pictures, and the way to the others."""
    pages = -(-count // PER_PAGE)
    if pages < 2:
        return ""
    here = f"{page * PER_PAGE + 1}–{min(count, (page + 1) * PER_PAGE)} / {count}"
    before = after = ""
    if page > 0:
        before = html.send_button("Before", ORDER, order(act, str(page - 1)))
    if page + 1 < pages:
        after = html.send_button("Further", ORDER, order(act, str(page + 1)))
    return f"<div class='sdaws-line'>{before}<span class='sdaws-value'>{here}</span>{after}</div>"


def set_cards(
    access: CloudAccess,
    name: str,
    files: Sequence[DatasetFile],
    captions: Mapping[str, str],
    page: int,
) -> html.Listing:
    """A page of a data set's pictures in the cloud, with the captions that are known."""
    pictures = pictures_of(files)
    begin = page * PER_PAGE
    cards = []
    for file in pictures[begin : begin + PER_PAGE]:
        marks = html.badge("bad", "Has not arrived") if file.size is None else ""
        source = "" if file.size is None else links.dataset_picture(access, name, file)
        caption = caption_of(file.name)
        link = links.dataset_caption(access, name, caption)
        body = marks + caption_box(file.name, captions.get(caption, ""), link)
        buttons = html.send_button("Take it out", ORDER, order("remove", name, file.name))
        said = "" if file.size is None else html.size(file.size)
        card = _card(source, None, None, file.name, said, body, buttons)
        cards.append(html.Card(file.name, card))
    return html.Listing(tuple(cards), pager(len(pictures), page, "set_page"))


def pictures_of(files: Sequence[DatasetFile]) -> list[DatasetFile]:
    """The pictures among a data set's files, by name."""
    pictures = [file for file in files if not file.name.lower().endswith(CAPTION_ENDING)]
    return sorted(pictures, key=lambda file: file.name)


def caption_of(picture: str) -> str:
    """The name of a picture's caption."""
    return str(PurePath(picture).with_suffix(CAPTION_ENDING))
