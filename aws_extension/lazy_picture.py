"""A picture that is still being made: code that looks at it waits for it, as for a file's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image


class LazyPicture(Image.Image):  # type: ignore[misc]  # Pillow has no types here
    """An image whose pixels, size and mode are asked for when they are first needed.

    Pillow's own protocol: every operation calls `load` first. `wait` returns the picture; what
    it raises reaches whoever looked.
    """

    # Also of copies, which Pillow makes without `__init__`: they hold the pixels already.
    _wait: Callable[[], Image.Image] | None = None

    def __init__(self, wait: Callable[[], Image.Image]) -> None:
        super().__init__()
        self._wait = wait

    def load(self) -> Any:
        """The pixel access object, as of any image."""
        self._arrive()
        return super().load()

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        self._arrive()
        size: tuple[int, int] = self._size
        return size

    @property
    def mode(self) -> str:
        """As of any image."""
        self._arrive()
        return self._mode

    @mode.setter
    def mode(self, value: str) -> None:  # Pillow before 10.1 sets it
        self._mode = value

    def _arrive(self) -> None:
        if self._wait is None:
            return
        picture = self._wait()
        picture.load()
        if self._wait is None:  # who brought it has looked at it, and has written its infotext
            return
        self._wait = None
        self.im = picture.im
        self._mode, self._size = picture.mode, picture.size
        self.palette = picture.palette
        self.info.update(picture.info)
