"""Folders of pictures: what is found out about them, and how they become data sets."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from aws_extension.client import CloudClient
from aws_extension.dataset_uploads import (
    DatasetOrder,
    DatasetUploads,
    SendState,
    send,
    with_captions,
)
from aws_extension.errors import UploadFailed
from aws_extension.fake_transport import FakeTransport
from aws_extension.http import Retries
from aws_extension.picture_folder import PictureLooks, read_caption, write_caption
from middleware_api.contract import DatasetState
from tests.extension.pretend_cloud import TOKEN, PretendCloud


def until(holds: Callable[[], bool]) -> None:
    """Wait for what a thread does; at most 20 s."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "not within 20 s"
        time.sleep(0.005)


def drawing(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """A picture that differs from those of other seeds as photos do."""
    rough = Image.effect_noise((6, 5), 90).convert("RGB").resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(rough)
    for n in range(4):
        left, top = 37 * (seed * 3 + n) % size[0], 53 * (seed + 2 * n) % size[1]
        colour = (60 * seed % 256, 80 * n, 255 - 40 * seed % 256)
        draw.ellipse((left, top, left + 90, top + 70), fill=colour)
    return rough


# What is found out


def test_pictures_that_repeat_others_are_found(tmp_path):
    first = drawing(1)
    first.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes())
    first.resize((200, 150)).save(tmp_path / "c.jpg", quality=60)
    drawing(2).save(tmp_path / "d.png")
    drawing(5).save(tmp_path / "e.png")
    found = {one.path.name: one for one in PictureLooks().look(tmp_path)}
    assert {name: (one.same_as, one.like) for name, one in found.items()} == {
        "a.png": ("", ""),
        "b.png": ("a.png", ""),
        "c.jpg": ("", "a.png"),
        "d.png": ("", ""),
        "e.png": ("", ""),
    }


def test_two_plain_pictures_of_other_colours_are_not_alike(tmp_path):
    for name, colour in (("a", "navy"), ("b", "teal"), ("c", "#000084")):
        Image.new("RGB", (100, 100), colour).save(tmp_path / f"{name}.png")
    assert [one.like for one in PictureLooks().look(tmp_path)] == ["", "", "a.png"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.png", b"no picture", "no picture that can be read"),
        ("a.heic", b"anything", "heic is not read"),
        ("a;b.png", None, "cannot have its name"),
        ("tiny.png", (63, 500), "too small: 63 × 500"),
        ("cut.jpg", "truncated", "damaged"),
    ],
)
def test_bad_pictures_are_named_with_the_reason(tmp_path, name, content, says):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        drawing(1, content if isinstance(content, tuple) else (320, 240)).save(path)
        if content == "truncated":
            path.write_bytes(path.read_bytes()[:-3000])
    (found,) = PictureLooks().look(tmp_path)
    assert says in found.fault


def test_a_picture_that_lies_on_its_side_is_measured_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    drawing(1, (320, 200)).save(tmp_path / "a.jpg", exif=exif)
    (found,) = PictureLooks().look(tmp_path)
    assert (found.width, found.height) == (200, 320)


def test_what_is_cut_off_is_what_the_trainer_cuts(tmp_path):
    drawing(1, (1000, 500)).save(tmp_path / "a.png")
    drawing(2, (512, 512)).save(tmp_path / "b.png")
    wide, square = (one.kept(512) for one in PictureLooks().look(tmp_path))
    assert (square.across, square.down, square.width, square.height) == (1, 1, 512, 512)
    # The bucket of 704 × 320 is nearer to 2 : 1 than the one of 640 × 384.
    assert (wide.width, wide.height) == (704, 320)
    assert wide.across == pytest.approx(1)
    assert wide.down == pytest.approx(320 / 352)
    assert wide.top == pytest.approx(16 / 352)


def test_a_folder_is_read_again_only_where_it_has_changed(tmp_path, monkeypatch):
    for seed in range(3):
        drawing(seed).save(tmp_path / f"{seed}.png")
    looks = PictureLooks()
    before = looks.look(tmp_path)
    read: list[Path] = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: read.append(path) or read_bytes(path))
    assert looks.look(tmp_path) == before
    assert read == []
    drawing(7).save(tmp_path / "1.png")
    looks.look(tmp_path)
    assert [path.name for path in read] == ["1.png"]


def test_a_folder_that_is_none_says_so(tmp_path):
    with pytest.raises(UploadFailed, match="cannot be read"):
        PictureLooks().look(tmp_path / "none")


