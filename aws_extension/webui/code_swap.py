"""Replacing what a function does for everyone who has imported it already."""

from __future__ import annotations

from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

from aws_extension.errors import CloudError


class CodeSwap:
    """Puts `entry`'s code into `target`, and back.

    The code runs with the target's globals, so `entry` must import what it calls and may have
    no closure. Installing twice changes nothing.
    """

    def __init__(self, target: FunctionType, entry: FunctionType) -> None:
        self._target = target
        self._code: CodeType = entry.__code__
        self._original: FunctionType | None = None

    @property
    def original(self) -> Callable[..., Any]:
        """What the target did before; the target itself while nothing is swapped."""
        return self._original or self._target

    def install(self) -> None:
        """Swap. Raises CloudError when another extension has put a closure in its place."""
        if self._original is not None:
            return
        target = self._target
        original = FunctionType(
            target.__code__,
            target.__globals__,
            target.__name__,
            target.__defaults__,
            target.__closure__,
        )
        original.__kwdefaults__ = target.__kwdefaults__
        try:
            target.__code__ = self._code
        except ValueError as fault:
            raise CloudError(
                f"Another extension has wrapped the WebUI's {target.__name__}, so pictures cannot "
                "be sent to the cloud beside it. Disable one of the two."
            ) from fault
        self._original = original

    def remove(self) -> None:
        """Swap back, unless someone has swapped over us: then our entry stays below theirs."""
        if self._original is None or self._target.__code__ is not self._code:
            return
        self._target.__code__ = self._original.__code__
        self._original = None
