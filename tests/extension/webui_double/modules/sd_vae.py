"""Loading of local VAEs."""

from modules import sd_models

vae_dict = {}


def reload_vae_weights(sd_model=None, vae_file="unset"):
    sd_models.reloads.append("vae")
