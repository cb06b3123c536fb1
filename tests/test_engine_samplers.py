"""The samplers alone, on guesses whose answer is known."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from middleware_api.container import schedules
from middleware_api.container.errors import BadRequest
from middleware_api.container.noise import BrownianPath, PictureNoise
from middleware_api.container.samplers import SAMPLERS, Sampler, Walk, resolve_sampler
from middleware_api.container.schedules import SIGMA_MAX, SIGMA_MIN, Plan, resolve_schedule

SHAPE = (1, 4, 8, 8)
WITHOUT_NOISE = ("Euler", "Heun", "LMS", "DPM2", "DPM++ 2M", "DDIM", "PLMS", "UniPC")


def named(name: str) -> Sampler:
    return resolve_sampler(name, "Automatic")[0]


def gaussian_guess(x: Tensor, sigma: float) -> Tensor:
    """The best guess when clean latents are normal with spread 0.5: the path is then known."""
    return x * 0.25 / (0.25 + sigma**2)


def walk_of(plan: Plan, steps: list[int] | None = None) -> Walk:
    generator = torch.Generator().manual_seed(1)

    def noise(*_: float) -> Tensor:
        return torch.randn(SHAPE, generator=generator, dtype=torch.float64)

    def step(i: int, clean: Tensor | None) -> None:
        assert (clean is None) == (i == 0)
        if steps is not None:
            steps.append(i)

    return Walk(plan.sigmas, gaussian_guess, step, noise, noise)


def error_of(name: str, count: int, on: str = "") -> float:
    """Largest distance from the exact end of the path; `on` another sampler's levels."""
    plan = named(on or name).plan_for("Karras", count, None)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator, dtype=torch.float64) * plan.sigmas[0]
    first, last = plan.sigmas[0], plan.sigmas[-1]
    exact = x * math.sqrt((0.25 + last**2) / (0.25 + first**2))
    return float((named(name).run(walk_of(plan), x) - exact).abs().max())


@pytest.mark.parametrize("name", WITHOUT_NOISE)
def test_more_steps_come_closer_to_the_exact_path(name: str) -> None:
    assert error_of(name, 40) < error_of(name, 10) / 2
    assert error_of(name, 100) < 0.05


@pytest.mark.parametrize("name", ["Heun", "LMS", "DPM2", "DPM++ 2M"])
def test_samplers_of_higher_order_are_closer_than_euler(name: str) -> None:
    assert error_of(name, 20) < error_of("Euler", 20) / 2


@pytest.mark.parametrize("name", ["UniPC", "PLMS"])
def test_unipc_and_plms_are_closer_than_euler_on_their_own_levels(name: str) -> None:
    assert error_of(name, 50) < error_of("Euler", 50, on=name) / 2


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.name)
def test_each_sampler_announces_every_step_and_ends_near_the_clean_spread(
    sampler: Sampler,
) -> None:
    plan = sampler.plan_for("Automatic", 20, None)
    steps: list[int] = []
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator, dtype=torch.float64) * plan.noise_scale
    end = sampler.run(walk_of(plan, steps), x)
    # The WebUI walks between LDM's 20 timesteps.
    assert steps == list(range(19 if sampler.name in ("DDIM", "PLMS") else 20))
    assert 0.35 < float(end.std()) < 0.6  # of 0.5; Euler a at 20 steps is the farthest off


@pytest.mark.parametrize("schedule", list(schedules.SCHEDULES))
def test_schedules_fall_from_the_highest_level_to_zero(schedule: str) -> None:
    sigmas = named("Euler").plan_for(schedule, 10, None).sigmas
    assert len(sigmas) == 11
    assert sigmas[0] == pytest.approx(SIGMA_MAX)
    assert sigmas[-1] == 0
    assert all(a > b for a, b in pairwise(sigmas))


def test_known_levels_of_stable_diffusion() -> None:
    assert pytest.approx(0.0292, abs=1e-4) == SIGMA_MIN
    assert pytest.approx(14.6146, abs=1e-4) == SIGMA_MAX
    # Karras et al. 2022, equation 5, with rho 7.
    assert named("DPM++ 2M").plan_for("Automatic", 3, None).sigmas[1] == pytest.approx(
        ((SIGMA_MAX ** (1 / 7) + SIGMA_MIN ** (1 / 7)) / 2) ** 7
    )


def test_timesteps_and_levels_are_each_others_inverse() -> None:
    for timestep in (0.0, 1.0, 250.25, 998.5, 999.0):
        level = float(schedules.sigma_of(timestep))
        assert schedules.timestep_of(level) == pytest.approx(timestep)


@pytest.mark.parametrize(
    ("strength", "steps"), [(0.0, 1), (0.5, 11), (0.75, 16), (0.999, 20), (1.0, 20)]
)
def test_img2img_runs_the_last_part_of_the_schedule(strength: float, steps: int) -> None:
    whole = named("Euler").plan_for("Automatic", 20, None)
    part = named("Euler").plan_for("Automatic", 20, schedules.encode_steps(20, strength))
    assert part.steps == steps
    assert part.sigmas == whole.sigmas[-steps - 1 :]
    assert part.noise_scale == part.sigmas[0]


@pytest.mark.parametrize(("name", "steps"), [("DDIM", 9), ("PLMS", 9), ("UniPC", 10)])
def test_img2img_of_the_timestep_samplers_takes_fewer_steps(name: str, steps: int) -> None:
    part = named(name).plan_for("Automatic", 20, schedules.encode_steps(20, 0.5))
    assert part.steps == steps
    # LDM noises one step further than it starts from.
    assert part.image_scale < 1


def test_old_names_of_samplers_are_understood() -> None:
    assert resolve_sampler("DPM++ 2M Karras", "Automatic")[1] == "Karras"
    assert resolve_sampler("k_euler_a", "Automatic")[0].name == "Euler a"
    assert resolve_sampler("euler A", "Simple") == (named("Euler a"), "Simple")
    assert resolve_schedule("sgm_uniform") == "SGM Uniform"


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(BadRequest, match=r"'Eular' is not available.*Euler a"):
        resolve_sampler("Eular", "Automatic")
    with pytest.raises(BadRequest, match=r"'Turbo' is not available.*Karras"):
        resolve_schedule("Turbo")


def test_a_brownian_path_keeps_what_it_said_and_has_the_right_spread() -> None:
    path = BrownianPath(torch.Generator().manual_seed(0), (100_000,))
    late, early, between = path.at(4.0), path.at(1.0), path.at(2.0)
    assert torch.equal(path.at(1.0), early)
    for start, end, variance in ((early, late, 3), (early, between, 1), (between, late, 2)):
        assert float((end - start).var()) == pytest.approx(variance, rel=0.02)
    independent = ((between - early) * (late - between)).mean()
    assert float(independent) == pytest.approx(0, abs=0.02)


def test_a_variation_seed_turns_the_noise_without_shrinking_it() -> None:
    plain = PictureNoise(1, (4, 64, 64)).first()
    other = PictureNoise(2, (4, 64, 64)).first()
    half = PictureNoise(1, (4, 64, 64), subseed=2, subseed_strength=0.5).first()
    assert float(half.std()) == pytest.approx(1, rel=0.03)
    whole = PictureNoise(1, (4, 64, 64), subseed=2, subseed_strength=1.0).first()
    torch.testing.assert_close(whole, other, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(half, plain)
