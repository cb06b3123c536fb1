"""`python -m benchmarks.switch`: from one cached checkpoint to another, against the bare copy.

Two files of random weights in half precision, each of the size of an SD 1.5 checkpoint, whole in
the page cache. The bare copy takes every tensor that the engine uses out of the file, into new
memory of the engine's precision; a switch is all that stands between a job and its loaded model.
The two take turns, in one process. The bar: a switch takes at most 1.3 times the bare copy.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from middleware_api.container.engine.engine import Engine
from middleware_api.container.engine.ldm_layout import full_checkpoint
from middleware_api.container.engine.loading import CheckpointFile
from middleware_api.container.engine.roles import Roles
from middleware_api.container.prompts.encoder import PromptEncoder

BAR = 1.3
# Room for one of them in single precision, and not for two.
CACHE_BYTES = 5 * 1024**3


def write_random(path: Path, seed: int) -> None:
    """A file of 2.1 GB in LDM layout."""
    torch.manual_seed(seed)
    with torch.device("meta"):
        modules: list[nn.Module] = [
            UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8),
            AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512),
                layers_per_block=2,
            ),
            CLIPTextModel(
                CLIPTextConfig(
                    vocab_size=49408,
                    hidden_size=768,
                    intermediate_size=3072,
                    num_hidden_layers=12,
                    num_attention_heads=12,
                )
            ),
        ]
    unet, vae, text = (module.state_dict() for module in modules)
    tensors = full_checkpoint(unet, vae, text)
    # Small enough for pictures that are made with them to stay finite.
    save_file(
        {name: torch.randn(meta.shape).mul_(0.02).half() for name, meta in tensors.items()}, path
    )


def bare_copy(path: Path, dtype: torch.dtype) -> list[torch.Tensor]:
    """Every tensor into new memory, and nothing else."""
    with safe_open(path, framework="pt") as file:
        return [
            torch.empty(tensor.shape, dtype=dtype).copy_(tensor)
            for tensor in map(file.get_tensor, file.keys())
        ]


def seconds_of(act: Callable[[], object]) -> float:
    """What `act` answers is given up after the clock has stopped."""
    began = time.perf_counter()
    answer = act()
    seconds = time.perf_counter() - began
    del answer
    return seconds


def main() -> int:
    """0 when the bar is held."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, help="for 4.3 GB of files; a temporary one if absent"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    engine = Engine(torch.device("cpu"), CACHE_BYTES, PromptEncoder())

    def switch_to(path: Path) -> None:
        file = CheckpointFile(path, path.name, path.name, path.name)
        with engine.loader.load(Roles(file)):
            pass

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        paths = [Path(folder) / f"{name}.safetensors" for name in "ab"]
        for seed, path in enumerate(paths):
            write_random(path, seed)
        bare, ours = [], []
        for number in range(options.rounds + 1):
            path = paths[number % 2]
            # With the model in memory that a switch finds there too.
            bare.append(seconds_of(lambda path=path: bare_copy(path, torch.float32)))
            ours.append(seconds_of(lambda path=path: switch_to(path)))
            print(f"bare {bare[-1]:.2f} s, switch {ours[-1]:.2f} s", flush=True)
    ratio = statistics.median(ours[1:]) / statistics.median(bare[1:])
    print(f"a switch takes {ratio:.2f} times the bare copy (bar {BAR})")
    return 0 if ratio <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
