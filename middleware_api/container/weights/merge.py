"""The task merge: checkpoints read piece by piece, and one written from front to back.

Nothing is held but a few pieces, so that files of any size can be merged beside a loaded model.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from middleware_api import contract
from middleware_api.container.errors import BadRequest, CheckpointUnreadable
from middleware_api.container.job import Answer, Job
from middleware_api.container.progress import Step
from middleware_api.container.storage import Sink, sha256_of
from middleware_api.container.weights.merge_plan import Ingredients, Source, plan_merge
from middleware_api.container.weights.tensor_file import (
    LazyTensor,
    TensorFile,
    header_of,
    open_tensor_file,
)
from middleware_api.contract import CheckpointType, MergedKind, MergeMethod, MergeOrder

# Large enough that Python costs little, small enough for a few to stay in the processor's caches
# and for their memory to be used again: with twice as many the kernel took up to twice the time.
PIECE_ELEMENTS = 512 * 1024
PIECES_WAITING = 4
PATTERN_SECONDS = 20.0
# The WebUI's older hash of a file: of so many bytes from there.
_LEGACY_START, _LEGACY_BYTES = 0x100000, 0x10000
_THUMBNAIL = "modelspec.thumbnail"
_RECIPE, _MODELS = "sd_merge_recipe", "sd_merge_models"

_MATCHER = """
import json, re, signal, sys
pattern, names, seconds = json.load(sys.stdin)
signal.setitimer(signal.ITIMER_REAL, seconds)
json.dump([name for name in names if re.search(pattern, name)], sys.stdout)
"""


def merge(job: Job) -> Answer:
    """One checkpoint of up to three and a VAE. A cancelled merge leaves nothing."""
    order = _parse_order(job.content)
    made: list[tuple[contract.ContainerCheckpoint, str]] = []
    with job.until_cancelled(), ExitStack() as open_files:
        given = _Given.fetch(job, order, open_files)
        made.append(_merge(job, order, given))
    return Answer(
        images=(),
        info=made[0][1] if made else "{}",
        checkpoints=tuple(checkpoint for checkpoint, _ in made),
    )


def discarded(names: Collection[str], pattern: str) -> set[str]:
    """The names that the pattern finds something in.

    In a process of its own, which ends by itself: a pattern can take longer than the universe has
    existed, and nothing else stops Python's `re` once it has begun. Raises BadRequest.
    """
    command = [sys.executable, "-c", _MATCHER]
    document = json.dumps([pattern, list(names), PATTERN_SECONDS])
    found = subprocess.run(command, input=document, capture_output=True, text=True)
    if found.returncode == -signal.SIGALRM:
        raise BadRequest(
            f"The pattern of weights to discard, {pattern!r}, takes more than "
            f"{PATTERN_SECONDS:.0f} seconds. Write it without a repetition inside a repetition.",
            "pattern_too_slow",
        )
    if found.returncode:
        raise BadRequest(
            f"The pattern of weights to discard, {pattern!r}, is no regular expression. "
            "Correct it.",
            "pattern_wrong",
        )
    return set(json.loads(found.stdout))


@dataclass(frozen=True)
class _File:
    """A fetched file of the job, open."""

    told: contract.ContainerCheckpoint
    path: Path
    content: TensorFile
    sha256: str

    @property
    def source(self) -> Source:
        return Source.of(self.told["name"], self.content.tensors)


@dataclass(frozen=True)
class _Given:
    """The files of a merge; `models` are A, B and C as far as the method needs them."""

    models: list[_File]
    vae: _File | None

    @staticmethod
    def fetch(job: Job, order: MergeOrder, open_files: ExitStack) -> _Given:
        """Raises BadRequest and CheckpointUnreadable."""
        method = MergeMethod(order["interp_method"])
        names = [order["primary_model_name"]]
        if method is not MergeMethod.NO_INTERPOLATION:
            names.append(_required(order, order["secondary_model_name"]))
        if method is MergeMethod.ADD_DIFFERENCE:
            names.append(_required(order, order["tertiary_model_name"]))
        models = [_open(job, CheckpointType.STABLE_DIFFUSION, name, open_files) for name in names]
        vae = order["bake_in_vae"]
        return _Given(models, _open(job, CheckpointType.VAE, vae, open_files) if vae else None)

    def ingredients(self, order: MergeOrder) -> Ingredients:
        sources = [file.source for file in self.models]
        a, b, c = (*sources, None, None)[:3]
        assert a is not None
        vae = self.vae.source if self.vae else None
        method = MergeMethod(order["interp_method"])
        return Ingredients(method, order["multiplier"], order["save_as_half"], a, b, c, vae)


def _merge(job: Job, order: MergeOrder, given: _Given) -> tuple[contract.ContainerCheckpoint, str]:
    """The new checkpoint, and its recipe as a JSON document."""
    plan = plan_merge(given.ingredients(order))
    kept = dict(plan.tensors)
    if order["discard_weights"]:
        for name in discarded(kept, order["discard_weights"]):
            del kept[name]
        if not kept:
            raise BadRequest(
                f"The pattern of weights to discard, {order['discard_weights']!r}, leaves nothing: "
                "it finds something in every tensor's name. Correct it.",
                "nothing_left",
            )
    recipe = _recipe(order, given, plan.kind)
    # Wide types first, so that each tensor is aligned; that is also how other tools sort them.
    tensors = dict(sorted(kept.items(), key=lambda item: (-item[1].dtype.itemsize, item[0])))
    header = header_of(tensors, _metadata(given, recipe))
    size = len(header) + sum(tensor.n_bytes for tensor in tensors.values())

    job_id = job.invocation["job_id"]
    kind = CheckpointType.STABLE_DIFFUSION
    name = contract.merged_file_name(order["file_stem"], plan.kind)
    key = contract.checkpoint_key(kind, contract.merged_checkpoint_id(job_id), name)

    def on_tensor(done: int) -> None:
        job.progress.note("merging", Step(done, len(tensors), None))
        job.stop_if_asked()

    with job.storage.writing(key, size) as sink:
        sha256 = write_tensors(sink, header, tensors, on_tensor)
        job.progress.phase("saving")
    checkpoint = contract.ContainerCheckpoint(
        type=kind.value, name=name, key=key, size=size, sha256=sha256
    )
    return checkpoint, json.dumps({_RECIPE: recipe}, ensure_ascii=False)


def write_tensors(
    sink: Sink,
    header: bytes,
    tensors: Mapping[str, LazyTensor],
    on_tensor: Callable[[int], None],
) -> str:
    """Writes a whole file; returns its SHA-256. `on_tensor` gets the number of tensors begun
    before, and may raise to stop."""
    digest = hashlib.sha256()
    # Each of reckoning, hashing and writing takes its time, and none holds Python's lock for long.
    # Torch's own threads would only be in the way.
    with (
        _one_torch_thread(),
        _in_turn(digest.update) as hash_later,
        _in_turn(sink.write) as write_later,
    ):

        def put(content: memoryview) -> None:
            hash_later(content)
            write_later(content)

        put(memoryview(header))
        for done, tensor in enumerate(tensors.values()):
            on_tensor(done)
            for piece in _pieces(tensor):
                put(piece.contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _pieces(tensor: LazyTensor) -> Iterator[Tensor]:
    for start in range(0, tensor.n_elements, PIECE_ELEMENTS):
        yield tensor.values(start, min(start + PIECE_ELEMENTS, tensor.n_elements))


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _in_turn(act: Callable[[memoryview], object]) -> Iterator[Callable[[memoryview], None]]:
    """Lets another thread `act` on one thing after the other, a few behind; all are done, or one
    has raised, when the block ends."""
    waiting: deque[Future[object]] = deque()
    with ThreadPoolExecutor(1) as other:

        def later(content: memoryview) -> None:
            waiting.append(other.submit(act, content))
            if len(waiting) > PIECES_WAITING:
                waiting.popleft().result()

        yield later
        for one in waiting:
            one.result()


def _open(job: Job, kind: CheckpointType, name: str, open_files: ExitStack) -> _File:
    told = next(
        (c for c in job.invocation["checkpoints"] if (c["type"], c["name"]) == (kind.value, name)),
        None,
    )
    if told is None:
        raise BadRequest(f"The job does not tell where {name} is. Submit it again.", "bad_merge")
    if not told["key"].endswith(contract.SAFETENSORS):
        raise CheckpointUnreadable(
            f"{name} is no {contract.SAFETENSORS} file, and only those can be merged. Convert it "
            "and upload it again."
        )
    path = job.weights(told)
    content = open_files.enter_context(open_tensor_file(path, name))
    sha256 = told["sha256"]
    if not sha256:
        job.progress.phase("hashing checkpoint")
        with path.open("rb") as file:
            sha256 = sha256_of(file)
        job.stop_if_asked()
    return _File(told, path, content, sha256)


def _recipe(order: MergeOrder, given: _Given, kind: MergedKind) -> dict[str, object]:
    """As the WebUI writes it; `config_source` is its form's first choice, which we do not have."""
    a, b, c = (*(file.sha256 for file in given.models), None, None)[:3]
    return {
        "type": "webui",
        "primary_model_hash": a,
        "secondary_model_hash": b,
        "tertiary_model_hash": c,
        "interp_method": order["interp_method"],
        "multiplier": order["multiplier"],
        "save_as_half": order["save_as_half"],
        "custom_name": order["custom_name"],
        "config_source": 0,
        "bake_in_vae": order["bake_in_vae"] or "None",
        "discard_weights": order["discard_weights"],
        "is_inpainting": kind is MergedKind.INPAINTING,
        "is_instruct_pix2pix": kind is MergedKind.INSTRUCT_PIX2PIX,
    }


