"""The samplers alone, on guesses whose answer is known."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from middleware_api.container.errors import BadRequest
from middleware_api.container.samplers import schedules
from middleware_api.container.samplers.noise import (
    BrownianTree,
    PhiloxGenerator,
    PictureNoise,
    Seeding,
    TorchGenerator,
    Variation,
    source_of,
)
from middleware_api.container.samplers.samplers import SAMPLERS, Sampler, resolve_sampler
from middleware_api.container.samplers.sampling_settings import (
    Churn,
    NoiseSource,
    SamplingSettings,
    ScheduleSettings,
    UniPCSettings,
)
from middleware_api.container.samplers.schedules import (
    FIFTY,
    SIGMA_MAX,
    SIGMA_MIN,
    Plan,
    resolve_schedule,
)
from middleware_api.container.samplers.walk import Walk

SHAPE = (1, 4, 8, 8)
SPAN = (SIGMA_MIN, SIGMA_MAX)
USUAL = SamplingSettings()
STILL = SamplingSettings(eta=0)
WITHOUT_NOISE = (
    *("Euler", "Heun", "LMS", "DPM2", "DPM++ 2M", "DDIM", "PLMS", "UniPC"),
    *("Euler a", "DPM2 a", "DPM++ 2S a", "DPM++ SDE", "DPM++ 2M SDE", "DPM++ 2M SDE Heun"),
    *("DPM++ 3M SDE", "DPM fast"),
)


def named(name: str) -> Sampler:
    return resolve_sampler(name, "Automatic")[0]


def gaussian_guess(x: Tensor, sigma: float) -> Tensor:
    """The best guess when clean latents are normal with spread 0.5: the path is then known."""
    return x * 0.25 / (0.25 + sigma**2)


def planned(
    name: str, count: int, *, schedule: str = "Automatic", settings: SamplingSettings = USUAL
) -> Plan:
    return named(name).plan_for(schedule, count, None, settings)


def walk_of(
    plan: Plan, eta: float = 0, settings: SamplingSettings = USUAL, steps: list[int] | None = None
) -> Walk:
    generator = torch.Generator().manual_seed(1)

    def noise(*_: float) -> Tensor:
        return torch.randn(SHAPE, generator=generator, dtype=torch.float64)

    def step(i: int, clean: Tensor | None) -> None:
        assert (clean is None) == (i == 0)
        if steps is not None:
            steps.append(i)

    def apart(x: Tensor, sigma: float, cfg_share: float) -> tuple[Tensor, Tensor]:
        return gaussian_guess(x, sigma), gaussian_guess(x, sigma)

    return Walk(plan, gaussian_guess, apart, step, noise, noise, eta, settings)


def error_of(name: str, count: int, on: str = "", settings: SamplingSettings = USUAL) -> float:
    """Largest distance from the exact end of the path; `on` another sampler's levels."""
    plan = planned(on or name, count, schedule="Karras", settings=settings)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator, dtype=torch.float64) * plan.sigmas[0]
    first, last = plan.sigmas[0], plan.sigmas[-1]
    exact = x * math.sqrt((0.25 + last**2) / (0.25 + first**2))
    return float((named(name).run(walk_of(plan, 0, settings), x) - exact).abs().max())


@pytest.mark.parametrize("name", WITHOUT_NOISE)
def test_more_steps_come_closer_to_the_exact_path(name: str) -> None:
    assert error_of(name, 40, settings=STILL) < error_of(name, 10, settings=STILL) / 2
    assert error_of(name, 100, settings=STILL) < 0.05


@pytest.mark.parametrize("name", ["Heun", "LMS", "DPM2", "DPM++ 2M"])
def test_samplers_of_higher_order_are_closer_than_euler(name: str) -> None:
    assert error_of(name, 20) < error_of("Euler", 20) / 2


@pytest.mark.parametrize(
    "settings",
    [
        UniPCSettings(variant="bh2"),
        UniPCSettings(variant="vary_coeff", order=2),
        UniPCSettings(skip_type="logSNR"),
        UniPCSettings(skip_type="time_quadratic"),
        UniPCSettings(order=2),
    ],
    ids=str,
)
def test_each_of_unipcs_forms_is_closer_than_euler(settings: UniPCSettings) -> None:
    form = SamplingSettings(unipc=settings)
    euler = error_of("Euler", 50, on="UniPC", settings=form)
    assert error_of("UniPC", 50, settings=form) < 0.6 * euler


