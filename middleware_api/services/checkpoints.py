"""Uploading checkpoints, and finding the one that a request names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType

from middleware_api.contract import (
    CHECKPOINT_TRANSITIONS,
    CheckpointState,
    CheckpointStep,
    CheckpointType,
    PartTag,
    cancel_key,
    checkpoint_key,
    conversion_id,
    is_in_checkpoint_folder,
)
from middleware_api.errors import Conflict, InvalidRequest, NotFound, StaleRecord
from middleware_api.ports import Objects, Page, Records
from middleware_api.records import Checkpoint, CheckpointFile, UsedCheckpoint
from middleware_api.services.access import Principal
from middleware_api.services.checkpoint_names import CheckpointNames, name_taken
from middleware_api.services.uploads import (
    UPLOAD_DEADLINE_SECONDS,
    NewFile,
    Upload,
    Uploads,
    require_hashable,
    tags_by_file,
)

# How long binding a checkpoint's names may take before the reconciler does it.
FINDABLE_SECONDS = 60.0
# How long the bytes of one stay whose conversion came to nothing, but not by their fault.
RETRY_SECONDS = 24 * 3600.0


class CheckpointService:
    """Weights files, from the first part to the name in a request."""

    def __init__(
        self,
        records: Records,
        objects: Objects,
        clock: Callable[[], float],
        new_id: Callable[[], str],
    ) -> None:
        self._records = records
        self._objects = objects
        self._uploads = Uploads(objects)
        self._names = CheckpointNames(records)
        self._clock = clock
        self._new_id = new_id

    def create(
        self,
        caller: Principal,
        kind: CheckpointType,
        files: list[NewFile],
        params: dict[str, object],
        keep_original: bool = False,
    ) -> tuple[Checkpoint, list[Upload]]:
        """Begin an upload; a single file whose content is known already is not sent again.

        Its unfinished upload by the same owner goes on where it stopped. With `keep_original`
        files that must be converted stay as they came too. Raises FileRefused for a file that is
        larger than what can be checked.
        """
        for file in files:
            require_hashable(self._objects, file.name, file.size or 0)
        if known := self._names.same_content(caller.name, kind, files):
            is_open = known.state is CheckpointState.INITIAL and known.arrived_at is None
            return known, self.missing_parts(known) if is_open else []
        checkpoint_id = self._new_id()
        now = self._clock()
        checkpoint = Checkpoint(
            id=checkpoint_id,
            owner=caller.name,
            created_at=now,
            check_at=now + UPLOAD_DEADLINE_SECONDS,
            type=kind,
            state=CheckpointState.INITIAL,
            files=tuple(
                self._uploads.start(checkpoint_key(kind, checkpoint_id, file.name), file)
                for file in files
            ),
            params=params,
            keep_original=keep_original,
        )
        self._records.add(checkpoint)
        if len(files) == 1 and files[0].sha256:
            self._names.note_begun(checkpoint, files[0])
        return checkpoint, self.missing_parts(checkpoint)

    def adopt(
        self, checkpoint_id: str, owner: str, kind: CheckpointType, hashes: Mapping[str, str]
    ) -> Checkpoint:
        """Make an Active checkpoint of finished objects, where they lie.

        `hashes` are their SHA-256 by their keys, empty where not known. The same id a second time
        changes nothing.
        """
        checkpoint = Checkpoint(
            id=checkpoint_id,
            owner=owner,
            created_at=self._clock(),
            type=kind,
            state=CheckpointState.ACTIVE,
            files=tuple(self.finished(key, sha256) for key, sha256 in hashes.items()),
        )
        with suppress(Conflict):  # we died between adopting it and saying so
            self._records.add(checkpoint)
        self._names.show(checkpoint)
        return checkpoint

    def finished(self, key: str, sha256: str) -> CheckpointFile:
        """A finished object as a checkpoint's file."""
        return CheckpointFile(
            name=key.rpartition("/")[2],
            key=key,
            upload_id="",
            parts=0,
            part_size=0,
            size=self._objects.size(key),
            sha256=sha256 or None,
        )

    def drop_unless_adopted(self, checkpoint_id: str, kind: CheckpointType) -> None:
        """Delete the objects that were to become a checkpoint, and have not."""
        try:
            self.get(checkpoint_id)
        except NotFound:
            self._objects.delete_all(checkpoint_key(kind, checkpoint_id, ""))

    def get(self, checkpoint_id: str) -> Checkpoint:
        """Raises NotFound."""
        return self._records.get(Checkpoint, checkpoint_id)

    def page(
        self,
        states: Collection[CheckpointState],
        kinds: Collection[CheckpointType],
        limit: int,
        cursor: str | None,
    ) -> Page[Checkpoint]:
        """Newest first."""
        return self._records.page(
            Checkpoint,
            states=[s.value for s in states],
            labels=[k.value for k in kinds],
            limit=limit,
            cursor=cursor,
        )

    def get_own(self, caller: Principal, checkpoint_id: str) -> Checkpoint:
        """To change it: raises Forbidden when it is another user's, NotFound."""
        checkpoint = self.get(checkpoint_id)
        caller.require_own(checkpoint)
        return checkpoint

    def delete(self, checkpoint: Checkpoint) -> None:
        """Forget a checkpoint and its bytes; jobs that have not begun with it will fail."""
        runs = checkpoint.sources or checkpoint.arrived_at is not None
        if runs and checkpoint.state is CheckpointState.INITIAL:
            # First, or its runner would go on for a while.
            try:
                checkpoint = self._give_up(checkpoint)
            except Conflict:  # it has just ended of itself
                checkpoint = self.get(checkpoint.id)
        self._names.hide(checkpoint)
        # The record goes last: a deletion that was cut short can be asked for again.
        self.forget_bytes(checkpoint)
        self._records.remove(checkpoint)

    def forget_bytes(self, checkpoint: Checkpoint) -> None:
        """Delete what has arrived of its files; again is no error."""
        self._uploads.abort(checkpoint.files)
        folders = set()
        for file in checkpoint.files:
            if is_in_checkpoint_folder(file.key):
                folders.add(file.key.rpartition("/")[0] + "/")
            else:  # it lies among what else its training has written
                self._objects.delete(file.key)
        if checkpoint.arrived_at is not None:  # what came, and what was made of it
            attempts = range(1, checkpoint.conversion + 1)
            made = (conversion_id(checkpoint.id, attempt) for attempt in attempts)
            folders |= {checkpoint_key(checkpoint.type, one, "") for one in (checkpoint.id, *made)}
        for folder in folders:
            self._objects.delete_all(folder)

    def missing_parts(self, checkpoint: Checkpoint) -> list[Upload]:
        """Fresh URLs for what has not arrived, file by file."""
        if checkpoint.state is not CheckpointState.INITIAL:
            raise Conflict(
                f"Checkpoint '{checkpoint.id}' is {checkpoint.state.value}: nothing is left to "
                "upload. Only a checkpoint in state Initial takes parts.",
                "not_uploading",
            )
        _require_upload(checkpoint)
        if checkpoint.arrived_at is not None:
            raise Conflict(
                f"Nothing is left to upload of checkpoint '{checkpoint.id}'. "
                f"{checkpoint.waits_for}",
                "not_uploading",
            )
        return self._uploads.missing_parts(checkpoint.files)

    def assemble(
        self,
        checkpoint: Checkpoint,
        tags: dict[str, list[PartTag]],
        hashes: Mapping[str, str] = MappingProxyType({}),
    ) -> Checkpoint:
        """Make objects of the uploaded parts. Raises ContentDiffers for bytes that are not the
        announced ones.

        `hashes` are SHA-256 by file name that were not known when it began.
        """
        self._require(checkpoint, CheckpointState.ACTIVE)
        _require_upload(checkpoint)
        by_file = tags_by_file(f"Checkpoint '{checkpoint.id}'", checkpoint.files, tags)
        checkpoint = self._with_hashes(checkpoint, hashes)
        for files in self._uploads.complete(checkpoint.files, by_file):
            checkpoint = self._records.update(replace(checkpoint, files=files))
        return checkpoint

    def _with_hashes(self, checkpoint: Checkpoint, hashes: Mapping[str, str]) -> Checkpoint:
        if not hashes:
            return checkpoint
        known = {file.name: file.sha256 for file in checkpoint.files}
        for name, sha256 in hashes.items():
            if name not in known:
                raise InvalidRequest(
                    f"Checkpoint '{checkpoint.id}' has no file '{name}'.", ("body", "sha256", name)
                )
            if (announced := known[name]) is not None and announced != sha256:
                raise Conflict(
                    f"File '{name}' was announced with sha256 {announced}, and now {sha256}: it "
                    "changed meanwhile. Start its upload again.",
                    "content_differs",
                )
        return replace(
            checkpoint,
            files=tuple(replace(f, sha256=hashes.get(f.name, f.sha256)) for f in checkpoint.files),
        )

    def activate(self, checkpoint: Checkpoint) -> Checkpoint:
        """Let requests name a checkpoint whose files are all in place and were examined."""
        # Due until its names are bound: whoever dies in between leaves that to the reconciler.
        active = self._records.update(
            replace(
                _ended(checkpoint),
                state=CheckpointState.ACTIVE,
                error="",
                check_at=self._clock() + FINDABLE_SECONDS,
            )
        )
        self._names.show(active)
        return self._records.update(replace(active, check_at=None))

    def fail(self, checkpoint: Checkpoint, reason: str) -> Checkpoint:
        """End an upload or import that comes to nothing; what has arrived of it goes."""
        failed = self._records.update(
            replace(_ended(checkpoint), state=CheckpointState.FAILED, error=reason)
        )
        self.forget_bytes(failed)
        return failed

    def fail_for_now(self, checkpoint: Checkpoint, reason: str) -> Checkpoint:
        """End one whose bytes are good for another try, until they go too."""
        kept_until = self._clock() + RETRY_SECONDS
        return self._records.update(
            replace(
                _ended(checkpoint),
                state=CheckpointState.FAILED,
                error=reason,
                check_at=kept_until,
            )
        )

    def rename(self, checkpoint: Checkpoint, old: str, new: str) -> Checkpoint:
        """Give a file another name. Its object stays where it is, so that jobs which were
        submitted with the old name find it.

        Raises Conflict where it has not become Active yet, and for a name in use.
        """
        file = _file_named(checkpoint, old)
        if checkpoint.state not in (CheckpointState.ACTIVE, CheckpointState.DISABLED):
            raise Conflict(
                f"Checkpoint '{checkpoint.id}' is {checkpoint.state.value}. Rename it when it is "
                "Active.",
                "state_not_allowed",
            )
        if new == file.name:
            return checkpoint
        if any(new in each.names for each in checkpoint.files):
            raise name_taken(checkpoint, new)
        files = tuple(
            replace(each, name=new) if each is file else each for each in checkpoint.files
        )
        with self._names.taking(checkpoint, new):
            # Due until its names are bound, as when it became Active.
            due = self._clock() + FINDABLE_SECONDS
            renamed = self._records.update(replace(checkpoint, files=files, check_at=due))
        self._names.hide(checkpoint)
        if renamed.state is CheckpointState.ACTIVE:
            self._names.show(renamed)
        else:
            self._names.hide(renamed)
        return self._records.update(replace(renamed, check_at=None))

    def set_state(self, checkpoint: Checkpoint, state: CheckpointState) -> Checkpoint:
        """Disable, enable again, or give an upload up."""
        if checkpoint.state is state:
            return checkpoint
        if checkpoint.state is CheckpointState.INITIAL and state is CheckpointState.ACTIVE:
            if checkpoint.arrived_at is not None:
                return checkpoint  # it will be, once it is converted
            _require_upload(checkpoint)
            raise Conflict(
                f"Checkpoint '{checkpoint.id}' is still uploading. Send multi_parts_tags with "
                f"the ETags of its parts: {', '.join(f.name for f in checkpoint.files)}.",
                "parts_missing",
            )
        if state is CheckpointState.FAILED:
            return self._give_up(checkpoint)
        self._require(checkpoint, state)
        if state is CheckpointState.ACTIVE:
            return self.activate(checkpoint)
        disabled = self._records.update(replace(checkpoint, state=state, check_at=None))
        self._names.hide(disabled)
        return disabled

    def resolve(self, kind: CheckpointType, name: str) -> UsedCheckpoint:
        """The Active checkpoint of that name; the newest when there are several.

        Raises NotFound, which names it.
        """
        if (used := self.find(kind, name)) is not None:
            return used
        raise NotFound(
            f"There is no Active {kind.value} checkpoint named '{name}'. Upload it first, or "
            "choose one that GET /checkpoints?status=Active lists.",
            "checkpoint_not_found",
        )

    def find(self, kind: CheckpointType, name: str) -> UsedCheckpoint | None:
        """What `resolve` finds, or None."""
        return self._names.find(kind, name)

    def reconcile(self, checkpoint: Checkpoint) -> None:
        """Bind the names of one that became Active and got no further; end an upload whose
        deadline has passed; forget the bytes of one that failed and was not tried again."""
        if checkpoint.state is not CheckpointState.INITIAL:
            if checkpoint.state is CheckpointState.ACTIVE:
                self._names.show(checkpoint)
            elif checkpoint.state is CheckpointState.FAILED:  # nobody tried it again
                self.forget_bytes(checkpoint)
            self._records.update(replace(checkpoint, check_at=None))
            return
        hours = UPLOAD_DEADLINE_SECONDS // 3600
        self.fail(
            checkpoint,
            f"The upload was not finished within {hours} hours: "
            f"{self._uploads.told(checkpoint.files)}. Start it again.",
        )

    def _give_up(self, checkpoint: Checkpoint) -> Checkpoint:
        what = "import" if checkpoint.sources else "upload"
        if checkpoint.step is CheckpointStep.CONVERTING:
            self._objects.write(cancel_key(checkpoint.conversion_id), b"")
        while True:
            self._require(checkpoint, CheckpointState.FAILED)
            with suppress(StaleRecord):  # its runner has noted progress meanwhile
                return self.fail(checkpoint, f"The {what} was given up by its owner.")
            checkpoint = self.get(checkpoint.id)

    def _require(self, checkpoint: Checkpoint, state: CheckpointState) -> None:
        if state not in CHECKPOINT_TRANSITIONS[checkpoint.state]:
            allowed = sorted(s.value for s in CHECKPOINT_TRANSITIONS[checkpoint.state])
            raise Conflict(
                f"Checkpoint '{checkpoint.id}' is {checkpoint.state.value} and cannot become "
                f"{state.value}; from here it can become: {', '.join(allowed) or 'nothing'}.",
                "state_not_allowed",
            )


def _file_named(checkpoint: Checkpoint, name: str) -> CheckpointFile:
    """Its file of that name; with "" its only one. Raises InvalidRequest."""
    names = [file.name for file in checkpoint.files]
    if name in names or (not name and len(names) == 1):
        return checkpoint.files[names.index(name) if name else 0]
    raise InvalidRequest(
        f"Say which file of checkpoint '{checkpoint.id}' is meant; it has: {', '.join(names)}.",
        ("body", "filename"),
    )


def _require_upload(checkpoint: Checkpoint) -> None:
    if checkpoint.sources and checkpoint.state is CheckpointState.INITIAL:
        raise Conflict(
            f"Checkpoint '{checkpoint.id}' is being imported: the server fetches its files itself, "
            "and makes it Active at the end. GET /checkpoint tells how far it is.",
            "importing",
        )


def _ended(checkpoint: Checkpoint) -> Checkpoint:
    """Nobody runs it or looks after it any more, and the tokens in its URLs are forgotten."""
    sources = tuple(replace(source, url="") for source in checkpoint.sources)
    return replace(checkpoint, check_at=None, leased_until=0.0, waits_for="", sources=sources)
