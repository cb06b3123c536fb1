"""What a stored file is, found out where it lies: nothing of it is loaded or run."""

from __future__ import annotations

from functools import partial

from middleware_api.contract import is_pickled
from middleware_api.errors import FileRefused
from middleware_api.ports import Objects
from middleware_api.records import CheckpointFile
from middleware_api.tensor_header import BadHeader, read_header

# How other kinds of files begin: (place, bytes, what it is). A zip is also how torch saves.
_ZIP = b"PK\x03\x04"
_OTHERS = (
    (257, b"ustar", "a tar archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"BZh", "a bzip2 archive"),
    (0, b"\xfd7zXZ\x00", "an xz archive"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (0, b"Rar!", "a rar archive"),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (0, b"<!DOCTYPE", "a web page"),
    (0, b"<html", "a web page"),
    (0, b"GGUF", "a GGUF file"),
)
_BEGINNING = 512


def examine(objects: Objects, file: CheckpointFile) -> None:
    """Raises FileRefused unless it is a whole file of tensors or, as its name says, one of torch
    that a worker may try to convert."""
    beginning = objects.read_range(file.key, 0, _BEGINNING)
    for place, mark, what in _OTHERS:
        if beginning[place:].startswith(mark):
            raise FileRefused(
                f"File '{file.name}' is {what}, not weights. Unpack or download the weights "
                "themselves, and upload those."
            )
    if is_pickled(file.name):
        return
    if beginning.startswith(_ZIP) or beginning.startswith(b"\x80\x02"):
        raise FileRefused(
            f"File '{file.name}' is no .safetensors file: it is an archive, or one of torch. "
            "Upload weights of torch under their own name (.ckpt, .pt, .pth, .bin)."
        )
    try:
        read_header(partial(objects.read_range, file.key), file.size or 0)
    except BadHeader as fault:
        raise FileRefused(
            f"File '{file.name}' is no whole .safetensors file: {fault}. Save or download it "
            "again, then upload it again."
        ) from fault
