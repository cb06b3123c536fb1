"""Sending a weights file: hash, ask, send the missing parts, complete.

A file whose hash nobody knows is hashed while it is sent, unless it may be in the cloud already.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from aws_extension.answers import Checkpoint as Checkpoint
from aws_extension.answers import CheckpointUpload, UploadPlan
from aws_extension.client import CloudClient
from aws_extension.errors import Cancelled, Conflict, NotFound, UnexpectedAnswer, UploadFailed
from aws_extension.known_hashes import FileHash, KnownHashes, stamp_of
from aws_extension.pace import Pace
from aws_extension.part_sender import part_lengths, plan_of, send_parts
from aws_extension.upload_notes import Note, Notes
from aws_extension.upload_progress import Meter, UploadProgress
from middleware_api.contract import (
    MIB,
    CheckpointState,
    CheckpointStep,
    CheckpointType,
    is_valid_name,
)

# Reading so much takes no longer than a question to the server.
HASH_FIRST_BYTES = 64 * MIB
WATCH_SECONDS = 0.2
ARRIVAL_POLL_SECONDS = 2.0

_STOPPED = "The upload was stopped. Start it again to go on from there."


def upload_checkpoint(
    client: CloudClient,
    path: Path,
    kind: CheckpointType,
    *,
    sha256: str = "",
    hashes: KnownHashes | None = None,
    state_folder: Path | None = None,
    pace: Pace | None = None,
    on_progress: Callable[[UploadProgress], None] = lambda progress: None,
    should_cancel: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> Checkpoint:
    """Upload one file and return its Active checkpoint; content that is there is not sent again.

    `sha256` spares the reading of a file whose hash is known, as do `hashes`. `state_folder`
    remembers an unfinished upload, so that the next call goes on with it. `pace` is what earlier
    uploads have learned of the line. Callbacks run in the calling thread. Raises UploadFailed,
    Cancelled or the API's errors; what has arrived stays on the server.
    """
    hashes = hashes or KnownHashes()
    # 1. Look at the file.
    size, stamp = _inspect(path)
    notes = Notes(state_folder, path, stamp, client.api_url)
    note = notes.read()
    sha256 = sha256 or (note.sha256 if note else "") or hashes.get(path)
    meter = Meter(size, clock)

    def watch() -> None:
        if should_cancel():
            raise Cancelled(_STOPPED)
        on_progress(meter.progress())

    # 2. Ask for its content, where it may be there; the hash tells the server what it has.
    upload = _resume(client, note) if note else None
    reading: FileHash | None = None
    try:
        if not sha256:
            reading = FileHash(path)
            if upload is None and _may_be_there(client, kind, size):
                sha256 = _read_through(reading, size, on_progress, should_cancel)
                hashes.put(path, stamp, sha256)
        if upload is None:
            pace = pace or Pace(clock)
            parts = -(-size // pace.part_size(size))
            upload = client.create_checkpoint(kind, path.name, size, sha256, parts)
        checkpoint = upload.checkpoint
        if checkpoint.state is CheckpointState.INITIAL and upload.plans:
            notes.write(Note(checkpoint.id, sha256))
            # 3. Send what is missing.
            plan = _checked_plan(client, upload, path.name, size)
            lengths = part_lengths(size, plan.part_size)
            meter.begin(sum(lengths[part.number] for part in plan.arrived))
            tags = send_parts(client, checkpoint.id, plan, path, meter, pace or Pace(clock), watch)
            if reading is not None and not sha256:
                sha256 = _read_through(reading, size, on_progress, should_cancel)
                hashes.put(path, stamp, sha256)
            # 4. Have it put together.
            on_progress(UploadProgress("finishing", size, size))
            checkpoint = client.complete_checkpoint(
                checkpoint.id, {path.name: tags}, {path.name: sha256}
            )
    finally:
        if reading is not None:
            reading.stop()
    notes.forget()
    # 5. It is checked there, and a file of torch converted, before it can be used.
    while checkpoint.state is CheckpointState.INITIAL and _is_at_work(client, checkpoint):
        if should_cancel():
            raise Cancelled("It is on the server, which goes on. Then it can be used.")
        is_checked = checkpoint.step is not CheckpointStep.CHECKING
        on_progress(UploadProgress("converting" if is_checked else "checking", size, size))
        client.retries.sleep(ARRIVAL_POLL_SECONDS)
        checkpoint = client.get_checkpoint(checkpoint.id)
    if checkpoint.state is not CheckpointState.ACTIVE:
        reason = checkpoint.error or checkpoint.message or "no reason was given."
        raise UploadFailed(
            f"'{path.name}' is on the server, but as {checkpoint.state.value}: {reason}"
        )
    on_progress(UploadProgress("done", size, size))
    return checkpoint


def _is_at_work(client: CloudClient, checkpoint: Checkpoint) -> bool:
    """Whether it goes on by itself: files of torch are converted where there is an endpoint."""
    return checkpoint.step is CheckpointStep.CHECKING or any(
        endpoint.is_ready for endpoint in client.list_endpoints()
    )


def give_up(client: CloudClient, path: Path, state_folder: Path) -> None:
    """Forget an unfinished upload, here and on the server. Raises CloudError."""
    _, stamp = _inspect(path)
    notes = Notes(state_folder, path, stamp, client.api_url)
    if (note := notes.read()) is not None:
        try:
            client.set_checkpoint_state(note.checkpoint_id, CheckpointState.FAILED)
            client.delete_checkpoint(note.checkpoint_id)
        except (NotFound, Conflict):
            pass  # it has ended meanwhile
        notes.forget()


def _inspect(path: Path) -> tuple[int, str]:
    """Size and stamp. Raises UploadFailed for what cannot be sent."""
    try:
        found = path.stat()
        stamp = stamp_of(path)
    except OSError as fault:
        raise UploadFailed(
            f"'{path}' cannot be read ({fault.strerror}). Check the path."
        ) from fault
    if not path.is_file():
        raise UploadFailed(f"'{path}' is no file. Give the path of one weights file.")
    if found.st_size == 0:
        raise UploadFailed(f"'{path.name}' is empty. Fetch the file again.")
    if not is_valid_name(path.name):
        raise UploadFailed(
            f"'{path.name}' cannot be its name in the cloud. Rename it: letters, digits, spaces "
            "and . _ - ( ) + [ ] are allowed, no dot at the start."
        )
    return found.st_size, stamp


def _may_be_there(client: CloudClient, kind: CheckpointType, size: int) -> bool:
    """Whether the hash is worth waiting for: the answer to it may be that nothing is to be sent."""
    return size <= HASH_FIRST_BYTES or any(
        known.may_have(size) for known in client.list_checkpoints((), [kind])
    )


def _read_through(
    reading: FileHash,
    size: int,
    on_progress: Callable[[UploadProgress], None],
    should_cancel: Callable[[], bool],
) -> str:
    """The hash, once it is there."""
    while not reading.wait(WATCH_SECONDS):
        if should_cancel():
            raise Cancelled(_STOPPED)
        on_progress(UploadProgress("hashing", reading.done, size))
    on_progress(UploadProgress("hashing", size, size))
    return reading.result()


def _checked_plan(
    client: CloudClient, upload: CheckpointUpload, filename: str, size: int
) -> UploadPlan:
    """A plan whose missing and arrived parts together are the file."""
    plan = plan_of(upload, filename)
    wanted = -(-size // plan.part_size) if plan.part_size > 0 else 0
    if len(plan.urls) + len(plan.arrived) != wanted:
        # An upload that goes on may be answered without its arrived parts: ask for them.
        plan = plan_of(client.upload_state(upload.checkpoint.id), filename)
        if len(plan.urls) + len(plan.arrived) != wanted:
            raise UnexpectedAnswer(
                f"The server's plan for '{filename}' does not add up to its size. Start the "
                "upload again."
            )
    return plan


def _resume(client: CloudClient, note: Note) -> CheckpointUpload | None:
    """The noted upload as the server sees it, or None when it is no longer open there."""
    try:
        return client.upload_state(note.checkpoint_id)
    except (NotFound, Conflict):
        return None
