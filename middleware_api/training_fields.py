"""What a training's `config_params` may say: the Dreambooth extension's fields, and two of ours.

One table for the program, its documentation and the pages that offer the fields. Standard library
only, Python 3.10: the WebUI's process imports this module too. Names, and defaults unless a
field says otherwise, are those of `db_config.json` and of its concepts as the extension
(d8ahazard/sd_dreambooth_extension, 1.1.0) writes them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T", bool, int, float, str)


class BadSetting(ValueError):
    """A field's value cannot be meant; the message names the field and what it must be."""


@dataclass(frozen=True)
class Bounds:
    """What a field's value may be, and what it does."""

    meaning: str
    low: float = 0
    high: float = math.inf
    choices: tuple[object, ...] = ()


def _honoured(
    default: T,
    meaning: str,
    *,
    low: float = 0,
    high: float = math.inf,
    choices: tuple[object, ...] = (),
) -> T:
    bounds = Bounds(meaning, low, high, choices)
    made: Any = dataclasses.field(default=default, metadata={"bounds": bounds})
    return made  # type: ignore[no-any-return]  # a dataclass' field is of its default's type


LR_SCHEDULERS = (
    *("constant", "constant_with_warmup", "linear", "linear_with_warmup", "cosine"),
    *("cosine_annealing", "cosine_annealing_with_restarts", "cosine_with_restarts"),
    *("polynomial", "rex"),
)
OPTIMIZERS = (
    *("Torch AdamW", "8bit AdamW", "Paged 8bit AdamW", "Lion", "8bit Lion", "Paged 8bit Lion"),
    "Adafactor",
)
TEXT_LENGTHS = (75, 150, 225, 300)


