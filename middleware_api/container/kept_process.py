"""A process beside this one: started, listened to, and started again when it ends."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from middleware_api.container.errors import EngineDown

logger = logging.getLogger(__name__)

STOP_SECONDS = 5.0
UP_EVERY_SECONDS = 0.5
# Between a start and the next one, so that one that cannot start does not start all the time.
# What Linux sends a process when the one that started it is gone, however it went: what is left
# behind would keep the GPU and the port. `PR_SET_PDEATHSIG` is 1.
_DIE_WITH_US = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGKILL); "
    "os.execvp(sys.argv[1], sys.argv[1:])"
)
BACKOFF_SECONDS = (0.0, 1.0, 5.0, 30.0)


class KeptProcess:
    """Keeps `what` running from `start` to `stop`; each line that it writes goes to `say`.

    `is_up` asks it whether it takes requests. Its environment is ours where none is given.
    """

    def __init__(
        self,
        what: str,
        command: Sequence[str],
        is_up: Callable[[], bool],
        say: Callable[[str], None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._what, self._command, self._is_up, self._say = what, [*command], is_up, say
        self._environment = environment
        self._changed = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._up = self._stopping = False
        self._last_words: deque[str] = deque(maxlen=20)
        self._ended = ""
        self._thread = threading.Thread(target=self._keep, name=what, daemon=True)

    def start(self) -> None:
        """Begin; `wait_until_up` tells when it can be used."""
        self._thread.start()

    @property
    def why_down(self) -> str:
        """Empty while it takes requests."""
        with self._changed:
            if self._up:
                return ""
            return f"{self._ended}; it is being started again" if self._ended else "it is starting"

    def wait_until_down(self, seconds: float) -> None:
        """Until it has ended, if it does."""
        with self._changed:
            self._changed.wait_for(lambda: not self._up, seconds)

    def wait_until_up(self, seconds: float, look: Callable[[], None]) -> None:
        """Raises EngineDown when it is not up in time, and what `look` raises."""
        deadline = time.monotonic() + seconds
        while True:
            look()
            with self._changed:
                if self._up:
                    return
                if self._stopping or time.monotonic() > deadline:
                    break
                self._changed.wait(UP_EVERY_SECONDS)
        raise EngineDown(f"{self._what} cannot be used: {self.why_down}.")

    def restart(self) -> None:
        """End it, as it hangs; the next one is being started."""
        with self._changed:
            process, self._up = self._process, False
        if process is not None:
            _end(process)

    def ask_to_stop(self) -> None:
        """Tell it to end for good; it may still finish what it is at."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            if self._process is not None:
                self._process.terminate()

    def stop(self) -> None:
        """End it for good; returns when it is gone."""
        self.ask_to_stop()
        with self._changed:
            process = self._process
        if process is not None:
            _end(process)
        if self._thread.is_alive():
            self._thread.join()

    def kill(self) -> None:
        """At once, and without looking back: this process ends too."""
        with self._changed:
            self._stopping = True
            if self._process is not None:
                self._process.kill()

    def _keep(self) -> None:
        failed_starts = 0
        while True:
            with self._changed:
                pause = BACKOFF_SECONDS[min(failed_starts, len(BACKOFF_SECONDS) - 1)]
                self._changed.wait_for(lambda: self._stopping, pause)
                if self._stopping:
                    return
                if shutil.which(self._command[0]) is None:
                    self._ended = f"{self._command[0]} cannot be started: there is no such program"
                    failed_starts += 1
                    continue
                self._process = self._popen()
            was_up = self._follow(self._process)
            failed_starts = 0 if was_up else failed_starts + 1

    def _popen(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _DIE_WITH_US, *self._command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=None if self._environment is None else {**self._environment},
            start_new_session=True,
        )

    def _follow(self, process: subprocess.Popen[str]) -> bool:
        """Until it ends; whether it was up in between."""
        listener = threading.Thread(target=self._relay, args=(process,), daemon=True)
        listener.start()
        was_up = False
        while process.poll() is None:
            if not was_up and self._is_up():
                was_up = True
                self._set_up(True)
                logger.info("%s is up", self._what)
            try:
                process.wait(UP_EVERY_SECONDS)
            except subprocess.TimeoutExpired:
                continue
        listener.join(STOP_SECONDS)
        code = process.returncode
        ended = f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        last = self._last_words[-1] if self._last_words else ""
        with self._changed:
            self._ended = f"it was {ended}" if code < 0 else f"it {ended}"
            if last:
                self._ended += f" after: {last}"
            self._up, self._process = False, None
            self._changed.notify_all()
            if not self._stopping:
                logger.error("%s is gone: %s", self._what, self._ended)
        return was_up

    def _set_up(self, up: bool) -> None:
        with self._changed:
            self._up = up
            self._changed.notify_all()

    def _relay(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                if text := line.rstrip():
                    self._last_words.append(text)
                    self._say(text)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
