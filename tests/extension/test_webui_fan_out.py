"""Many pictures of one click: made side by side, shown in order; and when one of them fails."""

from __future__ import annotations

import copy
import importlib

import pytest
from PIL import Image

from aws_extension import errors
from aws_extension.infotext import parameters_of
from middleware_api.contract import ON_BEHALF_HEADER
from tests.extension.pretend_cloud import CHECKPOINT, decode
from tests.extension.webui_host import host as host  # a fixture


def test_the_infotext_is_the_webuis_own_with_what_only_the_cloud_knows(host):
    (text,) = host.process_images(host.p(prompt="a circle", seed=7)).infotexts
    assert text.startswith("a circle\nSteps: 5, Seed: 7, Model hash: ababababab, Model: demo, ")
    assert "Cloud endpoint: pretend-1, Cloud time: 4.0 s, Version: v1.10.1" in text
    assert text.count("Sampler: ") == 0  # the engine says it too, and is not asked


def test_the_schedules_that_samplers_took_by_themselves_are_told_in_their_place(host):
    p = host.p(sampler_name="DPM++ 2M", enable_hr=True, n_iter=2)
    result = host.process_images(p)
    grid, said, _ = map(parameters_of, result.infotexts)
    names = list(said)
    for text in (grid, said):
        assert text["Schedule type"] == text["Hires schedule type"] == "Karras"
        assert text["Cloud endpoint"] == "pretend-1"
    assert names.index("Schedule type") < names.index("Seed")
    assert names.index("Hires schedule type") < names.index("Hires upscale")
    # The API's answer says what the pictures say.
    assert result.extra_generation_params["Schedule type"] == "Karras"
    assert result.extra_generation_params["Cloud endpoint"] == "pretend-1"
    (plain,) = host.process_images(host.p()).infotexts
    assert "Schedule type" not in plain


class Cells:
    """A script as X/Y/Z plot is: cell after cell, then a look at all of them."""

    filename = "scripts/cells.py"

    def __init__(self, host, count, swallow=False):
        self.host, self.count, self.swallow = host, count, swallow
        self.at_return: list[int] = []

    def title(self):
        return "Cells"

    def run(self, p):
        pictures, texts = [], []
        for number in range(self.count):
            cell = copy.copy(p)
            cell.seed = p.seed + number
            try:
                made = self.host.process_images(cell)
            except Exception:
                if not self.swallow:
                    raise
                continue
            self.at_return.append(len(list(self.host.folder.glob("samples/*"))))
            pictures += made.images
            texts += made.infotexts
        pixels = [picture.getpixel((0, 0)) for picture in pictures]
        result = self.host.processing.Processed(p, pictures, p.seed, "", infotexts=texts)
        result.pixels = pixels
        return result


def run_cells(host, script, **fields):
    runner = host.runner(selectable=[script])
    return runner.run(host.p(runner=runner, seed=40, **fields), 1)


def test_a_scripts_cells_are_made_side_by_side_and_stay_in_order(host):
    host.cloud.polls = 2
    script = Cells(host, 4)
    result = run_cells(host, script)
    # Nothing had been waited for when the script ordered its last cell.
    assert script.at_return == [0, 0, 0, 0]
    seeds = [int(text.split("Seed: ")[1].split(",")[0]) for text in result.infotexts]
    assert seeds == [40, 41, 42, 43]
    assert result.pixels == [(seed * 37 % 256, seed * 91 % 256, 160) for seed in seeds]
    assert all("Cloud time: 4.0 s" in text for text in result.infotexts)
    assert [picture.info["parameters"] for picture in result.images] == result.infotexts
    names = [path.name.split("-")[1] for path in sorted(host.folder.glob("samples/*"))]
    assert names == ["40", "41", "42", "43"]
    assert host.shared.state.job_no == 4
    lists = [sent for sent in host.transport.sent if "/checkpoints" in sent.url]
    assert len(lists) == 1  # asked once for all cells