@dataclass(frozen=True)
class TrainSettings:
    """The fields of `config_params` that are honoured."""

    # What is trained.
    use_lora: bool = _honoured(
        False, "true makes a LoRA (kohya's format), false a full checkpoint (LDM layout)."
    )
    model_name: str = _honoured("", "The name of the finished file, unless custom_model_name is.")
    custom_model_name: str = _honoured("", "The name of the finished file.")
    lora_unet_rank: int = _honoured(4, "Rank of the LoRA in the UNet.", low=1, high=1024)
    lora_txt_rank: int = _honoured(4, "Rank of the LoRA in the text encoder.", low=1, high=1024)
    lora_alpha: float = _honoured(
        0.0, "Ours: the LoRA's alpha; 0 takes the rank, as the extension always does.", high=4096
    )
    use_lora_extended: bool = _honoured(
        False,
        "The LoRA changes the UNet's feed-forward, projection and convolution layers too, not only "
        "its attention.",
    )
    train_unet: bool = _honoured(True, "false trains the text encoder alone.")
    stop_text_encoder: float = _honoured(
        1.0,
        "The share of the training in which the text encoder is trained too; 0 leaves it as it is.",
        high=1,
    )
    freeze_clip_normalization: bool = _honoured(
        False, "A full training leaves the text encoder's normalization layers as they are."
    )
    half_model: bool = _honoured(False, "The finished file is in half precision.")
    # How long, and how much at a time.
    num_train_epochs: int = _honoured(
        100, "How often each picture is shown.", low=1, high=1_000_000
    )
    train_batch_size: int = _honoured(1, "Pictures in one call of the model.", low=1, high=256)
    gradient_accumulation_steps: int = _honoured(
        1, "Calls of the model whose gradients make one step.", low=1, high=1024
    )
    gradient_checkpointing: bool = _honoured(
        True, "Less memory for about a quarter more time a step."
    )
    mixed_precision: str = _honoured(
        "",
        "Default: bf16 on a GPU that has it, fp16 on another. A CPU computes in single precision "
        "whatever is asked, and says so.",
        choices=("", "no", "fp16", "bf16"),
    )
    tf32_enable: bool = _honoured(False, "A GPU may round single precision's products (TF32).")
    # Learning rates.
    learning_rate: float = _honoured(2e-6, "Of the UNet in a full training.", high=1)
    txt_learning_rate: float = _honoured(5e-6, "Of the text encoder in a full training.", high=1)
    lora_learning_rate: float = _honoured(1e-4, "Of the UNet's LoRA.", high=1)
    lora_txt_learning_rate: float = _honoured(5e-5, "Of the text encoder's LoRA.", high=1)
    lr_scheduler: str = _honoured(
        "constant_with_warmup", "How the rates change over the training.", choices=LR_SCHEDULERS
    )
    lr_warmup_steps: int = _honoured(
        -1,
        "Pictures over which the rates rise from 0, for the schedulers that warm up. Default: 500, "
        "but at most a tenth of the training.",
        low=-1,
    )
    lr_cycles: int = _honoured(
        1, "Half waves of cosine, and restarts of cosine_with_restarts.", low=1, high=1e3
    )
    lr_factor: float = _honoured(
        0.5, "What constant and linear begin with, as a share of the rate.", low=1e-6, high=1
    )
    lr_power: float = _honoured(1.0, "The exponent of polynomial.", low=0.01, high=100)
    lr_scale_pos: float = _honoured(
        0.5,
        "The share of the training after which constant and linear reach their rate, and "
        "cosine_annealing its lowest.",
        low=0.01,
        high=1,
    )
    learning_rate_min: float = _honoured(1e-6, "The lowest rate of cosine_annealing.", high=1)
    optimizer: str = _honoured(
        "",
        "Default: 8bit AdamW where there is a GPU with bitsandbytes, else Torch AdamW. That one "
        "takes the place of what is not there or not known, and a warning says so: the 8-bit and "
        "paged ones, and Lion, need such a GPU.",
    )
    weight_decay: float = _honoured(0.01, "Of the UNet.", high=1)
    tenc_weight_decay: float = _honoured(0.01, "Of the text encoder.", high=1)
    tenc_grad_clip_norm: float = _honoured(
        0.0, "Bounds the norm of the text encoder's gradients; 0 does not."
    )
    # Pictures and captions.
    resolution: int = _honoured(
        512,
        "Pictures are brought to about the area of a square of this side, in the shape that is "
        "nearest to their own.",
        low=32,
        high=2048,
    )
    hflip: bool = _honoured(False, "Shows pictures mirrored every other time.")
    shuffle_tags: bool = _honoured(
        True, "Shuffles a caption's parts between commas each time, the first part excepted."
    )
    max_token_length: int = _honoured(
        75, "Tokens of a caption that are read.", choices=TEXT_LENGTHS
    )
    clip_skip: int = _honoured(
        1, "The text encoder's layer, counted from the last.", low=1, high=12
    )
    cache_latents: bool = _honoured(
        True, "Encodes each picture once, rather than each time that it is shown."
    )
    disable_class_matching: bool = _honoured(
        False, "Class pictures are made square rather than in their instance pictures' shapes."
    )
    # The loss.
    offset_noise: float = _honoured(0.0, "Strength of the noise that is one for a channel.", high=1)
    min_snr_gamma: float = _honoured(
        0.0,
        "Bounds the weight of steps with little noise (arXiv 2303.09556); 0 does not.",
        high=100,
    )
    prior_loss_weight: float = _honoured(0.75, "Weight of the class pictures' loss.", high=10)
    prior_loss_scale: bool = _honoured(
        False, "Lowers that weight to prior_loss_weight_min over prior_loss_target epochs."
    )
    prior_loss_target: int = _honoured(100, "See prior_loss_scale.", low=1)
    prior_loss_weight_min: float = _honoured(0.1, "See prior_loss_scale.", high=10)
    split_loss: bool = _honoured(
        True, "false takes one mean over instance and class pictures, and no prior_loss_weight."
    )
    use_dream: bool = _honoured(
        False, "Trains on what the model itself makes of the noise (DREAM, arXiv 2312.00210)."
    )
    dream_detail_preservation: float = _honoured(0.5, "The exponent of DREAM.", high=10)
    use_ema: bool = _honoured(
        False,
        "A full training keeps a moving average of the UNet. Default: the extension has true.",
    )
    infer_ema: bool = _honoured(False, "The finished checkpoint's UNet is that average.")
    save_ema: bool = _honoured(
        False, "The finished checkpoint holds that average beside its UNet (model_ema)."
    )
    ema_predict: bool = _honoured(False, "Sample pictures are made with that average.")
    seed: int = _honoured(
        0,
        "Ours: all chance of a training comes from it, so that it can be repeated.",
        high=2**32 - 1,
    )
    # What is saved and shown meanwhile.
    save_preview_every: int = _honoured(5, "Epochs from sample pictures to the next; 0 makes none.")
    save_embedding_every: int = _honoured(
        25,
        "Epochs from one saved state to the next, from which a killed training goes on; one is "
        "saved every ten minutes in any case.",
    )
    sample_batch_size: int = _honoured(
        1, "Sample and class pictures that are made at once.", low=1, high=16
    )
    sanity_prompt: str = _honoured("", "A sample picture of this prompt is made each time.")
    sanity_seed: int = _honoured(420420, "Its seed.", high=2**32 - 1)
    scheduler: str = _honoured(
        "ddim",
        "The sampler of sample and class pictures, by the extension's name or the WebUI's; DDIM "
        "takes the place of one that is not known, and a warning says so.",
    )


