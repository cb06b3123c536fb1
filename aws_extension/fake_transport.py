"""A transport for requests that answers from a script instead of the network: the test double."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import requests
from requests.adapters import BaseAdapter


@dataclass(frozen=True)
class FakeAnswer:
    """What the pretended server says; `body` is JSON unless it is bytes."""

    status: int = 200
    body: object = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Sent:
    """A request as it would have gone out, its body read to the end."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


Handler = Callable[[Sent], "FakeAnswer | Exception"]


class FakeTransport(BaseAdapter):
    """Hands each request to `handler`, which answers it or names the exception to raise."""

    def __init__(self, handler: Handler) -> None:
        super().__init__()
        self._handler = handler
        self.sent: list[Sent] = []

    def send(
        self, request: requests.PreparedRequest, *args: object, **kwargs: object
    ) -> requests.Response:
        """Read the request as a socket would, and answer it."""
        sent = Sent(
            request.method or "",
            request.url or "",
            {name: str(value) for name, value in request.headers.items()},
            _read(request.body),
        )
        self.sent.append(sent)
        answer = self._handler(sent)
        if isinstance(answer, Exception):
            raise answer
        response = requests.Response()
        response.status_code = answer.status
        response.headers.update(answer.headers)
        content = (
            answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        )
        response.raw = io.BytesIO(content)
        response.url = sent.url
        response.request = request
        return response

    def close(self) -> None:
        """Nothing is open."""


def _read(body: Any) -> bytes:
    if body is None:
        return b""
    if isinstance(body, str):
        return body.encode()
    if isinstance(body, (bytes, memoryview)):
        return bytes(body)
    return b"".join(bytes(piece) for piece in body)
