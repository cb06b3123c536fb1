"""Runs a program that may write below the named folders alone, as with a read-only root.

    python -m tests.only_writable FOLDER [FOLDER...] -- PROGRAM [ARGUMENT...]

By Landlock (Linux 5.13 and newer): no rights are needed for it, and children inherit it. See
https://docs.kernel.org/userspace-api/landlock.html, whose numbers these are.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from pathlib import Path

_CREATE, _ADD, _RESTRICT = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_NO_NEW_PRIVILEGES = 38
# To write, to remove and to make things of every kind: bits 1 and 4 to 12.
_WRITING = 1 << 1 | sum(1 << bit for bit in range(4, 13))
_ALWAYS = ("/dev/null", "/dev/tty")

_libc = ctypes.CDLL(None, use_errno=True)


def landlock_version() -> int:
    """0 where the kernel has none."""
    return max(0, int(_libc.syscall(_CREATE, None, 0, _VERSION_FLAG)))


def restrict(folders: list[str]) -> None:
    """From now on this process and its children write below these alone."""
    attributes = ctypes.create_string_buffer(struct.pack("=Q", _WRITING))
    ruleset = _checked(_libc.syscall(_CREATE, attributes, 8, 0))
    for folder in [*folders, *filter(os.path.exists, _ALWAYS)]:
        place = os.open(folder, os.O_PATH)
        # A file knows of those rights only that of being written to.
        rights = _WRITING if Path(folder).is_dir() else 1 << 1
        rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, place))
        _checked(_libc.syscall(_ADD, ruleset, _PATH_BENEATH, rule, 0))
        os.close(place)
    _checked(_libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    _checked(_libc.syscall(_RESTRICT, ruleset, 0))
    os.close(ruleset)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


if __name__ == "__main__":
    split = sys.argv.index("--")
    restrict(sys.argv[1:split])
    os.execvp(sys.argv[split + 1], sys.argv[split + 1 :])
