"""The Training page's form: its controls, and what they say in the program's own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import gradio as gr

from middleware_api.training_fields import LR_SCHEDULERS, ConceptSettings, TrainSettings

# As many as the Dreambooth extension has.
CONCEPTS = 4
LORA, FULL = "LoRA", "Full checkpoint"
NO_DATASET = ""
# What people take for a small LoRA, rather than the extension's defaults for a full training.
_DEFAULTS = {**asdict(TrainSettings()), "resolution": 512, "lora_unet_rank": 8}
_CONCEPT_DEFAULTS = asdict(ConceptSettings())
# The fields of `config_params`, in the order of their controls; the first four are told apart by
# what is made.
_PLAIN = (
    "custom_model_name", "num_train_epochs", "resolution", "train_batch_size",
    "gradient_accumulation_steps", "lr_scheduler", "stop_text_encoder", "gradient_checkpointing",
    "prior_loss_weight", "save_preview_every", "save_embedding_every", "sanity_prompt", "seed",
)  # fmt: skip
_OF_CONCEPT = (
    "instance_prompt", "class_prompt", "num_class_images_per", "save_sample_prompt",
)  # fmt: skip
_RATES = {
    LORA: ("lora_learning_rate", "lora_txt_learning_rate"),
    FULL: ("learning_rate", "txt_learning_rate"),
}


@dataclass(frozen=True)
class Form:
    """The controls, in the order of their values."""

    kind: Any
    rank: Any
    rate: Any
    text_rate: Any
    plain: Sequence[Any]
    concepts: Sequence[Sequence[Any]]

    @property
    def controls(self) -> list[Any]:
        """All of them."""
        settings = [self.kind, self.rank, self.rate, self.text_rate, *self.plain]
        return settings + [control for concept in self.concepts for control in concept]


@dataclass(frozen=True)
class Read:
    """What the form says: `config_params` without its concepts, and those that are filled in."""

    config: dict[str, Any]
    concepts: tuple[dict[str, Any], ...]

    @property
    def folders(self) -> list[str]:
        """Where the concepts' pictures are: locations of data sets, or folders here."""
        return [str(concept["instance_data_dir"]) for concept in self.concepts]


def build_concepts() -> list[list[Any]]:
    """The controls of each concept: data set, folder, then `_OF_CONCEPT`."""
    built = []
    for number in range(CONCEPTS):
        with gr.Tab("Concept" if number == 0 else "Another one", id=f"concept{number}"):
            with gr.Row():
                dataset = gr.Dropdown(
                    [NO_DATASET],
                    value=NO_DATASET,
                    label="Data set",
                    elem_id=f"sdaws_training_dataset_{number}",
                )
                folder = gr.Textbox(
                    label="Or a folder of pictures on this machine",
                    placeholder="/path/to/pictures",
                    info="It is uploaded as a data set; a .txt beside a picture is its caption",
                    max_lines=1,
                    elem_id=f"sdaws_training_folder_{number}",
                )
            with gr.Row():
                instance = gr.Textbox(
                    label="Prompt of these pictures",
                    placeholder="photo of sks dog",
                    info="A rare word (sks) names what is new. [filewords]: its own caption",
                    max_lines=1,
                    elem_id=f"sdaws_training_instance_{number}",
                )
                class_prompt = gr.Textbox(
                    label="Prompt of its class",
                    placeholder="photo of a dog",
                    info="What the model knows already and should keep",
                    max_lines=1,
                )
            with gr.Row():
                count = gr.Slider(
                    0, 100, value=0, step=1, label="Class pictures for each picture",
                    info="Made first by the model itself, against forgetting; 0: none",
                )  # fmt: skip
                sample = gr.Textbox(
                    label="Prompt of sample pictures",
                    placeholder="as the first picture's",
                    max_lines=1,
                )
            built.append([dataset, folder, instance, class_prompt, count, sample])
    return built


