"""Downloads a file from a URL that a caller named, wherever that URL tries to lead.

FetchError             502
├── FetchInterrupted   502  broke off or busy: asking again, with offset and validator, may work
└── FetchRefused       502  final: asking again would end the same way
    ├── UrlRefused     422  not a URL that may be fetched at all
    ├── AddressRefused 422  a host with no address, or with one that is not public
    └── FileTooLarge   413

Every hop, the first URL and each redirect, gets a connection of its own through
`public_network`. httpcore alone, without httpx's client, knows no proxies, cookies, redirects or
decoding: what is not there cannot leak.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from email.message import Message
from email.utils import collapse_rfc2231_value
from urllib.parse import unquote

import httpcore
import httpx

from middleware_api import __version__
from middleware_api.contract import is_valid_name
from middleware_api.public_network import NoAddress, NotPublic, Patience, PublicNetwork, Resolve
from middleware_api.remote_files import (
    AddressRefused,
    Download,
    FetchInterrupted,
    FetchRefused,
    FileTooLarge,
    UrlRefused,
    parse_url,
    permitted,
    shown,
)

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
# Beyond it a header is no name or version of a file; the parsers below never see more.
_HEADER_MAX = 4096


@dataclass(frozen=True)
class FetchPolicy:
    """What may be fetched, and how long a host may keep us waiting.

    The addresses of `allowed_hosts` are not judged. `max_bytes` is for one whole file. A host may
    be silent for `read_seconds`, and may send less than `least_bytes_per_second` for about
    `slow_seconds`; all the hops before the first byte share one `slow_seconds` too.
    """

    allowed_hosts: frozenset[str]
    max_bytes: int
    connect_seconds: float = 10
    read_seconds: float = 30
    slow_seconds: float = 60
    least_bytes_per_second: int = 16 * 1024
    max_redirects: int = 5


@dataclass(frozen=True)
class _Answer:
    url: httpx.URL
    status: int
    headers: httpx.Headers
    response: httpcore.Response


class Fetcher:
    """Fetches by one policy; may be shared by threads.

    `network` opens connections to numeric addresses, `tls` verifies https hosts.
    """

    def __init__(
        self,
        policy: FetchPolicy,
        resolve: Resolve = socket.getaddrinfo,
        clock: Callable[[], float] = time.monotonic,
        network: httpcore.NetworkBackend | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy
        self._allowed_hosts = frozenset(h.lower().removesuffix(".") for h in policy.allowed_hosts)
        self._resolve = resolve
        self._clock = clock
        self._network = network or httpcore.SyncBackend()
        self._tls = tls or httpcore.default_ssl_context()

    @contextmanager
    def open(self, url: str, offset: int = 0, validator: str | None = None) -> Iterator[Download]:
        """The file at `url`, from byte `offset` on if it is still the one of `validator`.

        Without a validator nothing tells whether the file is the same, so `offset` is ignored.
        Raises FetchError.
        """
        first = parse_url(url)
        patience = Patience(
            self._policy.slow_seconds, self._policy.least_bytes_per_second, self._clock
        )
        with ExitStack() as held:
            answer, begin = None, 0
            if offset and validator:
                answer = self._rest(first, offset, validator, patience, held)
                begin = offset if answer and answer.status == 206 else 0
            if answer is None:
                answer = self._follow(first, {}, patience, held)
            _require_file(answer, 206 if begin else 200)
            size = _whole_size(answer)
            self._require_fits(first, size or begin)
            download = Download(
                file_name=_file_name(answer, first),
                size=size,
                validator=_validator(answer.headers) or (validator if begin else None),
                offset=begin,
                _chunks=self._chunks(answer, begin, size, patience),
            )
            patience.pause()
            yield download

    def _rest(
        self, url: httpx.URL, offset: int, validator: str, patience: Patience, held: ExitStack
    ) -> _Answer | None:
        """The answer to a request from `offset` on; None when its part does not fit to ours."""
        wanted = {"Range": f"bytes={offset}-", "If-Range": validator}
        answer = self._follow(url, wanted, patience, held)
        if answer.status == 416 or (
            answer.status == 206 and not _goes_on(answer, offset, validator)
        ):
            held.close()
            return None
        return answer

    def _follow(
        self, url: httpx.URL, wanted: dict[str, str], patience: Patience, held: ExitStack
    ) -> _Answer:
        """The first answer that is no redirect; its connection is open and in `held`."""
        for _ in range(self._policy.max_redirects + 1):
            answer = self._ask(url, wanted, patience, held)
            if answer.status not in _REDIRECTS:
                return answer
            held.close()
            url = _redirect_target(answer)
        raise FetchRefused(
            f"The link was redirected more than {self._policy.max_redirects} times, last to "
            f"{shown(url)}. Use the file's own link."
        )

    def _ask(
        self, url: httpx.URL, wanted: dict[str, str], patience: Patience, held: ExitStack
    ) -> _Answer:
        target = httpcore.URL(
            scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path
        )
        connection = httpcore.HTTPConnection(
            target.origin,
            ssl_context=self._tls,
            network_backend=PublicNetwork(
                self._network, self._resolve, self._allowed_hosts, patience
            ),
        )
        headers: list[tuple[bytes | str, bytes | str]] = [
            ("Host", url.netloc),
            ("User-Agent", f"stable-diffusion-aws-extension/{__version__}"),
            ("Accept", "*/*"),
            ("Accept-Encoding", "identity"),
            ("Connection", "close"),
            *wanted.items(),
        ]
        timeouts = {
            "connect": self._policy.connect_seconds,
            "read": self._policy.read_seconds,
            "write": self._policy.read_seconds,
        }
        held.enter_context(connection)
        with _explained(url, patience):
            response = held.enter_context(
                connection.stream("GET", target, headers=headers, extensions={"timeout": timeouts})
            )
        return _Answer(url, response.status, httpx.Headers(response.headers), response)

    def _chunks(
        self, answer: _Answer, received: int, size: int | None, patience: Patience
    ) -> Iterator[bytes]:
        with _explained(answer.url, patience):
            patience.resume()
            for chunk in answer.response.iter_stream():
                received += len(chunk)
                self._require_fits(answer.url, received)
                if size is not None and received > size:
                    raise FetchRefused(
                        f"{shown(answer.url)} sends more than the {size} bytes it announced. "
                        "Tell whoever runs it, or use another link."
                    )
                patience.earn(len(chunk))
                patience.pause()  # what the caller does with the chunk is not the host's delay
                yield chunk
                patience.resume()
        if size is not None and received < size:
            raise FetchInterrupted(
                f"{shown(answer.url)} ended after {received} of {size} bytes. Try again."
            )

    def _require_fits(self, url: httpx.URL, size: int) -> None:
        if size > self._policy.max_bytes:
            raise FileTooLarge(
                f"The file at {shown(url)} has more than the {self._policy.max_bytes} bytes "
                "that one file may have here."
            )


@contextmanager
def _explained(url: httpx.URL, patience: Patience) -> Iterator[None]:
    """Says a fault of the network in the caller's words."""
    try:
        yield
    except NoAddress as error:
        raise AddressRefused(
            f"There is no host '{url.host}'. Check the link's spelling."
        ) from error
    except NotPublic as error:
        # Which address it is stays untold: the caller may not know this network's names.
        raise AddressRefused(
            f"'{url.host}' is not on the public internet, and only public hosts are fetched from. "
            "Whoever runs this server can open the host by name in its settings."
        ) from error
    except httpcore.TimeoutException as error:
        what = "is too slow" if patience.left() <= 0 else "does not answer"
        raise FetchInterrupted(f"{shown(url)} {what}. Try again later.") from error
    except httpcore.ConnectError as error:
        if isinstance(error.__cause__, ssl.SSLCertVerificationError):
            raise FetchRefused(
                f"The host of {shown(url)} has no valid certificate for its name. Check the "
                "link, or tell whoever runs the host."
            ) from error
        raise FetchInterrupted(
            f"The host of {shown(url)} takes no connection. Check the link, or try again later."
        ) from error
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise FetchInterrupted(f"{shown(url)} broke off. Try again.") from error


