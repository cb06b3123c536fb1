"""Users' tokens (ours, not the source's): made, listed and revoked by an administrator."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response

from middleware_api.api.body import StrictRoute
from middleware_api.api.common import DEFAULT_LIMIT, Cursor, Limit, needs, set_cursor
from middleware_api.api.wire import (
    NewTokenAnswer,
    TokenAnswer,
    TokenBody,
    TokenListAnswer,
    TokenShown,
)
from middleware_api.contract import Scope
from middleware_api.records import Token
from middleware_api.services.access import AccessService


def token_router(service: AccessService) -> APIRouter:
    """The routes over one service."""
    router = APIRouter(route_class=StrictRoute, tags=["tokens"])

    @router.post("/tokens", **needs(Scope.ADMIN))
    async def create_token(body: TokenBody) -> NewTokenAnswer:
        """Make a token for a user; its text is shown this once."""
        token, text = service.create(body.user, body.scopes, body.daily_jobs)
        return NewTokenAnswer(token=text, **_shown(token).model_dump())

    @router.get("/tokens", **needs(Scope.ADMIN))
    async def list_tokens(
        response: Response, limit: Limit = DEFAULT_LIMIT, cursor: Cursor = None
    ) -> TokenListAnswer:
        """Newest first, revoked ones included; never their texts."""
        page = service.page(limit, cursor)
        set_cursor(response, page.next_cursor)
        return TokenListAnswer(
            tokens=[_shown(token) for token in page.items], next_cursor=page.next_cursor
        )

    @router.delete("/tokens", **needs(Scope.ADMIN, 404))
    async def revoke_token(token_id: Annotated[str, Query(alias="id")]) -> TokenAnswer:
        """Revoke a token: from now on it opens nothing. Its user's things stay."""
        return TokenAnswer(token=_shown(service.revoke(token_id)))

    return router


def _shown(token: Token) -> TokenShown:
    return TokenShown(
        id=token.id,
        user=token.owner,
        scopes=list(token.scopes),
        daily_jobs=token.daily_jobs,
        created=token.created_at,
        revoked=token.revoked_at,
    )