def _metadata(given: _Given, recipe: Mapping[str, object]) -> dict[str, str]:
    """All that the models' own say, but for a picture that shows another model; then the recipe,
    and every model that was ever merged into this one, by its hash."""
    metadata: dict[str, str] = {}
    ancestors: dict[str, object] = {}
    for file in given.models:
        own = file.content.metadata
        metadata |= {name: text for name, text in own.items() if name != _THUMBNAIL}
        ancestors[file.sha256] = {
            "name": file.told["name"],
            "legacy_hash": _legacy_hash(file.path),
            _RECIPE: _object(own, _RECIPE),
        }
        ancestors |= _object(own, _MODELS) or {}
    return {
        **metadata,
        "format": "pt",
        _RECIPE: json.dumps(recipe),
        _MODELS: json.dumps(ancestors),
    }


def _object(metadata: Mapping[str, str], name: str) -> dict[str, object] | None:
    """A JSON object among the metadata; what is none was not written by a merger."""
    try:
        found = json.loads(metadata.get(name, ""))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _legacy_hash(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(_LEGACY_START)
        return hashlib.sha256(file.read(_LEGACY_BYTES)).hexdigest()[:8]


def _required(order: MergeOrder, name: str | None) -> str:
    if not name:
        raise BadRequest(f"{order['interp_method']} needs one model more. Name it.", "bad_merge")
    return name


def _parse_order(content: bytes) -> MergeOrder:
    """The middleware has checked its values; raises BadRequest when it is none of its orders."""
    try:
        raw = json.loads(content)
        MergeMethod(raw["interp_method"])
        order = cast(MergeOrder, {name: raw[name] for name in MergeOrder.__annotations__})
    except (ValueError, TypeError, KeyError) as error:
        raise BadRequest(
            f"The merge's request is not what this worker understands ({error!r}). Submit it "
            "again; if that does not help, update the deployment.",
            "bad_merge",
        ) from error
    if not contract.is_valid_name(contract.merged_file_name(order["file_stem"], MergedKind.PLAIN)):
        raise BadRequest(f"{order['file_stem']!r} is no file name.", "bad_merge")
    return order
