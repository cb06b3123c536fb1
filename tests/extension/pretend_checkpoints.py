"""The weights files of a pretended cloud: listed, uploaded part by part, completed."""

from __future__ import annotations

import base64
import hashlib
import zlib
from dataclasses import dataclass, field
from typing import Any

from aws_extension.fake_transport import FakeAnswer, Sent

PART_SIZE = 100_000


@dataclass
class PretendCheckpoint:
    """One file; its parts while they arrive."""

    id: str
    type: str
    name: str
    sha256: str
    size: int
    state: str = "Active"
    parts: dict[int, bytes] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    error: str = ""
    can_retry: bool = False

    def show(self) -> dict[str, Any]:
        """As in a list."""
        return {
            **self.summary(), "name": [self.name], "created": 1700000000, "size": self.size,
            "sha256": [self.sha256], "sources": self.sources, "error": self.error,
            "can_retry": self.can_retry,
        }  # fmt: skip

    def summary(self) -> dict[str, Any]:
        """As row 20 and 21 answer, which leave out the name."""
        return {"id": self.id, "type": self.type, "status": self.state}


@dataclass
class PretendCheckpoints:
    """Rows 20, 20b, 21, 22 and 30, and the store behind them."""

    base: str
    all: list[PretendCheckpoint] = field(default_factory=list)
    made: int = 0
    refuse_parts_with: int = 0

    def add(self, kind: str, name: str, sha256: str = "") -> PretendCheckpoint:
        """One that is there already."""
        self.made += 1  # not what is there: some may have been deleted
        made = PretendCheckpoint(f"c{self.made}", kind, name, sha256, size=21_000_000)
        self.all.append(made)
        return made

    def is_active(self, kind: str, name: str) -> bool:
        return any((c.type, c.name, c.state) == (kind, name, "Active") for c in self.all)

    def list(self, query: dict[str, list[str]]) -> FakeAnswer:
        types, states = query.get("types"), query.get("status")
        shown = [
            c.show()
            for c in reversed(self.all)
            if (not types or c.type in types) and (not states or c.state in states)
        ]
        return FakeAnswer(body={"statusCode": 200, "checkpoints": shown})

    def create(self, body: dict[str, Any]) -> FakeAnswer:
        (file,) = body["filenames"]
        sha256 = file.get("sha256", "")
        for known in self.all:
            if sha256 and known.sha256 == sha256:
                return self.upload(known.id)
        made = self.add(body["checkpoint_type"], file["filename"], sha256)
        made.state, made.size = "Initial", file["size"]
        return self.upload(made.id)

    def upload(self, checkpoint_id: str) -> FakeAnswer:
        found = self._get(checkpoint_id)
        plans = []
        if found.state == "Initial":
            numbers = range(1, -(-found.size // PART_SIZE) + 1)
            plans = [
                {
                    "filename": found.name,
                    "part_size": PART_SIZE,
                    "checksum": "crc32",
                    "parts": [
                        {"PartNumber": n, "url": f"{self.base}/parts/{found.id}/{n}"}
                        for n in numbers
                        if n not in found.parts
                    ],
                    "arrived": [{"PartNumber": n, "ETag": f'"{n}"'} for n in found.parts],
                }
            ]
        return FakeAnswer(
            body={"statusCode": 200, "checkpoint": found.summary(), "s3PresignUrl": plans}
        )

    def take(self, checkpoint_id: str, number: int, sent: Sent) -> FakeAnswer:
        if self.refuse_parts_with:
            return FakeAnswer(self.refuse_parts_with, b"")
        crc = zlib.crc32(sent.body).to_bytes(4, "big")
        told = {name.lower(): value for name, value in sent.headers.items()}
        assert base64.b64decode(told["x-amz-checksum-crc32"]) == crc
        self._get(checkpoint_id).parts[number] = sent.body
        origin = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "ETag"}
        return FakeAnswer(headers={"ETag": f'"{number}"', **origin}, body=b"")

    def change(self, body: dict[str, Any]) -> FakeAnswer:
        found = self._get(body["checkpoint_id"])
        if body.get("multi_parts_tags"):
            content = b"".join(found.parts[n] for n in sorted(found.parts))
            sha256 = hashlib.sha256(content).hexdigest()
            assert found.sha256 in ("", sha256)
            found.sha256 = sha256
        found.state = body["status"]
        return FakeAnswer(body={"statusCode": 200, "checkpoint": found.summary()})

    def rename(self, body: dict[str, Any]) -> FakeAnswer:
        found = self._get(body["checkpoint_id"])
        assert found.name == body["filename"]
        if any(one.name == body["new_name"] for one in self.all if one is not found):
            return FakeAnswer(409, {"error": "The name is in use.", "code": "x", "statusCode": 409})
        found.name = body["new_name"]
        return FakeAnswer(body={"statusCode": 200, "checkpoint": found.summary()})

    def retry(self, checkpoint_id: str) -> FakeAnswer:
        found = self._get(checkpoint_id)
        found.state, found.error, found.can_retry = "Active", "", False
        return FakeAnswer(body={"statusCode": 200, "checkpoint": found.summary()})

    def delete(self, checkpoint_id: str) -> FakeAnswer:
        self.all.remove(self._get(checkpoint_id))
        return FakeAnswer(body={"statusCode": 200, "message": "deleted"})

    def fetch(self, body: dict[str, Any]) -> FakeAnswer:
        """Row 30; it never ends."""
        (url,) = body["modelUrl"]
        made = self.add(body["checkpointType"], url.rpartition("/")[2])
        made.state, made.sources = "Initial", [url]
        return FakeAnswer(body={"statusCode": 200, "checkpoint": made.summary()})

    def _get(self, checkpoint_id: str) -> PretendCheckpoint:
        return next(c for c in self.all if c.id == checkpoint_id)