def _redirect_target(answer: _Answer) -> httpx.URL:
    location = answer.headers.get("location")
    if not location:
        raise FetchRefused(f"{shown(answer.url)} redirects without saying where to.")
    try:
        url = answer.url.join(location)
    except (httpx.InvalidURL, ValueError) as error:
        raise UrlRefused(f"{shown(answer.url)} redirects to what is not a URL.") from error
    return permitted(url)


def _require_file(answer: _Answer, expected: int) -> None:
    """Raises FetchRefused or FetchInterrupted for everything but a file's own bytes."""
    where, status = shown(answer.url), answer.status
    if status in (401, 403):
        raise FetchRefused(
            f"{where} asks for a login or a token (HTTP {status}). Use a link that works without, "
            "or download the file yourself and upload it."
        )
    if status in (404, 410):
        raise FetchRefused(f"There is no file at {where} (HTTP {status}). Check the link.")
    if status == 429:
        raise FetchInterrupted(
            f"The host of {where} takes no more requests for now (HTTP 429). Try again later."
        )
    if status == 408 or status >= 500:
        raise FetchInterrupted(
            f"The host of {where} has a fault of its own (HTTP {status}). Try again later."
        )
    if status != expected:
        raise FetchRefused(f"{where} answers HTTP {status}, not with a file. Check the link.")
    content_type = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type in ("text/html", "application/xhtml+xml"):
        raise FetchRefused(
            f"{where} is a web page, maybe a login page, not a file. Use the direct download link."
        )
    if answer.headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
        raise FetchRefused(
            f"{where} sends the file compressed although asked not to. Use another link."
        )