def test_the_adaptive_sampler_keeps_its_error_small_in_steps_of_its_own() -> None:
    steps: list[int] = []
    plan = planned("DPM adaptive", 200)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, dtype=torch.float64, generator=generator) * plan.sigmas[0]
    end = named("DPM adaptive").run(walk_of(plan, steps=steps), x)
    exact = x * math.sqrt((0.25 + SIGMA_MIN**2) / (0.25 + SIGMA_MAX**2))
    assert float((end - exact).abs().max()) < 0.05
    assert 5 < len(steps) < 60


def test_guesses_that_are_no_numbers_do_not_hold_the_adaptive_sampler_up() -> None:
    walk = replace(walk_of(planned("DPM adaptive", 20)), denoise=lambda x, sigma: x * math.nan)
    assert named("DPM adaptive").run(walk, torch.ones(SHAPE)).isnan().all()


@pytest.mark.parametrize("name", ["UniPC", "PLMS"])
def test_unipc_and_plms_are_closer_than_euler_on_their_own_levels(name: str) -> None:
    assert error_of(name, 50) < error_of("Euler", 50, on=name) / 2


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: s.name)
def test_each_sampler_announces_every_step_and_ends_near_the_clean_spread(
    sampler: Sampler,
) -> None:
    plan = sampler.plan_for("Automatic", 20, None, USUAL)
    steps: list[int] = []
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SHAPE, generator=generator, dtype=torch.float64) * plan.noise_scale
    end = sampler.run(walk_of(plan, sampler.eta_of(USUAL), steps=steps), x)
    if sampler.name == "DPM fast":  # in steps of up to three guesses
        assert steps == list(range(0, 20, 3))
    elif sampler.name == "DPM adaptive":
        assert steps == [min(i, 19) for i in range(len(steps))]
    else:  # the WebUI walks between LDM's 20 timesteps
        assert steps == list(range(19 if sampler.name in ("DDIM", "DDIM CFG++", "PLMS") else 20))
    # Of 0.5; Euler a at 20 steps is the farthest off. LCM takes the mean of what may be.
    assert (0 if sampler.name == "LCM" else 0.35) < float(end.std()) < 0.6


@pytest.mark.parametrize("schedule", list(schedules.SCHEDULES))
def test_schedules_fall_from_the_highest_level_to_zero(schedule: str) -> None:
    sigmas = planned("Euler", 10, schedule=schedule).sigmas
    assert len(sigmas) == 11
    # DDIM's spacing begins a hundred timesteps lower; KL Optimal keeps the lowest level.
    first = float(schedules.sigma_of(901)) if schedule == "DDIM" else SIGMA_MAX
    assert sigmas[0] == pytest.approx(first, rel=1e-3)
    assert sigmas[-1] == pytest.approx(SIGMA_MIN if schedule == "KL Optimal" else 0)
    assert all(a > b for a, b in pairwise(sigmas))


def test_schedules_published_as_tables_and_formulas() -> None:
    # The eleven levels that the paper's page gives for SD 1.5.
    assert planned("Euler", 11, schedule="Align Your Steps").sigmas == pytest.approx(
        [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029, 0]
    )
    # With alpha and beta 1 the beta distribution is even.
    even = SamplingSettings(schedule=ScheduleSettings(beta_alpha=1, beta_beta=1))
    middle = planned("Euler", 3, schedule="Beta", settings=even).sigmas[1]
    assert middle == pytest.approx((SIGMA_MIN + SIGMA_MAX) / 2)


@pytest.mark.parametrize("schedule", ["Karras", "Exponential", "Normal", "KL Optimal", "Beta"])
def test_the_ends_of_a_schedule_can_be_set(schedule: str) -> None:
    ends = SamplingSettings(schedule=ScheduleSettings(sigma_min=0.1, sigma_max=9))
    sigmas = planned("Euler", 10, schedule=schedule, settings=ends).sigmas
    assert sigmas[0] == pytest.approx(9)
    assert min(s for s in sigmas if s) == pytest.approx(0.1)


def test_one_level_more_is_asked_for_and_the_last_but_one_left_out() -> None:
    always = SamplingSettings(discard_penultimate=True)
    more = planned("Euler", 11, schedule="Karras").sigmas
    assert planned("Euler", 10, schedule="Karras", settings=always).sigmas == (
        *more[:10],
        0.0,
    )
    assert planned("DPM2", 10, settings=always) == planned("DPM2", 10)
    assert planned("DDIM", 10, settings=always).steps == planned("DDIM", 11).steps


