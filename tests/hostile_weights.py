"""Weights files that somebody has made to do harm, or has broken: made here, never stored."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

from tests.weights import safetensors

TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def with_header(header: object, data: bytes = bytes(8), length: int | None = None) -> bytes:
    """A file whose header says that; `length` is what it says of the header itself."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return size.to_bytes(8, "little") + text + data


def archive(*names: str, kind: int = zipfile.ZIP_STORED, content: bytes = b"x") -> bytes:
    """A zip of files of these names."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", kind) as zipped:
        for name in names:
            zipped.writestr(name, content)
    return made.getvalue()


def with_link() -> bytes:
    """A zip that holds a link."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as zipped:
        zipped.writestr("archive/data.pkl", b"x")
        link = zipfile.ZipInfo("archive/data/0")
        link.external_attr = 0o120777 << 16
        zipped.writestr(link, "/etc/passwd")
    return made.getvalue()


def tarred(name: str = "m.safetensors") -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        content = safetensors()
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return made.getvalue()


def saved(content: object, is_zip: bool = True) -> bytes:
    """What torch makes of it."""
    made = io.BytesIO()
    torch.save(content, made, _use_new_zipfile_serialization=is_zip)
    return made.getvalue()


class Shell:
    """Runs a program when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (self.command,)


def payload(mark: Path) -> dict[str, object]:
    """Weights, and a program that leaves a mark."""
    return {"a": torch.ones(2), "b": Shell(f"touch {mark}")}


WHOLE = safetensors(b"0123456789")

BROKEN_TENSORS: dict[str, tuple[bytes, str]] = {
    "empty header": (with_header(b""), "header is no JSON"),
    "three bytes": (b"abc", "cut short"),
    "cut": (WHOLE[:-1], "the file has 9"),
    "bytes behind": (WHOLE + b"x", "the file has 11"),
    "header of 1 TiB": (with_header({"a": TENSOR}, length=1 << 40), "cut short"),
    "header of all": (with_header({"a": TENSOR}, length=(1 << 64) - 1), "cut short"),
    "overlapping": (
        with_header({"a": TENSOR, "b": TENSOR}),
        "tensor b does not begin where the one before ends",
    ),
    "hole": (
        with_header({"a": TENSOR, "b": {**TENSOR, "data_offsets": [12, 20]}}, bytes(20)),
        "tensor b does not begin",
    ),
    "hole at the beginning": (
        with_header({"a": {**TENSOR, "data_offsets": [8, 16]}}, bytes(16)),
        "tensor a does not begin",
    ),
    "backwards": (with_header({"a": {**TENSOR, "data_offsets": [8, 0]}}), "takes -8 bytes"),
    "negative": (
        with_header({"a": {**TENSOR, "data_offsets": [-8, 0]}}),
        "is not described as it must be",
    ),
    "shape too large": (with_header({"a": {**TENSOR, "shape": [1 << 62, 1 << 62]}}), "many more"),
    "ten thousand dimensions": (
        with_header({"a": {**TENSOR, "shape": [1 << 62] * 10_000}}),
        "is not described as it must be",
    ),
    "unknown type": (with_header({"a": {**TENSOR, "dtype": "OBJECT"}}), "unknown type 'OBJECT'"),
    "type is no text": (with_header({"a": {**TENSOR, "dtype": [1]}}), "unknown type [1]"),
    "more words": (with_header({"a": {**TENSOR, "code": "1"}}), "is not described as it must be"),
    "metadata are numbers": (with_header({"__metadata__": {"a": 1}, "a": TENSOR}), "not texts"),
    "one name twice": (
        with_header(b'{"a": %s, "a": %s}' % ((json.dumps(TENSOR).encode(),) * 2)),
        "stands in it twice",
    ),
    "deep": (with_header(b"[" * 100_000), "is no JSON"),
    "half a character": (with_header({"\ud800": TENSOR}), "is no JSON"),
    "a list": (with_header([TENSOR]), "is no JSON object"),
    "name with lines": (
        with_header({"\n[ERROR] all lost\n\x1b[31m": {**TENSOR, "shape": [3]}}),
        r"'\n[ERROR] all lost\n\x1b[31m'",
    ),
    "web page": (b"<!DOCTYPE html><html>Log in" + bytes(999), "is a web page, not weights"),
    "tar": (tarred(), "is a tar archive, not weights"),
    "gzip": (b"\x1f\x8b\x08" + bytes(99), "is a gzip archive, not weights"),
    "zip": (archive("m.safetensors"), "it is an archive"),
    "pickle": (pickle.dumps(Shell("true"), 2), "one of torch"),
    "torch": (saved({"a": torch.ones(2)}), "one of torch"),
}

BROKEN_PICKLES: dict[str, tuple[Callable[[], bytes], str]] = {
    "shell": (lambda: saved(payload(Path("mark"))), "(posix.system), which could run a program"),
    "shell, old form": (
        lambda: saved(payload(Path("mark")), is_zip=False),
        "(posix.system), which could run a program",
    ),
    "bare pickle": (lambda: pickle.dumps(Shell("touch mark"), 2), "could run a program"),
    "whole module": (lambda: saved(torch.nn.Linear(1, 1)), "linear.Linear), which could run"),
    "random bytes": (lambda: bytes(range(7, 256)) * 9, "not one that can be read"),
    "cut": (lambda: saved({"a": torch.ones(5000)})[:9000], "broken or cut short"),
    "no tensors": (lambda: saved({"epoch": 3}), "without a tensor"),
    "unfolds": (lambda: saved({"a": torch.ones(1).expand(1 << 40)}), "unfolding from"),
    "sparse": (lambda: saved({"a": torch.eye(3).to_sparse()}), "no plain form"),
    "two by one name": (
        lambda: saved({"a": {"b": torch.ones(1)}, "a.b": torch.ones(1)}),
        "two tensors by one name",
    ),
    "zip of something": (lambda: archive("m.safetensors"), "none that torch has written"),
    "zip bomb": (
        lambda: archive("a/data.pkl", kind=zipfile.ZIP_DEFLATED, content=bytes(9_000_000)),
        "a compressed archive",
    ),
    "absolute path": (lambda: archive("/a/data.pkl"), "lead out of it"),
    "path upwards": (lambda: archive("a/data.pkl", "../../x"), "lead out of it"),
    "link": (with_link, "links in it"),
}

# Names that no file may have, in any act.
NAMES = (
    "../../etc/passwd.safetensors",
    "/etc/cron.d/x.safetensors",
    "..\\x.safetensors",
    "$(touch mark).safetensors",
    "`touch mark`.safetensors",
    "a;reboot.safetensors",
    "a\nb.safetensors",
    "a\0b.safetensors",
    ".hidden.safetensors",
    " m.safetensors",
    "\u202esnetef as.safetensors",  # written backwards
    "m\u2024safetensors",  # a dot that is none
    "m.safetensors\u200b",
    "a\u2215b.safetensors",  # a slash that is none
    f"{'n' * 300}.safetensors",
    f"{'é' * 130}.safetensors",
    "m.safetensors.exe",
    "m.zip",
    "m.tar",
    "m",
)
