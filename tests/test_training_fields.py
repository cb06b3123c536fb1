"""What a training may be told: every field of the Dreambooth extension, and no silence."""

from __future__ import annotations

import dataclasses
import re

import pytest

from middleware_api.api.training_reference import DOCS, page
from middleware_api.model_params import read_model_params
from middleware_api.training_fields import (
    OTHER_CONCEPT_FIELDS,
    OTHER_FIELDS,
    BadSetting,
    ConceptSettings,
    TrainSettings,
    read_request,
)

# db_config.py and db_concept.py of d8ahazard/sd_dreambooth_extension, commit 4244f6b.
DB_CONFIG = re.findall(
    r"\w+",
    """
weight_decay attention cache_latents clip_skip concepts_list concepts_path custom_model_name
deterministic disable_class_matching disable_logging ema_predict epoch epoch_pause_frequency
epoch_pause_time freeze_clip_normalization full_mixed_precision gradient_accumulation_steps
gradient_checkpointing gradient_set_to_none graph_smoothing half_model has_ema hflip infer_ema
initial_revision input_pertubation learning_rate learning_rate_min lifetime_revision
lora_learning_rate lora_model_name lora_txt_learning_rate lora_txt_rank lora_unet_rank
lora_weight lora_use_buggy_requires_grad lr_cycles lr_factor lr_power lr_scale_pos lr_scheduler
lr_warmup_steps max_token_length min_snr_gamma use_dream dream_detail_preservation
freeze_spectral_norm mixed_precision model_dir model_name model_path model_type noise_scheduler
num_train_epochs offset_noise optimizer pad_tokens pretrained_model_name_or_path
pretrained_vae_name_or_path prior_loss_scale prior_loss_target prior_loss_weight
prior_loss_weight_min resolution revision sample_batch_size sanity_prompt sanity_seed
save_ckpt_after save_ckpt_cancel save_ckpt_during save_ema save_embedding_every save_lora_after
save_lora_cancel save_lora_during save_lora_for_extra_net save_preview_every save_safetensors
save_state_after save_state_cancel save_state_during scheduler shared_diffusers_path
shuffle_tags snapshot split_loss src stop_text_encoder strict_tokens dynamic_img_norm
tenc_weight_decay tenc_grad_clip_norm tomesd train_batch_size train_imagic train_unet
train_unfrozen txt_learning_rate use_concepts use_ema use_lora use_lora_extended use_shared_src
use_subdir v2
""",
)
DB_CONCEPT = re.findall(
    r"\w+",
    """
class_data_dir class_guidance_scale class_infer_steps class_negative_prompt class_prompt
class_token instance_data_dir instance_prompt instance_token is_valid n_save_sample
num_class_images_per sample_seed save_guidance_scale save_infer_steps
save_sample_negative_prompt save_sample_prompt save_sample_template
""",
)


def names_of(kind: type[TrainSettings] | type[ConceptSettings]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)}


def test_every_field_of_the_extension_is_in_the_table() -> None:
    honoured = names_of(TrainSettings)
    assert set(DB_CONFIG) - honoured - OTHER_FIELDS.keys() == set()
    assert honoured & OTHER_FIELDS.keys() == set()
    assert set(DB_CONCEPT) - names_of(ConceptSettings) - OTHER_CONCEPT_FIELDS.keys() == set()


def test_the_page_is_up_to_date() -> None:
    prose = (DOCS / "prose" / "training.md").read_text(encoding="utf-8")
    written = (DOCS / "training.md").read_text(encoding="utf-8")
    assert written == page(prose), "run `make docs`"
    assert all(f"`{name}`" in written for name in [*DB_CONFIG, *DB_CONCEPT])


def test_the_documented_example_is_read_without_a_warning() -> None:
    concept = {
        **{"class_data_dir": "", "class_guidance_scale": 7.5, "class_infer_steps": 40},
        **{"instance_prompt": "hanportraittest123", "num_class_images_per": 0, "is_valid": True},
        **{"instance_data_dir": "s3:///dataset/me", "sample_seed": -1, "save_sample_template": ""},
    }
    config = {
        "concepts_list": [concept],
        "model_dir": "models/dreambooth/",
        "num_train_epochs": 100,
        "use_lora": True,
        "revision": "",
    }
    found = read_request({"training_params": {}, "config_params": config})
    assert found.warnings == ()
    assert (found.settings.use_lora, found.settings.num_train_epochs) == (True, 100)
    assert found.concepts[0].instance_prompt == "hanportraittest123"


def test_what_is_not_done_is_told_and_nothing_else() -> None:
    config = {"train_imagic": True, "tomesd": 0.0, "tomes": 1, "strict_tokens": None}
    found = read_request({"config_params": {**config, "concepts_list": [{"sample_template": 1}]}})
    assert [warning.split()[0] for warning in found.warnings] == [
        "config_params.train_imagic",
        "config_params.tomes",
        "config_params.concepts_list[0].sample_template",
    ]


def test_older_names_and_the_lists_of_data_sets_count() -> None:
    config = {
        "db_lora_rank": 8,
        "use_8bit_adam": True,
        "num_train_epochs": "7",
        "concepts_list": [{"instance_data_dir": "D:\\cats"}, {}],
    }
    lists = {"data_tar_list": ["s3:///dataset/cats", "s3:///dataset/dogs"]}
    found = read_request({"config_params": config, "training_params": lists})
    settings = found.settings
    assert (settings.lora_unet_rank, settings.lora_txt_rank) == (8, 8)
    assert (settings.optimizer, settings.num_train_epochs) == ("8bit AdamW", 7)
    assert [concept.instance_data_dir for concept in found.concepts] == lists["data_tar_list"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("use_lora", 1),
        ("num_train_epochs", 0),
        ("num_train_epochs", 1.5),
        ("learning_rate", "much"),
        ("learning_rate", float("nan")),
        ("max_token_length", 80),
        ("lr_scheduler", "step"),
        ("sanity_prompt", ["a cat"]),
        ("concepts_list", {"a": 1}),
        ("concepts_list", ["a"]),
    ],
)
def test_a_value_that_cannot_be_meant_is_named(name: str, value: object) -> None:
    with pytest.raises(BadSetting, match=f"^config_params.{name} must be "):
        read_request({"config_params": {name: value}})


def test_what_a_models_making_is_told() -> None:
    documented = {
        **{"new_model_name": "testmodelcreation01", "ckpt_path": "v1-5.safetensors"},
        **{"from_hub": False, "new_model_url": "", "new_model_token": "", "extract_ema": False},
        **{"train_unfrozen": False, "is_512": True},
    }
    found = read_model_params({"create_model_params": documented})
    assert (found.file_name, found.extract_ema, found.warnings) == ("v1-5.safetensors", False, ())
    with pytest.raises(BadSetting, match="extract_ema must be true or false"):
        read_model_params({"create_model_params": {"extract_ema": "no"}})
