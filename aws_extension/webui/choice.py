"""What the panel says for one generation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CloudChoice:
    """The panel's arguments, read; an empty endpoint leaves it to the server.

    `checkpoint` is a file name of the cloud or of this machine. `upload_missing` is the user's
    consent to send what only this machine has. `user` is the browser's key, for a WebUI
    that has no logins.
    """

    checkpoint: str
    endpoint: str = ""
    upload_missing: bool = False
    user: str = ""
