"""Orders for the training program, and an object store that has what they speak of."""

from __future__ import annotations

import io
import json
import random
import threading
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from middleware_api import contract
from middleware_api.container.storage import FolderStorage
from middleware_api.container.train import Program, Settings
from middleware_api.contract import TrainOutcome, TrainProgress
from tests.engine_checkpoints import TINY, Size, write_checkpoint

OUTPUT = "Stable-diffusion/train/tiny/t1/output/"
MODEL = "Stable-diffusion/model/tiny/m1/output/"
SIDE = 32

# As quick as it gets; every test changes what it is about.
QUICK: dict[str, object] = {
    "use_lora": True,
    "model_name": "tiny-cat",
    "num_train_epochs": 2,
    "train_batch_size": 2,
    "resolution": SIDE,
    "gradient_checkpointing": False,
    "lora_learning_rate": 1e-2,
    "lora_txt_learning_rate": 1e-2,
    "lr_warmup_steps": 0,
    "save_preview_every": 0,
    "save_embedding_every": 0,
}
CONCEPT: dict[str, object] = {
    "instance_data_dir": "s3:///dataset/cats/",
    "instance_prompt": "a photo of zwx cat",
    "class_prompt": "a photo of a cat",
}


def picture(seed: int, size: tuple[int, int] = (SIDE, SIDE), kind: str = "PNG") -> bytes:
    """Two halves of colours of its own."""
    rng = random.Random(seed)
    made = Image.new("RGB", size, tuple(rng.randbytes(3)))
    made.paste(tuple(rng.randbytes(3)), (0, 0, size[0] // 2, size[1]))
    content = io.BytesIO()
    made.save(content, kind)
    return content.getvalue()


class Store:
    """An object store in a folder, with a working model and a data set `cats` of `count`."""

    def __init__(self, folder: Path, size: Size = TINY, count: int = 4) -> None:
        self.root, self.folder = folder / "objects", folder
        self.storage = FolderStorage(self.root)
        write_checkpoint(self.root / contract.working_model_key(MODEL), size)
        for number in range(count):
            self.put(f"dataset/cats/{number}.png", picture(number))

    def put(self, key: str, content: bytes) -> None:
        self.storage.write(key, content)

    def train(
        self,
        stopping: threading.Event | None = None,
        storage: FolderStorage | None = None,
        concepts: list[dict[str, object]] | None = None,
        clock: Callable[[], float] = lambda: 1000.0,
        **config: object,
    ) -> TrainOutcome:
        """Runs the program to its end, in this process."""
        listed = [CONCEPT] if concepts is None else [{**CONCEPT, **own} for own in concepts]
        order = {
            "job_id": "t1",
            "type": "Stable-diffusion",
            "model_prefix": MODEL,
            "datasets": {"cats": "dataset/cats/", "any": "dataset/any/"},
            "params": {"config_params": {**QUICK, "concepts_list": listed, **config}},
        }
        return self.carry_out(order, OUTPUT, stopping, storage, clock)

    def carry_out(
        self,
        order: dict[str, object],
        output: str,
        stopping: threading.Event | None = None,
        storage: FolderStorage | None = None,
        clock: Callable[[], float] = lambda: 1000.0,
    ) -> TrainOutcome:
        settings = Settings(self.root, self.folder / "ml", output, threads=0)
        path = settings.root / contract.TRAIN_ORDER_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(order))
        program = Program(storage or self.storage, settings, stopping or threading.Event(), clock)
        code = program.run()
        told: TrainOutcome = json.loads(self.storage.read(contract.train_outcome_key(output)))
        failure = settings.root / contract.TRAIN_FAILURE_FILE
        assert code == (1 if told["error"] else 0)
        assert (failure.read_text() if failure.exists() else "") == told["error"]
        return told

    def progress(self, output: str = OUTPUT) -> TrainProgress:
        told: TrainProgress = json.loads(self.storage.read(contract.train_progress_key(output)))
        return told
