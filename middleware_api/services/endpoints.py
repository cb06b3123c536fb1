"""Deploying and deleting endpoints, and choosing one for a job."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from middleware_api.contract import (
    ENDPOINT_TRANSITIONS,
    PAGE_MAX,
    DeploymentState,
    EndpointState,
    EngineName,
)
from middleware_api.errors import Conflict, NotFound, ServiceError
from middleware_api.ports import EndpointChanged, Endpoints, Page, Records
from middleware_api.prices import cost
from middleware_api.records import Endpoint, UsedCheckpoint
from middleware_api.services.access import Principal
from middleware_api.services.names import taking_name

# SageMaker takes about ten minutes; thrice that is a fault.
DEPLOY_DEADLINE_SECONDS = 30 * 60

# How often the compute side is asked about an endpoint in passing.
RECONCILE_SECONDS = 60.0

_GONE = frozenset({EndpointState.DELETING, EndpointState.DELETED})
# SageMaker says Updating while instances come and go; the queue takes jobs all the time.
_TAKES_JOBS = (EndpointState.IN_SERVICE, EndpointState.UPDATING)
_PASSING = frozenset({EndpointState.CREATING, EndpointState.UPDATING, EndpointState.DELETING})


class EndpointService:
    """Endpoints, by the name that people give them."""

    def __init__(
        self,
        records: Records,
        endpoints: Endpoints,
        clock: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self._records = records
        self._endpoints = endpoints
        self._clock = clock
        self._new_id = new_id

    def create(
        self,
        caller: Principal,
        name: str | None,
        instance_type: str,
        instance_count: int,
        autoscaling: tuple[int, int] | None,
        engine: EngineName = EngineName.DIFFUSERS,
        webui_url: str = "",
    ) -> Endpoint:
        """Begin to deploy; `autoscaling` is (least, most) instances, `webui_url` where the WebUI
        of the engine `webui` is, "" for one of the worker's own.

        Raises Conflict on a name in use, and Conflict or NotAvailable when it cannot be had here.
        """
        endpoint_id = self._new_id()
        name = name or f"infer-endpoint-{endpoint_id[:7]}"
        now = self._clock()
        least, most = autoscaling or (instance_count, instance_count)
        endpoint = Endpoint(
            id=endpoint_id,
            owner=caller.name,
            created_at=now,
            check_at=now + RECONCILE_SECONDS,
            name=name,
            instance_type=instance_type,
            initial_instance_count=instance_count,
            autoscaling_enabled=autoscaling is not None,
            min_instance_count=least,
            max_instance_count=most,
            engine=engine,
            webui_url=webui_url,
        )
        with taking_name(self._records, _name_key(name), endpoint, lambda: _name_taken(name)):
            self._records.add(endpoint)
        try:
            self._endpoints.create(endpoint)
        except ServiceError:
            self._records.remove(endpoint)
            self._records.release(_name_key(name), endpoint_id)
            raise
        return endpoint

    def get(self, endpoint_id: str) -> Endpoint:
        """Raises NotFound."""
        return self._records.get(Endpoint, endpoint_id)

    def find(self, name: str) -> Endpoint:
        """The endpoint that bears the name now. Raises NotFound."""
        endpoint_id = self._records.lookup(_name_key(name))
        if endpoint_id is None:
            raise NotFound(
                f"There is no endpoint named '{name}'. GET /endpoints lists those that exist.",
                "endpoint_not_found",
            )
        return self._records.get(Endpoint, endpoint_id)

    def page(self, limit: int, cursor: str | None) -> Page[Endpoint]:
        """Newest first, deleted ones included."""
        return self._records.page(Endpoint, limit=limit, cursor=cursor)

    def instance_counts(self, endpoints: Collection[Endpoint]) -> dict[str, int]:
        """Instances that take jobs now, by the endpoints' ids."""
        statuses = self._endpoints.statuses([e for e in endpoints if e.state not in _GONE])
        return {e.id: statuses[e.id].instance_count if e.id in statuses else 0 for e in endpoints}

    def cost_since_start(self, endpoint: Endpoint) -> float | None:
        """US dollars from its creation until now, or until it failed or was gone, at its list
        price; None when that is not known, nor when it ended before ends were noted.

        Reckoned for the most instances that it may have, so with scaling it is an upper bound: an
        endpoint that slept at 0 instances all night cost nothing then.
        """
        if endpoint.state is EndpointState.DELETED and endpoint.ended_at is None:
            return None
        end = self._clock() if endpoint.ended_at is None else endpoint.ended_at
        instances = max(endpoint.initial_instance_count, endpoint.max_instance_count)
        return cost(endpoint.instance_type, end - endpoint.created_at, instances)

    def delete(self, names: Collection[str]) -> None:
        """Begin to delete all of them; raises NotFound afterwards if some were unknown."""
        unknown = []
        for name in dict.fromkeys(names):
            try:
                endpoint = self.find(name)
            except NotFound:
                unknown.append(name)
                continue
            if endpoint.state not in _GONE:
                self._delete(endpoint)
        if unknown:
            raise NotFound(
                f"No endpoint is named {', '.join(repr(n) for n in unknown)}; the others in the "
                "list are being deleted. GET /endpoints lists the names.",
                "endpoint_not_found",
            )

    def choose(self, name: str | None, checkpoints: Collection[UsedCheckpoint]) -> Endpoint:
        """The named endpoint; without a name one that has the checkpoints loaded, else the least
        loaded.

        The one place where endpoints are chosen. Raises NotFound, or Conflict when it is (or
        all are) not in service.
        """
        if name is not None:
            endpoint = self.find(name)
            if endpoint.state not in _TAKES_JOBS:
                raise Conflict(_not_in_service(endpoint), "endpoint_not_in_service")
            return endpoint
        page = self._records.page(Endpoint, states=[s.value for s in _TAKES_JOBS], limit=PAGE_MAX)
        if not page.items:
            raise Conflict(
                "No endpoint is in service. Create one (POST /endpoints), or wait until one "
                "that is starting is InService.",
                "no_endpoint_in_service",
            )
        needed = {checkpoint.key for checkpoint in checkpoints}
        statuses = self._endpoints.statuses(page.items)

        def preference(endpoint: Endpoint) -> tuple[bool, int]:
            status = statuses[endpoint.id]
            has_them = status.instance_count > 0 and needed <= set(endpoint.loaded)
            return (not has_them, status.load)

        return min(page.items, key=preference)

    def is_idle(self, endpoint: Endpoint) -> bool:
        """Whether an instance is awake and has nothing to do."""
        status = self._endpoints.statuses([endpoint])[endpoint.id]
        return status.instance_count > 0 and status.load == 0

    def is_gone(self, endpoint_id: str) -> bool:
        """Whether no job can be done there any more."""
        endpoint = self._records.get(Endpoint, endpoint_id)
        return endpoint.state in (EndpointState.DELETED, EndpointState.FAILED)

    def note_loaded(self, endpoint_id: str, checkpoints: Collection[UsedCheckpoint]) -> None:
        """Remember what an endpoint's latest job has left in its memory."""
        endpoint = self._records.get(Endpoint, endpoint_id)
        loaded = tuple(checkpoint.key for checkpoint in checkpoints)
        if endpoint.loaded != loaded:
            self._records.update(replace(endpoint, loaded=loaded))

    def changed(self, event: EndpointChanged) -> None:
        """Note what the compute side says; a late or second word changes nothing."""
        endpoint = self._records.get(Endpoint, event.endpoint_id)
        if event.state not in ENDPOINT_TRANSITIONS[endpoint.state]:
            return
        now = self._clock()
        # Before the record moves on: whoever dies in between is told of the change again.
        if endpoint.state is EndpointState.CREATING and event.state is EndpointState.IN_SERVICE:
            event = self._enter_service(endpoint, event)
        elif event.state is EndpointState.DELETED:
            self._endpoints.left_service(endpoint)
        check_at = now + RECONCILE_SECONDS if event.state in _PASSING else None
        after = replace(endpoint, state=event.state, error=event.error, check_at=check_at)
        if event.state is EndpointState.IN_SERVICE:
            after = replace(after, deployment=DeploymentState.SUCCEEDED, ended_at=None)
        elif event.state is EndpointState.FAILED:
            after = replace(after, deployment=DeploymentState.FAILED, ended_at=now)
        elif event.state is EndpointState.DELETED:
            ended_at = now if endpoint.ended_at is None else endpoint.ended_at
            after = replace(after, deployment=DeploymentState.DELETED, ended_at=ended_at)
        if endpoint.completed_at is None and check_at is None:
            after = replace(after, completed_at=now)
        self._records.update(after)
        if event.state is EndpointState.DELETED:
            self._records.release(_name_key(endpoint.name), endpoint.id)

    def reconcile(self, endpoint: Endpoint) -> None:
        """Ask the compute side about an endpoint in passing, and note the answer."""
        status = self._endpoints.statuses([endpoint])[endpoint.id]
        now = self._clock()
        overdue = now > endpoint.created_at + DEPLOY_DEADLINE_SECONDS
        state, error = status.state, status.error
        # A crash may have come between our record and the order to the compute side.
        if endpoint.state is EndpointState.DELETING and state is not EndpointState.DELETED:
            self._endpoints.delete(endpoint)
        elif endpoint.state is EndpointState.CREATING and state is EndpointState.DELETED:
            try:
                self._endpoints.create(endpoint)
            except ServiceError as refusal:
                state, error = EndpointState.FAILED, refusal.message
        passing = (EndpointState.CREATING, EndpointState.DELETED)
        if endpoint.state is EndpointState.CREATING and state in passing and overdue:
            state = EndpointState.FAILED
            error = (
                f"It was not in service after {DEPLOY_DEADLINE_SECONDS // 60} minutes. Delete "
                "it and try again, with another instance type if that repeats."
            )
        moved = (
            state is not EndpointState.DELETING and state in ENDPOINT_TRANSITIONS[endpoint.state]
        )
        if moved:
            self.changed(EndpointChanged(endpoint.id, state, error))
        else:
            self._records.update(replace(endpoint, check_at=now + RECONCILE_SECONDS))

    def _enter_service(self, endpoint: Endpoint, event: EndpointChanged) -> EndpointChanged:
        """What to note: an endpoint that cannot be scaled as asked has failed."""
        try:
            self._endpoints.entered_service(endpoint)
        except Conflict as refusal:
            return replace(event, state=EndpointState.FAILED, error=refusal.message)
        return event

    def _delete(self, endpoint: Endpoint) -> None:
        deleting = self._records.update(
            replace(
                endpoint,
                state=EndpointState.DELETING,
                check_at=self._clock() + RECONCILE_SECONDS,
            )
        )
        self._endpoints.delete(deleting)


def _not_in_service(endpoint: Endpoint) -> str:
    advice = {
        EndpointState.CREATING: "is still starting. Wait until it is InService, or pick another.",
        EndpointState.FAILED: f"has failed: {endpoint.error} Delete it and create another.",
    }.get(endpoint.state, "is being deleted. Pick another.")
    return f"Endpoint '{endpoint.name}' ({endpoint.state.value}) {advice}"


def _name_taken(name: str) -> Conflict:
    return Conflict(
        f"An endpoint named '{name}' exists already. Choose another name, or delete that one "
        "first.",
        "endpoint_name_taken",
    )


def _name_key(name: str) -> str:
    return f"endpoint-name/{name}"
