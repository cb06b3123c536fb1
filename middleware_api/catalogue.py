"""What the container's engine can do, by the WebUI's names, for those who ask what there is.

Standard library only: the API's functions do not have the engine's packages. A test holds it to
the engine. Names, aliases and options are those of the WebUI 1.10.1's `/sdapi/v1` lists.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SamplerEntry:
    """A sampler; `options` are what the WebUI says of it, such as what "Automatic" means for it."""

    name: str
    aliases: tuple[str, ...] = ()
    options: dict[str, str] = field(default_factory=dict)


_KARRAS = {"scheduler": "karras"}
_EXPONENTIAL = {"scheduler": "exponential"}
_SECOND_ORDER = {"second_order": "True"}
_DISCARDS = {"discard_next_to_last_sigma": "True"}
_BROWNIAN = {"brownian_noise": "True"}
_ENSD = {"uses_ensd": "True"}

SAMPLERS = (
    SamplerEntry("DPM++ 2M", ("k_dpmpp_2m",), _KARRAS),
    SamplerEntry("DPM++ SDE", ("k_dpmpp_sde",), _KARRAS | _SECOND_ORDER | _BROWNIAN),
    SamplerEntry("DPM++ 2M SDE", ("k_dpmpp_2m_sde",), _EXPONENTIAL | _BROWNIAN),
    SamplerEntry(
        "DPM++ 2M SDE Heun",
        ("k_dpmpp_2m_sde_heun",),
        _EXPONENTIAL | _BROWNIAN | {"solver_type": "heun"},
    ),
    SamplerEntry("DPM++ 2S a", ("k_dpmpp_2s_a",), _KARRAS | _ENSD | _SECOND_ORDER),
    SamplerEntry("DPM++ 3M SDE", ("k_dpmpp_3m_sde",), _EXPONENTIAL | _DISCARDS | _BROWNIAN),
    SamplerEntry("Euler a", ("k_euler_a", "k_euler_ancestral"), _ENSD),
    SamplerEntry("Euler", ("k_euler",)),
    SamplerEntry("LMS", ("k_lms",)),
    SamplerEntry("Heun", ("k_heun",), _SECOND_ORDER),
    SamplerEntry("DPM2", ("k_dpm_2",), _KARRAS | _DISCARDS | _SECOND_ORDER),
    SamplerEntry("DPM2 a", ("k_dpm_2_a",), _KARRAS | _DISCARDS | _ENSD | _SECOND_ORDER),
    SamplerEntry("DPM fast", ("k_dpm_fast",), _ENSD),
    SamplerEntry("DPM adaptive", ("k_dpm_ad",), _ENSD),
    SamplerEntry("Restart", ("restart",), _KARRAS | _SECOND_ORDER),
    SamplerEntry("DDIM", ("ddim",)),
    SamplerEntry("DDIM CFG++", ("ddim_cfgpp",)),
    SamplerEntry("PLMS", ("plms",)),
    SamplerEntry("UniPC", ("unipc",)),
    SamplerEntry("LCM", ("k_lcm",)),
)


@dataclass(frozen=True)
class SchedulerEntry:
    """A schedule of noise levels; `default_rho` is -1 where it has none."""

    name: str
    label: str
    default_rho: float = -1.0
    needs_inner_model: bool = False
    aliases: tuple[str, ...] | None = None


SCHEDULERS = (
    SchedulerEntry("automatic", "Automatic"),
    SchedulerEntry("uniform", "Uniform", needs_inner_model=True),
    SchedulerEntry("karras", "Karras", default_rho=7.0),
    SchedulerEntry("exponential", "Exponential"),
    SchedulerEntry("polyexponential", "Polyexponential", default_rho=1.0),
    SchedulerEntry("sgm_uniform", "SGM Uniform", needs_inner_model=True, aliases=("SGMUniform",)),
    SchedulerEntry("kl_optimal", "KL Optimal"),
    SchedulerEntry("align_your_steps", "Align Your Steps"),
    SchedulerEntry("simple", "Simple", needs_inner_model=True),
    SchedulerEntry("normal", "Normal", needs_inner_model=True),
    SchedulerEntry("ddim", "DDIM", needs_inner_model=True),
    SchedulerEntry("beta", "Beta", needs_inner_model=True),
)

# For whole pictures; each does any factor, the WebUI calls them 4.
UPSCALERS = ("None", "Lanczos", "Nearest")
UPSCALER_SCALE = 4.0

LATENT_UPSCALE_MODES = (
    "Latent",
    "Latent (antialiased)",
    "Latent (bicubic)",
    "Latent (bicubic antialiased)",
    "Latent (nearest)",
    "Latent (nearest-exact)",
)