def test_a_script_that_builds_on_its_last_picture_waits_for_it(host):
    class Loop:
        filename = "scripts/loop.py"

        def run(self, p):
            for _ in range(3):
                made = host.process_images(p)
                p.init_images = [made.images[0]]
            return made

    runner = host.runner(selectable=[Loop()])
    first = Image.new("RGB", (64, 64), "red")
    result = runner.run(host.p("Img2Img", runner=runner, init_images=[first], seed=3), 1)
    sent = [decode(job.body["init_images"][0]).getpixel((0, 0)) for job in host.cloud.jobs]
    assert sent == [(255, 0, 0), (111, 17, 160), (111, 17, 160)]
    assert result.images[0].getpixel((0, 0)) == (111, 17, 160)


def test_a_failed_cell_stays_black_where_the_script_allows_it(host):
    host.cloud.refuse_seed = 41
    script = Cells(host, 3)
    script.filename = "scripts/xyz_grid.py"
    with pytest.warns(UserWarning, match="seed 41 cannot be made"):
        result = run_cells(host, script)
    assert result.pixels[1] == (0, 0, 0)
    assert len(result.images) == len(result.infotexts) == 2
    assert "seed 41 cannot be made" in result.comments
    assert len(list(host.folder.glob("samples/*"))) == 2


def test_elsewhere_a_failed_picture_ends_the_script_and_the_others_are_saved(host):
    host.cloud.refuse_seed = 42
    with pytest.raises(errors.JobFailed, match="seed 42 cannot be made"):
        run_cells(host, Cells(host, 9))
    assert len(list(host.folder.glob("samples/*"))) >= 2
    assert len(host.cloud.jobs) < 9


def test_of_several_batches_those_that_came_are_shown_with_the_reason_for_the_others(host):
    host.cloud.refuse_seed = 41
    with pytest.warns(UserWarning, match="seed 41 cannot be made"):
        result = host.process_images(host.p(seed=40, n_iter=2))
    assert [text.split("Seed: ")[1][:2] for text in result.infotexts] == ["40"]


def test_a_caller_of_the_api_is_told_of_any_failure(host):
    host.cloud.refuse_seed = 41
    with pytest.raises(errors.JobFailed):
        host.process_images(host.p(seed=40, n_iter=2, is_api=True))


def test_what_a_script_only_prints_is_still_shown(host):
    host.cloud.endpoints.clear()
    host.cloud.refuse_all = "Endpoint 'pretend-1' is still starting."
    with pytest.raises(errors.Conflict, match="still starting"):
        run_cells(host, Cells(host, 2, swallow=True))


def test_pictures_that_a_failed_job_had_made_are_kept(host):
    host.cloud.refuse_seed = 41
    host.cloud.made_before_failing = 1
    with pytest.warns(UserWarning, match="seed 41"):
        result = host.process_images(host.p(seed=41, batch_size=2))
    assert len(result.images) == 1
    assert len(list(host.folder.glob("samples/*"))) == 1


def test_skip_stops_the_batch_that_is_waited_for_and_no_other(host):
    host.cloud.polls = 50

    def answer(sent):
        if len(host.cloud.jobs) == 2 and not host.cloud.cancelled:
            host.shared.state.skipped = True
            host.cloud.jobs[1].polls_left = 0
        return host.cloud(sent)

    host.answer = answer
    result = host.process_images(host.p(seed=40, n_iter=2))
    assert host.cloud.cancelled == ["job-1"]
    assert [text.split("Seed: ")[1][:2] for text in result.infotexts] == ["41"]


def test_a_hires_pass_counts_as_a_job_of_the_bar(host):
    host.process_images(host.p(enable_hr=True, n_iter=2, firstpass_image=Image.new("RGB", (8, 8))))
    body = host.cloud.jobs[0].body
    assert (body["enable_hr"], body["hr_scale"]) == (True, 2.0)
    assert decode(body["firstpass_image"]).size == (8, 8)
    assert (host.shared.state.job_count, host.shared.state.job_no) == (4, 4)


def test_a_cloud_checkpoint_is_found_by_the_webuis_own_names(host):
    host.cloud.checkpoints.add("Stable-diffusion", "fine.safetensors", "cd" * 32)
    (text,) = host.process_images(
        host.p(enable_hr=True, hr_checkpoint_name="fine.safetensors [cdcdcdcdcd]")
    ).infotexts
    assert "Hires checkpoint: fine [cdcdcdcdcd]" in text
    used = host.cloud.jobs[0].body["models"]["Stable-diffusion"]
    assert used == ["demo.safetensors", "fine.safetensors"]
    # Outside of a generation the host finds what it has.
    assert host.sd_models.get_closet_checkpoint_match("fine") is None


