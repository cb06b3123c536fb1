"""Data sets: pictures to train on, uploaded one by one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace

from middleware_api.contract import (
    DATASET_FILES_MAX,
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
    """A file of a data set, and a URL that writes or reads it. `size` in bytes is that of one
    that is read; None where it has not arrived."""

    file: DatasetFile
    url: str
    size: int | None = None


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
        dataset = Dataset(
            id=self._new_id(),
            owner=caller.name,
            created_at=self._clock(),
            name=name,
            state=DatasetState.INITIAL,
            files=tuple(_file(name, file, kind) for file, kind in files),
            params=params,
        )
        with taking_name(self._records, _name_key(name), dataset, lambda: _name_taken(name)):
            self._records.add(dataset)
        return dataset, self._to_write(dataset.files)

    def write_files(
        self, dataset: Dataset, files: Collection[tuple[str, str]]
    ) -> tuple[Dataset, list[FileUrl]]:
        """Where to put files anew, of (file name, type) pairs; those that it does not have yet
        are added.

        One that is Enabled is Disabled then: nobody is to train on what has not arrived. Raises
        Conflict beyond the bound of files.
        """
        known = {file.name: file for file in dataset.files}
        added = {name: _file(dataset.name, name, kind) for name, kind in files if name not in known}
        if added:
            if len(known) + len(added) > DATASET_FILES_MAX:
                raise Conflict(
                    f"Data set '{dataset.name}' has {len(known)} files, and with these it would "
                    f"have more than {DATASET_FILES_MAX}. Make another data set of them.",
                    "too_many_files",
                )
            is_enabled = dataset.state is DatasetState.ENABLED
            state = DatasetState.DISABLED if is_enabled else dataset.state
            all_files = (*dataset.files, *added.values())
            dataset = self._records.update(replace(dataset, state=state, files=all_files))
        return dataset, self._to_write([{**known, **added}[name] for name, _ in files])

    def remove_files(self, dataset: Dataset, names: Collection[str]) -> Dataset:
        """Forget some of its files. Raises NotFound for a name that it does not have, Conflict
        when none would be left."""
        doomed = [file for file in dataset.files if file.name in names]
        if absent := sorted(set(names) - {file.name for file in doomed}):
            raise NotFound(
                f"Data set '{dataset.name}' has no file '{absent[0]}'.", "dataset_file_not_found"
            )
        kept = tuple(file for file in dataset.files if file.name not in names)
        if not kept:
            raise Conflict(
                f"No file would be left of data set '{dataset.name}'. Delete it as a whole.",
                "no_files_left",
            )
        dataset = self._records.update(replace(dataset, files=kept))
        for file in doomed:
            self._objects.delete(file.key)
        return dataset

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
        """Its files, each with its size and a URL that shows it."""
        sizes = self._objects.sizes(dataset_prefix(dataset.name))
        return [
            FileUrl(
                file,
                self._objects.presigned_get(file.key, PREVIEW_URL_SECONDS),
                sizes.get(file.key),
            )
            for file in dataset.files
        ]

    def delete(self, dataset: Dataset) -> None:
        """Forget a data set and its files."""
        # The name goes last: a deletion that was cut short can be asked for again, and nobody's
        # new files are taken for the old ones.
        self._objects.delete_all(dataset_prefix(dataset.name))
        self._records.remove(dataset)
        self._records.release(_name_key(dataset.name), dataset.id)

    def _to_write(self, files: Iterable[DatasetFile]) -> list[FileUrl]:
        return [
            FileUrl(file, self._objects.presigned_put(file.key, UPLOAD_URL_SECONDS))
            for file in files
        ]

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


def _file(dataset_name: str, name: str, kind: str) -> DatasetFile:
    return DatasetFile(name=name, key=dataset_prefix(dataset_name) + name, type=kind)


def _name_taken(name: str) -> Conflict:
    return Conflict(
        f"A data set named '{name}' exists already. Choose another name.", "dataset_name_taken"
    )


def _name_key(name: str) -> str:
    return f"dataset-name/{name}"
