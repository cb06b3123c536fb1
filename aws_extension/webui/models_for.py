"""Before a generation is sent: its models are found in the cloud, or brought there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modules import shared

from aws_extension.answers import Checkpoint
from aws_extension.client import CloudClient
from aws_extension.errors import Cancelled, CloudError, ModelsNotInCloud, UploadFailed
from aws_extension.model_needs import (
    LocalFile,
    Need,
    RequestWalk,
    Resolution,
    describe_uploads,
    find_needs,
    parse_name,
    resolve,
)
from aws_extension.upload_progress import UploadProgress
from aws_extension.uploader import upload_checkpoint
from aws_extension.webui.choice import CloudChoice
from aws_extension.webui.local_models import HostModels
from middleware_api.contract import CheckpointState, CheckpointType
from middleware_api.weights_name import SHORT_HASH_DIGITS

# The bar of the WebUI counts steps.
_BAR_STEPS = 1000


@dataclass(frozen=True)
class PreparedModels:
    """What a generation's jobs are sent with.

    `models` is theirs as it is, the checkpoint first; in `fields` the models bear the cloud's
    names. `warnings` are for the user. `cloud` is what was found there.
    """

    models: dict[CheckpointType, list[str]]
    fields: dict[str, Any]
    warnings: tuple[str, ...]
    walk: RequestWalk
    names: Mapping[Need, str]
    sha256: Mapping[str, str]
    cloud: Sequence[Checkpoint]

    def shorthash(self, name: str) -> str | None:
        """A file's hash as infotexts have it; None when the cloud does not know it."""
        return self.sha256.get(name, "")[:SHORT_HASH_DIGITS] or None

    @property
    def checkpoint(self) -> str:
        """The file name of the checkpoint to sample with."""
        return self.models[CheckpointType.STABLE_DIFFUSION][0]

    def prompt(self, text: str) -> str:
        """A prompt with the cloud's names in it: the same text where they do not differ."""
        return self.walk.prompt(text, self.names.get)


def prepare_models(
    fields: Mapping[str, Any],
    choice: CloudChoice,
    client: CloudClient,
    prompts: Sequence[str] = (),
    state_folder: Path | None = None,
    known: Sequence[Checkpoint] = (),
) -> PreparedModels:
    """See to it that the cloud has what a generation names; once, before anything is sent.

    `fields` are the WebUI API's, `prompts` the further prompts of the same generation. The cloud is
    asked what it has only for what is not among the `known` checkpoints. A checkpoint in the
    override settings wins over the panel's. Raises ModelsNotInCloud when files are only here and
    the user has not agreed to send them; else uploads them, with the WebUI's bar, and Cancelled
    when the user stops that.
    """
    asked = fields.get("override_settings", {}).get("sd_model_checkpoint") or choice.checkpoint
    if not asked:
        raise CloudError(
            "No cloud checkpoint is chosen. Open “Generate in the cloud”, press its refresh "
            "button, and choose one; is the list empty, upload one in the Cloud tab."
        )
    local = HostModels()

    def look(cloud: Sequence[Checkpoint]) -> tuple[RequestWalk, Sequence[Need], Resolution]:
        walk = _walk_of(fields, cloud, local)
        needs = find_needs(walk, str(asked), fields, prompts)
        return walk, needs, resolve(needs, cloud, local)

    cloud = known or client.list_checkpoints([CheckpointState.ACTIVE])
    walk, needs, found = look(cloud)
    if known and (found.required or found.uploads or found.missing):
        cloud = client.list_checkpoints([CheckpointState.ACTIVE])
        walk, needs, found = look(cloud)
    if found.required:
        raise CloudError(_nowhere(found.required))
    if found.uploads:
        if not choice.upload_missing:
            raise ModelsNotInCloud(describe_uploads(found.uploads))
        sent = _upload(found.uploads, client, state_folder)
        cloud = client.list_checkpoints([CheckpointState.ACTIVE])
        found = resolve(needs, cloud, local, _names_of(sent, cloud))
        if found.uploads:
            gone = ", ".join(file.path.name for file in found.uploads)
            raise UploadFailed(f"{gone}: deleted in the cloud just after it was sent. Try again.")
    return PreparedModels(
        models=found.models,
        fields=walk.fields(fields, found.names.get),
        warnings=tuple(
            f"No {need.describe()} in the cloud or on this machine: the picture is made without it."
            for need in found.missing
        ),
        walk=walk,
        names=found.names,
        sha256={name: sha256 for c in cloud for name, sha256 in c.files},
        cloud=cloud,
    )


