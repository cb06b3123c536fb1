"""Rows 7-10: endpoints."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Query, Response

from middleware_api.api.body import StrictRoute
from middleware_api.api.common import (
    DEFAULT_LIMIT,
    Caller,
    Cursor,
    Limit,
    errors,
    needs,
    set_cursor,
)
from middleware_api.api.wire import (
    DeleteEndpointsBody,
    DeployOrDelete,
    EndpointAnswer,
    EndpointBody,
    time_text,
)
from middleware_api.contract import Scope
from middleware_api.errors import InvalidRequest
from middleware_api.prices import price_per_hour
from middleware_api.records import Endpoint
from middleware_api.services.endpoints import EndpointService

_DELETED = "Endpoint deleted"


def endpoint_router(service: EndpointService) -> APIRouter:
    """The routes over one service."""
    router = APIRouter(route_class=StrictRoute, tags=["endpoints"])

    def show(endpoints: list[Endpoint]) -> list[EndpointAnswer]:
        counts = service.instance_counts(endpoints)
        return [answer(endpoint, counts[endpoint.id]) for endpoint in endpoints]

    def answer(endpoint: Endpoint, instance_count: int) -> EndpointAnswer:
        completed = endpoint.completed_at
        return EndpointAnswer(
            EndpointDeploymentJobId=endpoint.id,
            startTime=time_text(endpoint.created_at),
            endTime=None if completed is None else time_text(completed),
            endpoint_name=endpoint.name,
            endpoint_status=endpoint.state,
            status=endpoint.deployment,
            error=endpoint.error,
            instance_type=endpoint.instance_type,
            initial_instance_count=endpoint.initial_instance_count,
            current_instance_count=instance_count,
            autoscaling_enabled=endpoint.autoscaling_enabled,
            min_instance_count=endpoint.min_instance_count,
            max_instance_count=endpoint.max_instance_count,
            engine=endpoint.engine,
            webui_url=endpoint.webui_url or None,
            price_per_hour=price_per_hour(endpoint.instance_type),
            cost_since_start=service.cost_since_start(endpoint),
        )

    @router.post("/endpoints", **needs(Scope.ADMIN, 404, 409, 501))
    async def deploy_endpoint(
        principal: Caller, body: Annotated[DeployOrDelete, Body()]
    ) -> EndpointAnswer | str:
        """Deploy an endpoint; a body with `delete_endpoint_list` deletes instead.

        The embedded server runs `initial_instance_count` workers whatever the scaling bounds.
        `engine` chooses what makes the pictures.
        """
        if isinstance(body, DeleteEndpointsBody):
            service.delete(body.delete_endpoint_list)
            return _DELETED
        endpoint = service.create(
            principal,
            body.endpoint_name,
            body.instance_type,
            body.initial_instance_count,
            _autoscaling(body),
            body.engine,
            body.webui_url or "",
        )
        return answer(endpoint, 0)

    @router.delete("/endpoints", **needs(Scope.ADMIN, 404))
    async def delete_endpoints(
        body: Annotated[DeleteEndpointsBody | None, Body()] = None,
        delete_endpoint_list: Annotated[list[str], Query(max_length=100)] = [],  # noqa: B006
    ) -> str:
        """Delete endpoints by name; their unfinished jobs end as failed."""
        names = [*(body.delete_endpoint_list if body else ()), *delete_endpoint_list]
        if not names:
            raise InvalidRequest("name the endpoints to delete", ("body", "delete_endpoint_list"))
        service.delete(names)
        return _DELETED

    @router.get("/endpoints", responses=errors())
    async def list_endpoints(
        response: Response, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
    ) -> list[EndpointAnswer]:
        """Newest first."""
        page = service.page(limit, cursor)
        set_cursor(response, page.next_cursor)
        return show(page.items)

    @router.get("/inference/get-endpoint-deployment-job", responses=errors(404))
    async def get_endpoint_deployment_job(
        job_id: Annotated[str, Query(alias="jobID")],
    ) -> EndpointAnswer:
        """One endpoint."""
        return show([service.get(job_id)])[0]

    return router


def _autoscaling(body: EndpointBody) -> tuple[int, int] | None:
    if not body.autoscaling_enabled:
        return None
    most = body.max_instance_count or body.initial_instance_count
    if body.min_instance_count > most:
        raise InvalidRequest(
            f"must not be more than max_instance_count ({most})", ("body", "min_instance_count")
        )
    return body.min_instance_count, most
