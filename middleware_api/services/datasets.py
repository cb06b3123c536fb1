"""Data sets: pictures to train on, uploaded one by one."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from middleware_api.contract import (
    DATASET_TRANSITIONS,
    UPLOAD_URL_SECONDS,
    DatasetState,
    dataset_prefix,
)
from middleware_api.errors import Conflict, NotFound
from middleware_api.ports import Objects, Page, Records
from middleware_api.records import Dataset, DatasetFile
from middleware_api.services.access import Principal
from middleware_api.services.names import taking_name

PREVIEW_URL_SECONDS = 3600
# A sentence that lists thousands of names helps nobody.
_NAMED_AT_MOST = 10


@dataclass(frozen=True)
class FileUrl:
    """A file of a data set, and a URL that writes or reads it."""

    file: DatasetFile
    url: str


class DatasetService:
    """Data sets, by the name that their owner gives them."""

    def __init__(
        self,
        records: Records,
        objects: Objects,
        clock: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self._records = records
        self._objects = objects
        self._clock = clock
        self._new_id = new_id

    def create(
        self,
        caller: Principal,
        name: str,
        files: Collection[tuple[str, str]],
        params: dict[str, object],
    ) -> tuple[Dataset, list[FileUrl]]:
        """A data set of (file name, type) pairs, and where to put each file.

        Raises Conflict on a name in use.
        """
        prefix = dataset_prefix(name)
        dataset = Dataset(
            id=self._new_id(),
            owner=caller.name,
            created_at=self._clock(),
            name=name,
            state=DatasetState.INITIAL,
            files=tuple(
                DatasetFile(name=file, key=prefix + file, type=kind) for file, kind in files
            ),
            params=params,
        )
        with taking_name(self._records, _name_key(name), dataset, lambda: _name_taken(name)):
            self._records.add(dataset)
        urls = [
            FileUrl(file, self._objects.presigned_put(file.key, UPLOAD_URL_SECONDS))
            for file in dataset.files
        ]
        return dataset, urls

    def find(self, caller: Principal, name: str) -> Dataset:
        """The caller's data set of that name. Raises NotFound."""
        dataset_id = self._records.lookup(_name_key(name))
        try:
            if dataset_id is not None:
                return caller.own(self._records.get(Dataset, dataset_id))
        except NotFound:  # deleted by half, or another user's: both are nothing to the caller
            pass
        raise NotFound(
            f"You have no data set named '{name}'. GET /datasets lists yours.", "dataset_not_found"
        )

    def page(
        self,
        caller: Principal,
        states: Collection[DatasetState],
        limit: int,
        cursor: str | None,
    ) -> Page[Dataset]:
        """Newest first."""
        return self._records.page(
            Dataset,
            owner=caller.listed_owner,
            states=[s.value for s in states],
            limit=limit,
            cursor=cursor,
        )

    def set_state(self, dataset: Dataset, state: DatasetState) -> Dataset:
        """Enable it, once all its files are there, or disable it."""
        if dataset.state is state:
            return dataset
        if state not in DATASET_TRANSITIONS[dataset.state]:
            raise Conflict(
                f"Data set '{dataset.name}' is {dataset.state.value} and cannot become "
                f"{state.value}.",
                "state_not_allowed",
            )
        if state is DatasetState.ENABLED:
            self._require_files(dataset)
        return self._records.update(replace(dataset, state=state))

    def previews(self, dataset: Dataset) -> list[FileUrl]:
        """Its files, each with a URL that shows it."""
        return [
            FileUrl(file, self._objects.presigned_get(file.key, PREVIEW_URL_SECONDS))
            for file in dataset.files
        ]

    def delete(self, dataset: Dataset) -> None:
        """Forget a data set and its files."""
        # The name goes last: a deletion that was cut short can be asked for again, and nobody's
        # new files are taken for the old ones.
        self._objects.delete_all(dataset_prefix(dataset.name))
        self._records.remove(dataset)
        self._records.release(_name_key(dataset.name), dataset.id)

    def _require_files(self, dataset: Dataset) -> None:
        there = set(self._objects.keys(dataset_prefix(dataset.name)))
        absent = [file.name for file in dataset.files if file.key not in there]
        if absent:
            named = ", ".join(f"'{name}'" for name in absent[:_NAMED_AT_MOST])
            more = (
                f" and {len(absent) - _NAMED_AT_MOST} more" if len(absent) > _NAMED_AT_MOST else ""
            )
            raise Conflict(
                f"{len(absent)} of {len(dataset.files)} files of data set '{dataset.name}' have "
                f"not arrived: {named}{more}. PUT them to their URLs, then enable it again.",
                "files_missing",
            )


def _name_taken(name: str) -> Conflict:
    return Conflict(
        f"A data set named '{name}' exists already. Choose another name.", "dataset_name_taken"
    )


def _name_key(name: str) -> str:
    return f"dataset-name/{name}"
