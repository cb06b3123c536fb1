"""The WebUI that a worker drives: where it is, whether it is ours, and what it can do."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from middleware_api.container.errors import (
    ContainerError,
    EngineDown,
    EngineFailed,
)
from middleware_api.container.job import Job
from middleware_api.container.kept_process import KeptProcess
from middleware_api.container.webui.client import Hung, NoSuchRoute, WebUiClient
from middleware_api.container.webui.weights import Placed, Renewal, WebUiWeights
from middleware_api.contract import ContainerCheckpoint, TaskType

logger = logging.getLogger(__name__)

WHAT = "The WebUI of this worker"
OWN_URL = "http://127.0.0.1:7860"
START_SECONDS = 900.0
"""From the start of a WebUI of ours to its first answer."""

PROBE_SECONDS = 1.0
SILENT_SECONDS = 30.0
"""A busy WebUI may miss a probe; after this long without any answer it cannot work."""

_SCHEMAS = {
    TaskType.TXT2IMG.value: "StableDiffusionProcessingTxt2Img",
    TaskType.IMG2IMG.value: "StableDiffusionProcessingImg2Img",
    TaskType.EXTRA_SINGLE_IMAGE.value: "ExtrasSingleImageRequest",
    TaskType.EXTRA_BATCH_IMAGES.value: "ExtrasBatchImagesRequest",
    TaskType.INTERROGATE.value: "InterrogateRequest",
}


@dataclass(frozen=True)
class WebUiSettings:
    """Which WebUI: the one at `url`, or with a `command` one that the worker starts there.

    `credentials` are those of its `--api-auth`, as `user:password`.
    """

    url: str = OWN_URL
    command: str = ""
    credentials: str = field(default="", repr=False)

    @staticmethod
    def from_environment(environment: Mapping[str, str]) -> WebUiSettings:
        """Raises ValueError naming the variable that is missing or wrong."""
        url = environment.get("SDAWS_WEBUI_URL", "").rstrip("/")
        command = environment.get("SDAWS_WEBUI_COMMAND", "")
        credentials = environment.get("SDAWS_WEBUI_AUTH", "")
        if not url and not command:
            raise ValueError(
                "SDAWS_ENGINE is webui: set SDAWS_WEBUI_URL to a WebUI's address, or "
                "SDAWS_WEBUI_COMMAND to the command that starts one."
            )
        parts = urlsplit(url or OWN_URL)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ValueError(
                "SDAWS_WEBUI_URL must be http://HOST:PORT or https://..., without credentials "
                "(those go into SDAWS_WEBUI_AUTH)."
            )
        if credentials and ":" not in credentials:
            raise ValueError("SDAWS_WEBUI_AUTH must be user:password.")
        return WebUiSettings(url or OWN_URL, command, credentials)

    @property
    def is_on_this_machine(self) -> bool:
        """Whether the WebUI can be given files."""
        return urlsplit(self.url).hostname in ("127.0.0.1", "::1", "localhost")


class DrivenWebUi:
    """One WebUI in the engine's hands."""

    def __init__(self, settings: WebUiSettings) -> None:
        self._settings = settings
        self._process: KeptProcess | None = None
        self.client = WebUiClient(settings.url, settings.credentials, self._why_gone)
        if settings.command:
            self._process = KeptProcess(
                WHAT,
                shlex.split(settings.command),
                self._answers,
                lambda line: logger.info("webui: %s", line),
            )
        self._weights = WebUiWeights(self.client, settings.is_on_this_machine)
        self._fields: dict[str, frozenset[str]] = {}
        self._options: frozenset[str] = frozenset()
        self._tells_tasks = True

    def start(self) -> None:
        """Begins to start a WebUI of ours; raises EngineDown when another does not answer."""
        if self._process is not None:
            self._process.start()
            return
        try:
            self.client.probe()
        except EngineDown:
            self.client.close()
            raise

    def close(self) -> None:
        """Ends a WebUI of ours."""
        if self._process is not None:
            self._process.stop()
        self.client.close()

    def kill(self) -> None:
        """Ends a WebUI of ours at once, as this process does."""
        if self._process is not None:
            self._process.kill()

    def check(self) -> None:
        """Raises EngineDown while it cannot take work. Quick."""
        if self._process is not None and (why := self._process.why_down):
            raise EngineDown(f"{WHAT} cannot be used: {why}.")
        try:
            self.client.probe(PROBE_SECONDS)
        except EngineDown as error:
            is_slow = isinstance(error.__cause__, httpx.TimeoutException)
            if not is_slow or self.client.silent_seconds() > SILENT_SECONDS:
                raise

    def wait_until_up(self, look: Callable[[], None]) -> None:
        """Raises EngineDown, and what `look` raises."""
        if self._process is not None:
            self._process.wait_until_up(START_SECONDS, look)
        else:
            self.client.probe()

    def work(self, path: str, body: object, watch: Callable[[], None], method: str = "POST") -> Any:
        """See `WebUiClient.work`; one of ours that hangs is started again."""
        try:
            return self.client.work(path, body, watch, method)
        except Hung:
            if self._process is not None:
                self._process.restart()
            raise

    def place(self, job: Job, file: ContainerCheckpoint, watch: Callable[[], None]) -> Placed:
        """See `WebUiWeights.place`."""

        def call(method: str, path: str) -> object:
            job.progress.phase("showing the WebUI its files")
            return self.work(path, None, watch, method)

        def restart() -> None:
            assert self._process is not None
            job.progress.phase("restarting the WebUI")
            self._process.restart()
            self._process.wait_until_up(START_SECONDS, job.stop_if_asked)

        renewal = Renewal(call, restart if self._process is not None else None)
        return self._weights.place(job, file, renewal)

    def load(self, job: Job, word: str, watch: Callable[[], None]) -> None:
        """Has a WebUI of ours load a checkpoint; another's keeps what its people have chosen."""
        if self._process is not None:
            job.progress.phase("loading checkpoint")
            self.work("/sdapi/v1/options", {"sd_model_checkpoint": word}, watch)

    def is_at(self, task_id: str) -> bool:
        """Whether it works at that task now; tasks of a WebUI that is ours are all ours."""
        if self._process is not None:
            return True
        if not task_id:
            return False
        if not self._tells_tasks:
            return True
        asked = {"id_task": task_id, "id_live_preview": -1, "live_preview": False}
        try:
            return bool(self.client.post("/internal/progress", asked).get("active"))
        except NoSuchRoute as error:  # --nowebui: nobody works in its pages
            logger.info("the WebUI does not tell whose task it is at: %s", error)
            self._tells_tasks = False
            return True

    def fitting(self, task: str, body: dict[str, Any], warnings: list[str]) -> dict[str, Any]:
        """The fields and settings that this WebUI has; the others are added to the warnings."""
        self._learn()
        known = self._fields.get(task, frozenset())
        unknown = [n for n, v in body.items() if known and n not in known and v is not None]
        warnings += [f"{name} is not a field of this WebUI and was ignored." for name in unknown]
        kept = {name: value for name, value in body.items() if name not in unknown}
        settings = kept.get("override_settings")
        if isinstance(settings, dict) and self._options:
            strange = [name for name in settings if name not in self._options]
            warnings += [
                f"override_settings.{name} is not a setting of this WebUI and was ignored."
                for name in strange
            ]
            kept["override_settings"] = {
                name: value for name, value in settings.items() if name not in strange
            }
        return kept

    def _learn(self) -> None:
        """What it can be asked; the same until it is started again, and then nearly so."""
        if self._fields:
            return
        described = self.client.get("/openapi.json")
        try:
            schemas = described["components"]["schemas"]
            fields = {
                task: frozenset(schemas[name]["properties"]) for task, name in _SCHEMAS.items()
            }
            self._options = frozenset(self.client.get("/sdapi/v1/options"))
        except (KeyError, TypeError) as error:
            raise EngineFailed(
                f"What answers at {self._settings.url} describes no API of a WebUI 1.10.1."
            ) from error
        self._weights.forget_dangling()
        self._fields = fields

    def _answers(self) -> bool:
        try:
            self.client.probe(PROBE_SECONDS)
        except ContainerError:
            return False
        return True

    def _why_gone(self, seconds: float) -> str:
        if self._process is None:
            return ""
        self._process.wait_until_down(seconds)
        return self._process.why_down
