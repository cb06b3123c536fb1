"""A WebUI in this container: started, listened to, and started again when it ends."""

from __future__ import annotations

import logging
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from middleware_api.container.errors import EngineDown

logger = logging.getLogger(__name__)

STOP_SECONDS = 5.0
UP_EVERY_SECONDS = 0.5
# Between a start and the next one, so that one that cannot start does not start all the time.
BACKOFF_SECONDS = (0.0, 1.0, 5.0, 30.0)


class WebUiProcess:
    """Keeps a WebUI running from `start` to `stop`; its lines go to our log.

    `is_up` asks it whether it takes requests.
    """

    def __init__(self, command: Sequence[str], is_up: Callable[[], bool]) -> None:
        self._command, self._is_up = [*command], is_up
        self._changed = threading.Condition()
        self._process: subprocess.Popen[str] | None = None
        self._up = self._stopping = False
        self._last_words: deque[str] = deque(maxlen=20)
        self._ended = ""
        self._thread = threading.Thread(target=self._keep, name="webui", daemon=True)

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
        raise EngineDown(f"The WebUI of this worker cannot be used: {self.why_down}.")

    def restart(self) -> None:
        """End it, as it hangs; the next one is being started."""
        with self._changed:
            process, self._up = self._process, False
        if process is not None:
            _end(process)

    def stop(self) -> None:
        """End it for good; returns when it is gone."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
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
                try:
                    self._process = self._popen()
                except OSError as error:
                    self._ended = f"{self._command[0]} cannot be started: {error.strerror}"
                    failed_starts += 1
                    continue
            was_up = self._follow(self._process)
            failed_starts = 0 if was_up else failed_starts + 1

    def _popen(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
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
                logger.info("the WebUI is up")
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
                logger.error("the WebUI is gone: %s", self._ended)
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
                    logger.info("webui: %s", text)


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
