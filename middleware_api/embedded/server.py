"""The HTTP application of one machine: the API, and the object store's signed URLs beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, BackgroundTasks, FastAPI, Header, Query, Request, Response
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
from middleware_api.embedded.part_folder import crc_of_header
from middleware_api.embedded.straight_body import Bodies
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
        signed=objects_router(middleware.objects, stopping or (lambda: False)),
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


def objects_router(
    objects: FolderObjects, stopping: Callable[[], bool] = lambda: False
) -> APIRouter:
    """GET (with ranges) and PUT; each signed for one method and one object or part.

    Pages of any origin may follow such a URL, as it is all the permission that there is.
    """
    router = APIRouter(prefix=OBJECTS_PATH.rstrip("/"), include_in_schema=False)
    path = "/{key:path}"
    bodies = Bodies(stopping)

    @router.get(path)
    async def read_object(key: str, expires: Expires, signature: Signature) -> Response:
        objects.verify(SignedTarget("GET", key, expires), signature)
        file = objects.path(key)
        if not file.is_file():
            raise NotFound(f"There is no object '{key}'.")
        # Answers ranges, and streams: a 4 GiB file never sits in memory.
        return FileResponse(file, headers=_ANY_ORIGIN)

    @router.put(path)
    async def write_object(
        key: str,
        request: Request,
        expires: Expires,
        signature: Signature,
        tasks: BackgroundTasks,
        upload_id: Annotated[str, Query(alias="uploadId")] = "",
        part: Annotated[int, Query(alias="partNumber")] = 0,
        crc32: Annotated[str | None, Header(alias="x-amz-checksum-crc32")] = None,
    ) -> Response:
        target = SignedTarget("PUT", key, expires, upload_id, part)
        objects.verify(target, signature)
        crc = crc_of_header(crc32)
        with objects.receiver(target) as receiver:
            await bodies.bring(request, receiver.write)
            etag = receiver.finish(crc)
        if upload_id:
            # Behind the answer, in a thread.
            tasks.add_task(objects.hash_ahead, target)
        return Response(headers={"ETag": f'"{etag}"', **_ANY_ORIGIN})

    @router.options(path)
    async def allow(key: str) -> Response:
        """What a browser asks before it puts a part from another origin's page."""
        return Response(status_code=204, headers={**_ANY_ORIGIN, **_PREFLIGHT})

    return router


_ANY_ORIGIN = {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": "ETag"}
_PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, PUT",
    "Access-Control-Allow-Headers": "*",
    "Access-Control-Max-Age": "3600",
}
