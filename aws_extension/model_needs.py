"""Which weights files a request names, and where they are: in the cloud, only here, or nowhere.

One walk over the request finds the names and, later, writes the cloud's own in their place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from aws_extension.answers import Checkpoint
from aws_extension.quantities import size
from middleware_api.catalogue import LATENT_UPSCALE_MODES, UPSCALERS
from middleware_api.contract import NAME_MAX_BYTES, CheckpointType
from middleware_api.prompt_tags import tags_in
from middleware_api.weights_name import SHORT_HASH_DIGITS

# "name [0a1b2c3d4e]", as the WebUI writes titles
_TITLE = re.compile(r"(?s)^(.*?)\s*\[([0-9a-fA-F]{8,64})\]$")
_EXTENSION = re.compile(r"\.(safetensors|ckpt|pt|pth|bin)$", re.IGNORECASE)
# What stands where a name could, and names no file.
_NO_FILE = frozenset(
    ["", "none", "automatic", "auto", "passthrough", "use same checkpoint", "use same vae"]
)

# Upscalers that every engine has.
_NO_MODEL = frozenset(name.casefold() for name in (*UPSCALERS, *LATENT_UPSCALE_MODES))

_PROMPTS = ("prompt", "negative_prompt", "hr_prompt", "hr_negative_prompt")
_FIELDS = {
    "refiner_checkpoint": CheckpointType.STABLE_DIFFUSION,
    "hr_checkpoint_name": CheckpointType.STABLE_DIFFUSION,
    "hr_upscaler": CheckpointType.ESRGAN,
}
_SETTINGS = {
    "sd_model_checkpoint": CheckpointType.STABLE_DIFFUSION,
    "sd_vae": CheckpointType.VAE,
    "upscaler_for_img2img": CheckpointType.ESRGAN,
}
# Parts of a script's arguments that are off, whatever else they say.
_OFF = {"enabled": False, "ad_tab_enable": False, "ad_tap_enable": False, "ad_model": "None"}
# Without these the WebUI makes the picture all the same, and so does the cloud.
_CAN_DO_WITHOUT = (CheckpointType.LORA, CheckpointType.HYPERNETWORKS, CheckpointType.EMBEDDINGS)
_WORDS = {
    CheckpointType.STABLE_DIFFUSION: "checkpoint",
    CheckpointType.EMBEDDINGS: "embedding",
    CheckpointType.LORA: "LoRA",
    CheckpointType.HYPERNETWORKS: "hypernetwork",
    CheckpointType.CONTROLNET: "ControlNet model",
    CheckpointType.VAE: "VAE",
    CheckpointType.ESRGAN: "upscaler",
    CheckpointType.DEEPDANBOORU: "DeepDanbooru model",
}


@dataclass(frozen=True)
class ScriptField:
    """A field of a script's arguments that names a model, counted only where `switch` is on."""

    kind: CheckpointType
    switch: str = ""


# By the script's title and the field. ControlNet and ADetailer, in the WebUI and in Forge.
_SCRIPT_FIELDS: dict[str, dict[str, ScriptField]] = {
    "controlnet": {"model": ScriptField(CheckpointType.CONTROLNET)},
    "adetailer": {
        "ad_checkpoint": ScriptField(CheckpointType.STABLE_DIFFUSION, "ad_use_checkpoint"),
        "ad_vae": ScriptField(CheckpointType.VAE, "ad_use_vae"),
        "ad_controlnet_model": ScriptField(CheckpointType.CONTROLNET),
    },
}


@dataclass(frozen=True)
class Need:
    """A model that a request names; `shorthash` are the hex digits that came with the name."""

    kind: CheckpointType
    name: str
    shorthash: str = ""

    def describe(self) -> str:
        """As in "LoRA 'detail'"."""
        return f"{_WORDS[self.kind]} '{self.name}'"


@dataclass(frozen=True)
class LocalFile:
    """A weights file of this machine; `names` are what the host calls it, `sha256` may be ""."""

    kind: CheckpointType
    path: Path
    size: int
    names: tuple[str, ...] = ()
    sha256: str = ""

    def describe(self) -> str:
        """As in "detail.safetensors (LoRA, 151.1 MB)"."""
        return f"{self.path.name} ({_WORDS[self.kind]}, {size(self.size)})"


class LocalModels(Protocol):
    """What this machine has."""

    @property
    def dreambooth_folder(self) -> Path | None:
        """Where the Dreambooth extension keeps its models, if it has ever been here."""

    def of(self, kind: CheckpointType) -> Sequence[LocalFile]:
        """The files of one kind."""


