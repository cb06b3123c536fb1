"""What the routers share: paging, the caller, uploads, the documented errors."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import Depends, Header, Query, Request, Response

from middleware_api.api.wire import ArrivedPart, ErrorAnswer, FileUploadAnswer, Tags
from middleware_api.contract import (
    CURSOR_HEADER,
    IDEMPOTENCY_HEADER,
    ON_BEHALF_HEADER,
    ON_BEHALF_PATTERN,
    PAGE_DEFAULT,
    PAGE_MAX,
    PartTag,
    Scope,
)
from middleware_api.services.access import Principal
from middleware_api.services.uploads import Upload

_ERRORS = {
    400: "Not acceptable as it stands",
    401: "No valid token",
    403: "Not allowed",
    404: "No such thing",
    409: "Not allowed in this state",
    413: "Body too large",
    429: "The token's jobs of today are used up",
    501: "Not available in this deployment",
    503: "Not now: send the request again later",
    504: "The job takes longer than a request can be held",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's entries for the errors that a route can answer; 401 always."""
    return {
        status: {"model": ErrorAnswer, "description": _ERRORS[status]}
        for status in (401, *statuses)
    }


async def caller(request: Request) -> Principal:
    """Who calls; `Edge` has checked the token."""
    principal: Principal = request.state.principal
    return principal


Caller = Annotated[Principal, Depends(caller)]

OnBehalfOf = Annotated[
    str | None,
    Header(
        alias=ON_BEHALF_HEADER,
        pattern=ON_BEHALF_PATTERN,
        description="The user of a shared host whose jobs these are",
    ),
]


async def job_caller(principal: Caller, on_behalf_of: OnBehalfOf = None) -> Principal:
    """Who calls, for a route of inference jobs: the token's user, or whom it acts for."""
    return principal if on_behalf_of is None else principal.acting_for(on_behalf_of)


JobCaller = Annotated[Principal, Depends(job_caller)]


def needs(scope: Scope, *statuses: int) -> dict[str, Any]:
    """What a route that needs a scope tells FastAPI: the check, and the errors it can answer."""

    async def check(principal: Caller) -> None:
        principal.require(scope)

    return {"dependencies": [Depends(check)], "responses": errors(403, *statuses)}


Limit = Annotated[int, Query(ge=1, le=PAGE_MAX)]
Cursor = Annotated[str | None, Query(description=f"The {CURSOR_HEADER} header of the page before")]
DEFAULT_LIMIT = PAGE_DEFAULT
IdempotencyKey = Annotated[
    str | None, Header(alias=IDEMPOTENCY_HEADER, min_length=1, max_length=200)
]


def set_cursor(response: Response, cursor: str | None) -> None:
    """Tell where the next page begins."""
    if cursor is not None:
        response.headers[CURSOR_HEADER] = cursor


def file_upload(upload: Upload) -> FileUploadAnswer:
    """An entry of `s3PresignUrl`."""
    urls = upload.urls
    return FileUploadAnswer(
        filename=urls["filename"],
        upload_id=urls["upload_id"],
        bucket=urls["bucket"],
        key=urls["key"],
        part_size=urls["part_size"],
        checksum=urls["checksum"],
        parts=[{"PartNumber": p["PartNumber"], "url": p["url"]} for p in urls["parts"]],
        arrived=[
            ArrivedPart(PartNumber=part.number, ETag=part.etag, size=part.size)
            for part in upload.arrived
        ],
    )


def part_tags(tags: Tags) -> dict[str, list[PartTag]]:
    """What the store answered for the parts, by file."""
    return {
        name: [PartTag(PartNumber=part.PartNumber, ETag=part.ETag) for part in parts]
        for name, parts in tags.items()
    }
