"""Who calls, what they may do, and whose things they see."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TypeVar

from middleware_api.contract import Scope
from middleware_api.errors import Forbidden, InvalidRequest, NotFound, QuotaExceeded
from middleware_api.ports import Page, Records
from middleware_api.records import Record, Token

R = TypeVar("R", bound=Record)

ADMIN_NAME = "admin"
_DAY_SECONDS = 24 * 3600


def token_user(owner: str) -> str:
    """Whose token made a job: the user who `owner`, of a shared host or not, acted by."""
    return owner.partition("/")[0]


@dataclass(frozen=True)
class Principal:
    """The user behind a request. `daily_jobs` None is no bound; `token_id` counts them."""

    name: str
    scopes: frozenset[Scope]
    token_id: str = ""
    daily_jobs: int | None = None

    @property
    def is_admin(self) -> bool:
        """An admin may do everything, and sees everybody's things."""
        return Scope.ADMIN in self.scopes

    @property
    def listed_owner(self) -> str | None:
        """Whose things the lists show; None is everybody's."""
        return None if self.is_admin else self.name

    @property
    def key_name(self) -> str:
        """The name as a part of keys: no user's name has a `#`, so "ann/x" for "key" is not "ann"
        for "x/key"."""
        return self.name.replace("/", "#")

    def acting_for(self, user: str) -> Principal:
        """The caller as one user of a host that many share by one token.

        That user has nothing but jobs, and no more rights than that: not even an admin's token
        sees other users' jobs in a user's name. The token's daily number of jobs is shared.
        """
        return replace(self, name=f"{self.name}/{user}", scopes=frozenset({Scope.INFER}))

    def require(self, scope: Scope) -> None:
        """Raises Forbidden without the scope."""
        if scope not in self.scopes and not self.is_admin:
            raise Forbidden(
                f"This token may not do this: it lacks the scope '{scope.value}'. Ask the "
                "administrator for a token that has it.",
                "scope_missing",
            )

    def own(self, record: R) -> R:
        """The record, if it is the caller's (or the caller is an admin).

        Raises NotFound: that somebody else's thing exists is nobody's business.
        """
        if not self.is_admin and record.owner != self.name:
            raise NotFound(f"There is no {record.KIND} with the id '{record.id}'.")
        return record

    def require_own(self, record: Record) -> None:
        """For a thing that everybody sees. Raises Forbidden unless it is the caller's."""
        if not self.is_admin and record.owner != self.name:
            raise Forbidden(
                f"The {record.KIND} '{record.id}' belongs to another user: only its owner or an "
                "administrator may change it.",
                "not_the_owner",
            )


ADMIN = Principal(ADMIN_NAME, frozenset({Scope.ADMIN}))


class AccessService:
    """Tokens: the deployment's own, which is an admin's, and those of users."""

    def __init__(
        self,
        records: Records,
        admin_token: str,
        clock: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self._records = records
        self._admin_hash = _hash(admin_token)
        self._clock = clock
        self._new_id = new_id

    def authenticate(self, token: str) -> Principal | None:
        """Who sends this token; None for a stranger. Compares in constant time."""
        if hmac.compare_digest(_hash(token), self._admin_hash):
            return ADMIN
        token_id, dot, _ = token.partition(".")
        if not dot or not token.isascii():
            return None
        try:
            known = self._records.get(Token, token_id)
        except NotFound:
            return None
        if known.revoked_at is not None or not hmac.compare_digest(_hash(token), known.secret_hash):
            return None
        return Principal(known.owner, frozenset(known.scopes), known.id, known.daily_jobs)

    def create(self, user: str, scopes: list[Scope], daily_jobs: int | None) -> tuple[Token, str]:
        """A new token for a user, and its text, which is not kept and cannot be shown again."""
        if user == ADMIN_NAME:
            raise InvalidRequest(
                f"'{ADMIN_NAME}' is the deployment's own user; choose another name",
                ("body", "user"),
            )
        token_id = self._new_id()
        text = f"{token_id}.{secrets.token_urlsafe(32)}"
        token = Token(
            id=token_id,
            owner=user,
            created_at=self._clock(),
            secret_hash=_hash(text),
            scopes=tuple(sorted(set(scopes))),
            daily_jobs=daily_jobs,
        )
        self._records.add(token)
        return token, text

    def page(self, limit: int, cursor: str | None) -> Page[Token]:
        """Newest first, revoked ones included."""
        return self._records.page(Token, limit=limit, cursor=cursor)

    def revoke(self, token_id: str) -> Token:
        """From now on the token opens nothing. Its user's things stay."""
        token = self._records.get(Token, token_id)
        if token.revoked_at is not None:
            return token
        return self._records.update(replace(token, revoked_at=self._clock()))

    def count_job(self, principal: Principal) -> None:
        """Count one job against today's (UTC) quota. Raises QuotaExceeded."""
        if principal.daily_jobs is None:
            return
        day = datetime.fromtimestamp(self._clock(), timezone.utc).date().isoformat()
        key = f"quota/{principal.token_id}/{day}"
        if not self._records.count(key, principal.daily_jobs, 2 * _DAY_SECONDS):
            raise QuotaExceeded(
                f"This token's {principal.daily_jobs} jobs of today are used up. The count "
                "starts anew at 00:00 UTC; the administrator can give a larger quota."
            )


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()
