"""States that a killed training goes on from: one file of tensors each, whole or not there.

All chance of a training is drawn from its seed and the step's number, and rates are a function of
the step; so parameters, the optimizer's tensors and the step's number are the whole state.
"""

from __future__ import annotations

import json
import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from middleware_api import contract
from middleware_api.container.errors import CheckpointUnreadable
from middleware_api.container.storage import Storage
from middleware_api.container.training.file import write_tensors
from middleware_api.container.training.trainee import Trainee
from middleware_api.contract import ContainerCheckpoint, TrainSavedState

KEPT = 2
"""How many of a job's states are kept: the last one, and one more in case that it is broken."""

_UNUSABLE = (CheckpointUnreadable, SafetensorError, OSError, KeyError, RuntimeError)
logger = logging.getLogger(__name__)
_NAME = re.compile(r"state-(\d+)\.safetensors$")


@dataclass(frozen=True)
class Learning:
    """All that changes while a model is trained, but the step."""

    trainee: Trainee
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.trainee.named_parameters():
            yield f"model.{name}", parameter.detach()
            for kind, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    yield f"optimizer.{kind}.{name}", value
        if self.trainee.average is not None:
            for name, tensor in self.trainee.average.tensors.items():
                yield f"average.{name}", tensor

    def numbers(self) -> dict[str, object]:
        """What of the state is no tensor."""
        others = {
            name: plain
            for name, parameter in self.trainee.named_parameters()
            if (
                plain := {
                    kind: value
                    for kind, value in self.optimizer.state.get(parameter, {}).items()
                    if isinstance(value, (int, float))
                }
            )
        }
        average = self.trainee.average
        return {
            "optimizer": others,
            "scaler": self.scaler.state_dict(),
            "averaged": 0 if average is None else average.updates,
        }

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, object]) -> None:
        """Raises KeyError or RuntimeError for a state of another training."""
        others = numbers["optimizer"]
        assert isinstance(others, dict)
        kept: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, kind, name = key.split(".", 2)
                kept[name][kind] = value
        for name, parameter in self.trainee.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
            state: dict[str, object] = {**others.get(name, {})}
            for kind, value in kept[name].items():
                # Adam's own step counts on the CPU, as it does in a new optimizer.
                state[kind] = value if value.ndim == 0 else value.to(parameter.device)
            if state:
                self.optimizer.state[parameter] = state
        self.scaler.load_state_dict(numbers["scaler"])  # type: ignore[arg-type]
        if self.trainee.average is not None:
            for name, tensor in self.trainee.average.tensors.items():
                tensor.copy_(tensors[f"average.{name}"])
            self.trainee.average.updates = int(numbers["averaged"])  # type: ignore[call-overload]


class StateFiles:
    """A job's states in the object store."""

    def __init__(self, storage: Storage, output_prefix: str) -> None:
        self._storage = storage
        self._prefix = contract.train_state_prefix(output_prefix)

    def listed(self) -> list[TrainSavedState]:
        """Oldest first."""
        found = ((_NAME.search(key), key) for key in self._storage.sizes(self._prefix))
        states = [TrainSavedState(step=int(name[1]), key=key) for name, key in found if name]
        return sorted(states, key=lambda state: state["step"])

    def save(self, learning: Learning, step: int) -> list[TrainSavedState]:
        """Raises DiskFull and StorageUnreachable; what was saved before is still there then."""
        metadata = {"step": str(step), "numbers": json.dumps(learning.numbers())}
        key = f"{self._prefix}state-{step:07d}.safetensors"
        write_tensors(self._storage, key, dict(learning.tensors()), metadata)
        *old, _ = [*self.listed()]
        for state in old[: max(0, len(old) + 1 - KEPT)]:
            self._storage.delete(state["key"])
        return self.listed()

    def restore(self, learning: Learning) -> int:
        """The step that the training goes on with: 0 where there is no state that can be read."""
        sizes = self._storage.sizes(self._prefix)
        for state in reversed(self.listed()):
            told = ContainerCheckpoint(
                type="", name="state", key=state["key"], size=sizes[state["key"]], sha256=""
            )
            try:
                self._read(told, learning)
            except _UNUSABLE as fault:
                logger.warning("state %s cannot be used: %s", state["key"], fault)
                continue
            return state["step"]
        return 0

    def _read(self, told: ContainerCheckpoint, learning: Learning) -> None:
        with (
            self._storage.weights(told, lambda count: None) as path,
            safe_open(path, framework="pt") as file,
        ):
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            learning.restore(tensors, json.loads(file.metadata()["numbers"]))
