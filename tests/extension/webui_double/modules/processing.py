"""Processing objects, and the function that everyone has imported by name."""

import json
import random
from dataclasses import dataclass, field
from typing import Any

from modules import sd_models


def get_fixed_seed(seed):
    if isinstance(seed, list):
        return seed
    return random.randrange(2**32) if seed in (None, -1, "") else int(seed)


@dataclass
class StableDiffusionProcessing:
    prompt: Any = ""
    negative_prompt: Any = ""
    styles: list = field(default_factory=list)
    seed: Any = -1
    subseed: Any = -1
    subseed_strength: float = 0
    sampler_name: str = "Euler"
    scheduler: str = "Automatic"
    batch_size: int = 1
    n_iter: int = 1
    steps: int = 5
    cfg_scale: float = 7.0
    width: int = 64
    height: int = 64
    restore_faces: Any = None
    tiling: Any = None
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    eta: Any = None
    s_tmax: Any = None
    override_settings: dict = field(default_factory=dict)
    override_settings_restore_afterwards: bool = True
    outpath_samples: str = ""
    outpath_grids: str = ""
    scripts: Any = None
    script_args: list = field(default_factory=list)
    comments: dict = field(default_factory=dict)
    initialised: bool = False

    def comment(self, text):
        self.comments[text] = 1

    def fill_fields_from_opts(self):
        self.s_tmax = self.s_tmax or float("inf")

    def setup_prompts(self):
        many = isinstance(self.prompt, list)
        self.all_prompts = self.prompt if many else [self.prompt] * self.batch_size * self.n_iter
        self.all_negative_prompts = [self.negative_prompt] * len(self.all_prompts)
        self.main_prompt = self.all_prompts[0]
        self.main_negative_prompt = self.all_negative_prompts[0]

    def save_samples(self):
        return not self.do_not_save_samples


@dataclass
class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    enable_hr: bool = False

    def init(self, all_prompts, all_seeds, all_subseeds):
        self.initialised = True


@dataclass
class StableDiffusionProcessingImg2Img(StableDiffusionProcessing):
    init_images: Any = None
    image_mask: Any = None
    mask_blur: int = 4
    inpainting_fill: int = 1
    denoising_strength: float = 0.5
    latent_mask: Any = None

    def init(self, all_prompts, all_seeds, all_subseeds):
        raise AssertionError("this needs the local model")


@dataclass
class Processed:
    p: Any
    images: list
    seed: int = -1
    info: str = ""
    subseed: Any = None
    index_of_first_image: int = 0
    infotexts: Any = None

    def js(self):
        return json.dumps({"seed": self.seed})


def create_infotext(p, all_prompts, all_seeds, all_subseeds, index=0):
    return f"{all_prompts[index]}\nSeed: {all_seeds[index]}, Model: {p.sd_model_name}"


def process_images(p):
    sd_models.reload_model_weights()
    return process_images_inner(p)


local_result = Processed(None, ["made here"])


def process_images_inner(p):
    return local_result
