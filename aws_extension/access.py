"""The configured client, for whoever needs one; thumbnails of jobs, kept while they are used."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from requests.adapters import BaseAdapter

from aws_extension.client import CloudClient
from aws_extension.collected import CollectedJobs
from aws_extension.dataset_uploads import DatasetUploads
from aws_extension.dataset_views import DatasetViews
from aws_extension.errors import CloudError, NotFound
from aws_extension.http import Retries
from aws_extension.known_hashes import KnownHashes
from aws_extension.model_needs import LocalModels, NoModels
from aws_extension.picture_folder import PictureLooks
from aws_extension.pictures import shrunk
from aws_extension.settings import Connection, SettingsStore
from aws_extension.signed_urls import UrlSeal
from aws_extension.train_preparation import TrainPreparations
from aws_extension.upload_queue import UploadQueue

THUMBNAILS_KEPT = 300
# Clients keep their connections open; a host rarely has more users at once.
CLIENTS_KEPT = 64


class CloudAccess:
    """One host's way to the cloud. Holds settings and caches, nothing of any one user's page.

    A `user` is named by `pages.common.user_of`; without one, calls see whatever the token may.
    """

    def __init__(
        self,
        store: SettingsStore,
        adapter: BaseAdapter | None = None,
        local_models: Callable[[], LocalModels] = NoModels,
    ) -> None:
        """`local_models` looks at this machine's weights files, anew each time."""
        self.store = store
        self.local_models = local_models
        self.hashes = KnownHashes(store.folder / "uploads")
        self.uploads = UploadQueue(self.client, store.folder / "uploads", self.hashes)
        self.preparations = TrainPreparations(self.client, store.folder / "uploads", self.hashes)
        self.dataset_uploads = DatasetUploads(self.client, store.folder / "uploads")
        self.dataset_views = DatasetViews(self.glance)
        self.looks = PictureLooks()
        self.seal = UrlSeal()
        self.collected = CollectedJobs(store.folder / "collected")
        self._adapter = adapter
        self._lock = threading.Lock()
        self._clients: OrderedDict[tuple[Connection, str, Retries], CloudClient] = OrderedDict()
        self._thumbnails: OrderedDict[tuple[str, str], bytes] = OrderedDict()

    @property
    def state_folder(self) -> Path:
        """Where unfinished uploads are remembered."""
        return self.store.folder / "uploads"

    def is_local_server(self) -> bool:
        """Whether the configured server is on this machine, as far as is known."""
        try:
            return self.store.read().is_local
        except CloudError:
            return True  # the embedded one is the first that most people try

    def client(self, user: str = "") -> CloudClient:
        """A client for the connection as it is configured now. Raises NotConfigured."""
        return self._client(user, Retries())

    def glance(self, user: str = "") -> CloudClient:
        """A client that tries once: for a look that comes again anyway, or that someone awaits."""
        return self._client(user, Retries(attempts=1))

    def _client(self, user: str, retries: Retries) -> CloudClient:
        connection = self.store.read()
        key = (connection, user, retries)
        with self._lock:
            if key not in self._clients:
                self._clients[key] = CloudClient(
                    connection.api_url,
                    connection.token,
                    on_behalf_of=user,
                    adapter=self._adapter,
                    retries=retries,
                )
            self._clients.move_to_end(key)
            while len(self._clients) > CLIENTS_KEPT:
                self._clients.popitem(last=False)
            return self._clients[key]

    def thumbnail(self, job_id: str, user: str) -> bytes:
        """A finished job's first picture as a small JPEG. Raises CloudError."""
        key = (user, job_id)
        with self._lock:
            if key in self._thumbnails:
                self._thumbnails.move_to_end(key)
                return self._thumbnails[key]
        small = shrunk(self.picture(job_id, 0, user))
        self._keep(key, small)
        return small

    def _keep(self, key: tuple[str, str], content: bytes) -> None:
        with self._lock:
            self._thumbnails[key] = content
            while len(self._thumbnails) > THUMBNAILS_KEPT:
                self._thumbnails.popitem(last=False)

    def model_picture(self, path: Path) -> bytes:
        """A picture beside a weights file as a small JPEG. Raises CloudError."""
        try:
            key = ("", f"{path} {path.stat().st_mtime_ns}")
            with self._lock:
                if key in self._thumbnails:
                    return self._thumbnails[key]
            small = shrunk(path.read_bytes())
        except OSError as fault:
            raise NotFound(f"'{path.name}' cannot be read.", 404) from fault
        self._keep(key, small)
        return small

    def picture(self, job_id: str, index: int, user: str) -> bytes:
        """A finished job's picture, the file as it was made. Raises CloudError."""
        client = self.glance(user)
        urls = client.image_urls(job_id)
        if not 0 <= index < len(urls):
            raise NotFound(f"Job {job_id[:8]} has no picture number {index + 1}.", 404)
        return client.download(urls[index])

    def train_sample(self, job_id: str, index: int, user: str) -> bytes:
        """A sample picture of a training. Raises CloudError."""
        key = (user, f"{job_id} {index}")
        with self._lock:
            if key in self._thumbnails:
                return self._thumbnails[key]
        client = self.glance(user)
        samples = client.training.look(job_id).samples
        if not 0 <= index < len(samples):
            raise NotFound(f"Training {job_id[:8]} has no sample picture {index + 1}.", 404)
        content = client.download(samples[index].url)
        self._keep(key, content)
        return content

    def preview(self, job_id: str, user: str) -> bytes:
        """What a running job's picture looks like now, a small JPEG. Raises CloudError."""
        client = self.glance(user)
        url = client.get_job(job_id).preview_url
        if not url:
            raise NotFound(f"Job {job_id[:8]} has no preview now.", 404)
        return client.download(url)

    def forget_job(self, job_id: str, user: str) -> None:
        """The job has been deleted: nothing of it stays here."""
        with self._lock:
            self._thumbnails.pop((user, job_id), None)
        self.collected.forget(job_id)
