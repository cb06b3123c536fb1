"""The demo pictures read back as drawn, and SD 1.x weights survive the trip to LDM names."""

import random

import torch
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)

from middleware_api.container.engine.ldm_layout import unet_to_ldm, vae_to_ldm
from middleware_api.demo.architecture import build_autoencoder, build_unet
from middleware_api.demo.shapes import Reading, caption, draw, random_scene, read_picture


def test_drawn_pictures_read_back_as_their_scenes() -> None:
    rng = random.Random(5)
    for _ in range(300):
        scene = random_scene(rng)
        expected = Reading(scene.background, scene.colour, scene.shape)
        assert read_picture(draw(scene)) == expected, caption(scene)


def test_unet_names_return_through_diffusers() -> None:
    unet = build_unet()
    state = unet.state_dict()
    returned = convert_ldm_unet_checkpoint(unet_to_ldm(state), dict(unet.config))
    assert returned.keys() == state.keys()
    assert all(torch.equal(returned[key], value) for key, value in state.items())


def test_autoencoder_names_return_through_diffusers() -> None:
    autoencoder = build_autoencoder()
    state = autoencoder.state_dict()
    returned = convert_ldm_vae_checkpoint(vae_to_ldm(state), dict(autoencoder.config))
    assert returned.keys() == state.keys()
    assert all(torch.equal(returned[key], value) for key, value in state.items())
