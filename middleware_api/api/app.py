"""The FastAPI application: routers, the edge before them, errors after them."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.security import APIKeyHeader, HTTPBearer
from fastapi.security.http import HTTPBase
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.routing import Match
from starlette.types import ASGIApp, Lifespan, Receive, Scope, Send

from middleware_api import __version__
from middleware_api.api.checkpoints import checkpoint_router
from middleware_api.api.datasets import dataset_router
from middleware_api.api.edge import (
    Edge,
    envelope,
    error_response,
    no_explanation,
    request_id_of,
)
from middleware_api.api.endpoints import endpoint_router
from middleware_api.api.event_stream import event_router
from middleware_api.api.inference import inference_router
from middleware_api.api.tokens import token_router
from middleware_api.api.training import model_router, train_router
from middleware_api.api.waiting import Gateway
from middleware_api.api.weights import weights_router
from middleware_api.api.wire import UNION_TAGS
from middleware_api.contract import TOKEN_HEADER
from middleware_api.errors import InvalidRequest, ServiceError
from middleware_api.ports import Objects
from middleware_api.services.events import Services

# `Edge` checks the token; these three only tell OpenAPI's readers how to send it.
_CREDENTIALS = [
    Depends(APIKeyHeader(name=TOKEN_HEADER, auto_error=False)),
    Depends(HTTPBearer(auto_error=False)),
    Depends(HTTPBase(scheme="basic", scheme_name="HTTPBasic", auto_error=False)),
]

_WEBUI_PREFIXES = ("/sdapi/", "/controlnet/")


class _Application(FastAPI):
    """Makes the WebUI's routes at their first request, or when its document is asked for: a cold
    start that needs neither does without them."""

    def __init__(self, webui: Callable[[], APIRouter], **settings: Any) -> None:
        super().__init__(**settings)
        self._webui = webui
        self._is_complete = False

    def complete(self) -> None:
        """Have the WebUI's routes too."""
        if not self._is_complete:
            self._is_complete = True
            self.include_router(self._webui(), dependencies=_CREDENTIALS)

    def openapi(self) -> dict[str, Any]:
        """The document of all routes."""
        self.complete()
        return super().openapi()


class _LateRoutes:
    """Completes the application before a request of the WebUI's routes reaches it."""

    def __init__(self, app: ASGIApp, complete: Callable[[], None]) -> None:
        self._app = app
        self._complete = complete

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(_WEBUI_PREFIXES):
            self._complete()
        await self._app(scope, receive, send)


def create_app(
    services: Services,
    objects: Objects,
    stopping: Callable[[], bool] | None = None,
    *,
    lifespan: Lifespan[FastAPI] | None = None,
    signed: APIRouter | None = None,
    explain: Callable[[Exception], ServiceError | None] = no_explanation,
    gateway: Gateway | None = None,
) -> FastAPI:
    """The application over one deployment's services.

    `stopping` tells when the server is about to end, so that streams end before it; None is a
    server that holds no connection open, and streams nothing. `signed` are routes whose URLs
    carry their own permission: they need no token. `explain` names the refusal behind an adapter's
    error, None for a fault of ours. `gateway` bounds the requests that wait for a job's pictures.
    """

    def webui() -> APIRouter:
        from middleware_api.api.controlnet import controlnet_router
        from middleware_api.api.webui_api import webui_router

        router = APIRouter()
        router.include_router(webui_router(services.webui, services.inference, stopping, gateway))
        router.include_router(controlnet_router(services.webui))
        return router

    app = _Application(
        webui,
        title="Stable Diffusion AWS extension",
        version=__version__,
        lifespan=lifespan,
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    if signed is not None:
        # First: no other route may answer their paths.
        app.include_router(signed)
    for router in (
        inference_router(services.inference, services.training, objects),
        event_router(services.inference, stopping),
        endpoint_router(services.endpoints),
        checkpoint_router(services, objects),
        weights_router(services.checkpoints, services.merging, objects),
        model_router(services.models, objects),
        train_router(services.training, objects),
        token_router(services.access),
        # Last: `/{dataset_name}/data` is the widest of all paths.
        dataset_router(services.datasets, objects),
    ):
        app.include_router(router, dependencies=_CREDENTIALS)
    app.add_exception_handler(ServiceError, _refused)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_middleware(_LateRoutes, complete=app.complete)
    open_prefixes = [] if signed is None else [f"{signed.prefix}/"]
    app.add_middleware(Edge, access=services.access, open_prefixes=open_prefixes, explain=explain)
    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    if isinstance(error, InvalidRequest):
        detail = [{"loc": list(error.field), "msg": error.message, "type": error.code}]
        return JSONResponse({"detail": detail}, error.status)
    return error_response(error, request_id_of(request.scope))


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    # Not pydantic's `input` and `ctx`: they would echo the caller's (huge, odd) values.
    detail = [
        {
            "loc": [part for part in e["loc"] if part not in UNION_TAGS],
            "msg": e["msg"],
            "type": e["type"],
        }
        for e in error.errors()
    ]
    return JSONResponse({"detail": detail}, 422)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    message = f"{request.method} {request.url.path}: {status.phrase}. GET /docs lists the routes."
    code = status.phrase.lower().replace(" ", "_")
    response = envelope(status, message, code, request_id_of(request.scope))
    response.headers.update(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        response.headers["Allow"] = ", ".join(sorted(_methods(request)))
    return response


def _methods(request: Request) -> set[str]:
    """All methods of this path: Starlette tells only those of the first route that has it."""
    return {
        method
        for method in ("GET", "POST", "PUT", "DELETE")
        for route in request.app.routes
        if route.matches({**request.scope, "method": method})[0] is Match.FULL
    }
