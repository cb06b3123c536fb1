"""What a folder of pictures holds for a training: captions, pictures that cannot be used, pictures
that are there twice, and what the trainer would cut off.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from aws_extension.errors import UploadFailed
from aws_extension.whole_file import write_whole

# Standard library and Pillow only: the trainer's own rule, so that the preview cannot be another.
from middleware_api.container.training.buckets import bucket_sizes, cut_of, nearest_size
from middleware_api.contract import CAPTION_ENDING, PICTURE_ENDINGS, is_valid_name

LATENT_FACTOR = 8  # of all full-size checkpoints
SIDE_MIN = 64
# Pictures that browsers or cameras make, and the trainer does not read.
OTHER_ENDINGS = (".heic", ".heif", ".avif", ".jxl", ".jfif", ".svg", ".psd", ".cr2", ".nef", ".dng")
LOOKS_KEPT = 5000
FOLDERS_KEPT = 8
LOOKS_AT_ONCE = 4
# Of the 64 comparisons of a fingerprint, and of 255 levels of its mean colours.
BITS_ALIKE, LEVELS_ALIKE = 6, 12
_SIDE = 8
_DRAFT = 256
# EXIF: a value of 5 to 8 means that the picture lies on its side.
_ORIENTATION, _LAST_UPRIGHT = 0x0112, 4
# Neighbours as equal as this are equal: the noise of a JPEG must not count.
_STEP = 3


@dataclass(frozen=True)
class Fingerprint:
    """What stays when a picture is scaled or saved again: which of neighbouring areas is the
    brighter one (64 bits, dHash), and the mean colours."""

    bits: int
    colours: tuple[int, int, int]

    def is_like(self, other: Fingerprint) -> bool:
        """Whether people would call it the same picture."""
        if (self.bits ^ other.bits).bit_count() > BITS_ALIKE:
            return False
        levels = (abs(a - b) for a, b in zip(self.colours, other.colours, strict=True))
        return max(levels) <= LEVELS_ALIKE


@dataclass(frozen=True)
class Kept:
    """What a training keeps of a picture: a bucket's size, and the place of it in fractions of
    the picture's width and height."""

    width: int
    height: int
    left: float
    top: float
    across: float
    down: float


@dataclass(frozen=True)
class FolderPicture:
    """A picture of the folder; `fault` says why it cannot be trained on, "" where it can.

    `same_as` and `like` are the earlier pictures that it repeats: byte for byte, or to the eye.
    """

    path: Path
    size: int
    width: int = 0
    height: int = 0
    sha256: str = ""
    fingerprint: Fingerprint | None = None
    fault: str = ""
    same_as: str = ""
    like: str = ""

    @property
    def caption_path(self) -> Path:
        """Where its caption is, or would be."""
        return self.path.with_suffix(CAPTION_ENDING)

    def kept(self, resolution: int) -> Kept:
        """What a training at that resolution keeps of it."""
        bucket = nearest_size((self.width, self.height), bucket_sizes(resolution, LATENT_FACTOR))
        cut = cut_of((self.width, self.height), bucket)
        return Kept(
            *bucket,
            left=cut.left / cut.scaled[0],
            top=cut.top / cut.scaled[1],
            across=bucket[0] / cut.scaled[0],
            down=bucket[1] / cut.scaled[1],
        )