def test_captions_are_written_beside_their_pictures(tmp_path):
    caption = tmp_path / "a.txt"
    assert read_caption(caption) == ""
    write_caption(caption, " a dog \n")
    assert (read_caption(caption), caption.read_text()) == ("a dog", "a dog")
    write_caption(caption, "  ")
    assert not caption.exists()
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(UploadFailed, match="cannot be written"):
        write_caption(tmp_path / "file" / "a.txt", "x")


# How they become data sets


class Studio:
    """A folder of pictures before a pretended cloud."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cloud = folder, PretendCloud()
        self.state = folder / "state"
        self.client = CloudClient(
            "http://cloud.test",
            TOKEN,
            adapter=FakeTransport(self.cloud),
            retries=Retries(attempts=1),
        )
        for number in range(30):
            (folder / f"{number}.png").write_bytes(b"picture %d" % number)
            (folder / f"{number}.txt").write_text(f"a thing, {number}")

    @property
    def there(self):
        return self.cloud.datasets.all[0]

    def order(self) -> DatasetOrder:
        return DatasetOrder("dogs", with_captions(sorted(self.folder.glob("*.png"))))

    def started(self) -> DatasetUploads:
        return DatasetUploads(lambda: self.client, self.state)


@pytest.fixture
def studio(tmp_path) -> Studio:
    return Studio(tmp_path)


def test_all_files_arrive_and_it_is_enabled(studio):
    told: list[int] = []
    send(studio.client, studio.order(), lambda arrived, progress: told.append(arrived))
    assert studio.there.state == "Enabled"
    assert studio.there.files["7.png"] == b"picture 7"
    assert studio.there.files["7.txt"] == b"a thing, 7"
    assert len(studio.there.files) == 60
    assert told == list(range(61))


def test_what_has_arrived_is_not_sent_again_after_an_interruption(studio):
    studio.cloud.datasets.refuse_puts_with = 404
    uploads = studio.started()
    uploads.begin(studio.order())
    until(lambda: [one.state for one in uploads.all()] == [SendState.FAILED])
    arrived = [name for name, content in studio.there.files.items() if content is not None]
    assert 0 < len(arrived) < 60
    studio.cloud.datasets.refuse_puts_with = 0
    studio.cloud.datasets.puts.clear()
    # The host has been started anew: it knows its unfinished orders, the cloud what arrived.
    again = studio.started()
    again.take_up()
    assert [one.state for one in again.all()] == [SendState.RUNNING]
    until(lambda: again.all() == ())
    assert studio.there.state == "Enabled"
    pictures = {name for name in arrived if name.endswith(".png")}
    assert not pictures & set(studio.cloud.datasets.puts)
    assert len(studio.there.files) == 60


def test_what_is_paused_stays_so_over_a_restart(studio):
    uploads = studio.started()
    uploads.begin(studio.order())
    uploads.pause("dogs")
    again = studio.started()
    again.take_up()
    assert [one.state for one in again.all()] == [SendState.PAUSED]
    again.resume("dogs")
    until(lambda: again.all() == ())
    assert studio.there.state == "Enabled"


def test_a_further_send_adds_what_is_new(studio):
    send(studio.client, studio.order())
    (studio.folder / "new.png").write_bytes(b"new")
    studio.cloud.datasets.puts.clear()
    send(studio.client, studio.order())
    sent = {name for name in studio.cloud.datasets.puts if name.endswith(".png")}
    assert sent == {"new.png"}
    assert (studio.there.state, len(studio.there.files)) == ("Enabled", 61)


def test_a_data_sets_bound_is_told_before_a_byte_is_sent(studio):
    files = tuple(studio.folder / f"{number}.png" for number in range(1001))
    with pytest.raises(UploadFailed, match="1 to 1000"):
        studio.started().begin(DatasetOrder("dogs", files))
    twice = (studio.folder / "0.png", studio.folder / "sub" / "0.png")
    with pytest.raises(UploadFailed, match="one name"):
        send(studio.client, DatasetOrder("dogs", twice))
    assert studio.cloud.datasets.all == []


def test_rows_of_data_sets_are_what_the_client_says(studio):
    rows = studio.client.datasets
    send(studio.client, studio.order())
    (listed,) = rows.all()
    assert (listed.name, listed.state, listed.files) == ("dogs", DatasetState.ENABLED, 60)
    assert rows.all([DatasetState.DISABLED]) == []
    rows.remove("dogs", ["0.png", "0.txt"])
    assert len(rows.files("dogs")) == 58
    rows.set_state("dogs", DatasetState.DISABLED)
    rows.delete("dogs")
    assert rows.all() == []
    rows.delete("dogs")
