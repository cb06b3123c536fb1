"""`python -m benchmarks.sink`: a store that takes uploads and discards them.

It speaks as much of S3 as `aws s3 cp` needs, and as much of the API as the uploader does. A
thread a connection; bodies are read and forgotten, so that what is measured is who sends.
"""

from __future__ import annotations

import json
import socket
import threading
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from middleware_api.services.uploads import cut_into_parts

BUFFER_BYTES = 1 << 20
_UPLOAD = (
    "<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>k</Key><UploadId>u</UploadId>"
    "</InitiateMultipartUploadResult>"
)
_COMPLETED = (
    '<CompleteMultipartUploadResult><ETag>"0"</ETag><Key>k</Key></CompleteMultipartUploadResult>'
)


@dataclass(frozen=True)
class Request:
    """The head of one request; its body follows on the connection."""

    method: str
    target: str
    headers: dict[str, str]

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return int(self.headers.get("content-length", "0"))


class Connection:
    """One caller, request after request."""

    def __init__(self, caller: socket.socket, base_url: str) -> None:
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = caller
        self._base_url = base_url
        self._ahead = b""
        self._buffer = bytearray(BUFFER_BYTES)

    def serve(self) -> None:
        """Until the caller hangs up."""
        with self._socket:
            while (request := self._head()) is not None:
                if "expect" in request.headers:
                    self._socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                self._answer(request)

    def _head(self) -> Request | None:
        while b"\r\n\r\n" not in self._ahead:
            more = self._socket.recv(65536)
            if not more:
                return None
            self._ahead += more
        head, self._ahead = self._ahead.split(b"\r\n\r\n", 1)
        first, *lines = head.decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        pairs = (line.split(":", 1) for line in lines)
        return Request(method, target, {name.lower(): value.strip() for name, value in pairs})

    def _answer(self, request: Request) -> None:
        address = urlsplit(request.target)
        if address.path == "/checkpoint":
            self._answer_api(request)
            return
        self._discard(request.length)
        query = parse_qs(address.query, keep_blank_values=True)
        if request.method == "POST":
            self._send(_UPLOAD if "uploads" in query else _COMPLETED, "application/xml")
        elif address.path == "/checkpoints":
            self._send(json.dumps({"checkpoints": []}), "application/json")
        else:
            self._send("", "text/plain")

    def _answer_api(self, request: Request) -> None:
        body = bytearray(self._ahead)
        self._ahead = b""
        while len(body) < request.length:
            body += self._socket.recv(65536)
        asked = json.loads(body)
        checkpoint = {"id": "c", "type": "Stable-diffusion", "name": [], "status": "Active"}
        plans = []
        if request.method == "POST":
            (file,) = asked["filenames"]
            count, size = cut_into_parts(file["size"], file["parts_number"])
            parts = [
                {"PartNumber": n, "url": f"{self._base_url}/b/k?partNumber={n}&uploadId=u"}
                for n in range(1, count + 1)
            ]
            name = file["filename"]
            plans = [{"filename": name, "part_size": size, "parts": parts, "checksum": "crc32"}]
            checkpoint["status"] = "Initial"
        self._send(
            json.dumps({"checkpoint": checkpoint, "s3PresignUrl": plans}), "application/json"
        )

    def _discard(self, left: int) -> None:
        ahead = min(left, len(self._ahead))
        self._ahead = self._ahead[ahead:]
        left -= ahead
        while left > 0:
            count = self._socket.recv_into(self._buffer, min(left, BUFFER_BYTES), socket.MSG_TRUNC)
            if not count:
                raise ConnectionResetError("the caller hung up in the middle of a body")
            left -= count

    def _send(self, body: str, kind: str) -> None:
        head = (
            f'HTTP/1.1 200 OK\r\nETag: "0"\r\nContent-Type: {kind}\r\n'
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._socket.sendall((head + body).encode())


def main() -> None:
    """Prints the address, then serves until it is ended."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        base_url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        print(base_url, flush=True)
        while True:
            caller, _ = listener.accept()
            threading.Thread(target=Connection(caller, base_url).serve, daemon=True).start()


if __name__ == "__main__":
    main()
