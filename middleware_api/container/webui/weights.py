"""A job's weights files where the WebUI finds them, and what it calls them.

A WebUI on this machine gets a link to each file (of hypernetworks and upscalers a copy in torch's
form, the only one that it reads of them), in folders named `sdaws` below those that it looks
through; one elsewhere must have the files already.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from middleware_api.container.errors import BadRequest, CheckpointUnreadable, EngineFailed
from middleware_api.container.job import Job
from middleware_api.container.storage import sha256_of
from middleware_api.container.webui.client import WebUiClient
from middleware_api.contract import CheckpointType, ContainerCheckpoint

FOLDER = "sdaws"


@dataclass(frozen=True)
class Listed:
    """A file that the WebUI lists: `word` is what requests call it.

    `path` is empty where it does not say, `hashes` hold what it knows of the content: its SHA-256
    or the begin of that.
    """

    word: str
    stem: str
    path: str
    hashes: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        """Whether it is a link that we have made."""
        return Path(self.path).parts[-3:-2] == (FOLDER,)

    def has_content(self, sha256: str) -> bool | None:
        """Whether it has that content; None when nobody knows."""
        if not (sha256 and self.hashes):
            return None
        return any(sha256.lower().startswith(known.lower()) for known in self.hashes)


@dataclass(frozen=True)
class _Shelf:
    """How the WebUI keeps one kind of weights.

    `listing` and `refresh` are routes, an empty one is not there; `flag` is the command line's
    folder, `folder` the one in the models folder that it looks through anyhow. `by_stem`: requests
    name them so; `only_pickled`: it reads no other files than torch's, with this ending.
    """

    listing: str
    refresh: tuple[str, str]
    flag: str
    folder: str
    by_stem: bool = True
    only_pickled: str = ""


_SHELVES = {
    CheckpointType.STABLE_DIFFUSION.value: _Shelf(
        "/sdapi/v1/sd-models",
        ("POST", "/sdapi/v1/refresh-checkpoints"),
        "",
        "Stable-diffusion",
        by_stem=False,
    ),
    CheckpointType.VAE.value: _Shelf(
        "/sdapi/v1/sd-vae", ("POST", "/sdapi/v1/refresh-vae"), "", "VAE"
    ),
    CheckpointType.LORA.value: _Shelf(
        "/sdapi/v1/loras", ("POST", "/sdapi/v1/refresh-loras"), "lora_dir", "Lora"
    ),
    CheckpointType.EMBEDDINGS.value: _Shelf(
        "/sdapi/v1/embeddings", ("POST", "/sdapi/v1/refresh-embeddings"), "embeddings_dir", ""
    ),
    # Its API has no way to make it look for new ones.
    CheckpointType.HYPERNETWORKS.value: _Shelf(
        "/sdapi/v1/hypernetworks",
        ("", ""),
        "hypernetwork_dir",
        "hypernetworks",
        only_pickled=".pt",
    ),
    # Of all families: it asks each file what it is.
    CheckpointType.ESRGAN.value: _Shelf(
        "/sdapi/v1/upscalers", ("", ""), "esrgan_models_path", "ESRGAN", only_pickled=".pth"
    ),
    CheckpointType.CONTROLNET.value: _Shelf(
        "/controlnet/model_list",
        ("GET", "/controlnet/model_list?update=true"),
        "",
        "ControlNet",
    ),
}


@dataclass(frozen=True)
class Placed:
    """What the WebUI calls a file; `warning` is for whoever asked for the picture."""

    word: str
    warning: str = ""


@dataclass(frozen=True)
class Renewal:
    """How the WebUI is brought to see new files: by a route of its own, which may have to wait, or
    by starting it again, where it is ours."""

    call: Callable[[str, str], object]
    restart: Callable[[], None] | None


class WebUiWeights:
    """Brings files to one WebUI. `shares_disk`: it sees this machine's files."""

    def __init__(self, client: WebUiClient, shares_disk: bool) -> None:
        self._client, self._shares_disk = client, shares_disk
        self._contents: dict[tuple[str, int, int], str] = {}

    def place(self, job: Job, file: ContainerCheckpoint, renewal: Renewal) -> Placed:
        """Raises BadRequest naming the file that the WebUI does not have and cannot be given."""
        shelf = _SHELVES.get(file["type"])
        if shelf is None:
            raise BadRequest(
                f"The engine webui has no place for {file['type']} files: leave {file['name']} out "
                "of the job's models.",
                "unsupported_checkpoint",
            )
        known = self._listed(file["type"], shelf)
        theirs = [listed for listed in known if not listed.is_ours]
        for listed in theirs:
            if listed.has_content(file["sha256"]):
                return Placed(listed.word)
        if not self._shares_disk:
            return self._found(file, theirs)
        return self._linked(job, file, shelf, known, renewal)

    def forget_dangling(self) -> None:
        """Removes our links to files that are not there any more."""
        if not self._shares_disk:
            return
        flags = self._client.get("/sdapi/v1/cmd-flags")
        for shelf in _SHELVES.values():
            for link in (_root(shelf, flags) / FOLDER).glob("*/*"):
                if link.is_symlink() and not link.exists():
                    link.unlink(missing_ok=True)

    def _listed(self, kind: str, shelf: _Shelf) -> list[Listed]:
        try:
            return _read(kind, self._client.get(shelf.listing))
        except EngineFailed as error:
            raise EngineFailed(f"The WebUI cannot list its {kind} files. {error}") from error

    def _found(self, file: ContainerCheckpoint, known: list[Listed]) -> Placed:
        """By its name, as nobody has hashed the one that the WebUI has."""
        named = [listed for listed in known if listed.stem == _stem(file["name"])]
        for listed in named:
            if listed.has_content(file["sha256"]) is None:
                return Placed(
                    listed.word,
                    f"{file['name']} was found at the WebUI by its name alone: nobody has checked "
                    "that it is the same file.",
                )
        has = "has another file of the name" if named else "has no file"
        raise BadRequest(
            f"The WebUI at {self._client.url} {has} {file['name']} ({file['type']}), and it is not "
            "on this machine, where it could be given. Put the file into its models folder.",
            "missing_at_webui",
        )

    def _linked(
        self,
        job: Job,
        file: ContainerCheckpoint,
        shelf: _Shelf,
        known: list[Listed],
        renewal: Renewal,
    ) -> Placed:
        path = job.weights(file)
        if not path.is_file():
            raise CheckpointUnreadable(
                f"The weights {file['name']} are not in the object store any more. Upload them "
                "again."
            )
        root = _root(shelf, self._client.get("/sdapi/v1/cmd-flags"))
        if (same := self._same_name(file, shelf, root, path, known)) is not None:
            return Placed(same.word)
        link = root / FOLDER / _content_id(file) / file["name"]
        if shelf.only_pickled:
            link = link.with_suffix(shelf.only_pickled)
            is_new = _write_pickled(link, path, file)
        else:
            is_new = _point(link, path, shelf.by_stem)
        listed = None if is_new else _at(link, known)
        if listed is None:
            _look_again(shelf, renewal)
            listed = _at(link, self._listed(file["type"], shelf))
        if listed is not None:
            return Placed(listed.word)
        link.unlink(missing_ok=True)
        raise BadRequest(
            f"The WebUI at {self._client.url} does not show {file['name']} ({file['type']}) that "
            f"was put into {link.parent}: it may not see this machine's files, may not be able to "
            "use this one, or has to be restarted first. Put the file into its models folder.",
            "missing_at_webui",
        )

    def _same_name(
        self,
        file: ContainerCheckpoint,
        shelf: _Shelf,
        root: Path,
        path: Path,
        known: list[Listed],
    ) -> Listed | None:
        """One that the WebUI has of its own, with the same content.

        Raises BadRequest for one with another content, by whose name ours would not be found.
        """
        for listed in known:
            if listed.stem != _stem(file["name"]) or listed.is_ours:
                continue
            places = [Path(listed.path)] if listed.path else _files_named(root, listed.stem)
            if any(self._is_same(file, path, place) for place in places):
                return listed
            if places and shelf.by_stem:
                raise BadRequest(
                    f"The WebUI at {self._client.url} has another {file['type']} file by the name "
                    f"{listed.stem}. Rename one of the two.",
                    "missing_at_webui",
                )
        return None

    def _is_same(self, file: ContainerCheckpoint, ours: Path, theirs: Path) -> bool:
        try:
            if ours.samefile(theirs):
                return True
            if ours.stat().st_size != theirs.stat().st_size:
                return False
            return (file["sha256"].lower() or self._sha256(ours)) == self._sha256(theirs)
        except OSError:  # its path is one of another container
            return False

    def _sha256(self, path: Path) -> str:
        found = path.stat()
        key = (str(path), found.st_size, found.st_mtime_ns)
        if key not in self._contents:
            with path.open("rb") as content:
                self._contents[key] = sha256_of(content)
        return self._contents[key]


