"""The WebUI's settings, as one request changes them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modules import shared

# Their callbacks and readers would load a model here.
_MODEL_SETTINGS = ("sd_model_checkpoint", "sd_vae")


@contextmanager
def overridden_options(p: Any) -> Iterator[None]:
    """The request's own settings for a while, as `process_images` has it; no model is loaded."""
    mine = {k: v for k, v in p.override_settings.items() if k not in _MODEL_SETTINGS}
    before = {k: shared.opts.data.get(k, shared.opts.get_default(k)) for k in mine}
    try:
        for name, value in mine.items():
            shared.opts.set(name, value, is_api=True, run_callbacks=False)
        yield
    finally:
        if p.override_settings_restore_afterwards:
            for name, value in before.items():
                setattr(shared.opts, name, value)
