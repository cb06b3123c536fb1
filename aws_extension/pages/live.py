"""The host's own routes behind the pages' signed links: what has changed, and pictures.

sdaws.js asks them while a page is in view. They answer signed links alone (`links`), so that
they open nothing where the host has logins, and a link shows its own user's things only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request, Response
from fastapi.responses import JSONResponse

from aws_extension.access import CloudAccess
from aws_extension.errors import ApiError, CloudError
from aws_extension.pages import (
    browser_uploads,
    datasets,
    endpoints,
    html,
    jobs,
    links,
    merge,
    models,
    training,
)
from aws_extension.signed_urls import LINK_SECONDS, LinkRefused

Asked = Annotated[dict[str, Any], Body()]
# As a default, not an annotation: the WebUI's FastAPI is older than those.
DROPPED = Body(media_type="application/octet-stream")
Reader = Callable[[CloudAccess, str, Mapping[str, str]], html.Listing]
READERS: dict[str, Reader] = {
    "jobs": jobs.read_page,
    "job": jobs.read_one,
    "endpoints": endpoints.read_all,
    "models": models.read_all,
    "merge": merge.read_one,
    "datasets": datasets.read_all,
    "dataset": datasets.read_set,
    "folder": datasets.read_folder,
    "trainings": training.read_page,
    "training": training.read_one,
    "training_models": training.read_models,
}
_UNSIGNED = "seen"
_MAY_KEEP = {"Cache-Control": f"private, max-age={LINK_SECONDS}"}


def add_routes(app: FastAPI, access: CloudAccess) -> None:
    """Add them to the host's app, once however often it is called."""
    if any(getattr(route, "path", "").startswith(f"/{links.STATE}") for route in app.routes):
        return

    # Not `async`: they wait for the cloud, each in a thread of the app's own pool.

    @app.get(f"/{links.STATE}/{{page}}", include_in_schema=False)
    def state(page: str, request: Request) -> Response:
        params = dict(request.query_params)
        seen = params.pop(_UNSIGNED, "")
        try:
            query = access.seal.check(f"{links.STATE}/{page}", params)
        except LinkRefused as fault:
            return _refused(fault)
        shown = _read(READERS[page], access, query)
        if shown.version == seen:
            return Response(status_code=204)
        return JSONResponse(
            {
                "version": shown.version,
                "busy": shown.is_busy,
                "note": shown.note,
                "cards": [
                    {"key": card.key, "version": card.version, "content": card.content}
                    for card in shown.cards
                ],
            }
        )

    @app.get(f"/{links.THUMBNAIL}/{{job_id}}", include_in_schema=False)
    def thumbnail(job_id: str, request: Request) -> Response:
        path = f"{links.THUMBNAIL}/{job_id}"
        return _picture(
            access, path, request, lambda query: access.thumbnail(job_id, query["user"])
        )

    @app.get(f"/{links.PREVIEW}/{{job_id}}", include_in_schema=False)
    def preview(job_id: str, request: Request) -> Response:
        path = f"{links.PREVIEW}/{job_id}"
        return _picture(access, path, request, lambda query: access.preview(job_id, query["user"]))

    @app.get(f"/{links.PICTURE}/{{job_id}}", include_in_schema=False)
    def picture(job_id: str, request: Request) -> Response:
        path = f"{links.PICTURE}/{job_id}"
        return _picture(
            access,
            path,
            request,
            lambda query: access.picture(job_id, int(query["index"]), query["user"]),
        )

    @app.get(f"/{links.SAMPLE}/{{job_id}}", include_in_schema=False)
    def train_sample(job_id: str, request: Request) -> Response:
        path = f"{links.SAMPLE}/{job_id}"
        return _picture(
            access,
            path,
            request,
            lambda query: access.train_sample(job_id, int(query["index"]), query["user"]),
        )

    @app.get(f"/{links.MODEL}", include_in_schema=False)
    def model_picture(request: Request) -> Response:
        return _picture(
            access, links.MODEL, request, lambda query: access.model_picture(Path(query["path"]))
        )

    @app.get(f"/{links.DATASET}", include_in_schema=False)
    def dataset_picture(request: Request) -> Response:
        return _picture(
            access,
            links.DATASET,
            request,
            lambda query: access.dataset_views.picture(
                query["name"], query["file"], int(query["size"])
            ),
        )

    @app.post(f"/{links.CAPTION}", include_in_schema=False)
    def caption(request: Request, asked: Asked) -> Response:
        return _obeyed(
            lambda: datasets.save_caption(
                access,
                access.seal.check(links.CAPTION, dict(request.query_params)),
                str(asked["text"]),
            )
        )

    @app.post(f"/{links.LEAVE}", include_in_schema=False)
    def leave_out(request: Request) -> Response:
        return _obeyed(
            lambda: access.looks.leave_out(
                access.seal.check(links.LEAVE, dict(request.query_params))["path"]
            )
        )

    @app.post(f"/{links.DROP}/{{batch}}/{{name}}", include_in_schema=False)
    def drop(batch: str, name: str, request: Request, content: bytes = DROPPED) -> Response:
        def keep() -> dict[str, Any]:
            access.seal.check(links.DROP, dict(request.query_params))
            return {"folder": datasets.keep_dropped(access, batch, name, content)}

        return _obeyed(keep)

    @app.post(f"/{links.UPLOAD}/{{act}}", include_in_schema=False)
    def browser_upload(act: str, request: Request, asked: Asked) -> Response:
        def upload() -> dict[str, Any]:
            access.seal.check(links.UPLOAD, dict(request.query_params))
            return browser_uploads.ACTS[act](access, asked)

        return _obeyed(upload)


def _obeyed(act: Callable[[], dict[str, Any] | None]) -> Response:
    try:
        return JSONResponse(act() or {})
    except LinkRefused as fault:
        return _refused(fault)
    except (KeyError, ValueError, TypeError):
        return JSONResponse({"error": "This is no order that can be obeyed."}, status_code=422)
    except CloudError as fault:
        status = fault.status if isinstance(fault, ApiError) else 502
        return JSONResponse({"error": str(fault)}, status_code=status)


def _read(reader: Reader, access: CloudAccess, query: Mapping[str, str]) -> html.Listing:
    try:
        return reader(access, query["user"], query)
    except CloudError as fault:
        return html.failed(fault)


def _picture(
    access: CloudAccess, path: str, request: Request, load: Callable[[Mapping[str, str]], bytes]
) -> Response:
    try:
        content = load(access.seal.check(path, dict(request.query_params)))
    except LinkRefused as fault:
        return _refused(fault)
    except CloudError as fault:
        return JSONResponse({"error": str(fault)}, status_code=404)
    return Response(content, media_type=_media_type(content), headers=_MAY_KEEP)


def _media_type(content: bytes) -> str:
    """By its first bytes; what is no picture is never shown as a page."""
    if content.startswith(b"\xff\xd8"):
        return "image/jpeg"
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "image/webp"
    return "image/png"


def _refused(fault: LinkRefused) -> Response:
    return JSONResponse({"error": str(fault)}, status_code=403)
