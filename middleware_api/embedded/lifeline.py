"""`python -m middleware_api.embedded.lifeline LOCK MODULE`: a program that dies with its server.

Standard input is the lifeline: it reaches its end when the server is gone, however it went, and
then this process kills itself and its children. LOCK is held as long as the program runs, so that
the next server's program for the same job waits until this one is really gone.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading

from filelock import FileLock

# Pictures that somebody waits for go before training, which nobody watches second by second.
NICENESS = 10


def main() -> None:
    """Run the module as its own `__main__`, in a session of its own."""
    lock, module = sys.argv[1:]
    threading.Thread(target=_die_with_the_server, daemon=True).start()
    os.nice(NICENESS)
    with FileLock(lock):
        sys.argv = [module]
        runpy.run_module(module, run_name="__main__", alter_sys=True)


def _die_with_the_server() -> None:
    while os.read(0, 4096):
        pass
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    main()
