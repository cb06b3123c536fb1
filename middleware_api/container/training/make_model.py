"""The making of a working model: weights checked, and copied to where training finds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import torch

from middleware_api import contract
from middleware_api.container.engine.checkpoint import load_checkpoint
from middleware_api.container.errors import BadRequest, CheckpointUnreadable
from middleware_api.container.storage import Storage, sha256_of
from middleware_api.container.training.report import TrainReporter
from middleware_api.container.weights.convert import Unpickled, copy_unpickled
from middleware_api.container.weights.tensor_file import LazyTensor, header_of, open_tensor_file
from middleware_api.contract import ContainerCheckpoint, ModelOrder, is_pickled, is_weights_name
from middleware_api.model_params import ModelParams, read_model_params

SOURCE_NAME, SOURCE_SHA256 = "source_name", "source_sha256"
"""What a working model's file tells of the one that it was made of."""

_EMA = "model_ema."
_UNET = "model."
_PIECE_ELEMENTS = 1 << 20


class ModelMaker:
    """One model. `stop_if_asked` raises where the making is to end."""

    def __init__(
        self, storage: Storage, reporter: TrainReporter, stop_if_asked: Callable[[], None]
    ) -> None:
        self._storage, self._reporter, self._stop_if_asked = storage, reporter, stop_if_asked

    def make(self, order: ModelOrder, output_prefix: str) -> None:
        """Raises BadRequest, CheckpointUnreadable, DiskFull and StorageUnreachable."""
        params = read_model_params(order["params"])
        for warning in params.warnings:
            self._reporter.warn(warning)
        source = self._source(order["sources"], params)
        target = contract.working_model_key(output_prefix)
        with self._storage.weights(source, self._on_bytes(source["size"])) as path:
            if is_pickled(source["name"]):
                self._convert(source, path, target)
            else:
                self._copy(source, path, target, params)
        self._reporter.part("checking model", 0.9)
        size = self._storage.sizes(output_prefix)[target]
        made = ContainerCheckpoint(
            type=source["type"], name=source["name"], key=target, size=size, sha256=""
        )
        with self._storage.weights(made, lambda count: self._stop_if_asked()) as path:
            # All of it is read and put together, which is all that a training begins with.
            load_checkpoint(path, source["name"], "", torch.device("cpu"), torch.float16)

    def _source(self, keys: list[str], params: ModelParams) -> ContainerCheckpoint:
        named = {PurePosixPath(key).name: key for key in keys}
        wanted = PurePosixPath(params.file_name).name
        weights = [name for name in named if is_weights_name(name)]
        if wanted in weights:
            weights = [wanted]
        if len(weights) != 1:
            raise BadRequest(
                f"The model's files ({', '.join(named) or 'none'}) have {len(weights)} checkpoints "
                "among them. Upload one .safetensors file, or name it in "
                "create_model_params.ckpt_path.",
                "no_single_source",
            )
        key = named[weights[0]]
        sizes = self._storage.sizes(f"{PurePosixPath(key).parent}/")
        if key not in sizes:
            raise CheckpointUnreadable(
                f"{weights[0]} is not in the object store. Upload it again, or choose another "
                "checkpoint."
            )
        return ContainerCheckpoint(
            type=contract.CheckpointType.STABLE_DIFFUSION.value,
            name=weights[0],
            key=key,
            size=sizes[key],
            sha256="",
        )

    def _on_bytes(self, size: int) -> Callable[[int], None]:
        def look(count: int) -> None:
            self._stop_if_asked()
            self._reporter.part("fetching checkpoint", 0.3 * count / max(1, size))

        return look

    def _note(self, done: int, size: int) -> None:
        self._stop_if_asked()
        self._reporter.part("converting checkpoint", 0.3 + 0.6 * done / max(1, size))

    def _convert(self, source: ContainerCheckpoint, path: Path, target: str) -> None:
        wish = Unpickled(source["name"], path, self._storage, target)
        told = {SOURCE_NAME: source["name"], SOURCE_SHA256: _sha256(path)}
        with self._reporter.quiet():
            copy_unpickled(wish, told, self._stop_if_asked, self._note)

    def _copy(
        self, source: ContainerCheckpoint, path: Path, target: str, params: ModelParams
    ) -> None:
        with open_tensor_file(path, source["name"]) as file:
            tensors = {n: t for n, t in file.tensors.items() if not n.startswith(_EMA)}
            if params.extract_ema:
                tensors = self._averaged(tensors, file.tensors, source["name"])
            told = {SOURCE_NAME: source["name"], SOURCE_SHA256: _sha256(path)}
            header = header_of(tensors, {**file.metadata, **told})
            size = len(header) + sum(tensor.n_bytes for tensor in tensors.values())
            done = len(header)
            with self._reporter.quiet(), self._storage.writing(target, size) as sink:
                sink.write(memoryview(header))
                for tensor in tensors.values():
                    for start in range(0, tensor.n_elements, _PIECE_ELEMENTS):
                        stop = min(start + _PIECE_ELEMENTS, tensor.n_elements)
                        piece = tensor.values(start, stop).view(torch.uint8).numpy().data
                        sink.write(piece)
                        done += piece.nbytes
                        self._note(done, size)

    def _averaged(
        self, tensors: dict[str, LazyTensor], every: dict[str, LazyTensor], name: str
    ) -> dict[str, LazyTensor]:
        """The UNet's tensors with its moving average's in their place."""
        if not any(tensor.startswith(_EMA) for tensor in every):
            self._reporter.warn(f"{name} holds no moving average (extract_ema): its UNet was used.")
            return tensors

        def average_of(tensor: str) -> str:
            return _EMA + tensor.removeprefix(_UNET).replace(".", "")

        return {
            tensor: every.get(average_of(tensor), own) if tensor.startswith(_UNET) else own
            for tensor, own in tensors.items()
        }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return sha256_of(file)
