"""What happens to every request before a route sees it, and to every error after.

An ASGI middleware rather than dependencies: an unknown caller's body is never read, and the
answer has a request id whatever went wrong.
"""

from __future__ import annotations

import base64
import errno
import logging
import uuid
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from middleware_api.contract import BODY_MAX_BYTES, REQUEST_ID_HEADER, TOKEN_HEADER
from middleware_api.errors import ServiceError, TooLarge
from middleware_api.services.access import AccessService

logger = logging.getLogger(__name__)

_OPEN_PATHS = frozenset({"/openapi.json", "/docs"})
_STAGE = "/prod"


class Edge:
    """Request id, the `/prod` stage, credentials, the body's bound, and unforeseen faults."""

    def __init__(
        self,
        app: ASGIApp,
        access: AccessService,
        open_prefixes: Sequence[str],
        explain: Callable[[Exception], ServiceError | None],
    ) -> None:
        """Paths under `open_prefixes` need no token; `explain` as `create_app` takes it."""
        self._app = app
        self._access = access
        self._explain = explain
        self._open_prefixes = tuple(open_prefixes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex[:12]
        path: str = scope["path"]
        if path == _STAGE or path.startswith(_STAGE + "/"):
            path = path.removeprefix(_STAGE) or "/"
        headers = Headers(scope=scope)
        state = {"request_id": request_id}
        scope = {**scope, "path": path, "state": {**scope.get("state", {}), **state}}

        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[REQUEST_ID_HEADER] = request_id
            await send(message)

        try:
            if not path.startswith(self._open_prefixes) and path not in _OPEN_PATHS:
                principal = self._access.authenticate(_token(headers))
                if principal is None:
                    await _stranger(request_id)(scope, receive, send_with_id)
                    return
                scope["state"]["principal"] = principal
                receive = _bounded(headers, receive)
            await self._app(scope, receive, send_with_id)
        except ServiceError as error:
            await error_response(error, request_id)(scope, receive, send_with_id)
        except ClientDisconnect:
            logger.info("request %s: the caller hung up", request_id)
        except Exception as error:
            if started:
                raise
            if (refusal := self._explain(error)) is not None:
                logger.warning("request %s: %s", request_id, refusal.message, exc_info=error)
                response = error_response(refusal, request_id)
            else:
                response = _fault_response(error, request_id)
            await response(scope, receive, send_with_id)


def no_explanation(_error: Exception) -> None:
    """Where nothing that adapters raise is anybody else's fault."""


def _token(headers: Headers) -> str:
    given = headers.get(TOKEN_HEADER)
    if given is not None:
        return given
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    return _password(credentials) if scheme.lower() == "basic" else ""


def _password(credentials: str) -> str:
    """Of HTTP Basic (RFC 7617): clients of the WebUI's API send nothing else. The user's name is
    theirs to choose."""
    try:
        return base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except ValueError:  # no base64, or no UTF-8
        return ""


def error_response(error: ServiceError, request_id: str) -> Response:
    """The error envelope."""
    return envelope(error.status, error.message, error.code, request_id)


def envelope(status: int, message: str, code: str, request_id: str) -> Response:
    """`{"statusCode", "error", "code", "request_id"}`."""
    body = {"statusCode": status, "error": message, "code": code, "request_id": request_id}
    return JSONResponse(body, status)


def request_id_of(scope: MutableMapping[str, Any]) -> str:
    """The id that `Edge` gave this request."""
    request_id: str = scope["state"]["request_id"]
    return request_id


def _fault_response(error: Exception, request_id: str) -> Response:
    logger.exception("request %s", request_id)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return envelope(
            507,
            "The server's disk is full. Free some space and try again.",
            "disk_full",
            request_id,
        )
    return envelope(
        500,
        f"A fault in the server. Its log has the details under request {request_id}; please "
        "report it with them.",
        "internal_error",
        request_id,
    )


def _stranger(request_id: str) -> Response:
    response = envelope(
        401,
        f"No valid API token. Send yours in the {TOKEN_HEADER} header, as 'Authorization: Bearer "
        "<token>', or as the password of HTTP Basic with any user name.",
        "unauthorized",
        request_id,
    )
    response.headers["WWW-Authenticate"] = (
        'Bearer, Basic realm="Stable Diffusion AWS extension", charset="UTF-8"'
    )
    return response


def _bounded(headers: Headers, receive: Receive) -> Receive:
    """A `receive` that stops at the body's bound, whatever Content-Length says."""
    announced = headers.get("content-length", "")
    if announced.isdigit() and int(announced) > BODY_MAX_BYTES:
        raise _too_large()
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > BODY_MAX_BYTES:
            raise _too_large()
        return message

    return bounded


def _too_large() -> TooLarge:
    return TooLarge(
        f"The body has more than {BODY_MAX_BYTES // (1024 * 1024)} MiB. For a large inference "
        'request send {"upload_params": true, "task_type", "models"} to POST /inference/v2, PUT '
        "the body to the answer's api_params_s3_upload_url, then PUT /inference/v2/<id>/run."
    )
