"""A pretended server that takes uploads, with faults on order."""

from __future__ import annotations

import base64
import hashlib
import threading
import zlib
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import requests

from aws_extension.fake_transport import FakeAnswer, Sent

STORE = "http://store.test"


@dataclass
class FakeStore:
    """Rows 20 to 22 for one file, and the store behind them."""

    part_size: int
    content: bytes
    name: str = "model.safetensors"
    active: bool = False
    expire_first_urls: bool = False
    lose_every_first_try: bool = False
    damage_every_first_try: bool = False
    checksum: str = "crc32"
    sizes: list[int] = field(default_factory=list)
    told: str = ""
    mention_arrived: bool = True
    parts: dict[int, bytes] = field(default_factory=dict)
    tries: Counter[int] = field(default_factory=Counter)
    issued: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, sent: Sent) -> FakeAnswer | Exception:
        with self.lock:
            return self._answer(sent)

    def _answer(self, sent: Sent) -> FakeAnswer | Exception:
        address = urlsplit(sent.url)
        if sent.url.startswith(STORE):
            return self._take(int(address.path[1:]), int(parse_qs(address.query)["set"][0]), sent)
        if address.path.endswith("/checkpoints"):
            return FakeAnswer(
                body={"checkpoints": [{**self._checkpoint(), "size": s} for s in self.sizes]}
            )
        if sent.method == "DELETE" or (sent.method == "PUT" and sent.json["status"] == "Fail"):
            self.parts.clear()
            return FakeAnswer(body={"checkpoint": self._checkpoint(), "message": "deleted"})
        if sent.method == "PUT":
            (self.told,) = sent.json["sha256"].values()
            assert self.told == hashlib.sha256(self.content).hexdigest()
            tags = sent.json["multi_parts_tags"][self.name]
            assert [tag["PartNumber"] for tag in tags] == sorted(self.parts)
            assert all(tag["ETag"] == self._etag(tag["PartNumber"]) for tag in tags)
            self.active = b"".join(self.parts[n] for n in sorted(self.parts)) == self.content
            return FakeAnswer(body={"statusCode": 200, "checkpoint": self._checkpoint()})
        if sent.method == "POST":
            (file,) = sent.json["filenames"]
            assert file.get("sha256") in (None, hashlib.sha256(self.content).hexdigest())
            assert file["size"] == len(self.content)
        return FakeAnswer(body=self._upload(sent.method == "GET" or self.mention_arrived))

    def _take(self, number: int, url_set: int, sent: Sent) -> FakeAnswer | Exception:
        assert "x-api-key" not in {name.lower() for name in sent.headers}
        self.tries[number] += 1
        if self.lose_every_first_try and self.tries[number] == 1:
            return requests.ConnectionError("reset")
        if self.expire_first_urls and url_set == 1:
            return FakeAnswer(403, b"<Error><Code>AccessDenied</Code></Error>")
        assert sent.headers["Content-Length"] == str(len(sent.body))
        crc = base64.b64encode(zlib.crc32(sent.body).to_bytes(4, "big")).decode()
        md5 = base64.b64encode(hashlib.md5(sent.body).digest()).decode()
        assert sent.headers.get("x-amz-checksum-crc32") == (
            crc if self.checksum == "crc32" else None
        )
        assert sent.headers.get("Content-MD5") == (md5 if self.checksum == "md5" else None)
        if self.damage_every_first_try and self.tries[number] == 1:
            return FakeAnswer(400, b"<Error><Code>BadDigest</Code></Error>")
        self.parts[number] = sent.body
        return FakeAnswer(headers={"ETag": self._etag(number)}, body=b"")

    def _etag(self, number: int) -> str:
        return f'"{hashlib.sha256(self.parts[number]).hexdigest()[:16]}"'

    def _checkpoint(self) -> dict[str, object]:
        status = "Active" if self.active else "Initial"
        return {"id": "c1", "type": "Stable-diffusion", "status": status, "name": [self.name]}

    def _upload(self, with_arrived: bool) -> dict[str, object]:
        plans = []
        if not self.active:
            self.issued += 1
            count = -(-len(self.content) // self.part_size)
            missing = [n for n in range(1, count + 1) if n not in self.parts]
            arrived = [
                {"PartNumber": n, "ETag": self._etag(n), "size": len(self.parts[n])}
                for n in sorted(self.parts)
            ]
            plans = [
                {
                    "filename": self.name,
                    "upload_id": "u",
                    "bucket": "b",
                    "key": "k",
                    "part_size": self.part_size,
                    "checksum": self.checksum,
                    "parts": [
                        {"PartNumber": n, "url": f"{STORE}/{n}?set={self.issued}"} for n in missing
                    ],
                    **({"arrived": arrived} if with_arrived else {}),
                }
            ]
        return {"statusCode": 200, "checkpoint": self._checkpoint(), "s3PresignUrl": plans}
