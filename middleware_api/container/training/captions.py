"""A picture's caption, of its own words, its concept's prompt, and the concept's two words."""

from __future__ import annotations

import random
import re
from pathlib import PurePath

from middleware_api.training_fields import ConceptSettings

OWN_WORDS = "[filewords]"
_NUMBER_FIRST = re.compile(r"^[-_ \d]+(?=\D)")


def words_of_name(file_name: str) -> str:
    """What a file's name says where there is no caption: without a leading number."""
    return _NUMBER_FIRST.sub("", PurePath(file_name).stem).replace("_", " ").strip()


def instance_caption(concept: ConceptSettings, own: str) -> str:
    """The new word is in it: before the class word, or else at the beginning."""
    text = _filled(concept.instance_prompt, own)
    token, kind = concept.instance_token.strip(), concept.class_token.strip()
    if not token or _word(token).search(text):
        return text
    if kind and _word(kind).search(text):
        return _word(kind).sub(lambda found: f"{token} {found[0]}", text, count=1)
    return ", ".join(part for part in (f"{token} {kind}".strip(), text) if part)


def class_caption(concept: ConceptSettings, own: str) -> str:
    """The class word is in it, and the new word is not."""
    text = _filled(concept.class_prompt, own)
    token, kind = concept.instance_token.strip(), concept.class_token.strip()
    if token:
        kept = "" if kind and _word(kind).search(text) else kind
        text = re.sub(r"\s{2,}", " ", _word(token).sub(lambda _: kept, text)).strip()
    if kind and not _word(kind).search(text):
        text = ", ".join(part for part in (kind, text) if part)
    return text


def shuffled(caption: str, rng: random.Random) -> str:
    """The parts between commas in another order, but the first."""
    first, *rest = [part.strip() for part in caption.split(",")]
    rng.shuffle(rest)
    return ", ".join([first, *rest])


def _filled(template: str, own: str) -> str:
    return template.replace(OWN_WORDS, own).strip() if template.strip() else own


def _word(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE)
