"""Long work on checkpoints, on a small pool of threads of the server."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

logger = logging.getLogger(__name__)

THREADS = 3
# A thread may wait for a silent host for longer. It is left behind then: whatever it was at, the
# next server goes on from the parts that are stored.
STOP_SECONDS = 5.0

GoOn = Callable[[str, Callable[[], bool]], bool]


class ThreadRunners:
    """`ports.Runners` in this process: what waits is forgotten at its end, and taken up by the
    next one's `ImportService.recover`."""

    def __init__(self) -> None:
        self._go_on: GoOn
        self._queue: SimpleQueue[str | None] = SimpleQueue()
        self._known: set[str] = set()
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        # Daemons, so that one that is left behind does not keep the process alive.
        self._threads = [
            threading.Thread(target=self._work, name=f"runner {number}", daemon=True)
            for number in range(THREADS)
        ]

    def tell(self, go_on: GoOn) -> None:
        """What does the work (`services.events.go_on`); called once, before anything else."""
        self._go_on = go_on

    def start(self) -> None:
        """Begin to work."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop soon; the work stays where it is."""
        self._stopping.set()
        for _ in self._threads:
            self._queue.put(None)
        until = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, until - time.monotonic()))

    def begin(self, checkpoint_id: str) -> None:
        """See `ports.Runners`."""
        with self._lock:
            if checkpoint_id in self._known:
                return
            self._known.add(checkpoint_id)
        self._queue.put(checkpoint_id)

    def _work(self) -> None:
        while (checkpoint_id := self._queue.get()) is not None and not self._stopping.is_set():
            try:
                self._go_on(checkpoint_id, self._stopping.is_set)
            except Exception:  # the thread's edge: the reconciler begins it again
                if not self._stopping.is_set():
                    logger.exception("checkpoint %s", checkpoint_id)
            finally:
                with self._lock:
                    self._known.discard(checkpoint_id)
