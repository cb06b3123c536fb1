"""How long the API's Lambda function takes to import, against the libraries alone.

    .venv/bin/python -m benchmarks.cold_start

Both in one run, in turn, each in a fresh interpreter whose own start is part of it, as it is part
of a cold start. Bar: the middle one of the pairs' ratios is at most 1.25.
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median

BAR = 1.25
ROUNDS = 15
LIBRARIES = "import fastapi, mangum, boto3"
FUNCTION = "import middleware_api.aws.handlers"


def seconds(code: str) -> float:
    """Of a fresh interpreter that runs `code`."""
    since = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - since


def main() -> int:
    """Exit code 1 above the bar."""
    seconds(FUNCTION)  # compiled and in the disk's cache from here on
    pairs = [(seconds(LIBRARIES), seconds(FUNCTION)) for _ in range(ROUNDS)]
    libraries, function = (median(times) for times in zip(*pairs, strict=True))
    ratio = median(ours / theirs for theirs, ours in pairs)
    print(f"fastapi, mangum and boto3  {libraries * 1000:6.0f} ms")
    print(f"the function               {function * 1000:6.0f} ms")
    print(f"ratio                      {ratio:6.2f}  (bar {BAR})")
    return int(ratio > BAR)


if __name__ == "__main__":
    sys.exit(main())
