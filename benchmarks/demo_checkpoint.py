"""`python -m benchmarks.demo_checkpoint` asks the demo checkpoint for pictures and reads them back.

The bar, over 200 random prompts: both colours right in 85 of 100 pictures, the shape in 70.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from middleware_api.container.engine.engine import Engine
from middleware_api.container.engine.loading import CheckpointFile
from middleware_api.container.engine.request import parse_request
from middleware_api.container.engine.roles import Roles
from middleware_api.container.prompts.encoder import PromptEncoder
from middleware_api.demo.shapes import SIDE, Reading, Scene, caption, random_scene, read_picture

CHECKPOINT = Path(__file__).parents[1] / "middleware_api" / "demo" / "demo.safetensors"
COLOURS_BAR, SHAPE_BAR = 0.85, 0.70


@dataclass(frozen=True)
class Answer:
    """One prompt's picture, and what the check sees in it."""

    scene: Scene
    image: Image.Image
    reading: Reading

    @property
    def colours_right(self) -> bool:
        asked = (self.scene.background, self.scene.colour)
        return (self.reading.background, self.reading.colour) == asked

    @property
    def shape_right(self) -> bool:
        return self.reading.shape == self.scene.shape


def answers(
    checkpoint: Path, count: int, *, seed: int = 2024, **fields: object
) -> Iterator[Answer]:
    """Random prompts through the engine; `fields` are the WebUI's, such as steps."""
    engine = Engine(torch.device("cpu"), 10**9, PromptEncoder())
    rng = random.Random(seed)
    with engine.loader.load(
        Roles(CheckpointFile(checkpoint, checkpoint.name, "demo", ""))
    ) as model:
        for number in range(count):
            scene = random_scene(rng)
            asked = {"prompt": caption(scene), "seed": number, "width": SIDE, "height": SIDE}
            body = json.dumps(asked | fields).encode()
            request = parse_request("txt2img", body, random.Random(0))
            (picture,) = engine.generate(model, request, lambda step: None)
            pixels = np.asarray(picture.image.convert("RGB"), dtype=np.float32) / 255
            yield Answer(scene, picture.image, read_picture(pixels))


def share(right: list[bool]) -> float:
    return sum(right) / len(right)


def sheet(found: list[Answer], columns: int = 10) -> Image.Image:
    """All pictures in rows, in the order of the prompts."""
    rows = -(-len(found) // columns)
    paper = Image.new("RGB", (columns * (SIDE + 4), rows * (SIDE + 4)), "grey")
    for number, answer in enumerate(found):
        row, column = divmod(number, columns)
        paper.paste(answer.image, (column * (SIDE + 4) + 2, row * (SIDE + 4) + 2))
    return paper


def main() -> int:
    """Exit code 0 when the bar is reached, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cfg-scale", type=float, default=7)
    parser.add_argument("--sheet", type=Path, help="save the pictures side by side as this PNG")
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    found = list(
        answers(options.checkpoint, options.count, steps=options.steps, cfg_scale=options.cfg_scale)
    )
    colours = share([answer.colours_right for answer in found])
    shapes = share([answer.shape_right for answer in found])
    print(
        f"{len(found)} pictures, {options.steps} steps, guidance {options.cfg_scale:g}, "
        f"{(time.monotonic() - started) / len(found):.2f} s each: "
        f"colours {colours:.1%} (bar {COLOURS_BAR:.0%}), shape {shapes:.1%} (bar {SHAPE_BAR:.0%})"
    )
    missed = Counter(
        f"{answer.scene.shape} read as {answer.reading.shape}"
        for answer in found
        if not answer.shape_right
    )
    for mistake, count in missed.most_common(8):
        print(f"  {count:3} {mistake}")
    if options.sheet:
        sheet(found).save(options.sheet)
    return 0 if colours >= COLOURS_BAR and shapes >= SHAPE_BAR else 1


if __name__ == "__main__":
    sys.exit(main())
