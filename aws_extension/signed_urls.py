"""Links of this host that carry their own permission: who may look, at what, until when.

A page hands them to the browser that it was made for. They need no login and no token of the
cloud, cannot be altered, and end; a new start of the host ends them all.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode

LINK_SECONDS = 3600
_EXPIRES, _SIGNATURE = "expires", "signature"


class LinkRefused(Exception):
    """The link has ended, or is not one of ours."""


@dataclass(frozen=True)
class UrlSeal:
    """Signs links and checks them, with a secret of this very process."""

    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    clock: Callable[[], float] = time.time

    def sign(self, path: str, params: Mapping[str, str]) -> str:
        """A link relative to the page, valid for one to two hours.

        The same for that long, so that a browser finds its picture in its cache.
        """
        ends = (int(self.clock()) // LINK_SECONDS + 2) * LINK_SECONDS
        signed = {**params, _EXPIRES: str(ends)}
        query = urlencode({**signed, _SIGNATURE: self._signature(path, signed)})
        return f"{quote(path)}?{query}"

    def check(self, path: str, params: Mapping[str, str]) -> Mapping[str, str]:
        """What the link was signed with. Raises LinkRefused."""
        signed = {name: value for name, value in params.items() if name != _SIGNATURE}
        if not hmac.compare_digest(
            self._signature(path, signed).encode(), params.get(_SIGNATURE, "").encode()
        ):
            raise LinkRefused("This link is not one of this page. Reload the page.")
        if self.clock() >= int(signed.pop(_EXPIRES)):
            raise LinkRefused("This link has ended. Reload the page.")
        return signed

    def _signature(self, path: str, params: Mapping[str, str]) -> str:
        text = f"{path}?{urlencode(sorted(params.items()))}"
        return hmac.new(self.secret, text.encode(), hashlib.sha256).hexdigest()