@dataclass(frozen=True)
class ConceptSettings:
    """The fields of an entry of `concepts_list` that are honoured."""

    instance_data_dir: str = _honoured(
        "",
        "A data set, as s3://<bucket>/dataset/<name>. One that is no such location is taken for a "
        "folder of whoever asks: training_params.data_tar_list has the data set in its place.",
    )
    class_data_dir: str = _honoured(
        "", "A data set of class pictures; without one they are made. class_data_tar_list likewise."
    )
    instance_prompt: str = _honoured(
        "",
        "The caption of every picture. [filewords] in it stands for a picture's own: its .txt "
        "file's, or else its file name's words. Empty: the picture's own.",
    )
    class_prompt: str = _honoured(
        "", "The caption of class pictures, and the prompt that they are made from; likewise."
    )
    instance_token: str = _honoured(
        "", "The new word: put before the class word of captions that lack it, or at the beginning."
    )
    class_token: str = _honoured("", "The class word: takes the new word's place in class prompts.")
    num_class_images_per: int = _honoured(
        0, "Class pictures for each instance picture, for prior preservation; 0: none.", high=1000
    )
    class_guidance_scale: float = _honoured(7.5, "Of class pictures.", high=100)
    class_infer_steps: int = _honoured(60, "Of class pictures.", low=1, high=500)
    class_negative_prompt: str = _honoured("", "Of class pictures.")
    n_save_sample: int = _honoured(1, "Sample pictures each time.", high=16)
    save_sample_prompt: str = _honoured(
        "", "Of sample pictures; empty: the caption of the first picture."
    )
    save_sample_negative_prompt: str = _honoured("", "Of sample pictures.")
    save_guidance_scale: float = _honoured(7.5, "Of sample pictures.", high=100)
    save_infer_steps: int = _honoured(20, "Of sample pictures.", low=1, high=500)
    sample_seed: int = _honoured(
        -1, "Of sample pictures; -1: one of this training's own.", low=-1, high=2**32 - 1
    )


@dataclass(frozen=True)
class OtherField:
    """A field that is not honoured as it stands; a refused one only counts unless `neutral`."""

    instead: str
    neutral: tuple[object, ...] = ()
    refused: bool = False


def mapped(instead: str) -> OtherField:
    return OtherField(instead)


def refused(why: str, *neutral: object) -> OtherField:
    return OtherField(why, neutral, refused=True)


_OWN_FOLDER = mapped("A folder of the local extension; the order names the model in its place.")
_COUNTER = mapped("A counter of the local extension; a training counts its own steps from 0.")
_STATES = mapped(
    "A state to go on from is saved every save_embedding_every epochs, and when it is stopped."
)
_WEIGHTS = mapped("The finished weights are always saved, and those of a stopped training too.")
_BETWEEN = mapped("A state to go on from is saved instead (save_embedding_every).")
_OLD_OPTIMIZER = refused("The optimizers that estimate the rate themselves are not there.", 0, 0.0)