def test_more_steps_than_the_model_has_levels_do_not_stand_still() -> None:
    for schedule in schedules.SCHEDULES:
        for name in ("DPM++ 2M", "LCM"):
            plan = named(name).plan_for(schedule, 2000, 1499, USUAL)
            assert all(a > b for a, b in pairwise(plan.sigmas))
            assert plan.steps >= 1


def test_latent_consistency_models_are_asked_at_their_fifty_timesteps() -> None:
    assert (len(FIFTY.sigmas), FIFTY.timesteps[0], FIFTY.timesteps[-1]) == (50, 19, 999)
    assert FIFTY.timestep_of(SIGMA_MAX) == 999
    assert FIFTY.timestep_of(float(schedules.sigma_of(411))) == 419
    assert planned("LCM", 4).sigmas[3] == pytest.approx(float(schedules.sigma_of(19)))


def test_a_long_restart_goes_up_and_down_again_in_as_many_steps() -> None:
    levels: list[float] = []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        levels.append(sigma)
        return gaussian_guess(x, sigma)

    for count, climbs in ((19, 0), (20, 1), (40, 2)):
        levels.clear()
        walk = replace(walk_of(planned("Restart", count)), denoise=denoise)
        named("Restart").run(walk, torch.ones(SHAPE, dtype=torch.float64) * SIGMA_MAX)
        assert sum(b > a * 1.01 for a, b in pairwise(levels)) == climbs
        assert len(levels) == 2 * count - 1  # Heun's, but for the last


def test_churn_adds_noise_within_its_levels_alone() -> None:
    plan = planned("Euler", 10)
    x = torch.ones(SHAPE, dtype=torch.float64) * SIGMA_MAX
    plain = named("Euler").run(walk_of(plan), x)
    for low, high, changes in ((0, math.inf, True), (1, 5, True), (50, 60, False)):
        churned = SamplingSettings(churn=Churn(3, low, high))
        end = named("Euler").run(walk_of(plan, 0, churned), x)
        assert torch.equal(end, plain) is not changes


