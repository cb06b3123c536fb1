"""What the Lambda functions are told by the template that deploys them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class AwsSettings:
    """Each field is the variable `SDAWS_<FIELD>`.

    Names of what the deployment makes at run time begin with `prefix` and a hyphen.
    `training_image` is empty where nothing can be trained.
    """

    table: str
    bucket: str
    prefix: str
    admin_token_secret: str
    endpoint_role: str
    image: str
    result_topic: str
    error_topic: str
    events_queue_url: str
    training_image: str = ""


def read_aws_settings(environment: Mapping[str, str]) -> AwsSettings:
    """Raises ValueError naming what is missing."""
    values = {
        field.name: environment.get(_variable(field.name), "") for field in fields(AwsSettings)
    }
    missing = [
        _variable(field.name)
        for field in fields(AwsSettings)
        if not values[field.name] and field.name != "training_image"
    ]
    if missing:
        raise ValueError(f"The template must set {', '.join(missing)}.")
    return AwsSettings(**values)


def _variable(field: str) -> str:
    return f"SDAWS_{field.upper()}"
