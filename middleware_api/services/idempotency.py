"""The same request twice makes one thing."""

from __future__ import annotations

import hashlib
import json

from middleware_api.errors import Conflict
from middleware_api.ports import Records
from middleware_api.services.access import Principal

# Nobody repeats a request, not knowing whether it arrived, a week later.
IDEMPOTENCY_SECONDS = 7 * 24 * 3600


def claim_id(
    records: Records, caller: Principal, key: str | None, body: dict[str, object], new_id: str
) -> str:
    """The id that what this request makes has: `new_id`, or the first one's with the same key.

    Raises Conflict for a key that was used with another body.
    """
    if key is None:
        return new_id
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    claimed = records.claim(
        f"idempotency/{caller.key_name}/{key}", f"{digest} {new_id}", IDEMPOTENCY_SECONDS
    )
    first_digest, first_id = claimed.split(" ")
    if first_digest != digest:
        raise Conflict(
            f"Idempotency-Key '{key}' was used for another request before (it made "
            f"'{first_id}'). Use a new key for a new request.",
            "idempotency_key_reused",
        )
    return first_id
