"""Loading of local models, which no cloud generation may do."""

from types import SimpleNamespace

model_data = SimpleNamespace(was_loaded_at_least_once=False, sd_model=None)
reloads = []
checkpoints_list = {}


def get_closet_checkpoint_match(search_string):
    return None


def reload_model_weights(sd_model=None, info=None, forced_reload=False):
    reloads.append("model")
    return "loaded"
