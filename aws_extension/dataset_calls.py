"""The data sets' half of the HTTP API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from urllib.parse import quote

from aws_extension import http
from aws_extension.answers import Fields
from aws_extension.calls import Call, every_page, forget
from middleware_api.contract import DatasetState


@dataclass(frozen=True)
class Dataset:
    """A data set of the cloud; `files` is their number, None where the server does not tell it."""

    name: str
    state: DatasetState
    created_at: datetime | None = None
    files: int | None = None


@dataclass(frozen=True)
class DatasetFile:
    """One of its files; `size` is None while it has not arrived, `url` shows it for an hour."""

    name: str
    size: int | None
    url: str


class DatasetCalls:
    """These rows of one client. Names of files are what is stored, not paths."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def all(self, states: Sequence[DatasetState] = ()) -> list[Dataset]:
        """Row 28, all pages, newest first."""
        params: http.Params = {"dataset_status": [state.value for state in states]}
        return [
            _dataset(item)
            for answer in every_page(self._call, "/datasets", params)
            for item in Fields(http.decode(answer), "data sets").objects("datasets")
        ]

    def files(self, name: str) -> list[DatasetFile]:
        """Row 29."""
        answer = self._call("GET", f"{_path(name)}/data")
        return [
            DatasetFile(
                item.text("name"), item.optional_integer("size"), item.optional_text("preview_url")
            )
            for item in Fields(http.decode(answer), "a data set's files").objects("data")
        ]

    def create(self, name: str, files: Sequence[str]) -> dict[str, str]:
        """Row 26: where each file goes, by its name."""
        return self._to_write("/dataset", files, {"dataset_name": name})

    def write(self, name: str, files: Sequence[str]) -> dict[str, str]:
        """Where to put files that it has anew, or further ones."""
        return self._to_write(f"{_path(name)}/files", files, {})

    def remove(self, name: str, files: Sequence[str]) -> None:
        """Forget some of its files; those that are gone already are as good."""
        forget(self._call, f"{_path(name)}/files", {"name": [*files]})

    def set_state(self, name: str, state: DatasetState) -> None:
        """Row 27: enable it once all its files are there, or disable it."""
        self._call("PUT", "/dataset", {"dataset_name": name, "status": state.value})

    def delete(self, name: str) -> None:
        """Forget it and its files; one that is gone already is as good."""
        forget(self._call, "/dataset", {"name": name})

    def _to_write(
        self, path: str, files: Sequence[str], document: dict[str, object]
    ) -> dict[str, str]:
        content = [{"filename": file, "name": file, "type": ""} for file in files]
        answer = self._call("POST", path, {**document, "content": content})
        fields = Fields(http.decode(answer), "a data set's upload")
        return {item.text("filename"): item.text("url") for item in fields.objects("s3PresignUrl")}


def _path(name: str) -> str:
    return f"/dataset/{quote(name, safe='')}"


def _dataset(fields: Fields) -> Dataset:
    created = fields.optional_number("timestamp")
    return Dataset(
        name=fields.text("datasetName"),
        state=fields.choice("status", DatasetState),
        created_at=None if created is None else datetime.fromtimestamp(created, timezone.utc),
        files=fields.optional_integer("files"),
    )