class NoModels:
    """A machine without weights files."""

    dreambooth_folder = None

    def of(self, kind: CheckpointType) -> tuple[LocalFile, ...]:
        """None."""
        return ()


@dataclass(frozen=True)
class Resolution:
    """Where a request's models are."""

    names: Mapping[Need, str]
    uploads: tuple[LocalFile, ...]
    missing: tuple[Need, ...]

    @property
    def models(self) -> dict[CheckpointType, list[str]]:
        """The cloud's file names by kind, in the request's order: its `models`."""
        found: dict[CheckpointType, list[str]] = {}
        for need, name in self.names.items():
            names = found.setdefault(need.kind, [])
            if name not in names:
                names.append(name)
        return found

    @property
    def required(self) -> tuple[Need, ...]:
        """The missing ones without which there is no picture."""
        return tuple(need for need in self.missing if need.kind not in _CAN_DO_WITHOUT)


# Called with each model that is met; answers with the name to write instead, or None.
Visit = Callable[[Need], "str | None"]


@dataclass(frozen=True)
class RequestWalk:
    """Goes over everything in a request that names models.

    `embeddings` are the words that count as one. `files` are file names by which any script's
    argument may mean a model.
    """

    embeddings: Collection[str] = ()
    files: Mapping[str, CheckpointType] = field(default_factory=dict)

    def fields(self, fields: Mapping[str, Any], visit: Visit) -> dict[str, Any]:
        """The WebUI API's fields of a request, with the visitor's names in them."""
        made = dict(fields)
        for name in _PROMPTS:
            if isinstance(made.get(name), str):
                made[name] = self.prompt(made[name], visit)
        _replace(made, _FIELDS, visit)
        if settings := made.get("override_settings"):
            made["override_settings"] = dict(settings)
            _replace(made["override_settings"], _SETTINGS, visit)
        if scripts := made.get("alwayson_scripts"):
            made["alwayson_scripts"] = {
                title: {**script, "args": self._argument(title, script["args"], visit)}
                for title, script in scripts.items()
            }
        return made

    def prompt(self, text: str, visit: Visit) -> str:
        """A prompt: its tags, and the words that are embeddings."""
        parts = []
        end = 0
        for tag in tags_in(text):
            parts.append(self._words(text[end : tag.start], visit))
            new = visit(Need(tag.kind, tag.name.strip())) if tag.kind else None
            parts.append(tag.renamed(_stem(new)) if new else tag.text)
            end = tag.end
        parts.append(self._words(text[end:], visit))
        return "".join(parts)

    def _words(self, text: str, visit: Visit) -> str:
        if not self.embeddings or not text:
            return text
        # The longest first: "bad-hands" is not meant where "bad-hands-5" stands. As in CLIP,
        # case does not matter.
        words = sorted(self.embeddings, key=len, reverse=True)
        pattern = "|".join(re.escape(word) for word in words)

        def named(found: re.Match[str]) -> str:
            new = visit(Need(CheckpointType.EMBEDDINGS, found[0]))
            return _stem(new) if new else found[0]

        return re.sub(rf"(?<!\w)(?:{pattern})(?!\w)", named, text, flags=re.IGNORECASE)

    def _argument(self, title: str, value: Any, visit: Visit, key: str = "") -> Any:
        if isinstance(value, list):
            return [self._argument(title, item, visit, key) for item in value]
        if isinstance(value, dict):
            if any(value.get(name) == off for name, off in _OFF.items() if name in value):
                return value
            made = {k: self._argument(title, v, visit, k) for k, v in value.items()}
            own = {
                name: wanted.kind
                for name, wanted in _SCRIPT_FIELDS.get(title, {}).items()
                if not wanted.switch or value.get(wanted.switch)
            }
            _replace(made, own, visit)
            return made
        if not isinstance(value, str) or key in _SCRIPT_FIELDS.get(title, {}):
            return value
        if key.endswith("prompt"):
            return self.prompt(value, visit)
        if len(value) > NAME_MAX_BYTES:  # a picture, most often
            return value
        kind = self.files.get(parse_name(value)[0])
        new = visit(_need(kind, value)) if kind else None
        return new or value


def _replace(fields: dict[str, Any], kinds: Mapping[str, CheckpointType], visit: Visit) -> None:
    for name, kind in kinds.items():
        value = fields.get(name)
        if isinstance(value, str) and _names_file(kind, value.strip()):
            fields[name] = visit(_need(kind, value)) or value


