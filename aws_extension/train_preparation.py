"""From the Training page's one click to a job that trains: uploads, the model, the job.

It runs in the host's process: the browser may be closed meanwhile. When the host is stopped, what
was sent stays in the cloud, and the same click again goes on from there.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from aws_extension.client import CloudClient
from aws_extension.dataset_folder import pictures_in, send_folder
from aws_extension.errors import Cancelled, CloudError, UploadFailed
from aws_extension.known_hashes import KnownHashes
from aws_extension.training_calls import NewTrainJob
from aws_extension.uploader import upload_checkpoint
from middleware_api.contract import CheckpointType, ModelState, TrainState

MODEL_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class TrainOrder:
    """What to train. The base is one of a Complete model, an Active checkpoint, or a local file.

    `config` is `config_params` without its concepts; `concepts` are its `concepts_list`, whose
    `instance_data_dir` and `class_data_dir` may be folders of this machine.
    """

    model_name: str
    instance_type: str
    config: Mapping[str, Any]
    concepts: tuple[Mapping[str, Any], ...]
    model_id: str = ""
    checkpoint_id: str = ""
    path: Path | None = None


@dataclass(frozen=True)
class Preparation:
    """One order under way, or failed. `words` are a sentence of the pages, `value` what varies."""

    id: str
    user: str
    order: TrainOrder
    words: str = "Asking the server…"
    value: str = ""
    fraction: float | None = None
    error: str = ""


@dataclass
class TrainPreparations:
    """Those of one host. What has become a job leaves it."""

    client: Callable[[str], CloudClient]
    state_folder: Path
    hashes: KnownHashes
    _all: dict[str, Preparation] = field(default_factory=dict)
    _cancelled: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, user: str) -> tuple[Preparation, ...]:
        """In the order in which they came."""
        with self._lock:
            return tuple(one for one in self._all.values() if one.user == user)

    def begin(self, order: TrainOrder, user: str) -> str:
        """Begin one; returns its id. Raises NotConfigured."""
        client = self.client(user)
        preparation = Preparation(uuid.uuid4().hex, user, order)
        with self._lock:
            self._all[preparation.id] = preparation
        threading.Thread(
            target=self._run, args=(preparation, client), name="sdaws-training", daemon=True
        ).start()
        return preparation.id

    def cancel(self, preparation_id: str, user: str) -> None:
        """Give one up, or forget one that has failed; what was sent stays in the cloud."""
        with self._lock:
            found = self._all.get(preparation_id)
            if found is None or found.user != user:
                return
            self._cancelled.add(preparation_id)
            if found.error:
                del self._all[preparation_id]

    def _run(self, preparation: Preparation, client: CloudClient) -> None:
        tell = _Teller(self, preparation)
        try:
            _prepare(client, preparation.order, self.state_folder, self.hashes, tell)
        except Cancelled:
            pass
        except CloudError as fault:
            self._note(replace(preparation, error=str(fault)))
            return
        except Exception as fault:  # the thread's edge: an order must not vanish silently
            self._note(replace(preparation, error=f"{type(fault).__name__}: {fault}"))
            raise
        with self._lock:
            self._all.pop(preparation.id, None)

    def _note(self, preparation: Preparation) -> None:
        with self._lock:
            self._all[preparation.id] = preparation

    def is_cancelled(self, preparation_id: str) -> bool:
        """Whether its user has given it up."""
        return preparation_id in self._cancelled

    def told(self, preparation: Preparation) -> None:
        """How far one is."""
        self._note(preparation)


@dataclass(frozen=True)
class _Teller:
    preparations: TrainPreparations
    preparation: Preparation

    def __call__(self, words: str, value: str = "", fraction: float | None = None) -> None:
        """Raises Cancelled."""
        if self.should_cancel():
            raise Cancelled("It was given up.")
        self.preparations.told(
            replace(self.preparation, words=words, value=value, fraction=fraction)
        )

    def should_cancel(self) -> bool:
        return self.preparations.is_cancelled(self.preparation.id)


def _prepare(
    client: CloudClient,
    order: TrainOrder,
    state_folder: Path,
    hashes: KnownHashes,
    tell: _Teller,
) -> None:
    model_id = order.model_id or _model(client, order, state_folder, hashes, tell)
    concepts = tuple(_concept(client, concept, tell) for concept in order.concepts)
    tell("The training is being started…")
    folders = [str(concept.get("instance_data_dir", "")) for concept in concepts]
    classes = [str(concept.get("class_data_dir", "")) for concept in concepts]
    params = {
        "training_params": {
            "training_instance_type": order.instance_type,
            "data_tar_list": folders,
            "class_data_tar_list": classes,
        },
        "config_params": {**order.config, "concepts_list": list(concepts)},
    }
    job_id = client.training.create(NewTrainJob(model_id, params))
    client.training.set_state(job_id, TrainState.TRAINING)


def _model(
    client: CloudClient,
    order: TrainOrder,
    state_folder: Path,
    hashes: KnownHashes,
    tell: _Teller,
) -> str:
    checkpoint_id = order.checkpoint_id
    if order.path is not None:
        name = order.path.name
        checkpoint_id = upload_checkpoint(
            client,
            order.path,
            CheckpointType.STABLE_DIFFUSION,
            hashes=hashes,
            state_folder=state_folder,
            on_progress=lambda progress: tell(
                "The checkpoint is being uploaded:",
                f"{name}, {progress.describe()}",
                progress.fraction,
            ),
            should_cancel=tell.should_cancel,
        ).id
    known = [
        model
        for model in client.training.list_models((ModelState.COMPLETE, ModelState.CREATING))
        if model.checkpoint_id == checkpoint_id
    ]
    model_id = (
        known[0].id if known else client.training.create_model(order.model_name, checkpoint_id)
    )
    while True:
        model = next((m for m in client.training.list_models() if m.id == model_id), None)
        if model is None or model.state is ModelState.FAILED:
            reason = model.error if model else "it was deleted meanwhile."
            raise UploadFailed(f"The model '{order.model_name}' could not be made: {reason}")
        if model.state is ModelState.COMPLETE:
            return model_id
        tell("The model is being made:", model.name, model.progress)
        client.retries.sleep(MODEL_POLL_SECONDS)


def _concept(client: CloudClient, concept: Mapping[str, Any], tell: _Teller) -> dict[str, Any]:
    """The concept, its folders of this machine sent as data sets."""
    made = dict(concept)
    for field_name in ("instance_data_dir", "class_data_dir"):
        folder = str(made.get(field_name) or "")
        if not folder or folder.startswith("s3://"):
            continue
        path = Path(folder).expanduser()
        if field_name == "class_data_dir" and not (path.is_dir() and pictures_in(path)):
            del made[field_name]  # where the extension would put those that it makes
            continue
        name = send_folder(
            client,
            path,
            lambda done, total: tell(
                "The pictures are being uploaded:", f"{done} / {total}", done / total
            ),
            tell.should_cancel,
        )
        made[field_name] = f"s3:///dataset/{name}"
    return made