def _read(kind: str, answer: Any) -> list[Listed]:
    """Raises EngineFailed for an answer that is not the WebUI's."""
    try:
        if kind == CheckpointType.EMBEDDINGS.value:
            return [Listed(n, n, "") for n in [*answer["loaded"], *answer["skipped"]]]
        if kind == CheckpointType.CONTROLNET.value:
            words = [word for word in answer["model_list"] if word != "None"]
            return [Listed(word, word.rpartition(" [")[0] or word, "") for word in words]
        if kind == CheckpointType.STABLE_DIFFUSION.value:
            return [
                Listed(
                    entry["title"],
                    _stem(entry["filename"]),
                    entry["filename"],
                    tuple(h for h in (entry["sha256"], entry["hash"]) if h),
                )
                for entry in answer
            ]
        if kind == CheckpointType.VAE.value:
            return [
                Listed(entry["model_name"], _stem(entry["filename"]), entry["filename"])
                for entry in answer
            ]
        if kind == CheckpointType.ESRGAN.value:
            return [
                Listed(entry["name"], entry["name"], entry["model_path"])
                for entry in answer
                # The others it has built in, or would fetch when they are used.
                if entry["model_path"] and not entry["model_path"].startswith("http")
            ]
        return [Listed(entry["name"], entry["name"], entry["path"]) for entry in answer]
    except (KeyError, TypeError, AttributeError) as error:
        raise EngineFailed(f"The WebUI lists its {kind} files in another form.") from error


