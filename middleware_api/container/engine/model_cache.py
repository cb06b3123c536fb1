"""Weights kept in memory between jobs, bounded by bytes."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

T = TypeVar("T")


class ModelCache(Generic[T]):
    """Least recently used out first, and never one that is in use.

    The bound holds for what is kept; a single model larger than it is loaded all the same and
    dropped when the next one comes. Not thread-safe: the container runs one job at a time.
    """

    def __init__(self, max_bytes: int, size_of: Callable[[T], int]) -> None:
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._kept: OrderedDict[str, T] = OrderedDict()
        self._in_use: Counter[str] = Counter()

    @property
    def keys(self) -> list[str]:
        """Oldest use first."""
        return list(self._kept)

    @contextmanager
    def use(self, key: str, expected_bytes: int, load: Callable[[], T]) -> Iterator[T]:
        """Lends the model; room for `expected_bytes` is made before `load` is called."""
        if key not in self._kept:
            self._make_room(expected_bytes)
            self._kept[key] = load()
        self._kept.move_to_end(key)
        self._in_use[key] += 1
        try:
            self._make_room(0)
            yield self._kept[key]
        finally:
            self._in_use[key] -= 1

    def _make_room(self, incoming: int) -> None:
        for key in self.keys:
            if sum(map(self._size_of, self._kept.values())) + incoming <= self._max_bytes:
                return
            if not self._in_use[key]:
                del self._kept[key]
