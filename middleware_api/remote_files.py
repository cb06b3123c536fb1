"""Files on other hosts: what may be asked for, what comes, and why it does not come.

`fetching` gets them. Its libraries load late: few requests need them, and every cold start of a
Lambda function would wait for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from middleware_api.errors import ServiceError, TooLarge

if TYPE_CHECKING:
    import httpx

_SHOWN_MAX = 200


class FetchError(ServiceError):
    """A download that did not happen; the message shows its URL without the query."""

    status = 502
    code = "fetch_failed"


class FetchInterrupted(FetchError):
    """The network or the host failed for now; the same request may work later."""

    code = "fetch_interrupted"


class FetchRefused(FetchError):
    """The URL's host does not give this file, or not in a way that can be trusted."""

    code = "fetch_refused"


class UrlRefused(FetchRefused):
    """Not a URL that may be fetched: its scheme, a password in it, no host."""

    status = 422
    code = "url_refused"


class AddressRefused(FetchRefused):
    """The host has no address, or one that is not public."""

    status = 422
    code = "address_refused"


class FileTooLarge(FetchRefused, TooLarge):
    """More bytes than the policy allows one file."""

    status = TooLarge.status
    code = TooLarge.code


@dataclass(frozen=True)
class Download:
    """A file whose bytes are about to arrive.

    `offset` is where they begin: the one asked for, or 0 when the host starts over (no ranges
    there, or the file changed). `size` is the whole file's; None when the host does not say,
    and then a connection that is cut can look like the end. `validator` is what the next try
    passes to resume; None when the host gives none.
    """

    file_name: str
    size: int | None
    validator: str | None
    offset: int
    _chunks: Iterator[bytes] = field(repr=False)

    def chunks(self) -> Iterator[bytes]:
        """The bytes from `offset` on, once, in chunks of about 64 KiB.

        Ends only when all announced bytes have come. Raises FetchInterrupted, FetchRefused.
        """
        return self._chunks


class RemoteFiles(Protocol):
    """Whoever can fetch."""

    def open(
        self, url: str, offset: int = 0, validator: str | None = None
    ) -> AbstractContextManager[Download]:
        """The file at `url`, from byte `offset` on if it is still the one of `validator`.

        Without a validator nothing tells whether the file is the same, so `offset` is ignored.
        Raises FetchError.
        """


def parse_url(text: str) -> httpx.URL:
    """The URL that `text` spells, if it may be fetched at all; no network. Raises UrlRefused."""
    import httpx

    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise UrlRefused("This is not a URL. Use one like https://host/file.") from error
    return permitted(url)


def shown_url(text: str) -> str:
    """Of a URL that may be fetched, what may be shown to everybody. Raises UrlRefused."""
    return shown(parse_url(text))


def permitted(url: httpx.URL) -> httpx.URL:
    """`url` with the one spelling of its host that everything else compares."""
    if url.scheme not in ("http", "https"):
        raise UrlRefused(f"Only http and https are fetched, not '{url.scheme[:_SHOWN_MAX]}'.")
    if url.userinfo:
        raise UrlRefused(
            f"{shown(url)} carries a user name or password. Use a link that needs none."
        )
    host = url.raw_host.decode("ascii").removesuffix(".")
    if not host or (url.port is not None and not 0 < url.port < 65536):
        raise UrlRefused("The URL has no host or no possible port. Use one like https://host/file.")
    return url.copy_with(host=host)


def shown(url: httpx.URL) -> str:
    """Scheme, host and path: the query may hold a token, user information a password."""
    path = url.raw_path.partition(b"?")[0]
    return f"{url.scheme}://{(url.netloc + path).decode('ascii')}"[:_SHOWN_MAX]
