"""`python -m aws_extension`: the pages as a stand-alone app."""

from __future__ import annotations

import argparse
import os
from pathlib import Path


def main() -> None:
    """Serve the app until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m aws_extension", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (127.0.0.1)")
    parser.add_argument("--port", type=int, default=7861, help="port (7861)")
    parser.add_argument("--api-url", help="the server's URL; wins over SDAWS_API_URL")
    parser.add_argument(
        "--models", type=Path, default=Path("models"),
        help="folder of weights files, in subfolders as the WebUI has them (./models)",
    )  # fmt: skip
    options = parser.parse_args()
    # Before gradio is imported: it reads this then, and would report each start.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

    from aws_extension.access import CloudAccess
    from aws_extension.app import build_app
    from aws_extension.folder_models import FolderModels
    from aws_extension.pages.live import add_routes
    from aws_extension.settings import default_store, embedded_connection

    environ = dict(os.environ)
    if options.api_url:
        environ["SDAWS_API_URL"] = options.api_url
    store = default_store(environ, Path.home(), embedded_connection(Path.cwd()))
    access = CloudAccess(store, local_models=lambda: FolderModels(options.models.resolve()))
    app = build_app(access)
    served, _, _ = app.launch(
        server_name=options.host,
        server_port=options.port,
        show_api=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    add_routes(served, access)
    access.uploads.take_up()
    access.dataset_uploads.take_up()
    print(f"open http://{options.host}:{options.port}", flush=True)
    app.block_thread()


if __name__ == "__main__":
    main()
