"""Checkpoints from URLs: fetched into the object store part by part, outside of any request.

One runner at a time has an import (see `leases`). Whatever becomes of a runner, the next one goes
on from the parts that have arrived. Every part but a file's last has the same size, so part n has
the same bytes whoever wrote it, even a runner that has lost its lease and does not know yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

from middleware_api.contract import (
    MIB,
    PAGE_MAX,
    PARTS_MAX,
    CheckpointState,
    CheckpointStep,
    CheckpointType,
    PartTag,
    checkpoint_key,
    is_weights_name,
    weights_name,
)
from middleware_api.errors import ContentDiffers, FileRefused, NotFound, ServiceError, StaleRecord
from middleware_api.ports import Objects, Records, Runners
from middleware_api.records import Checkpoint, CheckpointFile, ImportSource
from middleware_api.remote_files import Download, FetchRefused, RemoteFiles, shown_url
from middleware_api.services.access import Principal
from middleware_api.services.admission import AdmissionService
from middleware_api.services.checkpoints import CheckpointService
from middleware_api.services.idempotency import claim_id
from middleware_api.services.leases import Lease, take
from middleware_api.services.uploads import Uploads

logger = logging.getLogger(__name__)

# A runner holds one part in memory. At the slowest pace that `FetchPolicy` allows, a part takes
# nine minutes: less than a runner of 15 minutes has.
PART_BYTES = 8 * MIB
FILE_MAX_BYTES = PARTS_MAX * PART_BYTES

DEADLINE_SECONDS = 24 * 3600
HEARTBEAT_SECONDS = 2.0
RECONCILE_SECONDS = 60.0

FAILURES_ALLOWED = 5
RESTARTS_ALLOWED = 3
_BACKOFF_SECONDS = (2.0, 10.0, 30.0, 60.0, 120.0)


class ImportService:
    """Imports, from a list of URLs to an Active checkpoint or the reason why not."""

    def __init__(
        self,
        records: Records,
        objects: Objects,
        runners: Runners,
        fetcher: RemoteFiles,
        checkpoint_service: CheckpointService,
        admission_service: AdmissionService,
        clock: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self._records = records
        self._objects = objects
        self._uploads = Uploads(objects)
        self._runners = runners
        self._fetcher = fetcher
        self._checkpoint_service = checkpoint_service
        self._admission_service = admission_service
        self._clock = clock
        self._new_id = new_id

    def create(
        self,
        caller: Principal,
        kind: CheckpointType,
        urls: list[str],
        params: dict[str, object],
        idempotency_key: str | None,
        keep_original: bool = False,
    ) -> Checkpoint:
        """Begin to import the files at `urls` as one checkpoint. The same key and body a second
        time answer with the first one. Raises UrlRefused.
        """
        body: dict[str, object] = {"type": kind.value, "urls": urls, "params": params}
        checkpoint_id = claim_id(self._records, caller, idempotency_key, body, self._new_id())
        if (first := self._existing(checkpoint_id)) is not None:
            return first
        now = self._clock()
        checkpoint = Checkpoint(
            id=checkpoint_id,
            owner=caller.name,
            created_at=now,
            check_at=now + RECONCILE_SECONDS,
            type=kind,
            state=CheckpointState.INITIAL,
            files=(),
            params=params,
            keep_original=keep_original,
            sources=tuple(ImportSource(url=url, shown_url=shown_url(url)) for url in urls),
        )
        self._records.add(checkpoint)
        self._runners.begin(checkpoint.id)
        return checkpoint

    def go_on(self, checkpoint_id: str, enough: Callable[[], bool]) -> bool:
        """Go on with an import until it has ended, or until `enough` says so.

        Returns False when `enough` came first: call again. True is that nothing is to be done
        now: it has ended, another runner has it, or the reconciler will begin its next try.
        """
        checkpoint = take(self._records, self._clock, checkpoint_id, CheckpointStep.IMPORTING)
        if checkpoint is None:
            return True
        run = _Run(self._records, self._clock, checkpoint, enough)
        try:
            self._run(run)
        except _Enough:
            logger.info("import %s stopped; it goes on later", checkpoint_id)
            return False
        except StaleRecord:
            # Given up, deleted, or in another runner's hands: the record tells.
            self._clear_up(run.checkpoint)
        return True

    def reconcile(self, checkpoint: Checkpoint) -> None:
        """Begin what nobody runs; end what has taken too long."""
        if self._clock() > checkpoint.created_at + DEADLINE_SECONDS:
            self._checkpoint_service.fail(checkpoint, _overdue(checkpoint))
            return
        self._records.update(replace(checkpoint, check_at=self._clock() + RECONCILE_SECONDS))
        self._runners.begin(checkpoint.id)

    def recover(self) -> None:
        """Go on with all imports at once: for a start at which no other runner can be alive."""
        cursor = None
        while True:
            page = self._records.page(
                Checkpoint, states=[CheckpointState.INITIAL.value], limit=PAGE_MAX, cursor=cursor
            )
            for checkpoint in page.items:
                if checkpoint.step is CheckpointStep.IMPORTING:
                    self._records.update(replace(checkpoint, leased_until=0.0))
                    self._runners.begin(checkpoint.id)
            cursor = page.next_cursor
            if cursor is None:
                return

    def _existing(self, checkpoint_id: str) -> Checkpoint | None:
        try:
            return self._records.get(Checkpoint, checkpoint_id)
        except NotFound:
            return None

    def _run(self, run: _Run) -> None:
        """Raises _Enough, and StaleRecord when the import is in other hands."""
        try:
            self._ask_hosts(run)
            for index in range(len(run.checkpoint.files)):
                run.turn_to(index)
                if run.file.upload_id:
                    self._transfer(run)
            self._admission_service.admit(run.checkpoint)
        except (_Enough, StaleRecord):
            raise
        except (FetchRefused, ContentDiffers, FileRefused) as refusal:
            self._fail(run, refusal.message)
        except ServiceError as fault:
            self._try_later(run, fault.message)
        except Exception as fault:
            logger.exception("import %s", run.checkpoint.id)
            kind = type(fault).__name__
            self._try_later(run, f"A fault in the server ({kind}: {fault}); see its log.")
        else:
            logger.info("import %s has arrived", run.checkpoint.id)

    def _ask_hosts(self, run: _Run) -> None:
        """Learn all names and sizes before the first byte, so that what cannot work fails early."""
        for index in range(len(run.checkpoint.sources)):
            run.turn_to(index)
            if run.source.name:
                continue
            run.require_time()
            with self._fetcher.open(run.source.url) as download:
                name = weights_name(download.file_name)
                if not is_weights_name(name):
                    raise FetchRefused(
                        f"The file at {run.source.shown_url} is named '{name}', and weights are "
                        "only .safetensors, .ckpt, .pt, .pth and .bin files. Check the link."
                    )
                asked = replace(run.source, name=name, size=download.size)
            run.note_source(replace(asked, failures=0))
        if not run.checkpoint.files:
            self._start_uploads(run)

    def _start_uploads(self, run: _Run) -> None:
        checkpoint = run.checkpoint
        by_name: dict[str, ImportSource] = {}
        for source in checkpoint.sources:
            twin = by_name.setdefault(source.name, source)
            if twin is not source:
                raise FetchRefused(
                    f"{twin.shown_url} and {source.shown_url} are both named '{source.name}'. "
                    "Files of one checkpoint need different names; import them one by one."
                )
        files = tuple(self._started(checkpoint, source) for source in checkpoint.sources)
        try:
            run.note(replace(checkpoint, files=files))
        except StaleRecord:
            self._uploads.abort(files)
            raise

    def _started(self, checkpoint: Checkpoint, source: ImportSource) -> CheckpointFile:
        key = checkpoint_key(checkpoint.type, checkpoint.id, source.name)
        return CheckpointFile(
            name=source.name,
            key=key,
            upload_id=self._objects.start_multipart(key, PART_BYTES),
            parts=0,
            part_size=PART_BYTES,
            size=source.size,
        )

    def _transfer(self, run: _Run) -> None:
        """Fetch what is missing of one file, and make an object of its parts."""
        tags, arrived = self._arrived(run)
        if arrived == 0 or arrived != run.file.size:
            source = run.source
            with self._fetcher.open(source.url, arrived, source.validator) as download:
                if download.offset != arrived:
                    self._start_anew(run)
                    tags = []
                run.note_source(
                    replace(
                        run.source,
                        size=download.size,
                        validator=download.validator,
                        received=download.offset,
                    ),
                    replace(run.file, size=download.size),
                )
                tags = self._store(run, download, tags)
        if not tags:
            raise FetchRefused(f"The file at {run.source.shown_url} is empty. Check the link.")
        for (done,) in self._uploads.complete((run.file,), {run.file.name: tags}):
            size = done.size
            run.note_source(replace(run.source, size=size, received=size or 0), done)

    def _arrived(self, run: _Run) -> tuple[list[PartTag], int]:
        """The parts that need not be fetched again, and how many bytes they have.

        A shorter last part counts when it completes the file, else it is written again.
        """
        file = run.file
        try:
            parts = self._objects.arrived_parts(file.key, file.upload_id)
        except NotFound:  # the store forgets uploads that are never finished
            self._start_anew(run)
            return [], 0
        tags: list[PartTag] = []
        arrived = 0
        for part in parts:
            completes = arrived + part.size == file.size
            if part.number != len(tags) + 1 or not (part.size == file.part_size or completes):
                break
            tags.append(PartTag(PartNumber=part.number, ETag=part.etag))
            arrived += part.size
        return tags, arrived

    def _store(self, run: _Run, download: Download, tags: list[PartTag]) -> list[PartTag]:
        """Write what arrives behind the parts of `tags`; returns the tags of all."""
        file, tags = run.file, list(tags)
        for content in _in_parts(run.watched(download.chunks()), file.part_size):
            number = len(tags) + 1
            etag = self._objects.write_part(file.key, file.upload_id, number, content)
            tags.append(PartTag(PartNumber=number, ETag=etag))
            run.has_stored = True
        return tags

    def _start_anew(self, run: _Run) -> None:
        """Drop a file's parts, which are of no use any more. Raises FetchRefused too often."""
        source, old = run.source, run.file
        if source.restarts >= RESTARTS_ALLOWED:
            raise FetchRefused(
                f"The download from {source.shown_url} was interrupted {source.restarts + 1} "
                "times, and its host cannot go on with an interrupted one, or changes the file. "
                "Download the file yourself and upload it."
            )
        new = replace(old, upload_id=self._objects.start_multipart(old.key, old.part_size))
        try:
            run.note_source(replace(source, restarts=source.restarts + 1, received=0), new)
        except StaleRecord:
            self._uploads.abort([new])
            raise
        self._uploads.abort([old])

    def _try_later(self, run: _Run, reason: str) -> None:
        source = run.source
        failures = 1 if run.has_stored else source.failures + 1
        if failures > FAILURES_ALLOWED:
            self._fail(run, f"{reason} (It was tried {failures} times.)")
            return
        logger.info("import %s: try %d: %s", run.checkpoint.id, failures, reason)
        run.set_source(replace(source, failures=failures))
        run.release(_BACKOFF_SECONDS[failures - 1])

    def _fail(self, run: _Run, reason: str) -> None:
        logger.info("import %s failed: %s", run.checkpoint.id, reason)
        self._checkpoint_service.fail(run.checkpoint, reason)

    def _clear_up(self, checkpoint: Checkpoint) -> None:
        """Whoever ended the import did not know of the part that was on its way."""
        latest = self._existing(checkpoint.id)
        if latest is None or latest.state is CheckpointState.FAILED:
            self._checkpoint_service.forget_bytes(checkpoint)


