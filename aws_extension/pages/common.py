"""What several pages need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import gradio as gr

from aws_extension.client import CloudClient
from aws_extension.errors import CloudError
from middleware_api.contract import CheckpointState, CheckpointType

ANY_ENDPOINT = "Automatic"


@contextmanager
def shown_to_user() -> Iterator[None]:
    """Turn this package's errors into gradio's error box, with the same words."""
    try:
        yield
    except CloudError as fault:
        raise gr.Error(str(fault)) from fault


def endpoint_choices(client: CloudClient) -> list[str]:
    """Names that take jobs now, after the choice that leaves it to the server."""
    return [ANY_ENDPOINT, *(e.name for e in client.list_endpoints() if e.is_ready)]


def checkpoint_choices(
    client: CloudClient, kind: CheckpointType = CheckpointType.STABLE_DIFFUSION
) -> list[str]:
    """File names of the Active checkpoints of a type, each once, newest first."""
    found = client.list_checkpoints([CheckpointState.ACTIVE], [kind])
    return list(dict.fromkeys(name for checkpoint in found for name in checkpoint.names))


def keep_or_first(current: str | None, choices: list[str]) -> str:
    """What a dropdown shows after its choices were read again."""
    if current in choices:
        return str(current)
    return choices[0] if choices else ""
