"""The embedded object store's signed URLs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import FileResponse

from middleware_api.embedded.objects import OBJECTS_PATH, FolderObjects, SignedTarget
from middleware_api.errors import NotFound

Expires = Annotated[int, Query()]
Signature = Annotated[str, Query()]


def objects_router(objects: FolderObjects) -> APIRouter:
    """GET (with ranges) and PUT; each signed for one method and one object or part."""
    router = APIRouter(include_in_schema=False)
    path = OBJECTS_PATH + "{key:path}"

    @router.get(path)
    async def read_object(key: str, expires: Expires, signature: Signature) -> Response:
        objects.verify(SignedTarget("GET", key, expires), signature)
        file = objects.path(key)
        if not file.is_file():
            raise NotFound(f"There is no object '{key}'.")
        # Answers ranges, and streams: a 4 GiB file never sits in memory.
        return FileResponse(file)

    @router.put(path)
    async def write_object(
        key: str,
        request: Request,
        expires: Expires,
        signature: Signature,
        upload_id: Annotated[str, Query(alias="uploadId")] = "",
        part: Annotated[int, Query(alias="partNumber")] = 0,
    ) -> Response:
        target = SignedTarget("PUT", key, expires, upload_id, part)
        objects.verify(target, signature)
        etag = await objects.receive(target, request.stream())
        return Response(headers={"ETag": f'"{etag}"'})

    return router
