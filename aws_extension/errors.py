"""Everything that this package raises on purpose.

CloudError
├── NotConfigured            no URL or token yet
├── ConnectionLost           the server was not reached, or stopped answering
├── UnexpectedAnswer         an answer that does not follow the HTTP contract
├── ApiError                 the server refused: status, message, request id
│   ├── BadRequest           400
│   ├── Unauthorised         401
│   ├── Forbidden            403
│   ├── NotFound             404
│   ├── Conflict             409
│   ├── TooLarge             413
│   ├── InvalidRequest       422
│   ├── TooManyRequests      429
│   └── ServerFault          5xx
├── JobFailed                the compute side gave up, with its reason
├── Unsupported              the cloud cannot do what was asked; said before anything is sent
├── ModelsNotInCloud         models that only this machine has, and no consent to send them
├── UploadFailed             a file did not reach the store
└── Cancelled                the user stopped the work

The text of each is shown to the user as it is: what failed, why, what to do next.
"""

from __future__ import annotations


class CloudError(Exception):
    """Base of all errors of this package."""


class NotConfigured(CloudError):
    """No server is configured yet."""


class ConnectionLost(CloudError):
    """The server could not be reached."""


class UnexpectedAnswer(CloudError):
    """The answer does not follow the HTTP contract."""


class ApiError(CloudError):
    """The server refused a request; `message` is its own text."""

    def __init__(self, message: str, status: int, code: str = "", request_id: str = "") -> None:
        short = f" [req {request_id[:8]}]" if request_id else ""
        super().__init__(f"{message}{short}")
        self.message = message
        self.status = status
        self.code = code
        self.request_id = request_id


class BadRequest(ApiError):
    """400: a store that did not get the bytes which their checksum belongs to."""


class Unauthorised(ApiError):
    """401: no token, or a wrong one."""


class Forbidden(ApiError):
    """403: the token has no right to do this."""


class NotFound(ApiError):
    """404: an unknown id or name."""


class Conflict(ApiError):
    """409: not allowed in this state."""


class TooLarge(ApiError):
    """413: the body is over the bound."""


class InvalidRequest(ApiError):
    """422: a field does not fit."""


class TooManyRequests(ApiError):
    """429: throttled."""


class ServerFault(ApiError):
    """5xx: the server's own fault."""


class JobFailed(CloudError):
    """A job ended as failed; the text carries the compute side's reason."""

    def __init__(self, job_id: str, reason: str) -> None:
        super().__init__(
            f"The cloud could not make the picture: {reason or 'no reason was given'} "
            f"[job {job_id[:8]}]"
        )
        self.job_id = job_id
        self.reason = reason


class Unsupported(CloudError):
    """The cloud cannot do this; nothing was sent."""


# The panel takes the list from between these.
ONLY_HERE, NOTHING_SENT = "Only on this machine:", " Nothing was sent."


class ModelsNotInCloud(CloudError):
    """Models that only this machine has; `files` lists them with their sizes."""

    def __init__(self, files: str) -> None:
        super().__init__(
            f"{ONLY_HERE} {files}{NOTHING_SENT} Press “Upload and generate” in the panel “Generate "
            "in the cloud”, or tick “Upload missing models without asking” there."
        )


class UploadFailed(CloudError):
    """A file did not reach the store."""


class Cancelled(CloudError):
    """The user stopped the work."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: BadRequest,
    401: Unauthorised,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: InvalidRequest,
    429: TooManyRequests,
}


def error_for_status(status: int, message: str, code: str, request_id: str) -> ApiError:
    """The typed error of an HTTP status."""
    kind = _BY_STATUS.get(status, ServerFault if status >= 500 else ApiError)
    return kind(message, status, code, request_id)
