"""Pictures of a folder on their way to a data set: many small files at once, in the background.

What has arrived is not sent again, neither after a pause nor after the host's restart: the cloud
is asked which files it has, and of which size.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

from aws_extension.client import CloudClient
from aws_extension.errors import Cancelled, CloudError, NotFound, UploadFailed
from aws_extension.upload_progress import Meter, UploadProgress
from aws_extension.whole_file import write_whole
from middleware_api.contract import CAPTION_ENDING, DATASET_FILES_MAX, DatasetState

# Small files wait for answers, not for the line.
AT_ONCE = 12


class SendState(Enum):
    """Where the sending of a data set is."""

    RUNNING = "running"
    PAUSED = "paused"
    FAILED = "failed"


@dataclass(frozen=True)
class DatasetOrder:
    """Files to send as, or into, the data set of that name; captions among them."""

    name: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Sending:
    """An order and how far it is; `arrived` counts files, of `order.files`."""

    order: DatasetOrder
    state: SendState = SendState.RUNNING
    arrived: int = 0
    progress: UploadProgress | None = None
    error: str = ""


@dataclass
class _Run:
    sending: Sending
    stop: threading.Event = field(default_factory=threading.Event)


class DatasetUploads:
    """Those of one host, by their names. What is finished leaves it."""

    def __init__(self, client: Callable[[], CloudClient], folder: Path) -> None:
        """`folder` is where unfinished ones are remembered."""
        self._client = client
        self._file = folder / "datasets.json"
        self._lock = threading.Lock()
        self._runs: dict[str, _Run] = {}

    def all(self) -> tuple[Sending, ...]:
        """In the order in which they came."""
        with self._lock:
            return tuple(run.sending for run in self._runs.values())

    def begin(self, order: DatasetOrder) -> None:
        """Send files in the background; the same name once more goes on with these files.

        Raises UploadFailed.
        """
        if not 0 < len(order.files) <= DATASET_FILES_MAX:
            raise UploadFailed(
                f"A data set holds 1 to {DATASET_FILES_MAX} pictures and captions, not "
                f"{len(order.files)}. Make several folders of them."
            )
        with self._lock:
            known = self._runs.get(order.name)
            if known is not None and known.sending.state is SendState.RUNNING:
                raise UploadFailed(f"'{order.name}' is being sent already. Wait, or pause it.")
            run = self._runs[order.name] = _Run(Sending(order))
            self._write()
        self._start(run)

    def pause(self, name: str) -> None:
        """Stop one for now; what has arrived stays."""
        with self._lock:
            if (run := self._runs.get(name)) is not None:
                run.stop.set()
                run.sending = replace(run.sending, state=SendState.PAUSED)
                self._write()

    def resume(self, name: str) -> None:
        """Go on with one that was paused or has failed."""
        with self._lock:
            run = self._runs.get(name)
        if run is not None and run.sending.state is not SendState.RUNNING:
            self.begin(run.sending.order)

    def forget(self, name: str) -> None:
        """Give one up; what has arrived stays in the cloud until it is deleted there."""
        with self._lock:
            if (run := self._runs.pop(name, None)) is not None:
                run.stop.set()
                self._write()

    def take_up(self) -> None:
        """Go on with what the last start left, but for what was paused."""
        try:
            kept = [
                (
                    DatasetOrder(str(one["name"]), tuple(map(Path, one["files"]))),
                    bool(one["paused"]),
                )
                for one in json.loads(self._file.read_text())
            ]
        except (OSError, ValueError, KeyError, TypeError):
            return  # none were left; or the list is lost, and its folders are sent again
        for order, is_paused in kept:
            run = _Run(Sending(order, SendState.PAUSED if is_paused else SendState.RUNNING))
            with self._lock:
                if self._runs.setdefault(order.name, run) is not run:
                    continue
            if not is_paused:
                self._start(run)

    def _write(self) -> None:
        kept = [
            {
                "name": run.sending.order.name,
                "files": [str(path) for path in run.sending.order.files],
                "paused": run.sending.state is not SendState.RUNNING,
            }
            for run in self._runs.values()
        ]
        write_whole(self._file, json.dumps(kept))

    def _start(self, run: _Run) -> None:
        name = f"sdaws-dataset-{run.sending.order.name}"
        # A daemon: it does not keep the host from quitting, it goes on next time.
        threading.Thread(target=self._work, args=(run,), name=name, daemon=True).start()

    def _work(self, run: _Run) -> None:
        order = run.sending.order
        try:
            send(self._client(), order, lambda *told: self._note(run, *told), run.stop.is_set)
        except Cancelled:
            return
        except CloudError as fault:
            self._end(run, str(fault))
        except OSError as fault:
            self._end(run, f"'{fault.filename}' could not be read: {fault.strerror}.")
        else:
            with self._lock:
                if self._runs.get(order.name) is run:
                    del self._runs[order.name]
                    self._write()

    def _note(self, run: _Run, arrived: int, progress: UploadProgress) -> None:
        with self._lock:
            run.sending = replace(run.sending, arrived=arrived, progress=progress)

    def _end(self, run: _Run, error: str) -> None:
        with self._lock:
            if run.sending.state is SendState.RUNNING:
                run.sending = replace(run.sending, state=SendState.FAILED, error=error)


def send(
    client: CloudClient,
    order: DatasetOrder,
    on_progress: Callable[[int, UploadProgress], None] = lambda arrived, progress: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> None:
    """Send what the data set does not have yet, and enable it. Callbacks run in
    the calling thread. Raises Cancelled, CloudError, OSError.
    """
    by_name = {path.name: path for path in order.files}
    if len(by_name) < len(order.files):
        raise UploadFailed("Two of the files have one name. Rename one of them.")
    sizes = {name: path.stat().st_size for name, path in by_name.items()}
    urls = _places(client, order.name, sizes)
    meter = Meter(sum(sizes.values()), time.monotonic)
    meter.begin(sum(size for name, size in sizes.items() if name not in urls))
    arrived = len(sizes) - len(urls)
    on_progress(arrived, meter.progress())

    def put(name: str) -> None:
        if should_stop():
            raise Cancelled("It was stopped. Start it again to go on from there.")
        client.storage.send("PUT", urls[name], body=by_name[name].read_bytes())
        meter.add(sizes[name])

    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="sdaws-pictures") as pool:
        try:
            for done in as_completed(pool.submit(put, name) for name in urls):
                done.result()
                arrived += 1
                on_progress(arrived, meter.progress())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    client.datasets.set_state(order.name, DatasetState.ENABLED)


def _places(client: CloudClient, name: str, sizes: Mapping[str, int]) -> dict[str, str]:
    """Where each file goes that is not there yet; a new data set where there is none.

    A caption may have changed and kept its size: they are always sent.
    """
    try:
        there = {file.name: file.size for file in client.datasets.files(name)}
    except NotFound:
        return client.datasets.create(name, list(sizes))
    missing = [
        file
        for file, size in sizes.items()
        if there.get(file) != size or file.endswith(CAPTION_ENDING)
    ]
    return client.datasets.write(name, missing) if missing else {}


def with_captions(pictures: Iterable[Path]) -> tuple[Path, ...]:
    """The pictures, each followed by its caption where there is one."""
    found: dict[Path, None] = {}
    for picture in pictures:
        found[picture] = None
        caption = picture.with_suffix(CAPTION_ENDING)
        if caption.is_file():
            found[caption] = None
    return tuple(found)
