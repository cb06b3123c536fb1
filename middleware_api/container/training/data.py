"""What a training is shown: the concepts' pictures and captions, and class pictures beside them."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from middleware_api import contract
from middleware_api.container.engine.checkpoint import StableDiffusion
from middleware_api.container.errors import BadRequest
from middleware_api.container.storage import Storage
from middleware_api.container.training.buckets import Size, bucket_sizes, cut_of, nearest_size
from middleware_api.container.training.captions import class_caption, instance_caption
from middleware_api.container.training.pictures import (
    LatentStore,
    PictureFile,
    UnreadablePicture,
    pictures_of,
    pixels_of,
    read_picture,
    require_some,
)
from middleware_api.container.training.report import TrainReporter
from middleware_api.container.training.sampler import PictureMaker, Wish
from middleware_api.training_fields import ConceptSettings, TrainRequest, is_location


@dataclass(frozen=True)
class Shown:
    """A picture as training shows it: its key in the latents' store, its bucket, its caption.

    `original` is its own size.
    """

    key: str
    original: Size
    size: Size
    caption: str
    concept: int
    own_words: str = ""

    @property
    def told(self) -> tuple[float, ...]:
        """What SDXL's UNet is told: the picture's own size, where it was cut, and the size now."""
        cut = cut_of(self.original, self.size)
        (width, height), (across, down) = self.original, self.size
        return (height, width, cut.top, cut.left, down, across)


class TrainData:
    """The pictures of all concepts. Those that cannot be read are named in warnings."""

    def __init__(
        self,
        request: TrainRequest,
        datasets: Mapping[str, str],
        storage: Storage,
        store: LatentStore,
        latent_factor: int,
        reporter: TrainReporter,
        stop_if_asked: Callable[[], None],
    ) -> None:
        self._request, self._datasets, self._storage = request, datasets, storage
        self._store, self._reporter, self._stop_if_asked = store, reporter, stop_if_asked
        self._sizes = bucket_sizes(request.settings.resolution, latent_factor)
        self.instances: list[Shown] = []
        self.classes: dict[int, list[Shown]] = {}
        self._known: dict[str, tuple[Size, Size]] = {}

    @property
    def square(self) -> Size:
        return self._sizes[0]

    def gather(self) -> None:
        """Read all that is there. Raises BadRequest for a concept without pictures."""
        for number, concept in enumerate(self._request.concepts):
            prefix = self._prefix(concept.instance_data_dir, number, "instance_data_dir")
            files = pictures_of(self._storage, prefix)
            shown = []
            for file, sizes in self._read(files):
                caption = instance_caption(concept, file.own_words)
                shown.append(Shown(file.key, *sizes, caption, number, file.own_words))
            require_some(shown, f"Data set '{_name(concept.instance_data_dir)}'", len(files))
            self.instances += shown
            if is_location(concept.class_data_dir):
                prefix = self._prefix(concept.class_data_dir, number, "class_data_dir")
                self.classes[number] = [
                    Shown(file.key, *sizes, class_caption(concept, file.own_words), number)
                    for file, sizes in self._read(pictures_of(self._storage, prefix))
                ]

    def complete_classes(
        self, maker: PictureMaker, model: StableDiffusion, output_prefix: str
    ) -> None:
        """Have the class pictures made that concepts ask for and no data set has."""
        folder = contract.class_picture_prefix(output_prefix)
        made_before = self._storage.sizes(folder)
        wishes = [*self._class_wishes(folder)]
        batch = self._request.settings.sample_batch_size
        done = 0
        for _, alike in itertools.groupby(wishes, key=lambda w: (w[0].caption, w[0].size)):
            same = [*alike]
            for start in range(0, len(same), batch):
                some = same[start : start + batch]
                self._reporter.phase("making class pictures", done / len(wishes))
                if not all(shown.key in made_before for shown, _ in some):
                    pictures = maker.make(model, "", some[0][1], len(some))
                    for (shown, _), picture in zip(some, pictures, strict=True):
                        content = io.BytesIO()
                        picture.save(content, "PNG")
                        self._storage.write(shown.key, content.getvalue())
                for shown, _ in some:
                    self._store.add(shown.key, self._pixels(shown.key, shown.size), self._mirrors)
                    self.classes.setdefault(shown.concept, []).append(shown)
                done += len(some)

    def class_picture(self, instance: Shown, size: Size, rng: random.Random) -> Shown | None:
        """One of the concept's, at the size of the batch; None without class pictures."""
        pictures = self.classes.get(instance.concept, [])
        if not pictures:
            return None
        alike = [shown for shown in pictures if shown.size == size]
        chosen = rng.choice(alike or pictures)
        if chosen.size == size:
            return chosen
        cut = replace(chosen, key=f"{chosen.key} {size}", size=size)
        if cut.key not in self._store:
            self._store.add(cut.key, self._pixels(chosen.key, size), self._mirrors)
        return cut

    @property
    def _mirrors(self) -> bool:
        return self._request.settings.hflip

    def _class_wishes(self, folder: str) -> Iterator[tuple[Shown, Wish]]:
        settings = self._request.settings
        for number, concept in enumerate(self._request.concepts):
            instances = [each for each in self.instances if each.concept == number]
            there = len(self.classes.get(number, ()))
            for i in range(there, concept.num_class_images_per * len(instances)):
                instance = instances[i % len(instances)]
                size = self.square if settings.disable_class_matching else instance.size
                caption = class_caption(concept, instance.own_words)
                shown = Shown(f"{folder}{number}-{i:05d}.png", size, size, caption, number)
                seed = random.Random(f"{settings.seed} class {number} {i}").getrandbits(32)
                yield shown, _class_wish(concept, shown, seed)

    def _read(
        self, files: Sequence[PictureFile]
    ) -> Iterator[tuple[PictureFile, tuple[Size, Size]]]:
        """Those that can be read, stored, with their own size and their bucket."""
        for done, file in enumerate(files):
            self._stop_if_asked()
            self._reporter.phase("fetching pictures", done / len(files))
            if file.key in self._store:  # two concepts of one data set
                yield file, self._known[file.key]
                continue
            try:
                picture = read_picture(self._storage.read(file.key))
            except UnreadablePicture as fault:
                self._reporter.warn(f"Picture {file.name} was left out: {fault}.")
                continue
            except FileNotFoundError:
                self._reporter.warn(f"Picture {file.name} was left out: it was deleted meanwhile.")
                continue
            size = nearest_size(picture.size, self._sizes)
            self._store.add(file.key, pixels_of(picture, size), self._mirrors)
            self._known[file.key] = (picture.size, size)
            yield file, self._known[file.key]

    def _pixels(self, key: str, size: Size) -> Tensor:
        return pixels_of(read_picture(self._storage.read(key)), size)

    def _prefix(self, location: str, number: int, field: str) -> str:
        name = _name(location)
        if not is_location(location) or name not in self._datasets:
            raise BadRequest(
                f"config_params.concepts_list[{number}].{field} must be the location of a data set "
                f"(s3://<bucket>/dataset/<name>), not {location!r}. Create a data set of its "
                "pictures, and name it there or in training_params.data_tar_list.",
                "no_dataset",
            )
        return self._datasets[name]


def _name(location: str) -> str:
    return location.rstrip("/").rpartition("/")[2]


def _class_wish(concept: ConceptSettings, shown: Shown, seed: int) -> Wish:
    return Wish(
        shown.caption,
        concept.class_negative_prompt,
        seed,
        concept.class_infer_steps,
        concept.class_guidance_scale,
        shown.size,
    )