def build_settings(concepts: Sequence[Sequence[Any]]) -> Form:
    """The controls of the settings."""
    d = _DEFAULTS
    with gr.Row():
        kind = gr.Radio(
            [LORA, FULL],
            value=LORA,
            label="What is made",
            info="A LoRA is small and quick, and is added to any checkpoint of its family",
            elem_id="sdaws_training_kind",
        )
        name = gr.Textbox(
            label="Name of the file", placeholder="the model's", max_lines=1,
            elem_id="sdaws_training_name",
        )  # fmt: skip
        rank = gr.Slider(1, 128, value=d["lora_unet_rank"], step=1, label="Rank of the LoRA")
    with gr.Row():
        epochs = gr.Number(
            d["num_train_epochs"], precision=0, label="Epochs",
            info="How often each picture is shown", elem_id="sdaws_training_epochs",
        )  # fmt: skip
        rate = gr.Number(
            d["lora_learning_rate"], label="Learning rate", info="Too high: it forgets the rest"
        )
        text_rate = gr.Number(
            d["lora_txt_learning_rate"], label="Learning rate of the text encoder"
        )
    with gr.Row():
        resolution = gr.Number(
            d["resolution"], precision=0, label="Resolution",
            info="512 for SD 1.x, 768 for 2.x, 1024 for XL", elem_id="sdaws_training_resolution",
        )  # fmt: skip
        batch = gr.Slider(1, 16, value=1, step=1, label="Batch size", info="More memory")
        every = gr.Number(
            d["save_preview_every"], precision=0, label="Epochs between sample pictures",
            info="0 makes none",
        )  # fmt: skip
        save = gr.Number(
            d["save_embedding_every"], precision=0, label="Epochs between saved states",
            info="From the last one it goes on after a breakdown",
        )  # fmt: skip
    with gr.Accordion("More settings", open=False):
        with gr.Row():
            accumulation = gr.Slider(1, 32, value=1, step=1, label="Gradient accumulation steps")
            scheduler = gr.Dropdown(
                list(LR_SCHEDULERS), value=d["lr_scheduler"], label="Learning rate scheduler",
                elem_id="sdaws_training_scheduler",
            )  # fmt: skip
            text = gr.Slider(
                0, 1, value=d["stop_text_encoder"], step=0.05,
                label="Share of the training for the text encoder",
                info="0 leaves it as it is",
            )  # fmt: skip
        with gr.Row():
            prior = gr.Slider(
                0, 2, value=d["prior_loss_weight"], step=0.05, label="Weight of class pictures"
            )
            seed = gr.Number(d["seed"], precision=0, label="Seed")
            checkpointing = gr.Checkbox(
                d["gradient_checkpointing"], label="Less memory, a quarter more time"
            )
        sanity = gr.Textbox(
            label="A prompt without the new word, as a check",
            placeholder="optional: its sample picture should stay as it was",
            max_lines=1,
        )
    plain = [
        name, epochs, resolution, batch, accumulation, scheduler, text, checkpointing, prior, every,
        save, sanity, seed,
    ]  # fmt: skip
    return Form(kind, rank, rate, text_rate, plain, concepts)


def read_form(values: Sequence[Any], imported: Mapping[str, Any]) -> Read:
    """`values` are those of `Form.controls`; `imported` are settings that have no control."""
    kind, rank, rate, text_rate, *rest = values
    config = {
        name: value
        for name, value in imported.items()
        if name != "concepts_list" and value is not None
    }
    config["use_lora"] = kind == LORA
    config["lora_unet_rank"] = int(rank)
    config.setdefault("lora_txt_rank", int(rank))
    config.update(zip(_RATES[kind], (rate, text_rate)))  # noqa: B905 - both are pairs
    for name, value in zip(_PLAIN, rest):  # noqa: B905 - the concepts follow
        if value is not None:
            config[name] = value
    others = imported.get("concepts_list") or []
    width = 2 + len(_OF_CONCEPT)
    concepts = []
    for number in range(CONCEPTS):
        start = len(_PLAIN) + number * width
        dataset, folder, *texts = rest[start : start + width]
        place = folder.strip() or (f"s3:///dataset/{dataset}" if dataset else "")
        if place:
            known = others[number] if number < len(others) else {}
            concepts.append(
                {
                    **(known if isinstance(known, dict) else {}),
                    "instance_data_dir": place,
                    **dict(zip(_OF_CONCEPT, texts)),  # noqa: B905
                }
            )
    # A file may hold more than the form does.
    concepts += [dict(one) for one in others[CONCEPTS:] if isinstance(one, dict)]
    return Read(config, tuple(concepts))


def fill(config: Mapping[str, Any]) -> list[Any]:
    """The controls' values of imported settings; what these leave out stays as it is."""
    kind = LORA if config.get("use_lora") else FULL
    own = {**_DEFAULTS, **_typed(config, _DEFAULTS)}
    rates = [own[name] for name in _RATES[kind]]
    made = [kind, own["lora_unet_rank"], *rates, *(own[name] for name in _PLAIN)]
    listed = [one for one in config.get("concepts_list") or [] if isinstance(one, dict)]
    for number in range(CONCEPTS):
        found = listed[number] if number < len(listed) else {}
        concept = {**_CONCEPT_DEFAULTS, **_typed(found, _CONCEPT_DEFAULTS)}
        folder = str(concept["instance_data_dir"] or "")
        made += [NO_DATASET, folder, *(concept[name] for name in _OF_CONCEPT)]
    return [gr.update(value=value) for value in made]


def _typed(found: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are there, numbers as numbers: some files have them as texts."""
    made = {name: value for name, value in found.items() if value is not None}
    for name, value in made.items():
        default = defaults.get(name)
        if isinstance(value, str) and isinstance(default, (int, float)):
            with suppress(ValueError):  # the program says what is wrong with it
                made[name] = type(default)(float(value))
    return made


def rates_of(kind: str) -> tuple[Any, Any, Any]:
    """The learning rates that fit what is made, and whether it has a rank."""
    first, second = (_DEFAULTS[name] for name in _RATES[kind])
    return gr.update(value=first), gr.update(value=second), gr.update(visible=kind == LORA)
