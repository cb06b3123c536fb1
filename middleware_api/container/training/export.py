"""The finished weights: a LoRA in kohya's format, or a full checkpoint in LDM layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from middleware_api import contract
from middleware_api.container.engine.checkpoint import StableDiffusion
from middleware_api.container.engine.families import SD2, SDXL, Layout, TextSource
from middleware_api.container.engine.ldm_layout import unet_to_ldm
from middleware_api.container.prompts.open_clip import to_open_clip
from middleware_api.container.samplers.prediction import Prediction
from middleware_api.container.storage import Storage
from middleware_api.container.training import lora as train_lora
from middleware_api.container.training.file import hash_of, write_tensors
from middleware_api.container.training.trainee import Part, Trainee, mapped_average
from middleware_api.contract import CheckpointType, ContainerCheckpoint
from middleware_api.training_fields import TrainSettings

Tensors = dict[str, Tensor]
_EMA_PREFIX = "model_ema."


@dataclass(frozen=True)
class Done:
    """What the finished file tells of its training. `began` and `ended` are epoch seconds."""

    base_name: str
    base_sha256: str
    pictures: int
    class_pictures: int
    captions: Mapping[str, int]
    buckets: Mapping[str, int]
    steps: int
    all_steps: int
    epochs: int
    began: float
    ended: float
    precision: str
    optimizer: str


@dataclass(frozen=True)
class Kind:
    """A family of models in the words of kohya's scripts and of ModelSpec."""

    version: str
    architecture: str
    prediction: str


def kind_of(model: StableDiffusion) -> Kind:
    """What a file says that it was trained from."""
    velocity = model.prediction is Prediction.VELOCITY
    prediction = model.prediction.value
    if model.family is SDXL:
        return Kind("sdxl_base_v1-0", "stable-diffusion-xl-v1-base", prediction)
    if model.family.name == SD2.name:
        size = "768-v" if velocity else "512"
        return Kind(f"sd_v2_{size.replace('-', '_')}", f"stable-diffusion-v2-{size}", prediction)
    return Kind("sd_v1", "stable-diffusion-v1", prediction)


def finished_name(settings: TrainSettings, job_id: str) -> str:
    """The file's name without its ending: the caller's, where it may name a file."""
    for wanted in (settings.custom_model_name, settings.model_name):
        if wanted and contract.is_valid_name(f"{wanted}{contract.SAFETENSORS}"):
            return wanted
    return f"trained-{job_id}"


def save_lora(
    trainee: Trainee, settings: TrainSettings, done: Done, storage: Storage, key: str
) -> ContainerCheckpoint:
    """Raises DiskFull and StorageUnreachable."""
    dtype = torch.float16 if settings.half_model else torch.float32
    tensors: Tensors = {}
    for part in trainee.parts:
        for name, tensor in train_lora.kohya_tensors(part.module, part.prefix):
            tensors[name] = tensor.to("cpu", dtype).contiguous()
    kind = kind_of(trainee.model)
    metadata = lora_metadata(settings, done, kind, name_of(key))
    metadata["sshs_model_hash"] = hash_of(tensors)
    return _told(CheckpointType.LORA, storage, key, tensors, metadata)


