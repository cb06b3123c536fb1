"""HTTP with retries: the API (with the token) and presigned URLs (without it)."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import BaseAdapter, HTTPAdapter

from aws_extension.errors import (
    ApiError,
    ConnectionLost,
    ServerFault,
    TooManyRequests,
    UnexpectedAnswer,
    error_for_status,
)
from middleware_api.contract import ON_BEHALF_HEADER, REQUEST_ID_HEADER, TOKEN_HEADER

# To connect, and between two reads. The first also bounds each send: see PartBody.
TIMEOUT_SECONDS = (10.0, 60.0)
POOL_SIZE = 16  # as many as parts go out at once

Params = Mapping[str, str | int | list[str]]


@dataclass(frozen=True)
class Retries:
    """How often and how long apart; the sleep and the chance are given, so tests need neither."""

    attempts: int = 5
    first_delay: float = 0.5
    longest_delay: float = 20.0
    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.random

    def delay(self, attempt: int, asked: float | None) -> float:
        """Seconds before the next try: full jitter over a doubling bound, or what was asked."""
        if asked is not None:
            return min(asked, self.longest_delay)
        bound = min(self.longest_delay, self.first_delay * 2.0**attempt)
        return bound * (0.5 + 0.5 * self.chance())


def _keep_headers(request: requests.PreparedRequest) -> requests.PreparedRequest:
    # An auth callable of our own keeps requests from adding a password out of ~/.netrc.
    return request


class _Session(requests.Session):
    """Asks the environment about proxies and certificates once a host, not at each request, of
    which that is a quarter of the work."""

    def __init__(self) -> None:
        super().__init__()
        self._found: dict[tuple[str, ...], Any] = {}

    def merge_environment_settings(self, url: Any, *given: Any) -> Any:
        host = urlsplit(url)[:2]
        if host not in self._found:
            self._found[host] = super().merge_environment_settings(url, *given)
        return self._found[host]


class Http:
    """Sends requests; raises typed errors; tries again what may be tried again.

    `adapter` is requests' own seam: tests hand in `FakeTransport`.
    """

    def __init__(
        self,
        retries: Retries,
        adapter: BaseAdapter | None = None,
        token: str | None = None,
        on_behalf_of: str = "",
    ) -> None:
        self._retries = retries
        self._session = _Session()
        self._session.auth = _keep_headers
        carrier = adapter or HTTPAdapter(pool_connections=4, pool_maxsize=POOL_SIZE)
        self._session.mount("http://", carrier)
        self._session.mount("https://", carrier)
        if token is not None:
            self._session.headers[TOKEN_HEADER] = token
        if on_behalf_of:
            self._session.headers[ON_BEHALF_HEADER] = on_behalf_of

    def send(
        self,
        method: str,
        url: str,
        *,
        params: Params | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        timeout: tuple[float, float] = TIMEOUT_SECONDS,
        may_repeat: bool = True,
    ) -> requests.Response:
        """One successful (2xx) answer.

        Raises ConnectionLost, or the ApiError of the last answer. With `may_repeat` a lost
        connection, 429 and 5xx are tried again.
        """
        attempt = 0
        while True:
            asked: float | None = None
            try:
                response = self._session.request(
                    method,
                    url,
                    params=params,
                    data=body,
                    headers=headers,
                    timeout=timeout,
                    # requests keeps x-api-key when it follows a redirect to another host.
                    allow_redirects=False,
                )
            except (requests.ConnectionError, requests.Timeout) as fault:
                failure: Exception = _lost(url, fault)
                failure.__cause__ = fault
            except requests.RequestException as fault:
                raise ConnectionLost(
                    f"'{_host(url)}' cannot be called: {type(fault).__name__}. Check the URL on "
                    "the Connection page."
                ) from fault
            else:
                if 200 <= response.status_code < 300:
                    return response
                failure = _refusal(response)
                if not isinstance(failure, (TooManyRequests, ServerFault)):
                    raise failure
                asked = _retry_after(response)
            attempt += 1
            if not may_repeat or attempt >= self._retries.attempts:
                raise failure
            self._retries.sleep(self._retries.delay(attempt - 1, asked))


def _host(url: str) -> str:
    # Never the whole URL: a presigned one is a secret.
    return urlsplit(url).netloc or "?"


def _lost(url: str, fault: Exception) -> ConnectionLost:
    if isinstance(fault, requests.exceptions.SSLError):
        return ConnectionLost(
            f"No safe connection to {_host(url)}: it speaks no https, or its certificate is not "
            "trusted on this machine. Check the URL on the Connection page, http or https."
        )
    why = "does not answer in time" if isinstance(fault, requests.Timeout) else "cannot be reached"
    return ConnectionLost(
        f"The server {_host(url)} {why}. Check that it runs, that the URL on the Connection page "
        "is right, and your network; then try again."
    )


def _retry_after(response: requests.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["Retry-After"]))
    except (KeyError, ValueError):  # absent, or a date: our own delay does
        return None


def _refusal(response: requests.Response) -> ApiError | UnexpectedAnswer:
    """The typed error of an answer that is no success."""
    status = response.status_code
    if 300 <= status < 400:
        return UnexpectedAnswer(
            f"The server redirects to {_host(response.headers.get('Location', ''))} instead of "
            "answering. Enter the API's own URL on the Connection page."
        )
    request_id = response.headers.get(REQUEST_ID_HEADER, "")
    message, code = f"The server answered {status} {response.reason or ''}".strip(), ""
    try:
        raw = response.json()
    except ValueError:
        raw = None  # a proxy's page or a store's XML: the status says it all
    if isinstance(raw, dict):
        message = str(raw.get("error") or _details(raw.get("detail")) or message)
        code = str(raw.get("code") or "")
        request_id = str(raw.get("request_id") or request_id)
    return error_for_status(status, message, code, request_id)


def _details(detail: object) -> str:
    """FastAPI's validation errors as a sentence."""
    if not isinstance(detail, list):
        return ""
    parts = []
    for item in detail:
        if isinstance(item, dict):
            where = ".".join(str(part) for part in item.get("loc", []) if part != "body")
            parts.append(f"{where}: {item.get('msg', '')}" if where else str(item.get("msg", "")))
    return f"The server refuses the request: {'; '.join(parts)}" if parts else ""


def decode(response: requests.Response) -> object:
    """The JSON of a successful answer."""
    try:
        return response.json()
    except ValueError as fault:
        raise UnexpectedAnswer(
            f"{_host(response.url or '')} answers, but not like the API. Check the URL on the "
            "Connection page; on AWS it ends in /prod."
        ) from fault


def encode(document: object) -> bytes:
    """A JSON body; NaN is refused here, as the server would."""
    return json.dumps(document, allow_nan=False, ensure_ascii=False).encode()
