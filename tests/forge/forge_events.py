"""What Forge does to gradio 4: event listeners take `_js`, the name of gradio 3, for `js`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio import events


def _renamed(listen: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **given: Any) -> Any:
        if "_js" in given:
            given["js"] = given.pop("_js")
        return listen(*args, **given)

    return call


class _Dependency(events.Dependency):
    def __init__(self, *args: Any, **given: Any) -> None:
        super().__init__(*args, **given)
        self.then = _renamed(self.then)
        self.success = _renamed(self.success)


def take_js_by_its_old_name(monkeypatch: Any) -> None:
    """For the length of a test."""
    monkeypatch.setattr(events, "Dependency", _Dependency)
    for name in ("Button", "Checkbox", "Dropdown", "Radio", "Slider", "Textbox"):
        kind = getattr(gr, name)
        for event in kind.EVENTS:
            listener = str(getattr(event, "event_name", event))
            monkeypatch.setattr(kind, listener, _renamed(getattr(kind, listener)), raising=False)
