"""`python -m middleware_api.demo.train STATE_FOLDER` trains the demo checkpoint anew.

About an hour on two CPU cores. It may be stopped at any time: called again with the
same folder it goes on.
"""

import sys
from pathlib import Path

from diffusers import AutoencoderKL
from safetensors.torch import save_file

from middleware_api.container.engine.ldm_layout import full_checkpoint
from middleware_api.demo.train_autoencoder import AutoencoderRecipe, train_autoencoder
from middleware_api.demo.train_denoiser import (
    Denoiser,
    DenoiserRecipe,
    train_denoiser,
    with_whole_vocabulary,
)

CHECKPOINT = Path(__file__).parent / "demo.safetensors"


def train(state_dir: Path, checkpoint: Path) -> None:
    """Both stages, then one file in half precision."""
    state_dir.mkdir(parents=True, exist_ok=True)
    autoencoder = train_autoencoder(AutoencoderRecipe(), state_dir)
    denoiser = train_denoiser(DenoiserRecipe(), state_dir)
    write_checkpoint(autoencoder, denoiser, checkpoint)


def write_checkpoint(autoencoder: AutoencoderKL, denoiser: Denoiser, path: Path) -> None:
    """All networks in one file, in half precision."""
    tensors = full_checkpoint(
        denoiser.unet.state_dict(),
        autoencoder.state_dict(),
        with_whole_vocabulary(denoiser).state_dict(),
    )
    save_file({name: tensor.half().contiguous() for name, tensor in tensors.items()}, path)


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else CHECKPOINT)
