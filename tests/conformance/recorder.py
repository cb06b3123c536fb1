"""A server between an example and the API, which notes what was asked and answered."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx


@dataclass(frozen=True)
class Exchange:
    """One request and its answer."""

    method: str
    path: str
    status: int
    body: Any


class Recorder:
    """Hands everything on to `target`; `exchanges` are in the order of their answers."""

    def __init__(self, target: str) -> None:
        self.exchanges: list[Exchange] = []
        exchanges = self.exchanges
        client = httpx.Client(base_url=target, timeout=60)

        class Handler(BaseHTTPRequestHandler):
            def hand_on(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                names = ("x-api-key", "content-type", "accept")
                answer = client.request(
                    self.command,
                    self.path,
                    content=self.rfile.read(length),
                    headers={n: self.headers[n] for n in names if n in self.headers},
                )
                body = json.loads(answer.content) if answer.content else None
                exchanges.append(Exchange(self.command, self.path, answer.status_code, body))
                self.send_response(answer.status_code)
                self.send_header("content-type", answer.headers.get("content-type", ""))
                self.send_header("content-length", str(len(answer.content)))
                self.end_headers()
                self.wfile.write(answer.content)

            do_GET = do_POST = do_PUT = do_DELETE = hand_on

            def log_message(self, format: str, *args: object) -> None:
                """Test results tell enough."""

        self._client = client
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        self._client.close()
