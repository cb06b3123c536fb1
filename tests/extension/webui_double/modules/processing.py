"""Processing objects, and the function that everyone has imported by name."""

import json
import random
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from modules import sd_models, shared


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
    extra_generation_params: dict = field(default_factory=dict)
    color_corrections: Any = None
    user: Any = None
    is_api: bool = False
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
    hr_scale: float = 2.0
    hr_upscaler: str = "Latent"
    hr_checkpoint_name: Any = None
    firstpass_image: Any = None

    def init(self, all_prompts, all_seeds, all_subseeds):
        self.initialised = True
        if self.enable_hr:
            self.extra_generation_params["Hires schedule type"] = None
            self.extra_generation_params["Hires upscale"] = self.hr_scale
            if not shared.state.processing_has_refined_job_count:
                if shared.state.job_count == -1:
                    shared.state.job_count = self.n_iter
                shared.state.job_count *= 2
                shared.state.processing_has_refined_job_count = True
        if self.hr_checkpoint_name:
            found = sd_models.get_closet_checkpoint_match(self.hr_checkpoint_name)
            if found is None:
                raise Exception(f"Could not find checkpoint with name {self.hr_checkpoint_name}")
            self.extra_generation_params["Hires checkpoint"] = found.short_title


@dataclass
class StableDiffusionProcessingImg2Img(StableDiffusionProcessing):
    init_images: Any = None
    resize_mode: int = 0
    image_mask: Any = None
    mask_blur: int = 4
    mask_blur_x: int = 4
    mask_blur_y: int = 4
    inpaint_full_res: bool = True
    inpaint_full_res_padding: int = 32
    inpainting_mask_invert: int = 0
    inpainting_fill: int = 1
    denoising_strength: float = 0.5
    latent_mask: Any = None

    def init(self, all_prompts, all_seeds, all_subseeds):
        raise AssertionError("this needs the local model")


class Processed:
    def __init__(
        self, p, images_list, seed=-1, info="", subseed=None, index_of_first_image=0, infotexts=None
    ):
        self.images = images_list
        self.seed = seed
        self.info = info
        self.subseed = subseed
        self.index_of_first_image = index_of_first_image
        self.infotexts = infotexts or [info]
        self.extra_generation_params = p.extra_generation_params if p else {}
        self.comments = "".join(f"{comment}\n" for comment in p.comments) if p else ""
        self.prompt = getattr(p, "prompt", "")

    def js(self):
        return json.dumps({"seed": self.seed})


def create_infotext(
    p,
    all_prompts,
    all_seeds,
    all_subseeds,
    use_main_prompt=False,
    index=None,
    all_negative_prompts=None,
):
    told = {
        "Steps": p.steps,
        "Schedule type": p.scheduler if p.scheduler != "Automatic" else None,
        "Seed": all_seeds[index],
        "Model hash": p.sd_model_hash,
        "Model": p.sd_model_name,
        **p.extra_generation_params,
        "Version": "v1.10.1",
    }
    pairs = ", ".join(f"{name}: {value}" for name, value in told.items() if value is not None)
    return f"{p.main_prompt if use_main_prompt else all_prompts[index]}\n{pairs}"


def setup_color_correction(image):
    return image.getpixel((0, 0))


def apply_color_correction(correction, image):
    return Image.new("RGB", image.size, correction)


def process_images(p):
    sd_models.reload_model_weights()
    return process_images_inner(p)


local_result = Processed(None, ["made here"])


def process_images_inner(p):
    return local_result
