"""What a service can refuse, and how.

ServiceError
├── Damaged            400  bytes that arrived otherwise than they were sent
├── InvalidRequest     422  a value that fits no rule; the field is named
├── Forbidden          403  the token has no right for this act
├── NotFound           404  no such thing
├── Conflict           409  not allowed in this state
│   ├── StaleRecord         somebody else changed the record first
│   ├── ContentDiffers       the stored bytes are not the announced ones
│   └── FileRefused          the stored bytes are not what a checkpoint may be made of
├── TooLarge           413
├── QuotaExceeded      429  the token's jobs of today are used up
├── NotAvailable       501  the contract has it, this deployment cannot do it
├── Unavailable        503  something that we depend on does not answer; later it will
└── StillRunning       504  the gateway before us waits no longer; the job goes on

Each carries a sentence for people and a stable `code` for programs. Anything else that is raised
is a fault of ours: 500, and the log has the traceback.
"""

from __future__ import annotations


class ServiceError(Exception):
    """A refusal that the caller is meant to read."""

    status = 500
    code = "internal_error"

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code


class Damaged(ServiceError):
    """The bytes are not those that their checksum belongs to."""

    status = 400
    code = "checksum_differs"


class InvalidRequest(ServiceError):
    """A value that fits no rule; `field` is its place in the body or query."""

    status = 422
    code = "invalid_request"

    def __init__(self, message: str, field: tuple[str | int, ...]) -> None:
        super().__init__(message)
        self.field = field


class Forbidden(ServiceError):
    """The caller may not do this."""

    status = 403
    code = "forbidden"


class NotFound(ServiceError):
    """No such thing, or none that the caller may see."""

    status = 404
    code = "not_found"


class Conflict(ServiceError):
    """The thing exists, and its state does not allow the act."""

    status = 409
    code = "conflict"


class StaleRecord(Conflict):
    """The record changed between reading and writing it."""

    code = "changed_meanwhile"


class ContentDiffers(Conflict):
    """An upload is whole, and is not what was announced."""

    code = "content_differs"


class FileRefused(Conflict):
    """A weights file that is broken, dangerous, or none."""

    code = "file_refused"


class TooLarge(ServiceError):
    """More bytes than this route takes."""

    status = 413
    code = "too_large"


class QuotaExceeded(ServiceError):
    """No more jobs with this token today."""

    status = 429
    code = "quota_exceeded"


class NotAvailable(ServiceError):
    """In the contract, but not in this deployment."""

    status = 501
    code = "not_available"


class Unavailable(ServiceError):
    """Nothing is wrong with the request; it can be sent again later."""

    status = 503
    code = "unavailable"


class StillRunning(ServiceError):
    """A job takes longer than a request can be held; it goes on."""

    status = 504
    code = "still_running"