def _look_again(shelf: _Shelf, renewal: Renewal) -> None:
    method, path = shelf.refresh
    if path:
        renewal.call(method, path)
    elif renewal.restart is not None:
        renewal.restart()


def _files_named(root: Path, stem: str) -> list[Path]:
    """Files of a folder but ours, where the WebUI does not tell its files' paths."""
    return [
        path
        for path in root.rglob("*")
        if path.stem == stem and path.is_file() and FOLDER not in path.relative_to(root).parts
    ]


def _stem(path: str) -> str:
    return Path(path.replace("\\", "/")).stem


def _root(shelf: _Shelf, flags: Mapping[str, Any]) -> Path:
    if shelf.flag and flags.get(shelf.flag):
        return Path(flags[shelf.flag])
    models = flags.get("models_dir") or Path(flags["data_dir"]) / "models"
    return Path(models) / shelf.folder


def _content_id(file: ContainerCheckpoint) -> str:
    """The WebUI takes a path for a content: another content must be at another path."""
    return (file["sha256"] or hashlib.sha256(file["key"].encode()).hexdigest())[:16].lower()


def _point(link: Path, path: Path, by_stem: bool) -> bool:
    """The link, and no other of ours by its name where names must be unique; whether it is new."""
    target = path.absolute()
    if by_stem:
        _make_way(link)
    if link.is_symlink() and Path(os.readlink(link)) == target:
        return False
    with _making(link) as draft:
        draft.symlink_to(target)
    return True


def _write_pickled(place: Path, path: Path, file: ContainerCheckpoint) -> bool:
    """What an upload converted, as it was before; whether that is new."""
    _make_way(place)
    if place.exists():
        return False
    import torch

    from middleware_api.container.extras.upscaler_models import bare_weights
    from middleware_api.container.networks.hypernetworks import trained_form

    is_upscaler = file["type"] == CheckpointType.ESRGAN.value
    content = (bare_weights if is_upscaler else trained_form)(path, file["name"])
    with _making(place) as draft:
        # In the old form: the WebUI refuses what today's torch puts into its archives.
        torch.save(content, draft, _use_new_zipfile_serialization=False)
    return True


def _make_way(place: Path) -> None:
    """Removes all of ours by its name, which must be unique."""
    for other in place.parents[1].glob("*/*"):
        if other.stem == place.stem and other != place:
            other.unlink(missing_ok=True)


@contextmanager
def _making(place: Path) -> Iterator[Path]:
    """What the block makes of the path that it gets is `place` afterwards."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        draft = place.with_name(f".{secrets.token_hex(8)}")
        yield draft
        os.replace(draft, place)
    except OSError as error:
        raise EngineFailed(
            f"{place} cannot be made ({error.strerror}): the WebUI's models folder must be "
            "writable for the worker."
        ) from error


def _at(link: Path, known: list[Listed]) -> Listed | None:
    for listed in known:
        if listed.path:
            if Path(listed.path).absolute() == link.absolute():
                return listed
        elif listed.stem == link.stem:
            return listed
    return None
