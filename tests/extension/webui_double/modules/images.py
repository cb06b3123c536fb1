"""Saving and grids."""

import os
from typing import ClassVar

from PIL import Image, PngImagePlugin

saved = []


class FilenameGenerator:
    replacements: ClassVar = {
        "model_name": lambda self: "local-model",
        "model_hash": lambda self: "localhash",
        "seed": lambda self: self.seed,
    }

    def __init__(self, p, seed):
        self.p, self.seed = p, seed


def save_image(image, path, basename, seed=None, prompt=None, extension="png", info=None, **more):
    os.makedirs(path, exist_ok=True)
    generator = FilenameGenerator(more.get("p"), seed)
    model = FilenameGenerator.replacements["model_name"](generator)
    name = f"{len(saved):05}-{basename}{seed}-{model}{more.get('suffix', '')}.{extension}"
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", info)
    image.save(os.path.join(path, name), pnginfo=text)
    saved.append(os.path.join(path, name))
    return saved[-1], None


def resize_image(mode, image, width, height):
    return image.resize((width, height))


def flatten(image, colour):
    if image.mode != "RGBA":
        return image.convert("RGB")
    ground = Image.new("RGBA", image.size, colour)
    ground.alpha_composite(image)
    return ground.convert("RGB")


def image_grid(images, batch_size=1):
    width = sum(image.width for image in images)
    return Image.new("RGB", (width, images[0].height))