OTHER_FIELDS: dict[str, OtherField] = {
    "adamw_weight_decay": mapped("An old name of weight_decay."),
    "adaptation_beta1": _OLD_OPTIMIZER,
    "adaptation_beta2": _OLD_OPTIMIZER,
    "adaptation_d0": _OLD_OPTIMIZER,
    "adaptation_eps": _OLD_OPTIMIZER,
    "adaptation_growth_rate": _OLD_OPTIMIZER,
    "adaptation_momentum": _OLD_OPTIMIZER,
    "attention": mapped("PyTorch's own attention, which is as fast and needs as little memory."),
    "center_crop": mapped("Pictures are always cut around their middle."),
    "concepts_list": mapped("The concepts: see the second table."),
    "concepts_path": refused("A file of the local extension. Send concepts_list instead.", ""),
    "deis_train_scheduler": mapped("See noise_scheduler."),
    "deterministic": mapped("A training always is: see seed."),
    "disable_logging": mapped("The loss is always told."),
    "dynamic_img_norm": refused("Pictures keep their own brightness and contrast.", False),
    "enable_tomesd": refused("See tomesd.", False),
    "epoch": _COUNTER,
    "epoch_pause_frequency": refused("A machine that is paid for does not pause.", 0),
    "epoch_pause_time": mapped("See epoch_pause_frequency."),
    "freeze_spectral_norm": refused("Not there.", False),
    "full_mixed_precision": mapped("What is trained stays in single precision."),
    "gradient_set_to_none": mapped("Always."),
    "graph_smoothing": mapped("A matter of who draws the loss."),
    "has_ema": mapped("Read from the weights when the model is made (extract_ema)."),
    "initial_revision": _COUNTER,
    "input_pertubation": mapped("Without effect here as in the extension."),
    "lifetime_revision": _COUNTER,
    "lora_model_name": refused("A LoRA is always begun anew.", ""),
    "lora_rank": mapped("An old name of lora_unet_rank and lora_txt_rank."),
    "lora_txt_weight": mapped("A LoRA's weight is chosen in the prompt that uses it."),
    "lora_use_buggy_requires_grad": refused("A fault that is not repeated here.", False),
    "lora_weight": mapped("A LoRA's weight is chosen in the prompt that uses it."),
    "model_dir": _OWN_FOLDER,
    "model_path": _OWN_FOLDER,
    "model_type": mapped("Read from the weights."),
    "noise_scheduler": mapped("All of them add noise alike (DDPM)."),
    "pad_tokens": mapped("Captions are always filled up, as prompts are when a picture is made."),
    "pretrained_model_name_or_path": _OWN_FOLDER,
    "pretrained_vae_name_or_path": refused("The model's own VAE is used.", ""),
    "revision": _COUNTER,
    "save_ckpt_after": _WEIGHTS,
    "save_ckpt_cancel": _WEIGHTS,
    "save_ckpt_during": _BETWEEN,
    "save_lora_after": _WEIGHTS,
    "save_lora_cancel": _WEIGHTS,
    "save_lora_during": _BETWEEN,
    "save_lora_for_extra_net": mapped("Always kohya's format, which the WebUI's networks read."),
    "save_safetensors": mapped("Always."),
    "save_state_after": _STATES,
    "save_state_cancel": _STATES,
    "save_state_during": _STATES,
    "shared_diffusers_path": _OWN_FOLDER,
    "snapshot": _COUNTER,
    "src": _OWN_FOLDER,
    "strict_tokens": refused("Captions are read as prompts are.", False),
    "tomesd": refused("Sample pictures are made as pictures are: without merged tokens.", 0, 0.0),
    "train_imagic": refused("Not there.", False),
    "train_unfrozen": mapped("A full training trains every layer."),
    "use_8bit_adam": mapped("An old name: true is the optimizer 8bit AdamW."),
    "use_concepts": refused("A file of the local extension. Send concepts_list instead.", False),
    "use_shared_src": _OWN_FOLDER,
    "use_subdir": _OWN_FOLDER,
    "v2": mapped("Read from the weights."),
}

OTHER_CONCEPT_FIELDS: dict[str, OtherField] = {
    "is_valid": mapped("Found out anew."),
    "save_sample_template": refused("A file of the local extension. Use save_sample_prompt.", ""),
}

# Older names of honoured fields, as old `db_config.json` files have them.
_RENAMED = {
    "adamw_weight_decay": ("weight_decay",),
    "lora_rank": ("lora_unet_rank", "lora_txt_rank"),
}
_OLD_VALUES = {("optimizer", "8Bit Adam"): "8bit AdamW"}


