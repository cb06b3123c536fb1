"""Where the WebUI's generations are turned towards the cloud; all of its patches, and their end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from modules import images, processing, scripts, sd_models, sd_vae

from aws_extension.access import CloudAccess
from aws_extension.webui import dispatch
from aws_extension.webui.choice import CloudChoice
from aws_extension.webui.code_swap import CodeSwap

# The entries' code runs inside the host's functions, with the host's globals: each imports what
# it calls. Their names say whose place they take.


def _process_images(p: Any) -> Any:
    from aws_extension.webui.interception import route_process_images

    return route_process_images(p)


def _run_script(self: Any, p: Any, *args: Any) -> Any:
    from aws_extension.webui.interception import route_script

    return route_script(self, p, *args)


def _reload_model_weights(*args: Any, **kwargs: Any) -> Any:
    from aws_extension.webui.interception import route_model_reload

    return route_model_reload(*args, **kwargs)


def _reload_vae_weights(*args: Any, **kwargs: Any) -> Any:
    from aws_extension.webui.interception import route_vae_reload

    return route_vae_reload(*args, **kwargs)


class Interceptor:
    """The host's patches, made once and undone as a whole. Holds nothing of any user."""

    def __init__(self, access: CloudAccess) -> None:
        self.access = access
        # Scripts such as X/Y/Z reload weights when they end; set while one runs for the cloud.
        self.running = threading.local()
        self.process_images = CodeSwap(processing.process_images, _process_images)  # type: ignore[arg-type]
        self.run_script = CodeSwap(scripts.ScriptRunner.run, _run_script)  # type: ignore[arg-type]
        self.reload_model = CodeSwap(sd_models.reload_model_weights, _reload_model_weights)  # type: ignore[arg-type]
        self.reload_vae = CodeSwap(sd_vae.reload_vae_weights, _reload_vae_weights)  # type: ignore[arg-type]
        self._patterns: dict[str, Callable[[Any], Any]] = {}
        self._loaded_before: bool | None = None

    @property
    def _swaps(self) -> tuple[CodeSwap, ...]:
        return self.process_images, self.run_script, self.reload_model, self.reload_vae

    def install(self) -> None:
        """Patch the host; twice is as good as once."""
        for swap in self._swaps:
            swap.install()
        self._install_patterns()
        data = sd_models.model_data
        # Reading `shared.sd_model` would load the local model before any generation exists. A
        # local generation loads it itself. Hosts without the attribute do not load on reading.
        if self._loaded_before is None and hasattr(data, "was_loaded_at_least_once"):
            self._loaded_before = data.was_loaded_at_least_once
            data.was_loaded_at_least_once = True

    def remove(self) -> None:
        """Leave the host as it was."""
        for swap in self._swaps:
            swap.remove()
        images.FilenameGenerator.replacements.update(self._patterns)
        self._patterns = {}
        if self._loaded_before is not None:
            data = sd_models.model_data
            data.was_loaded_at_least_once = self._loaded_before or data.sd_model is not None
            self._loaded_before = None

    def _install_patterns(self) -> None:
        """File-name patterns that read the local model: there is none for a cloud picture."""
        table = images.FilenameGenerator.replacements
        for name, attribute in (
            ("model_name", "cloud_checkpoint"),
            ("model_hash", "sd_model_hash"),
        ):
            if name in table and name not in self._patterns:
                self._patterns[name] = table[name]
                table[name] = _cloud_or_local(table[name], attribute)

    @property
    def is_cloud_run(self) -> bool:
        """Whether this thread runs a script whose pictures come from the cloud."""
        return bool(getattr(self.running, "cloud", False))


def _cloud_or_local(local: Callable[[Any], Any], attribute: str) -> Callable[[Any], Any]:
    def value(generator: Any, *args: Any) -> Any:
        if hasattr(generator.p, "cloud_checkpoint"):
            return getattr(generator.p, attribute) or ""
        return local(generator, *args)

    return value


_installed: list[Interceptor] = []


def install(access: CloudAccess) -> Interceptor:
    """The one interceptor of this host, installed."""
    if not _installed:
        _installed.append(Interceptor(access))
    _installed[0].install()
    return _installed[0]


def remove() -> None:
    """Undo it, when the WebUI unloads its scripts."""
    while _installed:
        _installed.pop().remove()


def read_choice(p: Any) -> CloudChoice | None:
    """What the panel says for this very generation; None leaves it to the WebUI."""
    for script in p.scripts.alwayson_scripts if p.scripts else []:
        if getattr(script, "is_cloud_panel", False):
            choice: CloudChoice | None = script.read_choice(
                *p.script_args[script.args_from : script.args_to]
            )
            return choice
    return None


def route_process_images(p: Any) -> Any:
    """To the cloud when the panel of `p` says so, else to the WebUI."""
    interceptor = _installed[0]
    choice = read_choice(p)
    if choice is None:
        return interceptor.process_images.original(p)
    return dispatch.generate(p, choice, interceptor.access.client())


def route_script(runner: Any, p: Any, *args: Any) -> Any:
    """A selected script's run, marked when its pictures come from the cloud."""
    interceptor = _installed[0]
    if read_choice(p) is None:
        return interceptor.run_script.original(runner, p, *args)
    interceptor.running.cloud = True
    try:
        return interceptor.run_script.original(runner, p, *args)
    finally:
        interceptor.running.cloud = False


def route_model_reload(*args: Any, **kwargs: Any) -> Any:
    """Nothing is loaded here while a script's pictures come from the cloud."""
    interceptor = _installed[0]
    return None if interceptor.is_cloud_run else interceptor.reload_model.original(*args, **kwargs)


def route_vae_reload(*args: Any, **kwargs: Any) -> Any:
    """As for the model."""
    interceptor = _installed[0]
    return None if interceptor.is_cloud_run else interceptor.reload_vae.original(*args, **kwargs)
