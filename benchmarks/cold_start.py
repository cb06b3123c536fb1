"""How long the API's Lambda function takes to import, against the libraries alone.

    .venv/bin/python -m benchmarks.cold_start

Both in one run, in turn, each in a fresh interpreter whose own start is part of it, as it is part
of a cold start. What counts is the processor's time, which other programs on the machine disturb
less than the clock's; all modules are compiled beforehand, as in the function's package. Bar: the
middle one of the pairs' ratios is at most 1.25.
"""

from __future__ import annotations

import os
import sys
from statistics import median
from tempfile import TemporaryDirectory

BAR = 1.25
ROUNDS = 15
LIBRARIES = "import fastapi, mangum, boto3"
FUNCTION = "import middleware_api.aws.handlers"


def seconds(code: str, compiled: str) -> float:
    """Processor time of a fresh interpreter that runs `code`; its modules are compiled there."""
    command = [sys.executable, "-X", f"pycache_prefix={compiled}", "-c", code]
    # A setting of some machines, by which nothing would be compiled ahead.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    _, status, used = os.wait4(os.posix_spawn(command[0], command, environment), 0)
    if status:
        raise SystemExit(f"{code!r} failed")
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Exit code 1 above the bar."""
    with TemporaryDirectory() as compiled:
        for code in (LIBRARIES, FUNCTION):
            seconds(code, compiled)
        pairs = [(seconds(LIBRARIES, compiled), seconds(FUNCTION, compiled)) for _ in range(ROUNDS)]
    libraries, function = (median(times) for times in zip(*pairs, strict=True))
    ratio = median(ours / theirs for theirs, ours in pairs)
    print(f"fastapi, mangum and boto3  {libraries * 1000:6.0f} ms")
    print(f"the function               {function * 1000:6.0f} ms")
    print(f"ratio                      {ratio:6.2f}  (bar {BAR})")
    return int(ratio > BAR)


if __name__ == "__main__":
    sys.exit(main())
