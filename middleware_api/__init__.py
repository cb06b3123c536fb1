"""The cloud middleware of the Stable Diffusion AWS extension."""

__version__ = "0.1.0"
