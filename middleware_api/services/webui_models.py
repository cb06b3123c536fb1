"""The WebUI's ways to name a weights file, and the Active checkpoints behind them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress

from middleware_api.contract import NAME_MAX_BYTES, PAGE_MAX, CheckpointState, CheckpointType
from middleware_api.errors import NotFound
from middleware_api.prompt_tags import tags_in
from middleware_api.records import UsedCheckpoint
from middleware_api.services.checkpoints import CheckpointService
from middleware_api.weights_name import SHORT_HASH_DIGITS, WeightsName

_TITLE = re.compile(r"(?P<name>.*?)(?: ?\[(?P<hash>[0-9A-Fa-f]{8,64})\])?", re.DOTALL)
_HASH = re.compile(r"[0-9a-f]{8,64}")
_EXTENSIONS = ("", ".safetensors", ".ckpt", ".pt", ".pth", ".bin")


class WebUiModels:
    """Finds Active checkpoints by the WebUI's words for them."""

    def __init__(self, checkpoint_service: CheckpointService) -> None:
        self._checkpoints = checkpoint_service

    def files(self, kind: CheckpointType) -> list[WeightsName]:
        """Newest first, of several of one name the newest; at most a page of checkpoints."""
        page = self._checkpoints.page([CheckpointState.ACTIVE], [kind], PAGE_MAX, None)
        newest: dict[str, WeightsName] = {}
        for checkpoint in page.items:
            for file in checkpoint.files:
                newest.setdefault(file.name, WeightsName(file.name, file.sha256 or ""))
        return list(newest.values())

    def newest(self, kind: CheckpointType) -> WeightsName | None:
        """The checkpoint that became Active last; None when there is none."""
        page = self._checkpoints.page([CheckpointState.ACTIVE], [kind], 1, None)
        files = [file for checkpoint in page.items for file in checkpoint.files]
        return WeightsName(files[0].name, files[0].sha256 or "") if files else None

    def find(self, kind: CheckpointType, wording: str) -> WeightsName:
        """By file name, with or without its ending, by title, or by (the begin of) its sha256.

        A title's hash stands above its name: another file of that name is not the one that is
        meant. But eight digits may be the WebUI's hash of old, of a part of the file, by which the
        ControlNet extension still calls its models. Raises NotFound, which names it.
        """
        title = _TITLE.fullmatch(wording.strip())
        name, wanted = (title["name"], title["hash"] or "") if title else (wording, "")
        wanted = wanted.lower()
        found = self._by_name(kind, name)
        if found is not None and (not found.sha256 or found.sha256.startswith(wanted)):
            return WeightsName(found.name, found.sha256)
        if wanted or _HASH.fullmatch(name.lower()):
            for file in self.files(kind):
                if file.sha256.startswith(wanted or name.lower()):
                    return file
        if found is not None and len(wanted) < SHORT_HASH_DIGITS:
            return WeightsName(found.name, found.sha256)
        raise NotFound(
            f"There is no Active {kind.value} checkpoint '{wording}'. Upload it first, or choose "
            "one that GET /checkpoints?status=Active lists.",
            "checkpoint_not_found",
        )

    def mentioned(self, prompts: Iterable[str]) -> dict[CheckpointType, list[str]]:
        """The networks and embeddings that prompts name, by type. Those that are not here are
        left out: the engine warns of them."""
        text = "\n".join(prompts)
        found: dict[CheckpointType, list[str]] = {}
        for tag in tags_in(text):
            if tag.kind is not None and len(tag.name.encode()) <= NAME_MAX_BYTES:
                with suppress(NotFound):
                    found.setdefault(tag.kind, []).append(self.find(tag.kind, tag.name).name)
        # Embeddings are plain words, so every one's name has to be looked for.
        for file in self.files(CheckpointType.EMBEDDINGS):
            if re.search(rf"(?<!\w){re.escape(file.stem)}(?!\w)", text, re.IGNORECASE):
                found.setdefault(CheckpointType.EMBEDDINGS, []).append(file.name)
        return {kind: list(dict.fromkeys(names)) for kind, names in found.items()}

    def _by_name(self, kind: CheckpointType, name: str) -> UsedCheckpoint | None:
        for extension in _EXTENSIONS:
            with suppress(NotFound):
                return self._checkpoints.resolve(kind, name + extension)
        return None