class _Enough(Exception):
    """The runner's time is over; what has been stored stays."""


class _Run(Lease):
    """A runner's hold on an import, and the file that it is at."""

    def __init__(
        self,
        records: Records,
        clock: Callable[[], float],
        checkpoint: Checkpoint,
        enough: Callable[[], bool],
    ) -> None:
        super().__init__(records, clock, checkpoint)
        self.has_stored = False
        self._enough = enough
        self._index = 0
        self._beat_at = 0.0

    @property
    def source(self) -> ImportSource:
        """Where the file comes from."""
        return self.checkpoint.sources[self._index]

    @property
    def file(self) -> CheckpointFile:
        """Where it goes."""
        return self.checkpoint.files[self._index]

    def turn_to(self, index: int) -> None:
        """From now on this file is at hand."""
        self._index = index
        self.has_stored = False

    def note(self, checkpoint: Checkpoint) -> None:
        """Write the import's new state."""
        super().note(checkpoint)
        self._beat_at = self._clock() + HEARTBEAT_SECONDS

    def note_source(self, source: ImportSource, file: CheckpointFile | None = None) -> None:
        """Write what is new of the file at hand."""
        self.set_source(source)
        files = list(self.checkpoint.files)
        if file is not None:
            files[self._index] = file
        self.note(replace(self.checkpoint, files=tuple(files)))

    def set_source(self, source: ImportSource) -> None:
        """What the next write is to tell of the source at hand."""
        sources = list(self.checkpoint.sources)
        sources[self._index] = source
        self.checkpoint = replace(self.checkpoint, sources=tuple(sources))

    def require_time(self) -> None:
        """Raises _Enough after letting go of the import, FetchRefused beyond its deadline."""
        if self._enough():
            self.release(0.0)
            raise _Enough
        if self._clock() > self.checkpoint.created_at + DEADLINE_SECONDS:
            raise FetchRefused(_overdue(self.checkpoint))

    def watched(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The same chunks, counted, with heartbeats and an end when time is over."""
        received = self.source.received
        for chunk in chunks:
            received += len(chunk)
            self.set_source(replace(self.source, received=received))
            if self._clock() >= self._beat_at:
                self.note(self.checkpoint)
            self.require_time()
            yield chunk


def progress(checkpoint: Checkpoint) -> float | None:
    """0..1 of an import's bytes; None for an upload, and where a host does not tell its size."""
    if not checkpoint.sources:
        return None
    if checkpoint.state in (CheckpointState.ACTIVE, CheckpointState.DISABLED):
        return 1.0
    if not all(source.name for source in checkpoint.sources):
        return 0.0
    sizes = [source.size for source in checkpoint.sources if source.size is not None]
    if len(sizes) < len(checkpoint.sources):
        return None
    return min(1.0, sum(source.received for source in checkpoint.sources) / max(1, sum(sizes)))


def _overdue(checkpoint: Checkpoint) -> str:
    received = sum(source.received for source in checkpoint.sources)
    return (
        f"The import was not finished within {DEADLINE_SECONDS // 3600} hours; {received} bytes "
        "had arrived. Start it again, or download the files yourself and upload them."
    )


def _in_parts(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    """The same bytes in parts of exactly `size`, but for the last."""
    held = bytearray()
    for chunk in chunks:
        held += chunk
        while len(held) >= size:
            with memoryview(held) as view, view[:size] as part:
                content = bytes(part)
            del held[:size]
            yield content
    if held:
        yield bytes(held)
