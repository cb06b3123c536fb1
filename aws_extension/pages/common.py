"""What several pages need."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from aws_extension.client import CloudClient
from aws_extension.errors import CloudError
from aws_extension.users import browser_user, login_user
from middleware_api.contract import CheckpointState, CheckpointType

ANY_ENDPOINT = "Automatic"
# Made by sdaws.js, 128 random bits: whoever holds it is that browser's user.
BROWSER_COOKIE = "sdaws_user"
_COOKIE = re.compile(rf"(?:^|;\s*){BROWSER_COOKIE}=([^;]*)")


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
