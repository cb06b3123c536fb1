"""Bodies of gigabytes, read by a thread straight from their socket.

uvicorn hands a body to the application in small pieces through one event loop, which then is
what bounds an upload, and what every other request waits for. `StraightProtocol` offers to an
application that it takes the rest of a body itself; uvicorn goes on with the connection after it.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

from anyio import CapacityLimiter, to_thread
from h11._readers import ContentLengthReader
from starlette.requests import ClientDisconnect, Request
from uvicorn.protocols.http.h11_impl import H11Protocol

BUFFER_BYTES = 512 * 1024
SILENCE_SECONDS = 60
THREADS = 16
_EXTENSION = "sdaws.straight_body"
_CHUNK = 4 * 1024 * 1024

Write = Callable[[bytes | memoryview], None]


class StraightProtocol(H11Protocol):
    """uvicorn's HTTP/1.1; the body of its current request can be taken."""

    def handle_events(self) -> None:
        """As uvicorn's; offers what is still to come of a body it has met."""
        super().handle_events()
        if self.scope is not None:
            extensions: dict[str, Any] = self.scope.setdefault("extensions", {})
            extensions[_EXTENSION] = self

    def take_body(self) -> _RestOfBody | None:
        """The rest of the present request's body; None where uvicorn has to bring it."""
        # h11's own count of what is to come. It has no public way to tell it that somebody else
        # has read.
        reader = self.conn._reader
        if (
            not isinstance(reader, ContentLengthReader)
            or not self.cycle.more_body
            or self.cycle.waiting_for_100_continue
            or self.transport.get_extra_info("ssl_object") is not None
        ):
            return None
        self.flow.pause_reading()
        ahead = bytes(self.cycle.body)
        self.cycle.body = bytearray()
        return _RestOfBody(
            self.transport.get_extra_info("socket").dup(), ahead, reader._remaining, self
        )

    def go_on(self, left: int) -> None:
        """All but `left` bytes of the body have been read elsewhere."""
        assert isinstance(self.conn._reader, ContentLengthReader)
        self.conn._reader._remaining = left
        self.flow.resume_reading()
        self.handle_events()


class _RestOfBody:
    """What is still to come of one request's body."""

    def __init__(
        self, source: socket.socket, ahead: bytes, left: int, protocol: StraightProtocol
    ) -> None:
        self._source = source
        self._ahead = ahead
        self._left = left
        self._protocol = protocol

    def copy(self, write: Write, stopping: Callable[[], bool]) -> None:
        """For a thread. Raises ClientDisconnect when no more comes, or the server stops."""
        view = memoryview(bytearray(BUFFER_BYTES))
        with self._source as source:
            # A second at a time, so that a stopping server need not wait for a silent caller.
            source.settimeout(1.0)
            silent = 0
            write(self._ahead)
            while self._left:
                try:
                    count = source.recv_into(view, min(self._left, len(view)))
                except TimeoutError as fault:
                    silent += 1
                    if stopping() or silent >= SILENCE_SECONDS:
                        raise ClientDisconnect from fault
                    continue
                except OSError as fault:
                    raise ClientDisconnect from fault
                if not count:
                    raise ClientDisconnect
                silent = 0
                self._left -= count
                write(view[:count])

    def give_back(self) -> None:
        """For the event loop: whatever has been read, the connection goes on behind it."""
        self._protocol.go_on(self._left)


class Bodies:
    """Brings requests' bodies to where they are written, a few at a time."""

    def __init__(self, stopping: Callable[[], bool]) -> None:
        self._stopping = stopping
        self._limiter = CapacityLimiter(THREADS)

    async def bring(self, request: Request, write: Write) -> None:
        """Give all of a body to `write`, in threads. Raises ClientDisconnect."""
        protocol = request.scope.get("extensions", {}).get(_EXTENSION)
        body = protocol.take_body() if isinstance(protocol, StraightProtocol) else None
        if body is None:
            async for chunk in _in_large_chunks(request.stream()):
                await to_thread.run_sync(write, chunk, limiter=self._limiter)
            return
        try:
            await to_thread.run_sync(body.copy, write, self._stopping, limiter=self._limiter)
        finally:
            body.give_back()


async def _in_large_chunks(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Fewer trips to another thread: network chunks are 64 KiB."""
    waiting: list[bytes] = []
    size = 0
    async for chunk in body:
        waiting.append(chunk)
        size += len(chunk)
        if size >= _CHUNK:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)
