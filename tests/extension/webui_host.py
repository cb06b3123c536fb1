"""The double of the WebUI with our extension in it, as a fixture."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from aws_extension.access import CloudAccess
from aws_extension.fake_transport import FakeTransport
from aws_extension.settings import SettingsStore
from tests.extension.pretend_cloud import CHECKPOINT, TOKEN, PretendCloud

DOUBLE = Path(__file__).parent / "webui_double"
# What holds the double's modules once it is imported.
HOST_GLUE = (
    "collect", "dispatch", "generation", "host_options", "interception", "local_models",
    "models_for", "panel", "saving",
)  # fmt: skip


class Host:
    """The double with our extension loaded into it, against a pretended cloud."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.cloud = PretendCloud()
        for name in ("processing", "shared", "images", "scripts", "sd_models", "sd_vae"):
            setattr(self, name, importlib.import_module(f"modules.{name}"))
        self.callbacks = importlib.import_module("modules.script_callbacks")
        importlib.import_module("modules.paths").data_path = str(folder)
        self.panel_module = importlib.import_module("aws_extension.webui.panel")
        environ = {"SDAWS_API_URL": "http://cloud.test", "SDAWS_API_TOKEN": TOKEN}
        store = SettingsStore(environ, folder / ".config" / "connection.json")
        self.answer = self.cloud
        self.transport = FakeTransport(lambda sent: self.answer(sent))
        access = CloudAccess(store, self.transport)
        monkeypatch.setattr(self.panel_module, "host_access", lambda: access)
        # What every other module of the host has imported before we came.
        self.process_images = self.processing.process_images
        self.load()

    def load(self) -> None:
        """What running `scripts/cloud.py` does."""
        self.panel_module.register()

    def runner(self, *others, selectable=()):
        panel = self.panel_module.CloudPanel()
        at = 1
        for script, count in ((panel, 6), *((other, other.arguments) for other in others)):
            script.args_from, script.args_to = at, at + count
            at += count
        return self.scripts.ScriptRunner([panel, *others], selectable)

    def p(self, kind="Txt2Img", on=True, args=(), runner=None, **fields):
        maker = getattr(self.processing, f"StableDiffusionProcessing{kind}")
        made = maker(
            outpath_samples=str(self.folder / "samples"),
            outpath_grids=str(self.folder / "grids"),
            **fields,
        )
        made.scripts = runner or self.runner()
        made.script_args = [0, on, CHECKPOINT, "Automatic", False, "", False, *args]
        return made


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(DOUBLE))
    made = Host(tmp_path, monkeypatch)
    yield made
    made.callbacks.script_unloaded_callback()
    forget_host()


def forget_host() -> None:
    """Unload the double, and what was imported with it: the next test has its own."""
    for name in [n for n in sys.modules if n.split(".")[0] == "modules"]:
        del sys.modules[name]
    for name in HOST_GLUE:
        if sys.modules.pop(f"aws_extension.webui.{name}", None):
            delattr(sys.modules["aws_extension.webui"], name)
