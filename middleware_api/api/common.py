"""What the routers share: paging, the caller, the documented errors."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Query, Request, Response

from middleware_api.api.wire import ErrorAnswer
from middleware_api.contract import CURSOR_HEADER, PAGE_DEFAULT, PAGE_MAX

_ERRORS = {
    400: "Not acceptable as it stands",
    401: "No valid token",
    403: "Not allowed",
    404: "No such thing",
    409: "Not allowed in this state",
    413: "Body too large",
    501: "Not available in this deployment",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's entries for the errors that a route can answer; 401 always."""
    return {
        status: {"model": ErrorAnswer, "description": _ERRORS[status]}
        for status in (401, *statuses)
    }


def caller(request: Request) -> str:
    """Who calls; `Edge` has checked the token."""
    principal: str = request.state.principal
    return principal


Caller = Annotated[str, Depends(caller)]
Limit = Annotated[int, Query(ge=1, le=PAGE_MAX)]
Cursor = Annotated[str | None, Query(description=f"The {CURSOR_HEADER} header of the page before")]
DEFAULT_LIMIT = PAGE_DEFAULT


def set_cursor(response: Response, cursor: str | None) -> None:
    """Tell where the next page begins."""
    if cursor is not None:
        response.headers[CURSOR_HEADER] = cursor
