"""`python -m middleware_api serve`: the embedded middleware until Ctrl-C."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
from contextlib import suppress

import uvicorn
from filelock import FileLock, Timeout

from middleware_api import __version__
from middleware_api.embedded.middleware import embedded
from middleware_api.embedded.server import embedded_app
from middleware_api.embedded.straight_body import StraightProtocol
from middleware_api.settings import Settings, SettingsError, read_settings


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 after Ctrl-C, 1 when the server cannot start."""
    parser = argparse.ArgumentParser(prog="python -m middleware_api", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="run the embedded middleware until Ctrl-C")
    serve.add_argument("--host", help="address to bind (SDAWS_HOST, 127.0.0.1)")
    serve.add_argument("--port", help="port, 0 for a free one (SDAWS_PORT, 8210)")
    serve.add_argument("--data-dir", help="where everything is kept (SDAWS_DATA_DIR, ./var)")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    # httpx logs each call to a worker, which says nothing that the job's own lines do not.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings = read_settings(
            os.environ, host=options.host, port=options.port, data_dir=options.data_dir
        )
        with FileLock(settings.data_dir / "server.lock", timeout=0):
            run(settings)
    except Timeout:
        print(
            f"Another server already uses {settings.data_dir}. Stop it, or choose another folder "
            "with --data-dir or SDAWS_DATA_DIR.",
            file=sys.stderr,
        )
        return 1
    except SettingsError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def run(settings: Settings, **programs: str) -> None:
    """Serve until a signal; `programs` as `embedded` takes them. Raises SettingsError when the
    port is taken."""
    listener = _listen(settings)
    host, port = listener.getsockname()[:2]
    base_url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    middleware = embedded(settings, base_url, **programs)
    app = embedded_app(middleware, stopping=lambda: server.should_exit)
    print(f"listening on {base_url}", flush=True)
    if settings.token_path is not None:
        print(f"API token is in {settings.token_path}", flush=True)
    config = uvicorn.Config(
        app, log_level="warning", timeout_graceful_shutdown=5, http=StraightProtocol
    )
    server = uvicorn.Server(config)
    try:
        with suppress(KeyboardInterrupt):  # uvicorn raises it again after a clean stop
            server.run(sockets=[listener])
    finally:
        # A second Ctrl-C makes uvicorn leave without its lifespan's end; the workers must go.
        middleware.stop()


def _listen(settings: Settings) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        raise SettingsError(
            f"Cannot listen on {settings.host}:{settings.port} ({error.strerror}). Choose another "
            "address with --host, or another port with --port (0 for any free one)."
        ) from error


if __name__ == "__main__":
    sys.exit(main())
