"""What the Lambda functions are told by the template that deploys them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields


@dataclass(frozen=True)
class AwsSettings:
    """Each field is the variable `SDAWS_<FIELD>`.

    Names of what the deployment makes at run time begin with `prefix` and a hyphen.
    `image` both makes pictures and trains, by the command that it is started with. With
    `spot_training` "yes" training runs on machines that may be taken away, and goes on with the
    next one. `webui_image` is empty where no image of the engine `webui` is built.
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
    spot_training: str = "no"
    webui_image: str = ""


def read_aws_settings(environment: Mapping[str, str]) -> AwsSettings:
    """Raises ValueError naming what is missing."""
    values = {
        field.name: environment.get(_variable(field.name)) or _default(field)
        for field in fields(AwsSettings)
    }
    needed = [field.name for field in fields(AwsSettings) if field.default is MISSING]
    missing = [_variable(name) for name in needed if not values[name]]
    if missing:
        raise ValueError(f"The template must set {', '.join(missing)}.")
    return AwsSettings(**values)


def _default(field: Field[str]) -> str:
    return "" if field.default is MISSING else field.default


def _variable(field: str) -> str:
    return f"SDAWS_{field.upper()}"
