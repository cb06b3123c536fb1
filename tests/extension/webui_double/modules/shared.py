"""Options, state and command line."""

from types import SimpleNamespace
from typing import ClassVar


class Options:
    """`opts`: values as attributes and in `data`."""

    defaults: ClassVar = {
        "samples_format": "png", "grid_format": "png", "grid_save": True, "return_grid": True,
        "grid_only_if_multiple": True, "grid_extended_filename": False, "enable_pnginfo": True,
        "live_previews_enable": True, "face_restoration": False, "tiling": False,
        "CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic", "eta_noise_seed_delta": 0,
        "enable_prompt_comments": True, "img2img_color_correction": False,
        "sd_lora": "None", "sd_hypernetwork": "None", "extra_networks_default_multiplier": 1.0,
        "save_init_img": False, "outdir_init_images": "", "img2img_background_color": "#ffffff",
        "emphasis": "Original", "randn_source": "GPU", "return_mask": False,
        "save_images_before_highres_fix": False, "save_images_before_color_correction": False,
    }  # fmt: skip

    def __init__(self):
        self.__dict__["data"] = dict(self.defaults)

    def __getattr__(self, name):
        if name not in self.data:
            raise AttributeError(name)
        return self.data[name]

    def __setattr__(self, name, value):
        self.data[name] = value

    def set(self, name, value, is_api=False, run_callbacks=True):
        self.data[name] = value

    def get_default(self, name):
        return self.defaults.get(name)


class State:
    """`state`: what the progress bar reads and the buttons write."""

    def __init__(self):
        self.skipped = self.interrupted = self.stopping_generation = False
        self.job, self.job_no, self.job_count = "", 0, -1
        self.sampling_step = self.sampling_steps = 0
        self.processing_has_refined_job_count = False
        self.textinfo = None
        self.told = []
        self.previews = []

    def __setattr__(self, name, value):
        self.__dict__[name] = value
        if name == "textinfo" and value:
            self.told.append(value)

    def nextjob(self):
        self.job_no += 1
        self.sampling_step = 0

    def assign_current_image(self, image):
        self.previews.append(image)


opts = Options()
state = State()
cmd_opts = SimpleNamespace(no_prompt_history=False, embeddings_dir="")
hypernetworks = {}
