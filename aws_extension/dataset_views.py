"""Pictures and captions of the cloud's data sets, kept for a while for those who look at them."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from aws_extension.client import CloudClient
from aws_extension.dataset_calls import DatasetFile
from aws_extension.errors import NotFound
from aws_extension.pictures import shrunk

AT_ONCE = 8
PICTURES_KEPT = 300
CAPTIONS_KEPT = 5000
# Somebody else may have written a caption meanwhile. URLs are good for longer than this.
KEEP_SECONDS = 60.0
URL_SECONDS = 1800.0

_Key = tuple[str, str, int]
K = TypeVar("K")
V = TypeVar("V")


class DatasetViews:
    """What one host has seen of them."""

    def __init__(
        self, client: Callable[[], CloudClient], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._client = client
        self._clock = clock
        self._lock = threading.Lock()
        self._urls: OrderedDict[tuple[str, str], tuple[str, float]] = OrderedDict()
        self._captions: OrderedDict[_Key, tuple[str, float]] = OrderedDict()
        self._pictures: OrderedDict[_Key, bytes] = OrderedDict()

    def files(self, name: str) -> list[DatasetFile]:
        """A data set's files. Raises CloudError."""
        files = self._client().datasets.files(name)
        now = self._clock()
        with self._lock:
            for file in files:
                _put(self._urls, (name, file.name), (file.url, now), CAPTIONS_KEPT)
        return files

    def captions(self, name: str, files: Sequence[DatasetFile]) -> dict[str, str]:
        """What stands in these files, by their names. Raises CloudError."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            texts = pool.map(lambda file: self._caption(name, file), files)
            return {file.name: text for file, text in zip(files, texts, strict=True)}

    def forget_caption(self, name: str, file: str) -> None:
        """It was written anew."""
        with self._lock:
            for key in [key for key in self._captions if key[:2] == (name, file)]:
                del self._captions[key]

    def picture(self, name: str, file: str, size: int) -> bytes:
        """A small JPEG of the picture that has `size` bytes. Raises CloudError."""
        key = (name, file, size)
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
                return self._pictures[key]
        small = shrunk(self._client().download(self._url(name, file)))
        with self._lock:
            _put(self._pictures, key, small, PICTURES_KEPT)
        return small

    def _caption(self, name: str, file: DatasetFile) -> str:
        key, now = (name, file.name, file.size or 0), self._clock()
        with self._lock:
            known, at = self._captions.get(key, ("", -KEEP_SECONDS))
        if now - at < KEEP_SECONDS:
            return known
        text = self._client().download(file.url).decode("utf-8", "replace").strip()
        with self._lock:
            _put(self._captions, key, (text, now), CAPTIONS_KEPT)
        return text

    def _url(self, name: str, file: str) -> str:
        with self._lock:
            url, at = self._urls.get((name, file), ("", 0.0))
        if url and self._clock() - at < URL_SECONDS:
            return url
        found = {one.name: one.url for one in self.files(name)}
        if file not in found:
            raise NotFound(f"Data set '{name}' has no picture '{file}'.", 404)
        return found[file]


def _put(kept: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)