def test_a_script_that_works_on_the_model_is_refused_before_anything_is_sent(host, tmp_path):
    script = Cells(host, 1)
    script.filename = tmp_path / "alternative.py"
    script.filename.write_text("def run(self, p):\n    return p.sd_model.decode()\n")
    with pytest.raises(errors.Unsupported, match="works on the model itself"):
        run_cells(host, script)
    assert host.cloud.jobs == []


def test_each_picture_of_a_batch_may_start_from_its_own(host):
    colours = ["red", "lime"]
    tiles = [Image.new("RGB", (64, 64), colour) for colour in colours]
    host.process_images(host.p("Img2Img", init_images=tiles, batch_size=2, seed=5))
    sent = [decode(job.body["init_images"][0]).getpixel((0, 0)) for job in host.cloud.jobs]
    assert sent == [(255, 0, 0), (0, 255, 0)]
    assert [job.body["seed"] for job in host.cloud.jobs] == [5, 6]


def test_a_repeated_init_image_is_sent_once(host):
    picture = Image.new("RGB", (64, 64), "red")
    host.process_images(host.p("Img2Img", init_images=[picture] * 3, batch_size=3))
    (job,) = host.cloud.jobs
    assert len(job.body["init_images"]) == 1
    assert job.body["batch_size"] == 3


def test_a_folder_of_files_is_made_side_by_side(host):
    host.cloud.polls = 2
    files = []
    for number, colour in enumerate(["red", "lime", "blue"]):
        files.append(host.folder / f"{number}.png")
        Image.new("RGB", (64, 64), colour).save(files[-1])
    p = host.p("Img2Img", seed=9)
    result = importlib.import_module("modules.img2img").process_batch(
        p, files, "", "", p.script_args
    )
    assert len(result.images) == len(result.infotexts) == 3
    assert len(host.cloud.jobs) == 3
    assert len(list(host.folder.glob("samples/*"))) == 3


def test_colour_correction_is_applied_here_as_the_webui_does(host):
    host.shared.opts.img2img_color_correction = True
    picture = Image.new("RGB", (64, 64), "red")
    result = host.process_images(host.p("Img2Img", init_images=[picture], seed=1))
    assert result.images[0].getpixel((9, 9)) == (255, 0, 0)
    host.shared.opts.save_images_before_color_correction = True
    host.process_images(host.p("Img2Img", init_images=[picture], seed=3))
    names = sorted(path.stem for path in host.folder.glob("samples/*3-demo*"))
    assert [name.partition("demo")[2] for name in names] == ["-before-color-correction", ""]
    with Image.open(next(host.folder.glob("samples/*-before-*"))) as before:
        assert before.getpixel((9, 9)) == (111, 17, 160)


def test_with_a_mask_colours_are_not_corrected_and_the_user_is_told(host):
    host.shared.opts.img2img_color_correction = True
    picture, mask = Image.new("RGB", (64, 64), "red"), Image.new("L", (64, 64), 255)
    p = host.p("Img2Img", init_images=[picture], image_mask=mask, seed=3)
    assert host.process_images(p).images[0].getpixel((9, 9)) == (111, 17, 160)
    assert any("img2img_color_correction" in comment for comment in p.comments)


def test_jobs_belong_to_the_login_else_to_the_browser(host):
    p = host.p()
    p.user = "alice"
    host.process_images(p)
    p = host.p()
    p.script_args = [0, True, CHECKPOINT, "Automatic", False, "ab" * 16]
    p.scripts.alwayson_scripts[0].args_to = 6
    host.process_images(p)
    host.process_images(host.p())  # the host's own API
    names = [
        sent.headers.get(ON_BEHALF_HEADER)
        for sent in host.transport.sent
        if sent.url.endswith("/inference/v2")
    ]
    assert names[0] == "user-alice"
    assert names[1].startswith("browser-")
    assert names[2] is None


def test_an_endpoint_that_was_asleep_is_said_to_take_minutes(host):
    host.cloud.instances, host.cloud.polls, host.cloud.idle_polls = 0, 3, 2
    host.process_images(host.p())
    assert any("its first machine takes 5 to 10 minutes" in text for text in host.shared.state.told)
