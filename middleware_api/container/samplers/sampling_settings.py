"""What the WebUI's fields and settings change in the sampling, read once."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

from middleware_api.container.errors import BadRequest
from middleware_api.container.fields import Fields

ZERO_SNR = "Zero Terminal SNR"
_ETA_MAX = 10.0
_CHURN_MAX = 1000.0
_NOISE_MAX = 10.0
_SIGMA_MAX = 1000.0
_RHO_MAX = 100.0
_UNIPC_ORDER_MAX = 50
_SEED_MAX = 2**32 - 1


class NoiseSource(Enum):
    """Where a seed's noise is drawn. GPU is the WebUI's default: on the device that samples."""

    GPU = "GPU"
    CPU = "CPU"
    NV = "NV"


@dataclass(frozen=True)
class ScheduleSettings:
    """The ends of the schedules and their shapes; 0 leaves each schedule its own.

    `old_karras` are the ends 0.1 and 10 that early WebUIs had. `zero_snr`: the levels go up until
    nothing of the picture is left. `for_xl`: as SDXL's own where a schedule has such.
    """

    sigma_min: float = 0.0
    sigma_max: float = 0.0
    rho: float = 0.0
    old_karras: bool = False
    beta_alpha: float = 0.6
    beta_beta: float = 0.6
    zero_snr: bool = False
    for_xl: bool = False


@dataclass(frozen=True)
class UniPCSettings:
    """UniPC's own settings: the form of its steps, their spacing, and their order."""

    variant: str = "bh1"
    skip_type: str = "time_uniform"
    order: int = 3
    lower_order_final: bool = True


@dataclass(frozen=True)
class Churn:
    """Noise added before each step at levels from `low` to `high` (Karras et al. 2022, alg. 2)."""

    amount: float = 0.0
    low: float = 0.0
    high: float = math.inf


@dataclass(frozen=True)
class GuidanceSettings:
    """Where the negative prompt is left out: below a level, and for the first part of a pass.

    Below `skip_below` it is left out at every other guess, or at all of them.
    """

    skip_below: float = 0.0
    skip_all: bool = False
    skip_early: float = 0.0


@dataclass(frozen=True)
class SamplingSettings:
    """Everything about a job's sampling that is not its sampler, schedule, steps and seeds.

    `eta` is the caller's own for every sampler; None leaves it to the setting of each family.
    `initial_noise` multiplies img2img's noise; `extra_noise` is added to whatever a picture is
    given for. `exact_steps` take all of img2img's steps, however faint. `whole_timesteps` are what
    k-diffusion calls quantized. `mask_strength` is how much an inpainting model's mask hides from
    it.
    """

    eta: float | None = None
    eta_ancestral: float = 1.0
    eta_ddim: float = 0.0
    churn: Churn = Churn()
    noise: float = 1.0
    discard_penultimate: bool = False
    sgm_noise: bool = False
    initial_noise: float = 1.0
    extra_noise: float = 0.0
    exact_steps: bool = False
    whole_timesteps: bool = False
    eta_delta: int = 0
    mask_strength: float = 1.0
    guidance: GuidanceSettings = GuidanceSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    unipc: UniPCSettings = UniPCSettings()

    def fitted(self, *, zero_snr: bool, for_xl: bool) -> SamplingSettings:
        """The same for a model that is of this kind."""
        own = self.schedule
        schedule = replace(own, zero_snr=own.zero_snr or zero_snr, for_xl=for_xl)
        return replace(self, schedule=schedule)


def parse_sampling(fields: Fields, settings: Fields) -> SamplingSettings:
    """Raises BadRequest naming the field or setting."""
    return SamplingSettings(
        eta=None if fields.raw.get("eta") is None else fields.number("eta", 0, 0, _ETA_MAX),
        eta_ancestral=settings.number("eta_ancestral", 1, 0, _ETA_MAX),
        eta_ddim=settings.number("eta_ddim", 0, 0, _ETA_MAX),
        churn=Churn(
            _overridden(fields, settings, "s_churn", 0, _CHURN_MAX),
            _overridden(fields, settings, "s_tmin", 0, _SIGMA_MAX),
            _overridden(fields, settings, "s_tmax", 0, _SIGMA_MAX) or math.inf,
        ),
        noise=_overridden(fields, settings, "s_noise", 1, _NOISE_MAX),
        discard_penultimate=settings.flag("always_discard_next_to_last_sigma"),
        sgm_noise=settings.flag("sgm_noise_multiplier"),
        initial_noise=fields.number(
            "initial_noise_multiplier",
            settings.number("initial_noise_multiplier", 1, 0, _NOISE_MAX),
            0,
            _NOISE_MAX,
        ),
        extra_noise=settings.number("img2img_extra_noise", 0, 0, _NOISE_MAX),
        exact_steps=settings.flag("img2img_fix_steps"),
        whole_timesteps=settings.flag("enable_quantization"),
        eta_delta=settings.integer("eta_noise_seed_delta", 0, -_SEED_MAX, _SEED_MAX),
        mask_strength=settings.number("inpainting_mask_weight", 1, 0, 1),
        guidance=GuidanceSettings(
            fields.number("s_min_uncond", settings.number("s_min_uncond", 0, 0, 1000), 0, 1000),
            settings.flag("s_min_uncond_all"),
            settings.number("skip_early_cond", 0, 0, 1),
        ),
        schedule=_schedule(settings),
        unipc=UniPCSettings(
            _choice(settings, "uni_pc_variant", ("bh1", "bh2", "vary_coeff")),
            _choice(settings, "uni_pc_skip_type", ("time_uniform", "time_quadratic", "logSNR")),
            settings.integer("uni_pc_order", 3, 1, _UNIPC_ORDER_MAX),
            settings.flag("uni_pc_lower_order_final", True),
        ),
    )


def parse_noise_source(settings: Fields) -> NoiseSource:
    """Raises BadRequest for a source the WebUI does not have."""
    names = tuple(source.value for source in NoiseSource)
    return NoiseSource(_choice(settings, "randn_source", names))


def _schedule(settings: Fields) -> ScheduleSettings:
    return ScheduleSettings(
        settings.number("sigma_min", 0, 0, _SIGMA_MAX),
        settings.number("sigma_max", 0, 0, _SIGMA_MAX),
        settings.number("rho", 0, 0, _RHO_MAX),
        settings.flag("use_old_karras_scheduler_sigmas"),
        settings.number("beta_dist_alpha", 0.6, 0.01, 10),
        settings.number("beta_dist_beta", 0.6, 0.01, 10),
        _choice(settings, "sd_noise_schedule", ("Default", ZERO_SNR)) == ZERO_SNR,
    )


def _overridden(fields: Fields, settings: Fields, name: str, default: float, high: float) -> float:
    """The WebUI's rule for these: a setting that is not the default beats the field."""
    setting = settings.number(name, default, 0, high)
    return fields.number(name, setting, 0, high) if setting == default else setting


def _choice(settings: Fields, name: str, choices: tuple[str, ...]) -> str:
    """One of `choices`, of which the first is the default."""
    value = settings.text(name, choices[0])
    if value not in choices:
        raise BadRequest(
            f"override_settings.{name} {value!r} is not available. "
            f"Choose one of: {', '.join(choices)}.",
            "bad_field",
        )
    return value
