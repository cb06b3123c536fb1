"""Rows 26-29: data sets."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from middleware_api.api.body import StrictRoute
from middleware_api.api.common import DEFAULT_LIMIT, Caller, Cursor, Limit, needs, set_cursor
from middleware_api.api.wire import (
    DatasetAnswer,
    DatasetBody,
    DatasetData,
    DatasetDataAnswer,
    DatasetFileBody,
    DatasetFilesBody,
    DatasetFileUrl,
    DatasetListAnswer,
    DatasetListItem,
    DatasetStateBody,
    DatasetUploadAnswer,
    MessageAnswer,
    Name,
)
from middleware_api.contract import DATASET_FILES_MAX, DatasetState, Scope, dataset_prefix
from middleware_api.errors import InvalidRequest
from middleware_api.ports import Objects
from middleware_api.records import Dataset
from middleware_api.services.datasets import DatasetService, FileUrl


def dataset_router(service: DatasetService, objects: Objects) -> APIRouter:
    """The routes over one service."""
    router = APIRouter(route_class=StrictRoute, tags=["data sets"])

    def location(key: str) -> str:
        return f"s3://{objects.bucket}/{key}"

    def upload(
        dataset: Dataset, sent: list[DatasetFileBody], urls: list[FileUrl]
    ) -> DatasetUploadAnswer:
        return DatasetUploadAnswer(
            datasetName=dataset.name,
            s3PresignUrl=[
                DatasetFileUrl(filename=file.filename, s3=location(to.file.key), url=to.url)
                for file, to in zip(sent, urls, strict=True)
            ],
        )

    @router.post("/dataset", **needs(Scope.TRAIN, 409))
    async def create_dataset(principal: Caller, body: DatasetBody) -> DatasetUploadAnswer:
        """Create a data set; its files go to the presigned URLs."""
        files = _files(body.content)
        dataset, urls = service.create(principal, body.dataset_name, files, body.params)
        return upload(dataset, body.content, urls)

    @router.post("/dataset/{dataset_name}/files", **needs(Scope.TRAIN, 404, 409))
    async def write_dataset_files(
        principal: Caller, dataset_name: str, body: DatasetFilesBody
    ) -> DatasetUploadAnswer:
        """Write files of a data set anew, or add some."""
        found = service.find(principal, dataset_name)
        dataset, urls = service.write_files(found, _files(body.content))
        return upload(dataset, body.content, urls)

    @router.delete("/dataset/{dataset_name}/files", **needs(Scope.TRAIN, 404, 409))
    async def remove_dataset_files(
        principal: Caller,
        dataset_name: str,
        name: Annotated[list[Name], Query(min_length=1, max_length=DATASET_FILES_MAX)],
    ) -> DatasetAnswer:
        """Delete files of a data set."""
        changed = service.remove_files(service.find(principal, dataset_name), name)
        return DatasetAnswer(datasetName=changed.name, status=changed.state)

    @router.put("/dataset", **needs(Scope.TRAIN, 404, 409))
    async def update_dataset(principal: Caller, body: DatasetStateBody) -> DatasetAnswer:
        """Enable a data set whose files have all arrived, or disable it."""
        dataset = service.find(principal, body.dataset_name)
        changed = service.set_state(dataset, DatasetState(body.status))
        return DatasetAnswer(datasetName=changed.name, status=changed.state)

    @router.delete("/dataset", **needs(Scope.TRAIN, 404))
    async def delete_dataset(principal: Caller, name: Annotated[Name, Query()]) -> MessageAnswer:
        """Delete a data set and its files."""
        service.delete(service.find(principal, name))
        return MessageAnswer(message=f"Data set '{name}' deleted")

    @router.get("/datasets", **needs(Scope.TRAIN))
    async def list_datasets(
        principal: Caller,
        response: Response,
        dataset_status: Annotated[list[DatasetState], Query()] = [],  # noqa: B006
        limit: Limit = DEFAULT_LIMIT,
        cursor: Cursor = None,
    ) -> DatasetListAnswer:
        """Newest first."""
        page = service.page(principal, dataset_status, limit, cursor)
        set_cursor(response, page.next_cursor)
        return DatasetListAnswer(
            datasets=[
                DatasetListItem(
                    datasetName=dataset.name,
                    s3=location(dataset_prefix(dataset.name)),
                    status=dataset.state,
                    timestamp=dataset.created_at,
                    files=len(dataset.files),
                )
                for dataset in page.items
            ],
            next_cursor=page.next_cursor,
        )

    def data(principal: Caller, dataset_name: str) -> DatasetDataAnswer:
        dataset = service.find(principal, dataset_name)
        return DatasetDataAnswer(
            dataset_name=dataset.name,
            data=[
                DatasetData(
                    key=shown.file.key,
                    name=shown.file.name,
                    type=shown.file.type,
                    size=shown.size,
                    preview_url=shown.url,
                    dataStatus=dataset.state,
                )
                for shown in service.previews(dataset)
            ],
        )

    @router.get("/dataset/{dataset_name}/data", **needs(Scope.TRAIN, 404))
    async def get_dataset_data(principal: Caller, dataset_name: str) -> DatasetDataAnswer:
        """The files of a data set, with URLs that show them."""
        return data(principal, dataset_name)

    @router.get("/{dataset_name}/data", **needs(Scope.TRAIN, 404))
    async def get_data(principal: Caller, dataset_name: str) -> DatasetDataAnswer:
        """The same by the older path."""
        return data(principal, dataset_name)

    return router


def _files(content: list[DatasetFileBody]) -> list[tuple[str, str]]:
    names = [file.name for file in content]
    if len(set(names)) < len(names):
        raise InvalidRequest("the same name twice", ("body", "content"))
    return [(file.name, file.type) for file in content]
