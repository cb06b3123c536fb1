"""`python -m tests.pretend_training_server`: an embedded server whose training program pretends."""

from __future__ import annotations

import os

from filelock import FileLock

from middleware_api.__main__ import run
from middleware_api.settings import read_settings

if __name__ == "__main__":
    settings = read_settings(os.environ, port="0")
    with FileLock(settings.data_dir / "server.lock", timeout=10):
        run(settings, training_program="tests.pretend_trainer")
