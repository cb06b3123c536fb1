"""Samplers' names."""


def fix_p_invalid_sampler_and_scheduler(p):
    p.sampler_name = p.sampler_name or "Euler"
