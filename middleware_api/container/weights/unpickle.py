"""A program that opens one file of torch and writes its tensors to stdout; it trusts nobody.

`python -I unpickle.py SIZE SECONDS < weights.ckpt`: what is opened is a pickle, which can name any
function of Python. torch's own reader of weights knows a short list of harmless ones. Should a
file get past that, then this process has no file, no network and no other program to turn to: all
that it may ever open is open before the file is read, and its memory and time are bounded.

Says on stdout: eight bytes of length, so much JSON (`tensors`: name, type, shape; `metadata`), and
the tensors' bytes in that order. On a refusal the last line of stderr is JSON: `reason`, as the
end of a sentence. It imports nothing of this repository, so that it can run isolated from it.
"""

from __future__ import annotations

import codecs
import ctypes
import io
import json
import os
import pickle
import re
import resource
import stat
import sys
import zipfile
from collections.abc import Iterator
from typing import BinaryIO

import torch

# Beside what the file itself takes: an embedding of 20 KB needs some, too.
SPARE_BYTES = 512 * 1024**2
TEXT_MAX = 4096
_ENTRIES_MAX = 100_000
_PIECE = 4 * 1024**2
_LOADED = "not one that can be read as plain weights"


class Refused(Exception):
    """The message is the reason, as the end of a sentence."""


def main() -> int:
    """0 when all is written; 1 with the reason on stderr."""
    size, seconds = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    _warm_up()
    source = os.fdopen(0, "rb")
    _lock(size, seconds)
    try:
        _write(_tensors(_read(source, size), size))
    except Refused as refusal:
        reason = str(refusal)
    except MemoryError:
        reason = "more in memory than a file of its size may be"
    except RecursionError:
        reason = "nested too deeply"
    else:
        return 0
    sys.stderr.write("\n" + json.dumps({"reason": reason}) + "\n")
    sys.stderr.flush()
    return 1


def _warm_up() -> None:
    """Lets torch import what it imports late, while it still can."""
    for is_zip in (True, False):
        content = io.BytesIO()
        torch.save({"a": torch.zeros(1)}, content, _use_new_zipfile_serialization=is_zip)
        content.seek(0)
        torch.load(content, map_location="cpu", weights_only=True)
    codecs.lookup("cp437")  # of names in archives


def _lock(size: int, seconds: int) -> None:
    """From here on nothing can be opened, started or written but stdout, which is open."""
    with open("/proc/self/statm") as counts:
        taken = int(counts.read().split()[0]) * resource.getpagesize()
    memory = taken + 2 * size + SPARE_BYTES
    for limit, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(limit, (most, most))
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS: for what a program may become


def _read(source: BinaryIO, size: int) -> object:
    """The object in the file. Raises Refused."""
    if zipfile.is_zipfile(source):
        source.seek(0)
        _check_archive(source, size)
    source.seek(0)
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class|function)\s+`?([\w.]+)", str(error))
        named = f" ({found[1]})" if found and "nsupported" in str(error) else ""
        raise Refused(
            f"{_LOADED}: it asks for more than tensors{named}, which could run a program"
        ) from error
    except Exception as error:  # whatever a broken file makes torch stumble over
        if "memory" in str(error):
            raise MemoryError from error
        raise Refused(f"{_LOADED}: it is broken or cut short ({type(error).__name__})") from error


def _check_archive(source: BinaryIO, size: int) -> None:
    """torch packs its files without compressing them: anything else is some other archive."""
    try:
        entries = zipfile.ZipFile(source).infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise Refused("a broken archive") from error
    if len(entries) > _ENTRIES_MAX:
        raise Refused(f"an archive of {len(entries)} files")
    if not any(entry.filename.endswith("/data.pkl") for entry in entries):
        raise Refused("an archive, and none that torch has written: upload the weights in it")
    for entry in entries:
        parts = entry.filename.replace("\\", "/").split("/")
        if parts[0] == "" or ".." in parts:
            raise Refused("an archive with names that lead out of it")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise Refused("an archive with links in it")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise Refused("a compressed archive, which torch's files are not")
    if sum(entry.file_size for entry in entries) > size:
        raise Refused("an archive that claims to hold more than it has")


def _tensors(content: object, size: int) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors by their names, and the words beside them. Raises Refused."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    tensors: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    for name, value in _leaves(content, ""):
        if isinstance(value, torch.Tensor):
            if value.layout is not torch.strided or value.is_quantized:
                raise Refused(f"of a kind that has no plain form: tensor {name[:200]!a}")
            if name in tensors:
                raise Refused(f"two tensors by one name: {name[:200]!a}")
            tensors[name] = value.detach()
        elif name and len(text := json.dumps(value)) <= TEXT_MAX:
            metadata[name] = text
    # What textual inversion is named in files of torch, and in files of tensors.
    if "string_to_param.*" in tensors:
        tensors = {"emb_params": tensors["string_to_param.*"]}
    if not tensors:
        raise Refused("without a tensor in it")
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > 2 * size:
        raise Refused(f"unfolding from {size} to {total} bytes")
    return tensors, metadata


def _leaves(value: object, name: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, (dict, list, tuple)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            if isinstance(key, (str, int)):
                yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (torch.Tensor, str, int, float)):
        yield name, value


def _write(found: tuple[dict[str, torch.Tensor], dict[str, str]]) -> None:
    tensors, metadata = found
    listed = [
        [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        for name, tensor in tensors.items()
    ]
    header = json.dumps({"tensors": listed, "metadata": metadata}).encode()
    out = os.fdopen(1, "wb", buffering=0)
    _write_all(out, memoryview(len(header).to_bytes(8, "little") + header))
    for tensor in tensors.values():
        flat = tensor.contiguous().reshape(-1).view(torch.uint8)
        content = (ctypes.c_char * flat.numel()).from_address(flat.data_ptr()) if len(flat) else b""
        _write_all(out, memoryview(content).cast("B"))


def _write_all(out: io.FileIO, content: memoryview) -> None:
    while content:
        content = content[out.write(content[:_PIECE]) or 0 :]


if __name__ == "__main__":
    sys.exit(main())
