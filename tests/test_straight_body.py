"""Signed PUTs on a real connection: what the embedded store does with bytes as they come."""

from __future__ import annotations

import base64
import hashlib
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from middleware_api.contract import MIB, PART_MIN_BYTES, PartTag
from middleware_api.embedded.objects import FolderObjects
from middleware_api.embedded.server import objects_router
from middleware_api.embedded.straight_body import StraightProtocol
from middleware_api.errors import ServiceError
from tests.server import until

KEY = "VAE/checkpoint/1/a.safetensors"
FULL = bytes(range(256)) * (PART_MIN_BYTES // 256)


@dataclass(frozen=True)
class Served:
    """A store, and where it listens."""

    objects: FolderObjects
    folder: Path
    port: int

    def part(self, upload: str, number: int) -> str:
        return self.objects.presigned_part(KEY, upload, number, 60)

    def arrived(self, upload: str) -> list[int]:
        return [part.number for part in self.objects.arrived_parts(KEY, upload)]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        objects = FolderObjects(tmp_path, b"signing key", f"http://127.0.0.1:{port}", time.time)
        app = FastAPI()
        app.include_router(objects_router(objects))

        @app.exception_handler(ServiceError)
        async def refuse(request: Request, error: ServiceError) -> Response:
            return JSONResponse({"code": error.code}, error.status)

        config = uvicorn.Config(app, log_level="error", http=StraightProtocol, lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield Served(objects, tmp_path, port)
        server.should_exit = True
        thread.join()


def crc_of(content: bytes) -> dict[str, str]:
    crc = zlib.crc32(content).to_bytes(4, "big")
    return {"x-amz-checksum-crc32": base64.b64encode(crc).decode()}


def test_one_connection_carries_part_after_part(served: Served) -> None:
    upload = served.objects.start_multipart(KEY, PART_MIN_BYTES)
    parts = [FULL, FULL[::-1], b"end"]
    tags = []
    with httpx.Client() as client:
        for number, content in enumerate(parts, start=1):
            url = served.part(upload, number)
            answer = client.put(url, content=content, headers=crc_of(content))
            assert answer.status_code == 200, answer.text
            tags.append(PartTag(PartNumber=number, ETag=answer.headers["ETag"]))
    whole = served.objects.complete_multipart(KEY, upload, tags)
    assert whole.sha256 == hashlib.sha256(b"".join(parts)).hexdigest()
    assert served.objects.read(KEY) == b"".join(parts)


def test_damaged_and_overlong_parts_are_refused_and_can_be_sent_again(served: Served) -> None:
    upload = served.objects.start_multipart(KEY, PART_MIN_BYTES)
    url = served.part(upload, 1)
    with httpx.Client() as client:
        damaged = client.put(url, content=FULL, headers=crc_of(b"other"))
        assert (damaged.status_code, damaged.json()["code"]) == (400, "checksum_differs")
        nonsense = client.put(url, content=FULL, headers={"x-amz-checksum-crc32": "crc"})
        assert nonsense.status_code == 422
        # Refused in the middle: the answer is read all the same, and the connection goes on.
        long = client.put(url, content=FULL + FULL)
        assert (long.status_code, long.json()["code"]) == (409, "part_too_large")
        assert served.arrived(upload) == []
        assert client.put(url, content=FULL, headers=crc_of(FULL)).status_code == 200
    assert served.arrived(upload) == [1]


def test_a_part_that_broke_off_leaves_nothing_behind(served: Served) -> None:
    upload = served.objects.start_multipart(KEY, PART_MIN_BYTES)
    target = served.part(upload, 1).partition(str(served.port))[2]
    head = f"PUT {target} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(FULL)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", served.port)) as caller:
        caller.sendall(head.encode() + FULL[:MIB])
        until(lambda: _written(served, upload), lambda seen: seen["bytes"] >= MIB)
    # Its place is free again as soon as the end of the connection has been seen.
    until(
        lambda: {"status": httpx.put(served.part(upload, 1), content=FULL).status_code},
        lambda seen: seen["status"] == 200,
    )
    assert served.arrived(upload) == [1]
    tag = PartTag(PartNumber=1, ETag=served.objects.arrived_parts(KEY, upload)[0].etag)
    assert served.objects.complete_multipart(KEY, upload, [tag]).size == len(FULL)
    assert served.objects.read(KEY) == FULL


def test_a_body_of_unknown_length_arrives_too(served: Served) -> None:
    pieces = [FULL[:MIB], FULL[MIB:]]
    url = served.objects.presigned_put("dataset/a.png", 60)
    assert httpx.put(url, content=iter(pieces)).status_code == 200
    assert served.objects.read("dataset/a.png") == FULL


def test_a_late_part_does_not_touch_the_object(served: Served) -> None:
    upload = served.objects.start_multipart(KEY, PART_MIN_BYTES)
    url = served.part(upload, 2)
    tag = httpx.put(served.part(upload, 1), content=b"all").headers["ETag"]
    served.objects.complete_multipart(KEY, upload, [PartTag(PartNumber=1, ETag=tag)])
    assert httpx.put(url, content=b"late").status_code == 404
    assert served.objects.read(KEY) == b"all"


def test_pages_of_other_origins_may_put_parts(served: Served) -> None:
    url = served.part(served.objects.start_multipart(KEY), 1)
    asked = httpx.options(url)
    assert asked.status_code == 204
    assert "PUT" in asked.headers["Access-Control-Allow-Methods"]
    put = httpx.put(url, content=b"x")
    assert put.headers["Access-Control-Allow-Origin"] == "*"
    assert put.headers["Access-Control-Expose-Headers"] == "ETag"


def _written(served: Served, upload: str) -> dict[str, int]:
    content = served.folder / "multipart" / upload / "content"
    return {"bytes": content.stat().st_size}
