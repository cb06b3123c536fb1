"""Which server to use, and the token for it.

Kept in a mode-0600 file below a dot-folder, because gradio's `/file=` route refuses paths with
such a part; never in the WebUI's own settings, which it serves to every browser.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from aws_extension.errors import CloudError, NotConfigured
from aws_extension.whole_file import write_whole

EMBEDDED_URL = "http://127.0.0.1:8210"
EMBEDDED_TOKEN_PATH = Path("var/api_token")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Connection:
    """A server's address and the token for it; `source` says where they came from."""

    api_url: str
    token: str = field(repr=False)
    source: str = ""

    @property
    def is_local(self) -> bool:
        """Whether the server is on this very machine."""
        return urlsplit(self.api_url).hostname in _LOOPBACK

    @property
    def is_exposed(self) -> bool:
        """Whether the token would cross a network unencrypted."""
        return urlsplit(self.api_url).scheme == "http" and not self.is_local


@dataclass(frozen=True)
class SettingsStore:
    """Reads and writes the connection. `environ` wins over the file, that over `fallback`."""

    environ: Mapping[str, str]
    path: Path
    fallback: Connection | None = None

    @property
    def folder(self) -> Path:
        """Where this program may keep its own small files."""
        return self.path.parent

    @property
    def is_fixed(self) -> bool:
        """Whether the environment decides, so that saving would change nothing."""
        return bool(self.environ.get("SDAWS_API_URL") and self.environ.get("SDAWS_API_TOKEN"))

    def read(self) -> Connection:
        """The connection to use. Raises NotConfigured with the first step to take."""
        saved = self._read_file() or self.fallback
        url = self.environ.get("SDAWS_API_URL") or (saved.api_url if saved else "")
        token = self.environ.get("SDAWS_API_TOKEN", "")
        source = "the environment (SDAWS_API_URL, SDAWS_API_TOKEN)"
        # A saved token belongs to the server that it was saved for, and goes to no other.
        if not token and saved and checked_url(url) == saved.api_url:
            token, source = saved.token, saved.source
        if not url or not token:
            raise NotConfigured(
                "No cloud server is set up yet. Enter its URL and token on the Connection page (in "
                "a WebUI: of the Cloud tab), and press “Save and test”."
            )
        return Connection(checked_url(url), token, source)

    def write(self, api_url: str, token: str) -> None:
        """Keep a connection; an empty `token` keeps the one saved for the same URL."""
        url = checked_url(api_url)
        saved = self._read_file() or self.fallback
        if not token.strip() and saved and saved.api_url == url:
            token = saved.token
        token = token.strip()
        if not token:
            raise CloudError("The token is missing. Paste the one that the server gave you.")
        if not token.isascii() or not token.isprintable() or " " in token:
            raise CloudError("The token has characters that no token has. Paste it again.")
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(self.path, json.dumps({"api_url": url, "token": token}))

    def _read_file(self) -> Connection | None:
        try:
            raw = json.loads(self.path.read_text(encoding="utf-8"))
            return Connection(str(raw["api_url"]), str(raw["token"]), "the saved settings")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as fault:
            raise CloudError(
                f"The saved settings in {self.path} cannot be read ({type(fault).__name__}). "
                "Delete that file and enter URL and token again."
            ) from fault


def default_store(
    environ: Mapping[str, str], home: Path, fallback: Connection | None = None
) -> SettingsStore:
    """The user's own settings, the same place on every host."""
    return SettingsStore(environ, home / ".config" / "sdaws" / "connection.json", fallback)


def embedded_connection(folder: Path) -> Connection | None:
    """The embedded server that runs from `folder`, when it has left its token there."""
    try:
        token = (folder / EMBEDDED_TOKEN_PATH).read_text(encoding="utf-8").strip()
    except OSError:
        return None
    return Connection(EMBEDDED_URL, token, f"the embedded server ({EMBEDDED_TOKEN_PATH})")


def checked_url(text: str) -> str:
    """A server's URL without its trailing slash. Raises CloudError for what is none."""
    url = text.strip().rstrip("/")
    try:
        address = urlsplit(url)
        usable = address.scheme in ("http", "https") and bool(address.hostname)
        port_fits = address.port is None or address.port > 0
    except ValueError:
        usable = port_fits = False
    if not usable or not port_fits or address.query or address.fragment or address.username:
        raise CloudError(
            f"“{url[:80]}” is not a server's URL. It looks like {EMBEDDED_URL} or "
            "https://….execute-api.….amazonaws.com/prod."
        )
    return url