def test_known_levels_of_stable_diffusion() -> None:
    assert pytest.approx(0.0292, abs=1e-4) == SIGMA_MIN
    assert pytest.approx(14.6146, abs=1e-4) == SIGMA_MAX
    # Karras et al. 2022, equation 5, with rho 7.
    assert planned("DPM++ 2M", 3).sigmas[1] == pytest.approx(
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
    whole = planned("Euler", 20)
    part = named("Euler").plan_for("Automatic", 20, schedules.encode_steps(20, strength), USUAL)
    assert part.steps == steps
    assert part.sigmas == whole.sigmas[-steps - 1 :]
    assert part.noise_scale == part.sigmas[0]
    assert part.span == whole.span  # one Brownian path, wherever on it the job begins


@pytest.mark.parametrize(("name", "steps"), [("DDIM", 9), ("PLMS", 9), ("UniPC", 10)])
def test_img2img_of_the_timestep_samplers_takes_fewer_steps(name: str, steps: int) -> None:
    part = named(name).plan_for("Automatic", 20, schedules.encode_steps(20, 0.5), USUAL)
    assert part.steps == steps
    # LDM noises one step further than it starts from.
    assert part.image_scale < 1


def test_old_names_of_samplers_are_understood() -> None:
    assert resolve_sampler("DPM++ 2M Karras", "Automatic")[1] == "Karras"
    assert resolve_sampler("k_euler_a", "Automatic")[0].name == "Euler a"
    assert resolve_sampler("euler A", "Simple") == (named("Euler a"), "Simple")
    # The name decides, as in the WebUI.
    assert resolve_sampler("DPM++ 2M SGMUniform", "Karras")[1] == "SGM Uniform"
    assert resolve_schedule("sgm_uniform") == "SGM Uniform"


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(BadRequest, match=r"'Eular' is not available.*Euler a"):
        resolve_sampler("Eular", "Automatic")
    with pytest.raises(BadRequest, match=r"'Turbo' is not available.*Karras"):
        resolve_schedule("Turbo")


def test_a_brownian_path_is_torchsdes() -> None:
    """The first numbers of torchsde 0.2.6's BrownianTree(0.0292, zeros(4, 2, 3), 14.6146, 42)."""
    path = BrownianTree(TorchGenerator, 42, (4, 2, 3), (0.0292, 14.6146))
    for start, end, expected in (
        (9.0, 14.6146, [2.4844267, -1.6068376, -1.8760588]),
        (3.5, 9.0, [0.6291203, 2.2095726, 0.5413427]),
        (0.1, 0.3, [-0.2832712, 0.6013392, 0.6150202]),
        (0.0292, 14.6146, [4.4155606, 0.8368958, -0.6198642]),
    ):
        change = path.at(end) - path.at(start)
        assert change[0, 0].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_brownian_path_keeps_what_it_said_and_has_the_right_spread() -> None:
    path = BrownianTree(TorchGenerator, 0, (30_000,), (0.5, 5.0))
    late, early, between = path.at(4.0), path.at(1.0), path.at(2.0)
    assert torch.equal(path.at(1.0), early)
    assert torch.equal(path.at(9.0), path.at(5.0))
    for start, end, variance in ((early, late, 3), (early, between, 1), (between, late, 2)):
        assert float((end - start).var()) == pytest.approx(variance, rel=0.03)
    independent = ((between - early) * (late - between)).mean()
    assert float(independent) == pytest.approx(0, abs=0.03)


def test_nv_noise_is_what_an_nvidia_device_draws() -> None:
    """torch.randn((3, 4), device="cuda") with the seed 0, as PyTorch's users have printed it."""
    generator = PhiloxGenerator(0)
    assert generator.randn((3, 4)).flatten().tolist() == pytest.approx(
        [
            *(-0.92466259, -0.42534415, -2.6438457, 0.14518388),
            *(-0.12086647, -0.57972564, -0.62285122, -0.32838709),
            *(-1.07454231, -0.36314407, -1.67105067, 2.26550497),
        ],
        abs=1e-6,
    )
    more = generator.randn((100_000,))
    assert float(more.std()) == pytest.approx(1, rel=0.01)
    assert not torch.allclose(more[:12], PhiloxGenerator(0).randn((12,)))


def test_the_gpus_noise_is_the_devices() -> None:
    other = torch.device("meta")  # of any kind that is not the CPU
    for chosen in NoiseSource:
        drawn = source_of(chosen, torch.device("cpu"))(3).randn((4,))
        assert torch.equal(drawn, noise_of((1, 2, 2), 3).fresh().flatten()) is (
            chosen is not NoiseSource.NV
        )
    assert source_of(NoiseSource.CPU, other)(3).randn((4,)).device.type == "cpu"


def noise_of(
    shape: tuple[int, int, int],
    seed: int,
    variation: Variation | None = None,
    first_size: tuple[int, int] | None = None,
) -> PictureNoise:
    return PictureNoise(Seeding(seed, variation=variation, first_size=first_size), shape, SPAN)


def test_a_variation_seed_turns_the_noise_without_shrinking_it() -> None:
    shape = (4, 64, 64)
    plain, other = noise_of(shape, 1).first(), noise_of(shape, 2).first()
    half = noise_of(shape, 1, Variation(2, 0.5)).first()
    assert float(half.std()) == pytest.approx(1, rel=0.03)
    whole = noise_of(shape, 1, Variation(2, 1.0)).first()
    torch.testing.assert_close(whole, other, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(half, plain)


@pytest.mark.parametrize("other", [(4, 6), (8, 12), (7, 3), (12, 11)], ids=str)
def test_a_resized_seed_has_the_other_pictures_noise_in_its_middle(other: tuple[int, int]) -> None:
    shape = (4, 8, 8)
    small, plain = noise_of((4, *other), 1).first(), noise_of(shape, 1).first()
    resized = noise_of(shape, 1, first_size=other).first()
    top, left = ((8 - side) // 2 for side in other)
    for row in range(8):
        for column in range(8):
            y, x = row - top, column - left
            inside = 0 <= y < other[0] and 0 <= x < other[1]
            # Of a larger picture's odd surplus the WebUI cuts one line more and keeps its own.
            if inside and not (
                min(top, left) < 0 and torch.equal(resized[:, row, column], plain[:, row, column])
            ):
                assert torch.equal(resized[:, row, column], small[:, y, x])
            else:
                assert torch.equal(resized[:, row, column], plain[:, row, column])
