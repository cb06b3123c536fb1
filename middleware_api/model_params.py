"""What the making of a model may be told: the Dreambooth extension's `create_model_params`.

Standard library only, Python 3.10, as `training_fields`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from middleware_api.training_fields import BadSetting, OtherField, mapped, refused

HONOURED_MODEL_FIELDS = {
    "ckpt_path": "The name of the file to make the model of, where several were uploaded.",
    "extract_ema": "The model's UNet is the file's moving average (model_ema), if it has one.",
}
OTHER_MODEL_FIELDS: dict[str, OtherField] = {
    "from_hub": refused("Models come from files that were uploaded, or a checkpoint.", False),
    "is_512": mapped("Any model trains at any size: see resolution."),
    "model_type": mapped("Read from the weights."),
    "new_model_name": mapped("The model's name is its `name`."),
    "new_model_shared_src": refused("A folder of the local extension.", ""),
    "new_model_token": refused("See from_hub.", ""),
    "new_model_url": refused("See from_hub.", ""),
    "train_unfrozen": mapped("A full training trains every layer."),
}


@dataclass(frozen=True)
class ModelParams:
    """The fields that are honoured, and a sentence for each other one that was left out."""

    file_name: str
    extract_ema: bool
    warnings: tuple[str, ...]


def read_model_params(params: Mapping[str, object]) -> ModelParams:
    """Raises BadSetting."""
    raw = params.get("create_model_params") or {}
    if not isinstance(raw, Mapping):
        raise BadSetting("create_model_params must be an object.")
    file_name, extract = raw.get("ckpt_path") or "", raw.get("extract_ema") or False
    if not isinstance(file_name, str):
        raise BadSetting("create_model_params.ckpt_path must be a text.")
    if not isinstance(extract, bool):
        raise BadSetting("create_model_params.extract_ema must be true or false.")
    warnings = []
    for name, value in raw.items():
        other = OTHER_MODEL_FIELDS.get(name)
        if name in HONOURED_MODEL_FIELDS or value is None:
            continue
        if other is None:
            warnings.append(f"create_model_params.{name} is not a known field and was left out.")
        elif other.refused and value not in other.neutral:
            warnings.append(f"create_model_params.{name} was left out: {other.instead}")
    return ModelParams(file_name, extract, tuple(warnings))
