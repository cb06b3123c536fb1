"""What the API says that there is, is what the engine has."""

from __future__ import annotations

from middleware_api import catalogue
from middleware_api.container.extras.upscalers import LATENT_UPSCALERS, PICTURE_UPSCALERS
from middleware_api.container.samplers.samplers import SAMPLERS
from middleware_api.container.samplers.schedules import SCHEDULES, resolve_schedule


def test_the_samplers_are_the_engines() -> None:
    shown = [(entry.name, entry.aliases) for entry in catalogue.SAMPLERS]
    assert shown == [(sampler.name, sampler.aliases) for sampler in SAMPLERS]
    for entry, sampler in zip(catalogue.SAMPLERS, SAMPLERS, strict=True):
        options = entry.options
        assert options.get("scheduler", "uniform") == sampler.schedule.lower()
        assert ("second_order" in options) == sampler.second_order
        assert ("uses_ensd" in options) == sampler.uses_ensd
        assert ("discard_next_to_last_sigma" in options) == sampler.discard_penultimate


def test_the_schedules_are_the_engines() -> None:
    assert [entry.label for entry in catalogue.SCHEDULERS] == ["Automatic", *SCHEDULES]
    for entry in catalogue.SCHEDULERS:
        for name in (entry.name, *(entry.aliases or ())):
            assert resolve_schedule(name) == entry.label


def test_the_upscalers_are_the_engines() -> None:
    assert tuple(upscaler.name for upscaler in PICTURE_UPSCALERS) == catalogue.UPSCALERS
    assert tuple(upscaler.name for upscaler in LATENT_UPSCALERS) == catalogue.LATENT_UPSCALE_MODES
