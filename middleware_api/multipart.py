"""What may be put together to an object: the rules of S3, told in words."""

from __future__ import annotations

from collections.abc import Sequence

from middleware_api.contract import PART_MIN_BYTES, PARTS_MAX, PartTag
from middleware_api.errors import Conflict
from middleware_api.ports import StoredPart


def require_parts(arrived: Sequence[StoredPart], tags: Sequence[PartTag]) -> None:
    """Raises Conflict unless the tagged parts are there as tagged, in order and large enough."""
    etags = {part.number: part for part in arrived}
    numbers = [tag["PartNumber"] for tag in tags]
    if numbers != sorted(set(numbers)) or not all(1 <= n <= PARTS_MAX for n in numbers):
        raise Conflict("Part numbers must rise, each once, from 1.", "parts_out_of_order")
    for tag in tags:
        part = etags.get(tag["PartNumber"])
        if part is None:
            raise Conflict(
                f"Part {tag['PartNumber']} has not arrived. Fresh URLs for what is missing come "
                "from GET /checkpoint/<id>/upload, or for a model from POST /model with the "
                "Idempotency-Key of the first time.",
                "parts_missing",
            )
        if part.etag != tag["ETag"].strip('"'):
            raise Conflict(
                f"Part {part.number} has the ETag {part.etag}, not {tag['ETag']}: it was sent "
                "again with other content. Send it once more.",
                "part_differs",
            )
        if part.size < PART_MIN_BYTES and part.number != numbers[-1]:
            raise Conflict(
                f"Part {part.number} has {part.size} bytes; all but the last need at least "
                f"{PART_MIN_BYTES}.",
                "part_too_small",
            )
