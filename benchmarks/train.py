"""`python -m benchmarks.train`: steps of our training against those of a plain loop.

The peer is the loop of diffusers' example `train_dreambooth_lora.py` (0.41) written down for one
process: pictures are encoded at every step, captions too. Both train LoRAs of one shape in copies
of one model, on the same pictures, captions and batch, and take turns, so that what else the
machine does meets both. Counted is the process's own processor time. The bars: with nothing cached
at least as many steps a second as the peer; with latents and captions cached at least 1.5 times as
many; and no more memory at its peak, each measured in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch.nn import functional as F
from transformers import CLIPTokenizer

from middleware_api import contract
from middleware_api.container.engine.checkpoint import load_checkpoint
from middleware_api.container.engine.lean_attention import make_trainable
from middleware_api.container.engine.packed import unpack
from middleware_api.container.prompts.encoder import TOKENIZER_FOLDER
from middleware_api.container.storage import FolderStorage
from middleware_api.container.training import lora as train_lora
from middleware_api.container.training.job import TrainRun
from middleware_api.container.training.lora import LoraShape
from middleware_api.container.training.report import TrainReporter
from middleware_api.contract import TrainOrder
from middleware_api.training_fields import read_request

DEMO = Path(__file__).parents[1] / "middleware_api" / "demo" / "demo.safetensors"
BAR, CACHED_BAR, MEMORY_BAR = 1.0, 1.5, 1.0
PICTURES, RANK, RATE = 16, 8, 1e-4
CAPTION = "a photo of zwx, number {}"
Step = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """What both do alike."""

    name: str
    text: bool
    caches: bool
    batch: int
    side: int


def settings(batch: int, side: int) -> list[Setting]:
    return [
        Setting("UNet and text encoder", True, False, batch, side),
        Setting("UNet alone", False, False, batch, side),
        Setting("UNet alone, cached", False, True, batch, side),
    ]


def pictures(side: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for _ in range(PICTURES)]


def peer(setting: Setting, checkpoint: Path) -> Step:
    """diffusers' example, without its options that are off."""
    cpu = torch.device("cpu")
    model = load_checkpoint(checkpoint, "peer", "", cpu, torch.float32)
    (encoder,) = model.text_encoders
    for module in model.modules:
        module.requires_grad_(False)
        unpack(module)
    make_trainable(model.unet)
    train_lora.add_to_unet(model.unet, LoraShape(RANK, RANK), extended=False)
    if setting.text:
        train_lora.add_to_text_encoder(encoder.module, LoraShape(RANK, RANK))
    trained = [p for module in model.modules for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, weight_decay=1e-2)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    noise_scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER_FOLDER, local_files_only=True)
    pixels = torch.stack(
        [torch.from_numpy(p).permute(2, 0, 1).float() / 127.5 - 1 for p in pictures(setting.side)]
    )
    tokens = [
        tokenizer(
            CAPTION.format(n),
            padding="max_length",
            truncation=True,
            max_length=77,
            return_tensors="pt",
        ).input_ids[0]
        for n in range(PICTURES)
    ]
    loader: Any = torch.utils.data.DataLoader(
        list(zip(pixels, tokens, strict=True)), batch_size=setting.batch, shuffle=True
    )
    batches = iter(loader)

    def step() -> float:
        nonlocal batches
        try:
            shown, ids = next(batches)
        except StopIteration:
            batches = iter(loader)
            shown, ids = next(batches)
        model_input = model.vae.encode(shown).latent_dist.sample() * model.vae_scale
        noise = torch.randn_like(model_input)
        timesteps = torch.randint(0, 1000, (len(shown),)).long()
        noisy = noise_scheduler.add_noise(model_input, noise, timesteps)
        states = encoder.module(ids).last_hidden_state
        answer = model.unet(noisy, timesteps, states, return_dict=False)[0]
        loss = F.mse_loss(answer.float(), noise.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        return loss.detach().item()

    return step


def ours(setting: Setting, checkpoint: Path, folder: Path) -> Step:
    """The program's own loop, prepared as by an order."""
    storage = FolderStorage(folder)
    model = folder / contract.working_model_key("model/")
    model.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(checkpoint, model)
    for number, content in enumerate(pictures(setting.side)):
        path = folder / "dataset" / "noise" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(path)
        path.with_suffix(".txt").write_text(CAPTION.format(number))
    config = {
        "use_lora": True,
        "num_train_epochs": 100_000,
        "train_batch_size": setting.batch,
        "resolution": setting.side,
        "gradient_checkpointing": False,
        "lora_unet_rank": RANK,
        "lora_txt_rank": RANK,
        "lora_learning_rate": RATE,
        "lora_txt_learning_rate": RATE,
        "stop_text_encoder": 1.0 if setting.text else 0.0,
        "cache_latents": setting.caches,
        "shuffle_tags": False,
        "optimizer": "Torch AdamW",
        "concepts_list": [{"instance_data_dir": "s3:///dataset/noise"}],
    }
    order = TrainOrder(
        job_id="benchmark",
        type="Stable-diffusion",
        model_prefix="model/",
        datasets={"noise": "dataset/noise/"},
        params={"config_params": config},
    )
    reporter = TrainReporter(storage, "out/", time.time, lambda line: None)
    run = TrainRun(storage, reporter, "out/", threading.Event().is_set, time.time)
    loop = run.prepare(read_request(order["params"]), order, model, began=0.0).loop

    def step() -> float:
        loss = loop.train_step()
        loop.step += 1
        return loss

    return step


def ratio(setting: Setting, checkpoint: Path, rounds: int, steps: int) -> float:
    """Of steps a second, ours to the peer's."""
    with tempfile.TemporaryDirectory() as folder:
        sides = [peer(setting, checkpoint), ours(setting, checkpoint, Path(folder))]
        for step in sides:
            step()
        ratios = []
        for _ in range(rounds):
            seconds = []
            for step in sides:
                began = time.process_time()
                for _ in range(steps):
                    step()
                seconds.append(time.process_time() - began)
            ratios.append(seconds[0] / seconds[1])
        print(
            f"{setting.name}: {steps / seconds[1]:.1f} steps a processor's second to the peer's "
            f"{steps / seconds[0]:.1f}; ratios {', '.join(f'{r:.2f}' for r in ratios)}",
            flush=True,
        )
    return statistics.median(ratios)


def peak(side: str, setting: Setting, checkpoint: Path) -> int:
    """Bytes that a process which trains so has needed at most."""
    told = json.dumps([side, setting.__dict__, str(checkpoint)])
    command = [sys.executable, "-m", "benchmarks.train", "--peak", told]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def tell_peak(told: str) -> None:
    side, raw, checkpoint = json.loads(told)
    setting = Setting(**raw)
    with tempfile.TemporaryDirectory() as folder:
        if side == "peer":
            step = peer(setting, Path(checkpoint))
        else:
            step = ours(setting, Path(checkpoint), Path(folder))
        for _ in range(5):
            step()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def main() -> int:
    """0 when the bars are held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=DEMO, help="of SD 1.x")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of each, a round")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        tell_peak(options.peak)
        return 0
    held = True
    for setting in settings(options.batch, options.side):
        found = ratio(setting, options.checkpoint, options.rounds, options.steps)
        bar = CACHED_BAR if setting.caches else BAR
        both = [peak(side, setting, options.checkpoint) for side in ("ours", "peer")]
        memory = both[0] / both[1]
        print(
            f"  {found:.2f} times the peer's steps (bar {bar}), {memory:.2f} times its memory "
            f"({both[0] / 1e6:.0f} MB; bar {MEMORY_BAR})",
            flush=True,
        )
        held = held and found >= bar and round(memory, 2) <= MEMORY_BAR
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