def save_checkpoint(
    trainee: Trainee, settings: TrainSettings, done: Done, storage: Storage, key: str, base: Path
) -> ContainerCheckpoint:
    """The base's tensors, those of trained networks anew; raises DiskFull, StorageUnreachable."""
    dtype = torch.float16 if settings.half_model else torch.float32
    with safe_open(base, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if settings.half_model:
        tensors = {n: t.half() if t.is_floating_point() else t for n, t in tensors.items()}
    if trainee.unet is not None:
        plain = train_lora.plain_tensors(trainee.unet.module)
        average = None if trainee.average is None else _plain_names(trainee.average.tensors)
        if average is not None and settings.save_ema:
            tensors |= _ema_tensors(mapped_average(average, plain), dtype)
        if average is not None and settings.infer_ema:
            plain = mapped_average(average, plain)
        tensors |= _as(unet_to_ldm(plain), dtype)
    for part, encoder in zip(trainee.texts, trainee.model.text_encoders, strict=False):
        tensors |= _as(_text_tensors(part, encoder.source, tensors), dtype)
    metadata = {
        "format": "pt",
        "ss_sd_model_name": done.base_name,
        "ss_new_sd_model_hash": done.base_sha256,
        "ss_steps": str(done.steps),
        "modelspec.title": name_of(key),
        # A reader of the file has to know it: no tensor's shape tells.
        "modelspec.prediction_type": trainee.model.prediction.value,
    }
    return _told(CheckpointType.STABLE_DIFFUSION, storage, key, tensors, metadata)


def lora_metadata(settings: TrainSettings, done: Done, kind: Kind, name: str) -> dict[str, str]:
    """As kohya's scripts write it, for what reads a LoRA's history; all values are texts."""
    rank = settings.lora_unet_rank
    tags = {done.base_name: dict(done.captions)}
    values: dict[str, object] = {
        "ss_output_name": name,
        "ss_sd_model_name": done.base_name,
        "ss_new_sd_model_hash": done.base_sha256,
        "ss_base_model_version": kind.version,
        "ss_v2": kind.version.startswith("sd_v2"),
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": settings.lora_alpha or float(rank),
        "ss_learning_rate": settings.lora_learning_rate,
        "ss_unet_lr": settings.lora_learning_rate if settings.train_unet else None,
        "ss_text_encoder_lr": settings.lora_txt_learning_rate or None,
        "ss_lr_scheduler": settings.lr_scheduler,
        "ss_lr_warmup_steps": settings.lr_warmup_steps,
        "ss_optimizer": done.optimizer,
        "ss_num_train_images": done.pictures,
        "ss_num_reg_images": done.class_pictures,
        "ss_num_epochs": settings.num_train_epochs,
        "ss_epoch": done.epochs,
        "ss_steps": done.steps,
        "ss_max_train_steps": done.all_steps,
        "ss_total_batch_size": settings.train_batch_size * settings.gradient_accumulation_steps,
        "ss_batch_size_per_device": settings.train_batch_size,
        "ss_gradient_accumulation_steps": settings.gradient_accumulation_steps,
        "ss_gradient_checkpointing": settings.gradient_checkpointing,
        "ss_resolution": f"({settings.resolution}, {settings.resolution})",
        "ss_bucket_info": json.dumps(done.buckets),
        "ss_enable_bucket": True,
        "ss_flip_aug": settings.hflip,
        "ss_shuffle_caption": settings.shuffle_tags,
        "ss_cache_latents": settings.cache_latents,
        "ss_max_token_length": settings.max_token_length,
        "ss_clip_skip": settings.clip_skip,
        "ss_mixed_precision": done.precision,
        "ss_seed": settings.seed,
        "ss_min_snr_gamma": settings.min_snr_gamma or None,
        "ss_noise_offset": settings.offset_noise or None,
        "ss_prior_loss_weight": settings.prior_loss_weight,
        "ss_tag_frequency": json.dumps(tags),
        "ss_training_started_at": done.began,
        "ss_training_finished_at": done.ended,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{kind.architecture}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": name,
        "modelspec.prediction_type": kind.prediction,
        "modelspec.resolution": f"{settings.resolution}x{settings.resolution}",
        "modelspec.date": datetime.fromtimestamp(done.ended, timezone.utc).isoformat(),
    }
    return {name: str(value) for name, value in values.items()}


def name_of(key: str) -> str:
    """A weights file's name without its ending."""
    return key.rpartition("/")[2].removesuffix(contract.SAFETENSORS)


def _told(
    kind: CheckpointType,
    storage: Storage,
    key: str,
    tensors: Tensors,
    metadata: Mapping[str, str],
) -> ContainerCheckpoint:
    written = write_tensors(storage, key, tensors, metadata)
    return ContainerCheckpoint(
        type=kind.value,
        name=key.rpartition("/")[2],
        key=key,
        size=written.size,
        sha256=written.sha256,
    )


def _as(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> Tensors:
    return {name: tensor.detach().to("cpu", dtype) for name, tensor in tensors.items()}


def _plain_names(tensors: Mapping[str, Tensor]) -> Tensors:
    return {name.replace(".doubling.", "."): tensor for name, tensor in tensors.items()}


def _text_tensors(part: Part, source: TextSource, base: Tensors) -> Tensors:
    """Under the names that the base file has: some lack `text_model.`."""
    state = train_lora.plain_tensors(part.module)
    if source.layout is Layout.OPEN_CLIP:
        return {source.prefix + name: tensor for name, tensor in to_open_clip(state).items()}
    infix = "text_model."
    if not any(name.startswith(source.prefix + infix) for name in base):
        infix = ""
    return {f"{source.prefix}{infix}{name}": tensor for name, tensor in state.items()}


def _ema_tensors(plain: Tensors, dtype: torch.dtype) -> Tensors:
    """As LDM's training writes the average: the names without the dots between their parts."""
    found = {}
    for name, tensor in _as(unet_to_ldm(plain), dtype).items():
        short = name.removeprefix("model.").replace(".", "")
        found[_EMA_PREFIX + short] = tensor
    return found