def _goes_on(answer: _Answer, offset: int, validator: str) -> bool:
    """Whether a 206 is the rest of the same file (RFC 9110, 15.3.7)."""
    part = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
    if part is None:
        return False
    begin, last, size = (int(number) for number in part.groups())
    if validator.startswith('"'):
        same = answer.headers.get("etag") == validator
    else:  # a 206 may leave the date away
        same = answer.headers.get("last-modified", validator) == validator
    return same and begin == offset and begin <= last < size


def _whole_size(answer: _Answer) -> int | None:
    if answer.status == 206:
        return int(answer.headers["content-range"].rpartition("/")[2])
    length = answer.headers.get("content-length")
    return None if length is None else int(length)


def _validator(headers: httpx.Headers) -> str | None:
    """What `If-Range` takes: a strong ETag or a date (RFC 9110, 13.1.5)."""
    etag = headers.get("etag", "")
    value = etag if etag.startswith('"') else headers.get("last-modified", "")
    return value if value.isascii() and 0 < len(value) <= _HEADER_MAX else None


def _file_name(answer: _Answer, first: httpx.URL) -> str:
    """The host's own name for the file, else the last path segment of the last or first URL."""
    named = _disposition_name(answer.headers.get("content-disposition", ""))
    names = [_last_segment(answer.url), _last_segment(first)] if named is None else [named]
    # A store behind a redirect often has a hash for a path; a name with an ending is a name.
    valid = sorted(filter(is_valid_name, names), key=lambda name: "." not in name)
    if not valid:
        raise FetchRefused(
            f"{shown(answer.url)} gives the file no name that can be used here (letters, digits, "
            "spaces and ._-()+[], 255 bytes). Download it and upload it under another name."
        )
    return valid[0]


def _disposition_name(header: str) -> str | None:
    """File name of a Content-Disposition; `filename*` wins over `filename` (RFC 6266, 4.3)."""
    if len(header) > _HEADER_MAX:
        return None
    message = Message()
    message["content-disposition"] = header
    names = [
        value
        for name, value in message.get_params([], "content-disposition")
        if name.lower() == "filename"
    ]
    extended = [value for value in names if isinstance(value, tuple)]
    return collapse_rfc2231_value((extended or names)[0]) if names else None


def _last_segment(url: httpx.URL) -> str:
    path = url.raw_path.partition(b"?")[0].decode("ascii")
    return unquote(path.rpartition("/")[2])
