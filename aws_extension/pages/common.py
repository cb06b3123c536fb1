"""What several pages need."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from aws_extension.client import CloudClient
from aws_extension.errors import CloudError
from middleware_api.contract import CheckpointState, CheckpointType

ANY_ENDPOINT = "Automatic"
# Made by sdaws.js, 128 random bits: whoever holds it is that browser's user.
BROWSER_COOKIE = "sdaws_user"
_BROWSER_KEY = re.compile(r"[0-9a-f]{32}")
_COOKIE = re.compile(rf"(?:^|;\s*){BROWSER_COOKIE}=([^;]*)")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._@-]{1,59}")


@contextmanager
def shown_to_user() -> Iterator[None]:
    """Turn this package's errors into gradio's error box, with the same words."""
    try:
        yield
    except CloudError as fault:
        raise gr.Error(str(fault)) from fault


def user_of(request: gr.Request) -> str:
    """Whom a page's request acts for: the host's login, else this very browser.

    Raises CloudError for a browser without either: nobody's pictures must be everybody's.
    """
    if request.username:
        return login_user(request.username)
    # The queue hands headers on as an object that has `in` and `[]`, and no more.
    headers = request.headers
    found = _COOKIE.search(headers["cookie"]) if "cookie" in headers else None
    return browser_user(found[1] if found else "")


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


def endpoint_choices(client: CloudClient) -> list[str]:
    """Names that take jobs now, after the choice that leaves it to the server."""
    return [ANY_ENDPOINT, *(e.name for e in client.list_endpoints() if e.is_ready)]


def checkpoint_choices(
    client: CloudClient, kind: CheckpointType = CheckpointType.STABLE_DIFFUSION
) -> list[str]:
    """File names of the Active checkpoints of a type, each once, newest first."""
    found = client.list_checkpoints([CheckpointState.ACTIVE], [kind])
    return list(dict.fromkeys(name for checkpoint in found for name in checkpoint.names))


def keep_or_first(current: str | None, choices: list[str]) -> str:
    """What a dropdown shows after its choices were read again."""
    if current in choices:
        return str(current)
    return choices[0] if choices else ""
