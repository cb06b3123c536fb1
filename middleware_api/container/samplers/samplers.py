"""The samplers by the WebUI's names, each with what is usual with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial

from middleware_api.container.errors import BadRequest
from middleware_api.container.samplers import schedules
from middleware_api.container.samplers.dpm_samplers import (
    dpm_adaptive,
    dpm_fast,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_ancestral,
    dpmpp_3m_sde,
    dpmpp_sde,
)
from middleware_api.container.samplers.euler_samplers import (
    ddim_cfgpp,
    dpm2,
    dpm2_ancestral,
    euler,
    euler_ancestral,
    heun,
    lcm,
    lms,
    plms,
    restart,
)
from middleware_api.container.samplers.sampling_settings import SamplingSettings
from middleware_api.container.samplers.schedules import ALIASES, SCHEDULES, Plan
from middleware_api.container.samplers.unipc_sampler import unipc
from middleware_api.container.samplers.walk import Run


class Eta(Enum):
    """Which setting says how much of a sampler's step is noise."""

    NONE = "none"
    ANCESTRAL = "ancestral"
    DDIM = "ddim"


@dataclass(frozen=True)
class Sampler:
    """A sampler as the WebUI offers it; `schedule` is what "Automatic" means for it.

    `plan` is set for those on LDM's timesteps, which choose their own levels: `schedule` plays no
    part for them. `second_order` ones ask for two guesses a step. `uses_ensd` marks those whose
    parameters the WebUI gives its ENSD, `churns` those that its sigma churn is for. `on_fifty` ones
    know fifty of a model's levels alone.
    """

    name: str
    run: Run
    aliases: tuple[str, ...] = ()
    schedule: str = "Uniform"
    discard_penultimate: bool = False
    plan: Callable[[int, int | None, SamplingSettings], Plan] | None = None
    uses_ensd: bool = False
    second_order: bool = False
    churns: bool = False
    eta: Eta = Eta.NONE
    on_fifty: bool = False

    @property
    def is_on_timesteps(self) -> bool:
        """Whether it is of LDM's samplers, for which some of the WebUI's rules are others."""
        return self.plan is not None

    def plan_for(
        self, schedule: str, steps: int, encode: int | None, settings: SamplingSettings
    ) -> Plan:
        """The levels of one job; `encode` is None when there is no picture to start from.

        Otherwise about the last `encode` of `steps` are taken: the WebUI's families differ by one.
        """
        if self.plan is not None:
            return self.plan(steps, encode, settings)
        levels = schedules.levels_of(settings.schedule)
        return schedules.sigma_plan(
            self.schedule if schedule == "Automatic" else schedule,
            steps,
            encode,
            settings,
            discard_penultimate=self.discard_penultimate or settings.discard_penultimate,
            ladder=levels.fifty if self.on_fifty else levels.full,
        )

    def calls(self, steps: int) -> int:
        """Of the model, as the schedules of prompts count them."""
        return 2 * steps if self.second_order else steps

    def plan_to_the_end(
        self, schedule: str, steps: int, denoising_strength: float, settings: SamplingSettings
    ) -> Plan:
        """The end of a schedule so long that all of `steps` are taken."""
        if denoising_strength == 0:
            return schedules.STILL
        length = schedules.stretched_steps(steps, denoising_strength)
        return self.plan_for(schedule, length, steps - 1, settings)

    def named_schedule(self, schedule: str) -> str:
        """As the WebUI writes it: "Automatic" by what it means, where this sampler has its own."""
        own = self.plan is None and self.schedule != Sampler.schedule
        return self.schedule if own and schedule == "Automatic" else schedule

    def eta_of(self, settings: SamplingSettings) -> float:
        """How much of each step is noise; 0 for samplers that add none."""
        if self.eta is Eta.NONE:
            return 0.0
        if settings.eta is not None:
            return settings.eta
        return settings.eta_ddim if self.eta is Eta.DDIM else settings.eta_ancestral


_ancestral = partial(Sampler, eta=Eta.ANCESTRAL)
_on_timesteps = partial(Sampler, plan=schedules.ddim_plan)

SAMPLERS = (
    Sampler("DPM++ 2M", dpmpp_2m, ("k_dpmpp_2m",), "Karras"),
    _ancestral("DPM++ SDE", dpmpp_sde, ("k_dpmpp_sde",), "Karras", second_order=True),
    _ancestral("DPM++ 2M SDE", dpmpp_2m_sde, ("k_dpmpp_2m_sde",), "Exponential"),
    _ancestral(
        "DPM++ 2M SDE Heun",
        partial(dpmpp_2m_sde, heun=True),
        ("k_dpmpp_2m_sde_heun",),
        "Exponential",
    ),
    _ancestral(
        "DPM++ 2S a",
        dpmpp_2s_ancestral,
        ("k_dpmpp_2s_a",),
        "Karras",
        uses_ensd=True,
        second_order=True,
    ),
    _ancestral("DPM++ 3M SDE", dpmpp_3m_sde, ("k_dpmpp_3m_sde",), "Exponential", True),
    _ancestral("Euler a", euler_ancestral, ("k_euler_a", "k_euler_ancestral"), uses_ensd=True),
    Sampler("Euler", euler, ("k_euler",), churns=True),
    Sampler("LMS", lms, ("k_lms",)),
    Sampler("Heun", heun, ("k_heun",), second_order=True, churns=True),
    Sampler("DPM2", dpm2, ("k_dpm_2",), "Karras", True, second_order=True, churns=True),
    _ancestral(
        "DPM2 a",
        dpm2_ancestral,
        ("k_dpm_2_a",),
        "Karras",
        True,
        uses_ensd=True,
        second_order=True,
    ),
    _ancestral("DPM fast", dpm_fast, ("k_dpm_fast",), uses_ensd=True),
    _ancestral("DPM adaptive", dpm_adaptive, ("k_dpm_ad",), uses_ensd=True),
    Sampler("Restart", restart, ("restart",), "Karras", second_order=True),
    # On its own timesteps an ancestral step of Euler is DDIM's.
    _on_timesteps("DDIM", euler_ancestral, ("ddim",), eta=Eta.DDIM),
    _on_timesteps("DDIM CFG++", ddim_cfgpp, ("ddim_cfgpp",), eta=Eta.DDIM),
    _on_timesteps("PLMS", plms, ("plms",)),
    Sampler("UniPC", unipc, ("unipc",), plan=schedules.unipc_plan),
    Sampler("LCM", lcm, ("k_lcm",), on_fifty=True),
)


def resolve_sampler(name: str, schedule: str) -> tuple[Sampler, str]:
    """Finds a sampler by any of its names; "DPM++ 2M Karras" of older WebUIs decides on both.

    Raises BadRequest with the list of names.
    """
    wanted = name.strip().casefold()
    for sampler in SAMPLERS:
        names = [n.casefold() for n in (sampler.name, *sampler.aliases)]
        if wanted in names:
            return sampler, schedule
        for spelled, known in (*zip(SCHEDULES, SCHEDULES, strict=True), *ALIASES.items()):
            if wanted in [f"{n} {spelled.casefold()}" for n in names]:
                return sampler, known
    raise BadRequest(
        f"Sampler {name!r} is not available. Choose one of: "
        f"{', '.join(sampler.name for sampler in SAMPLERS)}.",
        "unknown_sampler",
    )
