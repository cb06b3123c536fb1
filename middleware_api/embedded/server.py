"""The HTTP application of one machine: the API, and the object store's signed URLs beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, FastAPI, Query, Request, Response
from starlette.datastructures import Headers
from starlette.responses import FileResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from middleware_api.api.app import create_app
from middleware_api.embedded.middleware import Embedded
from middleware_api.embedded.objects import (
    OBJECTS_PATH,
    FolderObjects,
    SignedTarget,
    caller_base_url,
)
from middleware_api.errors import NotFound

Expires = Annotated[int, Query()]
Signature = Annotated[str, Query()]


def embedded_app(
    middleware: Embedded, stopping: Callable[[], bool] | None = lambda: False
) -> FastAPI:
    """The application of one embedded middleware, which lives as long as it does.

    `stopping` as `create_app` takes it.
    """

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        middleware.start()
        yield
        await to_thread.run_sync(middleware.stop)

    app = create_app(
        middleware.services,
        middleware.objects,
        stopping,
        lifespan=lifespan,
        signed=objects_router(middleware.objects),
    )
    app.add_middleware(_CallerAddress)
    return app


class _CallerAddress:
    """Notes by which address the caller reached us, for the URLs that it is given."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (host := Headers(scope=scope).get("host")):
            caller_base_url.set(f"{scope['scheme']}://{host}")
        await self._app(scope, receive, send)


def objects_router(objects: FolderObjects) -> APIRouter:
    """GET (with ranges) and PUT; each signed for one method and one object or part."""
    router = APIRouter(prefix=OBJECTS_PATH.rstrip("/"), include_in_schema=False)
    path = "/{key:path}"

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
