"""The engine `webui` as the worker's program sees it."""

from __future__ import annotations

from middleware_api.container.webui.driven import DrivenWebUi, WebUiSettings
from middleware_api.container.webui.tasks import tasks_of


class WebUiEngine:
    """See `WorkerEngine`; raises EngineDown when the WebUI at a URL does not answer."""

    def __init__(self, settings: WebUiSettings) -> None:
        self._webui = DrivenWebUi(settings)
        self.tasks = tasks_of(self._webui)
        self._webui.start()

    def check(self) -> None:
        """See `WorkerEngine`."""
        self._webui.check()

    def close(self) -> None:
        """See `WorkerEngine`."""
        self._webui.close()

    def kill(self) -> None:
        """See `WorkerEngine`."""
        self._webui.kill()
