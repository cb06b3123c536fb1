"""Which kind of model a LoRA was made for, as far as its file tells."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from middleware_api.container.engine.families import SD1, SD2, SDXL

_SD3, _FLUX = "Stable Diffusion 3", "Flux"

# What metadata begin with: kohya's `ss_base_model_version`, ModelSpec's `modelspec.architecture`.
_TOLD = {
    "sd_v1": SD1.name,
    "sd_v2": SD2.name,
    "sdxl": SDXL.name,
    "sd3": _SD3,
    "flux": _FLUX,
    "stable-diffusion-v1": SD1.name,
    "stable-diffusion-v2": SD2.name,
    "stable-diffusion-xl": SDXL.name,
    "stable-diffusion-3": _SD3,
}
_NAMED = {
    "lora_unet_joint_blocks_": _SD3,
    "lora_unet_double_blocks_": _FLUX,
    "lora_te2_": SDXL.name,
}
# The text's width, which a cross-attention's keys and values are made from.
_WIDTHS = {768: SD1.name, 1024: SD2.name, 2048: SDXL.name}
_READS_TEXT = ("attn2_to_k.lora_down.weight", "attn2_to_k.hada_w1_b", "attn2_to_k.diff")


def made_for(content: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """A family's name; "" when nothing tells."""
    for key in ("ss_base_model_version", "modelspec.architecture"):
        told = metadata.get(key, "").casefold()
        for beginning, family in _TOLD.items():
            if told.startswith(beginning):
                return family
    for beginning, family in _NAMED.items():
        if any(name.startswith(beginning) for name in content):
            return family
    widths = {t.shape[1] for n, t in content.items() if n.endswith(_READS_TEXT) and t.ndim > 1}
    return _WIDTHS.get(widths.pop(), "") if len(widths) == 1 else ""
