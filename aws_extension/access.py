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
# Clients keep their connections open; a host rarely has more users at once.
CLIENTS_KEPT = 64


class CloudAccess:
    """One host's way to the cloud. Holds settings and caches, nothing of any one user."""

    def __init__(self, store: SettingsStore, adapter: BaseAdapter | None = None) -> None:
        self.store = store
        self._adapter = adapter
        self._lock = threading.Lock()
        self._clients: OrderedDict[tuple[Connection, str], CloudClient] = OrderedDict()
        self._thumbnails: OrderedDict[str, str] = OrderedDict()

    @property
    def state_folder(self) -> Path:
        """Where unfinished uploads are remembered."""
        return self.store.folder / "uploads"

    def client(self, user: str = "") -> CloudClient:
        """A client for the connection as it is configured now. Raises NotConfigured.

        It acts for `user` (see `pages.common.user_of`); without one it sees whatever the token
        may see.
        """
        connection = self.store.read()
        key = (connection, user)
        with self._lock:
            if key not in self._clients:
                self._clients[key] = CloudClient(
                    connection.api_url, connection.token, on_behalf_of=user, adapter=self._adapter
                )
            self._clients.move_to_end(key)
            while len(self._clients) > CLIENTS_KEPT:
                self._clients.popitem(last=False)
            return self._clients[key]

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
