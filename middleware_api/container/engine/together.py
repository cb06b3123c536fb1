"""Which models can work on one picture, and in words what cannot."""

from __future__ import annotations

from middleware_api.container.engine.checkpoint import StableDiffusion
from middleware_api.container.errors import BadRequest
from middleware_api.container.extras.upscalers import LatentUpscaler, Upscaler


def check_together(
    main: StableDiffusion, last: StableDiffusion, refiner: StableDiffusion | None
) -> None:
    """Raises BadRequest when they cannot: `last` is the one that the last pass begins with."""
    for other in (last, refiner or last):
        if other.latent_factor != main.latent_factor:
            raise BadRequest(
                f"{main.name} and {other.name} cannot work on one picture: their latents "
                "differ in size. Choose another checkpoint for the hires pass or refiner.",
                "unlike_checkpoints",
            )
    if refiner is None:
        return
    if refiner.vae_scale != last.vae_scale:
        raise BadRequest(
            f"{refiner.name} cannot refine what {last.name} begins: latents of "
            f"{last.family.name} mean nothing to a model of {refiner.family.name}. Choose a "
            "refiner of the same family.",
            "unlike_checkpoints",
        )
    if refiner.is_inpainting and not last.is_inpainting:
        raise BadRequest(
            f"{refiner.name} is an inpainting model and {last.name} is none: choose another "
            "refiner.",
            "unlike_checkpoints",
        )


def check_enlarging(first: StableDiffusion, second: StableDiffusion, upscaler: Upscaler) -> None:
    """Raises BadRequest where the second pass would be handed latents that it cannot read."""
    if isinstance(upscaler, LatentUpscaler) and first.vae_scale != second.vae_scale:
        raise BadRequest(
            f"{second.name} cannot go on with the latents of {first.name}: the one is of "
            f"{second.family.name}, the other of {first.family.name}. Choose an upscaler of "
            "pictures as hr_upscaler, or another checkpoint for the hires pass.",
            "unlike_checkpoints",
        )
