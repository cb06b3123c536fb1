"""Uploads that run beside the page: started, watched and stopped by their id."""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from aws_extension.access import CloudAccess
from aws_extension.errors import CloudError, ConnectionLost
from aws_extension.upload_progress import UploadProgress
from aws_extension.uploader import upload_checkpoint
from middleware_api.contract import CheckpointType


@dataclass
class UploadTask:
    """One running upload; `error` and `finished` are set last."""

    progress: UploadProgress | None = None
    error: CloudError | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)


class Uploads:
    """The uploads of one host, each known only by an id that its starter holds."""

    def __init__(self, access: CloudAccess) -> None:
        self._access = access
        self._tasks: dict[str, UploadTask] = {}

    def start(self, path: Path, kind: CheckpointType) -> str:
        """Begin in the background; the id to watch and stop it by."""
        client = self._access.client()
        task_id, task = uuid.uuid4().hex, UploadTask()
        self._tasks[task_id] = task

        def run() -> None:
            try:
                upload_checkpoint(
                    client,
                    path,
                    kind,
                    state_folder=self._access.state_folder,
                    on_progress=lambda progress: setattr(task, "progress", progress),
                    should_cancel=task.stop.is_set,
                )
            except CloudError as fault:
                task.error = fault
            except OSError as fault:  # the disk, in the middle of it
                task.error = ConnectionLost(f"'{path.name}' could not be read: {fault}")
            finally:
                task.finished.set()

        # A daemon: an upload does not keep the host from quitting, it goes on next time.
        threading.Thread(target=run, name="sdaws-upload", daemon=True).start()
        return task_id

    def get(self, task_id: str) -> UploadTask | None:
        """A task that is still watched."""
        return self._tasks.get(task_id)

    def forget(self, task_id: str) -> None:
        """Its end has been shown."""
        self._tasks.pop(task_id, None)
