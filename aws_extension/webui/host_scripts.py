"""What the WebUI's scripts mean for a picture that is made elsewhere."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from aws_extension.errors import Unsupported
from aws_extension.webui.choice import CloudChoice
from aws_extension.webui.script_args import arguments, is_set

# The WebUI's own always-on scripts: what they do travels in fields of `p`.
_OWN_SCRIPTS = ("processing_scripts",)
# Always-on scripts whose `process` only rewrites prompts; other hooks need the local model, and
# what those scripts were set to travels to the engine instead.
_PROMPT_SCRIPTS = ("comments.py", "wildcards.py", "dynamic_prompting.py")
# Shows a black cell for a picture that could not be made, and goes on.
_GAPS_ALLOWED = ("xyz_grid.py",)
# Calls whatever code it was given, with the model or without.
_JUDGED_BY_HAND = ("xyz_grid.py", "prompts_from_file.py")
_READS_MODEL = re.compile(r"\b(?:shared|p)\.sd_model\b(?!\s*=[^=])")


def selected_script(p: Any, args: Any) -> Any:
    """The script chosen in the dropdown, or None."""
    number = args[0] if args else 0
    return p.scripts.selectable_scripts[number - 1] if p.scripts and number else None


def file_name(script: Any) -> str:
    """The file that a script came from, without its folder."""
    return os.path.basename(str(getattr(script, "filename", "") or ""))


def gaps_allowed(script: Any) -> bool:
    """Whether a script bears that one of its pictures does not come."""
    return file_name(script) in _GAPS_ALLOWED


def require_portable(script: Any) -> None:
    """Raises Unsupported for a script that works on the model itself: it is not here."""
    file = Path(str(getattr(script, "filename", "")))
    if file.name in _JUDGED_BY_HAND or not file.is_file():
        return
    if _READS_MODEL.search(file.read_text(encoding="utf-8", errors="replace")):
        raise Unsupported(
            f"“{script.title()}” works on the model itself, which is in the cloud and not here. "
            "Choose another script, or turn “Generate in the cloud” off. Nothing was sent."
        )


def cloud_panel_choice(p: Any) -> CloudChoice | None:
    """What the panel says for this very generation; None leaves it to the WebUI."""
    for script in p.scripts.alwayson_scripts if p.scripts else []:
        if getattr(script, "is_cloud_panel", False):
            choice: CloudChoice | None = script.read_choice(*_arguments(p, script))
            return choice
    return None


def other_scripts(p: Any) -> dict[str, Any]:
    """The arguments of other extensions' always-on scripts that are in use, by title."""
    found = {}
    for script in p.scripts.alwayson_scripts if p.scripts else []:
        own = os.path.basename(os.path.dirname(script.filename or "")) in _OWN_SCRIPTS
        if own or getattr(script, "is_cloud_panel", False) or file_name(script) in _PROMPT_SCRIPTS:
            continue
        args = _arguments(p, script)
        defaults = [getattr(control, "value", None) for control in script.controls or []]
        if is_set(args, defaults):
            found[str(script.title()).lower()] = arguments(args)
    return found


def rewrite_prompts(p: Any) -> None:
    """Comments removed, wildcards drawn: what the scripts for prompts do to `p.all_prompts`."""
    for script in p.scripts.alwayson_scripts if p.scripts else []:
        if file_name(script) in _PROMPT_SCRIPTS:
            script.process(p, *_arguments(p, script))


def _arguments(p: Any, script: Any) -> list[Any]:
    return list(p.script_args[script.args_from : script.args_to])
