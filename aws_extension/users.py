"""The cloud's names for those who use one host together."""

from __future__ import annotations

import hashlib
import re

from aws_extension.errors import CloudError

_BROWSER_KEY = re.compile(r"[0-9a-f]{32}")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._@-]{1,59}")


def login_user(name: str) -> str:
    """The cloud's name for someone who has logged in to the host."""
    return f"user-{name}" if _PLAIN_NAME.fullmatch(name) else f"login-{_short_hash(name)}"


def browser_user(key: str) -> str:
    """The cloud's name for the browser that holds this key (a hash: the name opens nothing)."""
    if not _BROWSER_KEY.fullmatch(key):
        raise CloudError(
            "This browser cannot be told from others, so its pictures could not be kept apart. "
            "Allow cookies for this page, then load it again."
        )
    return f"browser-{_short_hash(key)}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]
