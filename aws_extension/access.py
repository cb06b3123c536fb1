"""The configured client, for whoever needs one; thumbnails of jobs, kept while they are used."""

from __future__ import annotations

import base64
import io
import threading
from collections import OrderedDict
from pathlib import Path

from PIL import Image, UnidentifiedImageError
from requests.adapters import BaseAdapter

from aws_extension.answers import InferenceJob
from aws_extension.client import CloudClient
from aws_extension.errors import CloudError, UnexpectedAnswer
from aws_extension.settings import Connection, SettingsStore

THUMBNAIL_PIXELS = 192
THUMBNAILS_KEPT = 300


class CloudAccess:
    """One host's way to the cloud. Holds settings and caches, nothing of any one user."""

    def __init__(self, store: SettingsStore, adapter: BaseAdapter | None = None) -> None:
        self.store = store
        self._adapter = adapter
        self._lock = threading.Lock()
        self._current: tuple[Connection, CloudClient] | None = None
        self._thumbnails: OrderedDict[str, str] = OrderedDict()

    @property
    def state_folder(self) -> Path:
        """Where unfinished uploads are remembered."""
        return self.store.folder / "uploads"

    def client(self) -> CloudClient:
        """A client for the connection as it is configured now. Raises NotConfigured."""
        connection = self.store.read()
        with self._lock:
            if self._current is None or self._current[0] != connection:
                client = CloudClient(connection.api_url, connection.token, adapter=self._adapter)
                self._current = (connection, client)
            return self._current[1]

    def thumbnail(self, job: InferenceJob) -> str:
        """A finished job's first picture as a small `data:` URL, or nothing.

        A picture that cannot be had leaves its place empty: the list is about the jobs.
        """
        if not job.image_names:
            return ""
        with self._lock:
            if job.id in self._thumbnails:
                self._thumbnails.move_to_end(job.id)
                return self._thumbnails[job.id]
        try:
            client = self.client()
            encoded = _shrink(client.download(client.image_urls(job.id)[0]))
        except (CloudError, IndexError):
            return ""
        with self._lock:
            self._thumbnails[job.id] = encoded
            while len(self._thumbnails) > THUMBNAILS_KEPT:
                self._thumbnails.popitem(last=False)
        return encoded


def open_picture(content: bytes) -> Image.Image:
    """A downloaded picture, decoded. Raises UnexpectedAnswer."""
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except (UnidentifiedImageError, OSError, SyntaxError) as fault:
        raise UnexpectedAnswer("The cloud's picture cannot be read. Generate it again.") from fault
    return image


def _shrink(content: bytes) -> str:
    image = open_picture(content).convert("RGB")
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    target = io.BytesIO()
    image.save(target, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(target.getvalue()).decode()
