"""A host that means harm, played by a real server on this machine, and the world around it.

`Internet` leads every address to that server, so a request that should not have been made would
succeed; it notes which addresses were called. The URLs carry a token that no message may show.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import httpcore
import pytest

from middleware_api.fetching import Fetcher, FetchPolicy
from middleware_api.remote_files import Download, FetchError

PUBLIC, ALSO_PUBLIC, INSIDE = "93.184.216.34", "93.184.216.35", "10.0.0.5"
TOKEN = "?token=secret"
POLICY = FetchPolicy(allowed_hosts=frozenset(), max_bytes=1_000_000)
FILE = bytes(range(256)) * 1000
TRUSTED = httpcore.default_ssl_context()
ETAG, DATE = '"v1"', "Tue, 15 Nov 2022 12:45:26 GMT"


@dataclass(frozen=True)
class Request:
    """What the host was asked."""

    target: str
    headers: dict[str, str]


@dataclass(frozen=True)
class Wire:
    """The host's end of a connection; its sends end when the test does."""

    socket: socket.socket
    closing: threading.Event

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.socket.sendall(piece)

    def send_for_ever(self, piece: bytes, every: float = 0) -> None:
        while not self.closing.wait(every):
            self.socket.sendall(piece)

    def say_nothing(self) -> None:
        self.closing.wait(5)

    def reset(self) -> None:
        """TCP's RST instead of an orderly end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


Answer = Callable[[Request, Wire], None]


def head(status: str = "200 OK", **headers: Any) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
    return f"HTTP/1.1 {status}\r\n{''.join(lines)}\r\n".encode()


def answer(body: bytes = FILE, status: str = "200 OK", **headers: Any) -> Answer:
    whole = head(status, **{"Content_Length": len(body), **headers}) + body
    return lambda _, wire: wire.send(whole)


def redirect(location: str, status: str = "302 Found", **headers: Any) -> Answer:
    return answer(b"moved", status, Location=location, **headers)


class Host(socketserver.ThreadingTCPServer):
    """Answers each path as the test says, and remembers what it was asked."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Conversation)
        self.port: int = self.server_address[1]
        self.tls = tls
        self.answers: dict[str, Answer] = {}
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self._thread.start()

    def asked(self) -> list[str]:
        return [request.target.removesuffix(TOKEN) for request in self.requests]

    def stop(self) -> None:
        self.closing.set()
        self.shutdown()
        self._thread.join()
        self.server_close()


class Conversation(socketserver.BaseRequestHandler):
    server: Host

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            wire = self.request
            if self.server.tls:
                wire = self.server.tls.wrap_socket(wire, server_side=True)
            with wire, wire.makefile("rb") as incoming:
                _, target, _ = incoming.readline().decode().split(" ")
                lines = iter(lambda: incoming.readline().decode().strip(), "")
                pairs = (line.split(": ", 1) for line in lines)
                request = Request(target, {name.lower(): value for name, value in pairs})
                self.server.requests.append(request)
                path = target.partition("?")[0]
                self.server.answers[path](request, Wire(wire, self.server.closing))


class Internet(httpcore.NetworkBackend):
    """Where every address is this machine's `port`, but for the dead ones."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.called: list[str] = []
        self.dead: set[str] = set()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        self.called.append(host)
        if host in self.dead:
            raise httpcore.ConnectError("nobody is there")
        return httpcore.SyncBackend().connect_tcp("127.0.0.1", self.port, timeout)


@dataclass
class World:
    """The host, the internet and the name server of one test."""

    host: Host
    internet: Internet
    policy: FetchPolicy = POLICY
    names: dict[str, list[str]] = field(default_factory=dict)
    clock: Callable[[], float] = time.monotonic
    tls: ssl.SSLContext = TRUSTED

    def resolve(self, host: str, port: int) -> list[tuple[Any, Any, Any, Any, tuple[Any, ...]]]:
        """Names of the test; numbers in all the spellings that the system's resolver reads."""
        if host in self.names:
            return [(0, 0, 0, "", (address, port)) for address in self.names[host]]
        return list(socket.getaddrinfo(host, port, flags=socket.AI_NUMERICHOST))

    def allow(self, **changes: Any) -> None:
        self.policy = replace(self.policy, **changes)

    def open(
        self, url: str, offset: int = 0, validator: str | None = None
    ) -> contextlib.AbstractContextManager[Download]:
        fetcher = Fetcher(self.policy, self.resolve, self.clock, self.internet, self.tls)
        return fetcher.open(url, offset, validator)

    def fetch(
        self, url: str, offset: int = 0, validator: str | None = None
    ) -> tuple[Download, bytes]:
        with self.open(url, offset, validator) as download:
            return download, b"".join(download.chunks())

    def refusal(self, kind: type[FetchError], url: str, *resume: Any) -> str:
        """The message with which a download ends; never one that tells secrets."""
        with pytest.raises(FetchError) as caught:
            self.fetch(url, *resume)
        assert type(caught.value) is kind
        assert "secret" not in caught.value.message
        return caught.value.message


@contextlib.contextmanager
def hostile_world() -> Iterator[World]:
    """One host, called weights.example."""
    host = Host()
    try:
        yield World(host, Internet(host.port), names={"weights.example": [PUBLIC]})
    finally:
        host.stop()


HERE = "http://weights.example/model.safetensors" + TOKEN
PATH = "/model.safetensors"