@dataclass(frozen=True)
class TrainRequest:
    """What `params` of a training job say, and a sentence for each thing that is not done so."""

    settings: TrainSettings
    concepts: tuple[ConceptSettings, ...]
    warnings: tuple[str, ...]


def read_request(params: Mapping[str, object]) -> TrainRequest:
    """Raises BadSetting."""
    config = _mapping(params, "config_params")
    training = _mapping(params, "training_params")
    raw = {name.removeprefix("db_"): value for name, value in config.items()}
    for old, names in _RENAMED.items():
        for name in names:
            if old in raw:
                raw.setdefault(name, raw[old])
    if raw.get("use_8bit_adam"):
        raw.setdefault("optimizer", "8bit AdamW")
    settings, warnings = _read(TrainSettings, OTHER_FIELDS, raw, "config_params.")
    concepts = []
    listed = raw.get("concepts_list") or []
    if not isinstance(listed, list) or not all(isinstance(each, dict) for each in listed):
        raise BadSetting("config_params.concepts_list must be a list of objects.")
    for number, entry in enumerate(listed or [{}]):
        place = f"config_params.concepts_list[{number}]."
        concept, more = _read(ConceptSettings, OTHER_CONCEPT_FIELDS, entry, place)
        instance = _location(concept.instance_data_dir, training, "data_tar_list", number)
        classes = _location(concept.class_data_dir, training, "class_data_tar_list", number)
        concepts.append(
            dataclasses.replace(concept, instance_data_dir=instance, class_data_dir=classes)
        )
        warnings += more
    return TrainRequest(settings, tuple(concepts), tuple(warnings))


def is_location(folder: str) -> bool:
    """Whether a concept's folder is a data set's location."""
    return folder.startswith("s3://")


def _location(folder: str, training: Mapping[str, object], name: str, number: int) -> str:
    """A concept's data set: its own, or else the one at its place in the list."""
    listed = training.get(name) or []
    if is_location(folder) or not isinstance(listed, list):
        return folder
    found = listed[number] if number < len(listed) else ""
    return found if isinstance(found, str) and found else folder


def _mapping(params: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = params.get(name) or {}
    if not isinstance(found, Mapping):
        raise BadSetting(f"{name} must be an object.")
    return found


S = TypeVar("S", TrainSettings, ConceptSettings)


def _read(
    kind: type[S], others: Mapping[str, OtherField], raw: Mapping[str, object], place: str
) -> tuple[S, list[str]]:
    values: dict[str, Any] = {}
    warnings = []
    known = {field.name: field for field in dataclasses.fields(kind)}
    for name, value in raw.items():
        field, other = known.get(name), others.get(name)
        if value is None:
            continue
        if field is not None:
            value = _OLD_VALUES.get((name, str(value)), value)
            values[name] = _value(place + name, value, field.default, field.metadata["bounds"])
        elif other is None:
            warnings.append(f"{place}{name} is not a known field and was left out.")
        elif other.refused and value not in other.neutral:
            warnings.append(f"{place}{name} was left out: {other.instead}")
    return kind(**values), warnings


def _value(name: str, value: object, default: object, bounds: Bounds) -> object:
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise BadSetting(f"{name} must be true or false.")
    elif isinstance(default, str):
        if not isinstance(value, str):
            raise BadSetting(f"{name} must be a text.")
    else:
        value = _number(name, value, isinstance(default, int), bounds)
    if bounds.choices and value not in bounds.choices:
        named = ", ".join(str(choice) for choice in bounds.choices if choice != "")
        raise BadSetting(f"{name} must be one of {named}.")
    return value


def _number(name: str, value: object, whole: bool, bounds: Bounds) -> int | float:
    """Numbers may come as texts, as in the extension's own files."""
    try:
        number = float(value) if not isinstance(value, bool) else math.nan  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not bounds.low <= number <= bounds.high or (whole and number != int(number)):
        kind = "a whole number" if whole else "a number"
        most = f" and {bounds.high:.12g}" if bounds.high < math.inf else ""
        between = f"between {bounds.low:g}{most}" if most else f"of at least {bounds.low:g}"
        raise BadSetting(f"{name} must be {kind} {between}.")
    return int(number) if whole else number
