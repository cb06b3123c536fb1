"""ControlNet's preprocessors by the names, menus and sliders of the WebUI's ControlNet extension.

Standard library only: the API lists what the engine can do. What is invisible there still stands
in the parameters text, with the values that the extension gives it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Slider:
    """A number with its bounds; outside of them `value` is meant."""

    low: float
    high: float
    value: float
    title: str = ""

    def settle(self, asked: float) -> float:
        """The number that an asked one means: the default itself where it is out of bounds."""
        return asked if self.low <= asked <= self.high else self.value


_HIDDEN = Slider(0.0, 1.0, 0.5)
_RESOLUTION = Slider(64, 2048, 512, "Resolution")
_GAMMA = Slider(0.1, 2.0, 1.0, "Gamma Correction")
_VARIATION = Slider(3.0, 32.0, 8.0, "Variation")
_SHARPNESS = Slider(0.0, 2.0, 1.0, "Sharpness")


@dataclass(frozen=True)
class Preprocessor:
    """A preprocessor: `label` is what menus call it where that is not its name."""

    name: str
    label: str = ""
    resolution: Slider = _RESOLUTION
    first: Slider = _HIDDEN
    second: Slider = _HIDDEN

    @property
    def title(self) -> str:
        """As menus and lists show it."""
        return self.label or self.name

    @property
    def is_inpaint(self) -> bool:
        """Whether its picture goes with the mask of what is to be made anew."""
        return self.name.startswith("inpaint")


_LINES = "(from white bg & black line)"
PREPROCESSORS = (
    Preprocessor("none"),
    Preprocessor("invert", f"invert {_LINES}", _HIDDEN),
    Preprocessor(
        "canny",
        first=Slider(1, 255, 100, "Low Threshold"),
        second=Slider(1, 255, 200, "High Threshold"),
    ),
    Preprocessor("lineart_standard", f"lineart_standard {_LINES}"),
    Preprocessor("scribble_xdog", first=Slider(1, 64, 32, "XDoG Threshold")),
    Preprocessor("threshold", first=Slider(0, 255, 127, "Binarization Threshold")),
    Preprocessor("tile_resample", first=Slider(1.0, 8.0, 1.0, "Down Sampling Rate")),
    Preprocessor("tile_colorfix", first=_VARIATION),
    Preprocessor(
        "tile_colorfix+sharp", first=_VARIATION, second=Slider(0.0, 2.0, 1.0, "Sharpness")
    ),
    Preprocessor("blur_gaussian", first=Slider(0.01, 64.0, 9.0, "Sigma")),
    Preprocessor("shuffle", resolution=Slider(0.0, 1.0, 512)),
    Preprocessor("recolor_luminance", first=_GAMMA),
    Preprocessor("recolor_intensity", first=_GAMMA),
    Preprocessor("inpaint", "inpaint_global_harmonious", _HIDDEN),
    Preprocessor("inpaint_only", resolution=_HIDDEN),
)
# What the names of the extension's other preprocessors have in them.
_NETWORKS = re.compile(
    "openpose|densepose|depth|normal_|mlsd|hed|pidi|softedge|lineart_|seg|oneformer|ip-adapter|"
    "instant_id|clip|revision|t2ia|mediapipe|mobile_sam|lama|facexlib|color$"
)

_BY_NAME = {name: each for each in PREPROCESSORS for name in (each.name, each.title)}


def find_preprocessor(name: str) -> Preprocessor | None:
    """By its name or label; None where there is none."""
    return _BY_NAME.get(name)


def needs_network(name: str) -> bool:
    """Whether a preprocessor that is not among ours is a network itself, or makes what only an
    adapter reads."""
    return _NETWORKS.search(name) is not None
