"""The data sets of a pretended cloud: created, sent file by file, shown, changed."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

from aws_extension.fake_transport import FakeAnswer, Sent


@dataclass
class PretendDataset:
    """One; `files` have None until they have arrived."""

    name: str
    state: str = "Initialed"
    files: dict[str, bytes | None] = field(default_factory=dict)


@dataclass
class PretendDatasets:
    """Rows 26 to 29 with what we have added, and the store behind them."""

    base: str
    all: list[PretendDataset] = field(default_factory=list)
    refuse_puts_with: int = 0
    puts: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, sent: Sent, path: str, query: dict[str, list[str]]) -> FakeAnswer:
        """For paths below /datasets and /dataset."""
        if path == "/datasets":
            shown = [
                {"datasetName": one.name, "status": one.state, "s3": "", "timestamp": 1700000000,
                 "files": len(one.files)}
                for one in reversed(self.all)
                if one.state in query.get("dataset_status", [one.state])
            ]  # fmt: skip
            return FakeAnswer(body={"statusCode": 200, "datasets": shown})
        if path == "/dataset":
            name = query["name"][0] if sent.method == "DELETE" else sent.json["dataset_name"]
            return getattr(self, f"_{sent.method.lower()}")(name, sent)
        _, _, name, what = path.split("/")
        found = self.get(unquote(name))
        if found is None:
            return _refused(404, "There is no such data set.")
        if what == "data":
            return self._data(found)
        if sent.method == "DELETE":
            for file in query["name"]:
                del found.files[file]
            return FakeAnswer(body={"statusCode": 200})
        names = [one["name"] for one in sent.json["content"]]
        if set(names) - set(found.files) and found.state == "Enabled":
            found.state = "Disabled"
        for file in names:
            found.files.setdefault(file, None)
        return self._urls(found, names)

    def take(self, path: str, sent: Sent) -> FakeAnswer:
        """A PUT to, or a GET from, `/pictures/<data set>/<file>`."""
        _, _, name, file = map(unquote, path.split("/"))
        found = self.get(name)
        if found is None or file not in found.files:
            return FakeAnswer(404, b"")
        if sent.method == "GET":
            return FakeAnswer(body=found.files[file] or b"")
        with self._lock:
            if self.refuse_puts_with and len(self.puts) >= 2:
                return FakeAnswer(self.refuse_puts_with, b"")
            self.puts.append(file)
            found.files[file] = sent.body
        return FakeAnswer(headers={"ETag": '"1"'}, body=b"")

    def get(self, name: str) -> PretendDataset | None:
        return next((one for one in self.all if one.name == name), None)

    def _post(self, name: str, sent: Sent) -> FakeAnswer:
        if self.get(name):
            return _refused(409, "The name is taken.")
        names = [one["name"] for one in sent.json["content"]]
        self.all.append(PretendDataset(name, files=dict.fromkeys(names)))
        return self._urls(self.all[-1], names)

    def _put(self, name: str, sent: Sent) -> FakeAnswer:
        found = self.get(name)
        if found is None:
            return _refused(404, "There is no such data set.")
        if sent.json["status"] == "Enabled" and None in found.files.values():
            return _refused(409, "Some files have not arrived.")
        found.state = sent.json["status"]
        return FakeAnswer(body={"statusCode": 200})

    def _delete(self, name: str, sent: Sent) -> FakeAnswer:
        self.all = [one for one in self.all if one.name != name]
        return FakeAnswer(body={"statusCode": 200})

    def _url(self, found: PretendDataset, file: str) -> str:
        return f"{self.base}/pictures/{quote(found.name)}/{quote(file)}"

    def _urls(self, found: PretendDataset, names: list[str]) -> FakeAnswer:
        places = [{"filename": n, "s3": "", "url": self._url(found, n)} for n in names]
        return FakeAnswer(body={"datasetName": found.name, "s3PresignUrl": places})

    def _data(self, found: PretendDataset) -> FakeAnswer:
        shown: list[dict[str, Any]] = [
            {"key": n, "name": n, "type": "", "dataStatus": found.state,
             "size": None if content is None else len(content),
             "preview_url": self._url(found, n)}
            for n, content in found.files.items()
        ]  # fmt: skip
        return FakeAnswer(body={"dataset_name": found.name, "data": shown})


def _refused(status: int, error: str) -> FakeAnswer:
    return FakeAnswer(status, {"statusCode": status, "error": error, "code": "refused"})