class PictureLooks:
    """Looks at folders; what it has seen of an unchanged file it does not read again."""

    def __init__(self) -> None:
        self.left_out: set[str] = set()
        """Paths of pictures that are not to be sent, as long as this process lives."""
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[Path, int, int], FolderPicture] = OrderedDict()
        self._compared: OrderedDict[Path, tuple[list[FolderPicture], list[FolderPicture]]] = (
            OrderedDict()
        )

    def look(self, folder: Path) -> list[FolderPicture]:
        """The folder's own pictures by name, not those of its subfolders. Raises UploadFailed."""
        try:
            endings = PICTURE_ENDINGS + OTHER_ENDINGS
            paths = sorted(
                path
                for path in folder.iterdir()
                if path.suffix.lower() in endings and not path.name.startswith(".")
            )
        except OSError as fault:
            raise UploadFailed(
                f"The folder '{folder}' cannot be read ({fault.strerror}). Check its path."
            ) from fault
        with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
            looked = list(pool.map(self._look_at, paths))
        # A page that is open asks every some seconds, and each is compared with each.
        with self._lock:
            before, compared = self._compared.get(folder, ([], []))
        if looked != before:
            compared = marked(looked)
            with self._lock:
                self._compared[folder] = (looked, compared)
                while len(self._compared) > FOLDERS_KEPT:
                    self._compared.popitem(last=False)
        return compared

    def leave_out(self, path: str) -> None:
        """Do not send a picture; of one that is left out already, send it after all."""
        self.left_out ^= {path}

    def _look_at(self, path: Path) -> FolderPicture:
        try:
            found = path.stat()
            key = (path, found.st_mtime_ns, found.st_size)
            with self._lock:
                if key in self._seen:
                    self._seen.move_to_end(key)
                    return self._seen[key]
            looked = look_at(path, path.read_bytes())
        except OSError as fault:
            return FolderPicture(path, 0, fault=f"It cannot be read: {fault.strerror}.")
        with self._lock:
            self._seen[key] = looked
            while len(self._seen) > LOOKS_KEPT:
                self._seen.popitem(last=False)
        return looked


def look_at(path: Path, content: bytes) -> FolderPicture:
    """One picture by itself."""
    looked = FolderPicture(path, len(content), sha256=hashlib.sha256(content).hexdigest())
    ending = path.suffix.lower()
    if ending in OTHER_ENDINGS:
        named = ", ".join(one[1:] for one in PICTURE_ENDINGS[:4])
        return replace(looked, fault=f"{ending[1:]} is not read. Save it as one of: {named}.")
    if not is_valid_name(path.name):
        return replace(
            looked,
            fault="It cannot have its name in the cloud: letters, digits, spaces and "
            ". _ - ( ) + [ ] are allowed.",
        )
    try:
        with Image.open(io.BytesIO(content)) as opened:
            size = opened.size
            if opened.getexif().get(_ORIENTATION, 1) > _LAST_UPRIGHT:
                size = size[::-1]
            opened.draft("RGB", (_DRAFT, _DRAFT))  # a JPEG need not be decoded in full
            colours = ImageOps.exif_transpose(opened).convert("RGB")
    except UnidentifiedImageError:
        return replace(looked, fault="It is no picture that can be read.")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as fault:
        return replace(looked, fault=f"It is damaged: {fault}")
    width, height = size
    looked = replace(looked, width=width, height=height, fingerprint=fingerprint_of(colours))
    if min(width, height) < SIDE_MIN:
        return replace(looked, fault=f"It is too small: {width} × {height} pixels.")
    return looked


def fingerprint_of(picture: Image.Image) -> Fingerprint:
    """Of a picture in RGB."""
    small = picture.resize((_SIDE + 1, _SIDE), Image.Resampling.BOX)
    grey = small.convert("L").tobytes()
    bits = 0
    for row in range(_SIDE):
        for column in range(_SIDE):
            at = row * (_SIDE + 1) + column
            bits = bits << 1 | (grey[at] > grey[at + 1] + _STEP)
    red, green, blue = picture.resize((1, 1), Image.Resampling.BOX).tobytes()
    return Fingerprint(bits, (red, green, blue))


def marked(pictures: Sequence[FolderPicture]) -> list[FolderPicture]:
    """The same pictures, each that repeats an earlier one saying so."""
    first: dict[str, str] = {}
    shown: list[tuple[str, Fingerprint]] = []
    made = []
    for picture in pictures:
        name, print_ = picture.path.name, picture.fingerprint
        if picture.sha256 and picture.sha256 in first:
            made.append(replace(picture, same_as=first[picture.sha256]))
            continue
        first[picture.sha256] = name
        if print_ is None:
            made.append(picture)
            continue
        like = next((other for other, one in shown if one.is_like(print_)), "")
        if not like:
            shown.append((name, print_))
        made.append(replace(picture, like=like))
    return made


def read_caption(path: Path) -> str:
    """What is written beside a picture; "" where nothing is."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def write_caption(path: Path, text: str) -> None:
    """Put it beside the picture; an empty one takes the file away. Raises UploadFailed."""
    try:
        if text.strip():
            write_whole(path, text.strip())
        else:
            path.unlink(missing_ok=True)
    except OSError as fault:
        raise UploadFailed(
            f"The caption '{path}' cannot be written ({fault.strerror}). Give the right to write "
            "there, or copy the folder."
        ) from fault
