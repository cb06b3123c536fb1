"""Where the WebUI's generations are turned towards the cloud; all of its patches, and their end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from modules import images, img2img, processing, scripts, sd_models, sd_vae

from aws_extension.access import CloudAccess
from aws_extension.errors import CloudError
from aws_extension.fan_out import Capacity
from aws_extension.users import browser_user, login_user
from aws_extension.webui import host_scripts
from aws_extension.webui.choice import CloudChoice
from aws_extension.webui.cloud_names import find_cloud_checkpoint
from aws_extension.webui.code_swap import CodeSwap
from aws_extension.webui.dispatch import generate
from aws_extension.webui.generation import Generation

# The entries' code runs inside the host's functions, with the host's globals: each imports what
# it calls. Their names say whose place they take.


def _process_images(p: Any) -> Any:
    from aws_extension.webui.interception import route_process_images

    return route_process_images(p)


def _run_script(self: Any, p: Any, *args: Any) -> Any:
    from aws_extension.webui.interception import route_script

    return route_script(self, p, *args)


def _process_batch(p: Any, *args: Any, **kwargs: Any) -> Any:
    from aws_extension.webui.interception import route_folder

    return route_folder(p, *args, **kwargs)


def _get_closet_checkpoint_match(search_string: Any) -> Any:
    from aws_extension.webui.interception import route_checkpoint_match

    return route_checkpoint_match(search_string)


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
        # `generation` while this thread runs one for the cloud.
        self.running = threading.local()
        self.process_images = CodeSwap(processing.process_images, _process_images)  # type: ignore[arg-type]
        self.run_script = CodeSwap(scripts.ScriptRunner.run, _run_script)  # type: ignore[arg-type]
        self.folder = CodeSwap(img2img.process_batch, _process_batch)  # type: ignore[arg-type]
        self.checkpoint_match = CodeSwap(
            sd_models.get_closet_checkpoint_match,
            _get_closet_checkpoint_match,  # type: ignore[arg-type]
        )
        # Scripts such as X/Y/Z reload weights when they end.
        self.reload_model = CodeSwap(sd_models.reload_model_weights, _reload_model_weights)  # type: ignore[arg-type]
        self.reload_vae = CodeSwap(sd_vae.reload_vae_weights, _reload_vae_weights)  # type: ignore[arg-type]
        self._patterns: dict[str, Callable[[Any], Any]] = {}
        self._loaded_before: bool | None = None

    @property
    def _swaps(self) -> tuple[CodeSwap, ...]:
        return (
            self.process_images,
            self.run_script,
            self.folder,
            self.checkpoint_match,
            self.reload_model,
            self.reload_vae,
        )

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
    def generation(self) -> Generation | None:
        """The one that this thread runs for the cloud."""
        found: Generation | None = getattr(self.running, "generation", None)
        return found

    def run(
        self, p: Any, choice: CloudChoice, script: Any, work: Callable[[Generation], Any]
    ) -> Any:
        """Do `work`, whose pictures come from the cloud, to its complete result."""
        client = self.access.client(_user(p, choice))
        capacity = Capacity.of(client.list_endpoints(), choice.endpoint)
        folder, gaps_allowed = self.access.state_folder, host_scripts.gaps_allowed(script)
        collected = self.access.collected
        with Generation(client, folder, collected, capacity, gaps_allowed) as generation:
            self.running.generation = generation
            try:
                processed = work(generation)
                return processed if processed is None else generation.finish(processed, p)
            finally:
                self.running.generation = None


def _user(p: Any, choice: CloudChoice) -> str:
    """Whom the jobs belong to: the host's login, else the browser; the host's own API has none."""
    if login := getattr(p, "user", None):
        return login_user(login)
    return browser_user(choice.user) if choice.user else ""


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


def route_process_images(p: Any) -> Any:
    """To the cloud when the panel of `p` says so, else to the WebUI."""
    interceptor = _installed[0]
    choice = host_scripts.cloud_panel_choice(p)
    if choice is None:
        return interceptor.process_images.original(p)
    generation = interceptor.generation
    if generation is None:
        return interceptor.run(
            p, choice, None, lambda generation: generate(p, choice, generation, at_once=True)
        )
    try:
        return generate(p, choice, generation, at_once=False)
    except CloudError as failure:
        generation.note_failure(failure)  # X/Y/Z only prints what it is told
        raise


def route_script(runner: Any, p: Any, *args: Any) -> Any:
    """A selected script's run; its pictures are made side by side where it lets them."""
    interceptor = _installed[0]
    choice = host_scripts.cloud_panel_choice(p)
    script = host_scripts.selected_script(p, args)
    if choice is None or script is None:
        return interceptor.run_script.original(runner, p, *args)
    host_scripts.require_portable(script)
    if interceptor.generation is not None:  # for a file of img2img's batch
        return interceptor.run_script.original(runner, p, *args)
    return interceptor.run(
        p, choice, script, lambda _: interceptor.run_script.original(runner, p, *args)
    )


def route_folder(p: Any, *args: Any, **kwargs: Any) -> Any:
    """img2img's batch of files: the pictures of all files are made side by side."""
    interceptor = _installed[0]
    choice = host_scripts.cloud_panel_choice(p)
    if choice is None:
        return interceptor.folder.original(p, *args, **kwargs)
    return interceptor.run(
        p, choice, None, lambda _: interceptor.folder.original(p, *args, **kwargs)
    )


def route_checkpoint_match(search_string: Any) -> Any:
    """A checkpoint of this machine, or while a cloud generation runs one of the cloud."""
    interceptor = _installed[0]
    found = interceptor.checkpoint_match.original(search_string)
    if found is None and interceptor.generation is not None and search_string:
        found = find_cloud_checkpoint(interceptor.generation.checkpoints(), str(search_string))
    return found


def route_model_reload(*args: Any, **kwargs: Any) -> Any:
    """Nothing is loaded here while a script's pictures come from the cloud."""
    interceptor = _installed[0]
    if interceptor.generation is not None:
        return None
    return interceptor.reload_model.original(*args, **kwargs)


def route_vae_reload(*args: Any, **kwargs: Any) -> Any:
    """As for the model."""
    interceptor = _installed[0]
    if interceptor.generation is not None:
        return None
    return interceptor.reload_vae.original(*args, **kwargs)