def _names_file(kind: CheckpointType, value: str) -> bool:
    if kind is CheckpointType.ESRGAN and value.casefold() in _NO_MODEL:
        return False
    return value.lower() not in _NO_FILE


def parse_name(text: str) -> tuple[str, str]:
    """A title's name and its hash in brackets, "" without one."""
    found = _TITLE.match(text.strip())
    return (found[1], found[2].lower()) if found else (text.strip(), "")


def _need(kind: CheckpointType, text: str) -> Need:
    return Need(kind, *parse_name(text))


def find_needs(
    walk: RequestWalk, checkpoint: str, fields: Mapping[str, Any], prompts: Iterable[str] = ()
) -> list[Need]:
    """What a request names, each once: its checkpoint first, then in the order of the fields.

    `prompts` are further prompts of the same generation.
    """
    met = {_need(CheckpointType.STABLE_DIFFUSION, checkpoint): None}

    def note(need: Need) -> None:
        met[need] = None

    walk.fields(fields, note)
    for prompt in prompts:
        walk.prompt(prompt, note)
    return list(met)


def resolve(
    needs: Iterable[Need],
    cloud: Sequence[Checkpoint],
    local: LocalModels,
    uploaded: Mapping[Path, str] | None = None,
) -> Resolution:
    """Look each need up: by its hash, then by the name as it stands, then by this machine's file
    of that name (its hash, its name), then by the name without extension and case.

    `uploaded` tells what files that were just sent are called in the cloud.
    """
    names: dict[Need, str] = {}
    uploads: dict[LocalFile, None] = {}
    missing: list[Need] = []
    for need in needs:
        there = _cloud_files(need.kind, cloud)
        name = _by_hash(need.shorthash, there) or _exactly(need.name, there)
        if name is None:
            file = _local_file(need, local.of(need.kind))
            if file is None:
                name = _by_name([need.name], there)
            else:
                name = (
                    (uploaded or {}).get(file.path)
                    or _by_hash(file.sha256, there)
                    or _by_name([need.name, file.path.name], there)
                )
                if name is None:
                    uploads[file] = None
                    continue
        if name is None:
            missing.append(need)
        else:
            names[need] = name
    return Resolution(names, tuple(uploads), tuple(missing))


def _cloud_files(kind: CheckpointType, cloud: Sequence[Checkpoint]) -> dict[str, str]:
    """File names of a kind in the cloud, with their SHA-256 or ""."""
    found: dict[str, str] = {}
    for checkpoint in cloud:
        if checkpoint.type == kind.value:
            for name, sha256 in checkpoint.files:
                found.setdefault(name, sha256)
    return found


def _by_hash(digits: str, there: Mapping[str, str]) -> str | None:
    if len(digits) < SHORT_HASH_DIGITS:
        return None
    return next((name for name, sha256 in there.items() if sha256.startswith(digits)), None)


def _exactly(name: str, there: Mapping[str, str]) -> str | None:
    return name if name in there else None


def _by_name(asked: Sequence[str], there: Iterable[str]) -> str | None:
    """The file that is meant: the file name, without its extension, and the same for any case."""
    asked = [_base(name) for name in asked]
    for form in (_same, _stem, str.casefold, lambda name: _stem(name).casefold()):
        wanted = {form(name) for name in asked}
        for name in there:
            if form(name) in wanted:
                return name
    return None


def _local_file(need: Need, files: Sequence[LocalFile]) -> LocalFile | None:
    if len(need.shorthash) >= SHORT_HASH_DIGITS:
        for file in files:
            if file.sha256.startswith(need.shorthash):
                return file
    named = {name: file for file in reversed(files) for name in (*file.names, file.path.name)}
    if need.name in named:
        return named[need.name]
    found = _by_name([need.name], named)
    return None if found is None else named[found]


def _same(name: str) -> str:
    return name


def _base(name: str) -> str:
    """A name without the folder that the WebUI puts before it."""
    return re.split(r"[/\\]", name)[-1]


def _stem(name: str) -> str:
    return _EXTENSION.sub("", _base(name))


def describe_uploads(files: Sequence[LocalFile]) -> str:
    """The files with their sizes, and what they come to."""
    listed = ", ".join(file.describe() for file in files)
    if len(files) == 1:
        return f"{listed}."
    return f"{listed}. Together {size(sum(file.size for file in files))}."