def _walk_of(
    fields: Mapping[str, Any], cloud: Sequence[Checkpoint], local: HostModels
) -> RequestWalk:
    """What tells a model's name from other words: the names that there are."""
    kinds = {kind.value: kind for kind in CheckpointType}
    there = [(name, kinds[c.type]) for c in cloud if c.type in kinds for name in c.names]
    words = {file.path.stem for file in local.of(CheckpointType.EMBEDDINGS)}
    words.update(Path(name).stem for name, kind in there if kind is CheckpointType.EMBEDDINGS)
    files: dict[str, CheckpointType] = {}
    if fields.get("alwayson_scripts"):
        files.update(reversed(there))
        for kind in CheckpointType:
            for file in local.of(kind):
                files.setdefault(file.path.name, kind)
                files.update((parse_name(n)[0], kind) for n in file.names if "." in n)
    return RequestWalk(frozenset(words), files)


def _nowhere(needs: Sequence[Need]) -> str:
    listed = ", ".join(need.describe() for need in needs)
    return (
        f"Neither in the cloud nor on this machine: {listed}. Choose another, or press the WebUI's "
        "refresh button if the file is new here. Nothing was sent."
    )


def _upload(
    files: Sequence[LocalFile], client: CloudClient, state_folder: Path | None
) -> dict[Path, str]:
    """Send the files one after another; the ids of their checkpoints."""
    state = shared.state
    total = sum(file.size for file in files)
    sent: dict[Path, str] = {}
    with _own_bar():
        for number, file in enumerate(files, start=1):
            before = sum(earlier.size for earlier in files[: number - 1])
            place = f" ({number} of {len(files)})" if len(files) > 1 else ""

            def show(
                progress: UploadProgress,
                head: str = f"Cloud: {file.path.name}{place}",
                before: int = before,
            ) -> None:
                state.textinfo = f"{head}: {progress.describe()}"
                if progress.phase != "hashing":
                    state.sampling_step = int(_BAR_STEPS * (before + progress.done) / total)

            sent[file.path] = _upload_one(file, client, state_folder, show)
    return sent


def _upload_one(
    file: LocalFile,
    client: CloudClient,
    state_folder: Path | None,
    show: Callable[[UploadProgress], None],
) -> str:
    state = shared.state
    try:
        made = upload_checkpoint(
            client,
            file.path,
            file.kind,
            sha256=file.sha256,
            state_folder=state_folder,
            on_progress=show,
            should_cancel=lambda: state.interrupted or state.skipped or state.stopping_generation,
        )
    except Cancelled as fault:
        raise Cancelled(
            f"The upload of '{file.path.name}' was stopped, and nothing was generated. What has "
            "arrived is kept: generate again to go on from there."
        ) from fault
    except (CloudError, OSError) as fault:
        raise UploadFailed(
            f"'{file.path.name}' could not be uploaded, and nothing was generated. {fault}"
        ) from fault
    return made.id


def _names_of(sent: Mapping[Path, str], cloud: Sequence[Checkpoint]) -> dict[Path, str]:
    """What the sent files are called: their content may have been there under another name."""
    names = {checkpoint.id: checkpoint.names for checkpoint in cloud}
    return {
        path: path.name if path.name in names[checkpoint_id] else names[checkpoint_id][0]
        for path, checkpoint_id in sent.items()
        if names.get(checkpoint_id)
    }


@contextmanager
def _own_bar() -> Iterator[None]:
    """The WebUI's progress bar for an upload; the generation finds it as it was."""
    state = shared.state
    kept = {
        name: getattr(state, name)
        for name in ("job_count", "job_no", "sampling_steps", "sampling_step")
    }
    state.job_count, state.job_no = 1, 0
    state.sampling_steps, state.sampling_step = _BAR_STEPS, 0
    state.skipped = False  # it meant the pictures before
    try:
        yield
    finally:
        state.textinfo = None
        for name, value in kept.items():
            setattr(state, name, value)
