"""Training of the demo checkpoint goes on where it was stopped, and makes a file that loads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from middleware_api.container.engine.checkpoint import load_checkpoint
from middleware_api.demo import train_autoencoder, train_denoiser
from middleware_api.demo.architecture import VOCABULARY
from middleware_api.demo.train import write_checkpoint
from middleware_api.demo.train_autoencoder import AutoencoderRecipe
from middleware_api.demo.train_denoiser import DenoiserRecipe

AUTOENCODER = AutoencoderRecipe(
    crop_steps=2, whole_steps=1, crop_side=16, crop_batch=1, whole_batch=1, save_every=1
)
DENOISER = DenoiserRecipe(scenes=200, steps=3, batch=2, save_every=1)


def autoencoder(folder: Path) -> nn.Module:
    trained: nn.Module = train_autoencoder.train_autoencoder(AUTOENCODER, folder)
    return trained


def unet(folder: Path) -> nn.Module:
    trained: nn.Module = train_denoiser.train_denoiser(DENOISER, folder).unet
    return trained


@pytest.mark.parametrize(
    ("stage", "train"), [(train_autoencoder, autoencoder), (train_denoiser, unet)]
)
def test_a_stopped_run_ends_like_an_unbroken_one(
    stage: object,
    train: Callable[[Path], nn.Module],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.set_num_threads(1)
    (tmp_path / "unbroken").mkdir()
    (tmp_path / "stopped").mkdir()
    expected = train(tmp_path / "unbroken").state_dict()

    save = train_autoencoder.save_state

    def save_and_stop(path: Path, state: dict[str, object]) -> None:
        save(path, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "save_state", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "stopped")
    resumed = train(tmp_path / "stopped").state_dict()
    assert all(torch.equal(resumed[name], weight) for name, weight in expected.items())


def test_the_file_loads_with_a_row_for_every_token(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    path = tmp_path / "trained.safetensors"
    denoiser = train_denoiser.train_denoiser(DENOISER, tmp_path)
    write_checkpoint(train_autoencoder.train_autoencoder(AUTOENCODER, tmp_path), denoiser, path)
    model = load_checkpoint(path, path.name, "", torch.device("cpu"), torch.float32)
    rows = model.text_encoders[0].module.get_input_embeddings().weight
    trained = denoiser.text_encoder.get_input_embeddings().weight
    assert rows.shape[0] == VOCABULARY
    assert torch.allclose(rows[denoiser.tokens], trained, atol=1e-3)
