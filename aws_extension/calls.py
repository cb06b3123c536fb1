"""The way to one server: its address, its token, and how a request is sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from requests import Response
from requests.adapters import BaseAdapter

from aws_extension import http
from aws_extension.errors import NotFound, UnexpectedAnswer
from middleware_api.contract import CURSOR_HEADER, IDEMPOTENCY_HEADER


class Call(Protocol):
    """A client's own way to send a request, for the parts of the API that have classes."""

    def __call__(
        self,
        method: str,
        path: str,
        document: object = None,
        params: http.Params | None = None,
        idempotency_key: str = "",
    ) -> Response: ...


class Calls:
    """Sends requests to one server with one token. Raises the errors of `aws_extension.errors`.

    `on_behalf_of` names the user of a shared host whom it acts for: it then sees that user's
    jobs and no others.
    """

    def __init__(
        self,
        api_url: str,
        token: str,
        *,
        on_behalf_of: str = "",
        adapter: BaseAdapter | None = None,
        retries: http.Retries | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.api_url = api_url.rstrip("/")
        self.retries = retries or http.Retries()
        self._clock = clock
        self._api = http.Http(self.retries, adapter, token, on_behalf_of)
        # Presigned URLs carry their own permission; the token stays out of those requests.
        self.storage = http.Http(self.retries, adapter)

    def _call(
        self,
        method: str,
        path: str,
        document: object = None,
        params: http.Params | None = None,
        idempotency_key: str = "",
        may_repeat: bool = True,
    ) -> Response:
        headers = {"Accept": "application/json"}
        if idempotency_key:
            headers[IDEMPOTENCY_HEADER] = idempotency_key
        body = None
        if document is not None:
            headers["Content-Type"] = "application/json"
            body = document if isinstance(document, bytes) else http.encode(document)
        return self._api.send(
            method,
            self.api_url + path,
            params=params,
            body=body,
            headers=headers,
            may_repeat=may_repeat,
        )


def every_page(call: Call, path: str, params: http.Params) -> Iterator[Response]:
    """The answers of a list's pages, newest first."""
    answer = call("GET", path, params=params)
    yield answer
    while cursor := answer.headers.get(CURSOR_HEADER, ""):
        answer = call("GET", path, params={**params, "cursor": cursor})
        yield answer


def forget(call: Call, path: str, params: http.Params | None = None) -> None:
    """Delete something; what is gone already is as good."""
    try:
        call("DELETE", path, params=params)
    except NotFound:
        return


def object_in(answer: Response) -> dict[str, Any]:
    """What the server answered, which must be an object."""
    raw = http.decode(answer)
    if not isinstance(raw, dict):
        raise UnexpectedAnswer("The server answered something else than an object.")
    return raw
