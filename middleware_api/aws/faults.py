"""What AWS refuses, in the words of the middleware."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from middleware_api.errors import Conflict, ServiceError, Unavailable

_THROTTLED = frozenset(
    {
        "Throttling",
        "ThrottlingException",
        "ThrottledException",
        "RequestLimitExceeded",
        "ProvisionedThroughputExceededException",
        "TooManyRequestsException",
        "SlowDown",
    }
)
# "No scalable target found" is Application Auto Scaling's.
_UNKNOWN = ("could not find", "does not exist", "not found", "no scalable target found")


def explain_fault(error: Exception) -> ServiceError | None:
    """The refusal to answer with when AWS did not do its part; None for a fault of ours."""
    if isinstance(error, ClientError):
        code = error_code(error)
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _THROTTLED or status >= 500:
            return Unavailable(
                f"AWS is too busy for this now ({error.operation_name}: {code}). Wait some "
                "seconds and try again."
            )
        return None
    if isinstance(error, BotoCoreError):
        return Unavailable(
            f"AWS could not be reached ({type(error).__name__}). Wait some seconds and try again."
        )
    return None


@contextmanager
def refusals(act: str) -> Iterator[None]:
    """What SageMaker refuses because of the account or the request becomes a Conflict that says
    so; `act` is what was asked, as words after "AWS does not "."""
    try:
        yield
    except ClientError as error:
        code, reason = error_code(error), error.response["Error"].get("Message", "")
        if code == "ResourceLimitExceeded":
            raise Conflict(
                f"AWS does not {act}: {reason} Choose another instance type or fewer instances, "
                "or ask for a higher quota (AWS console, Service Quotas, Amazon SageMaker).",
                "quota_exceeded_on_aws",
            ) from error
        if code in ("ValidationException", "ValidationError", "ResourceInUse", "ResourceNotFound"):
            raise Conflict(f"AWS does not {act}: {reason}", "refused_by_aws") from error
        raise


@contextmanager
def ignoring_unknown(also: Collection[str] = ()) -> Iterator[None]:
    """SageMaker's word for a thing that it does not know is a ValidationException, like many
    others: only the message tells. `also` are parts of messages that are no error here either."""
    try:
        yield
    except ClientError as error:
        if not is_unknown(error) and not any(part in _message(error) for part in also):
            raise


def is_unknown(error: ClientError) -> bool:
    """Whether SageMaker, or what scales it, says that there is no such thing."""
    if error_code(error) in ("ResourceNotFound", "ObjectNotFoundException"):
        return True
    return error_code(error) == "ValidationException" and any(
        words in _message(error) for words in _UNKNOWN
    )


def create_once(create: Callable[..., Any], **parameters: Any) -> None:
    """Create what may be there already, made by a run of ours that was cut short."""
    try:
        create(**parameters)
    except ClientError as error:
        if not _already_there(error):
            raise


def _already_there(error: ClientError) -> bool:
    return error_code(error) in ("ValidationException", "ResourceInUse") and any(
        words in _message(error) for words in ("already exist", "already been used")
    )


def error_code(error: ClientError) -> str:
    """AWS's word for the kind of error."""
    code: str = error.response["Error"]["Code"]
    return code


def _message(error: ClientError) -> str:
    message: str = error.response["Error"].get("Message", "")
    return message.lower()
