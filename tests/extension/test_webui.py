"""The host glue, driven through a double of the WebUI's `modules`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from fastapi import FastAPI
from PIL import Image

from aws_extension import errors
from aws_extension.pages import jobs
from tests.extension.pretend_cloud import decode
from tests.extension.webui_host import host as host  # a fixture


def test_pictures_come_back_saved_with_their_infotext_and_grid(host):
    p = host.p(prompt="a circle", seed=40, batch_size=2, n_iter=2)
    result = host.process_images(p)
    assert len(result.images) == 5  # the grid first
    assert result.index_of_first_image == 1
    assert [text.split("Seed: ")[1].split(",")[0] for text in result.infotexts[1:]] == [
        "40", "41", "42", "43",
    ]  # fmt: skip
    samples = sorted((host.folder / "samples").iterdir())
    assert len(samples) == 4
    assert all(path.stem.endswith("-demo") for path in samples)  # [model_name] without a model
    with Image.open(samples[0]) as saved:
        assert "Seed: 40" in saved.info["parameters"]
    assert len(list((host.folder / "grids").iterdir())) == 1
    assert "a circle" in (host.folder / "params.txt").read_text()
    assert p.initialised
    assert p.sd_model_hash == "ab" * 5


def test_each_batch_is_one_job_with_the_webui_apis_fields(host):
    host.process_images(host.p(prompt="a circle", seed=40, batch_size=2, n_iter=2))
    first, second = (job.body for job in host.cloud.jobs)
    assert (first["seed"], first["batch_size"], first["n_iter"]) == (40, 2, 1)
    assert second["seed"] == 42
    assert first["sampler_name"] == "Euler"
    assert "s_tmax" not in first  # infinite: JSON has no such number
    assert "override_settings" not in first
    assert "alwayson_scripts" not in first


def test_progress_is_told_and_previews_shown(host):
    host.cloud.polls = 3
    host.process_images(host.p(n_iter=2))
    state = host.shared.state
    assert (state.job_count, state.job_no) == (2, 2)
    assert any("Cloud: Sampling" in text for text in state.told)
    assert state.textinfo is None
    assert state.previews


def test_nothing_is_loaded_here(host):
    assert host.sd_models.model_data.was_loaded_at_least_once
    host.process_images(host.p())
    assert host.sd_models.reloads == []


def test_img2img_sends_picture_and_mask(host):
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    mask.paste((255, 255, 255, 255), (0, 0, 32, 64))
    p = host.p("Img2Img", init_images=[Image.new("RGB", (64, 64), "red")], image_mask=mask)
    assert len(host.process_images(p).images) == 1
    body = host.cloud.jobs[0].body
    assert body["task_type"] == "img2img"
    assert decode(body["init_images"][0]).getpixel((0, 0)) == (255, 0, 0)
    sent = decode(body["mask"])
    assert (sent.mode, sent.getpixel((0, 0)), sent.getpixel((60, 0))) == ("L", 255, 0)
    assert body["denoising_strength"] == 0.5


def test_lists_of_prompts_and_seeds_stay_in_order(host):
    p = host.p(prompt=["a", "a", "b", "c"], seed=[5, 5, 5, 5], n_iter=2, batch_size=2)
    result = host.process_images(p)
    assert [job.body["prompt"] for job in host.cloud.jobs] == ["a", "a", "b", "c"]
    assert [text[0] for text in result.infotexts[1:]] == ["a", "a", "b", "c"]


def test_settings_that_change_the_picture_travel(host):
    host.cloud.checkpoints.add("VAE", "soft.vae.pt")
    host.shared.opts.CLIP_stop_at_last_layers = 2
    p = host.p(override_settings={"sd_vae": "soft.vae.pt", "samples_format": "jpg"})
    host.process_images(p)
    assert host.cloud.jobs[0].body["override_settings"] == {
        "CLIP_stop_at_last_layers": 2, "sd_vae": "soft.vae.pt",
    }  # fmt: skip
    assert host.shared.opts.samples_format == "png"


def test_settings_at_their_defaults_or_of_the_webui_alone_do_not_travel(host):
    opts = host.shared.opts
    opts.emphasis, opts.randn_source = "No norm", "CPU"
    host.process_images(host.p(override_settings={"grid_format": "jpg"}))
    # The endpoint's GPU would draw other noise than the CPU that is asked for.
    assert host.cloud.jobs[0].body["override_settings"] == {
        "emphasis": "No norm", "randn_source": "CPU",
    }  # fmt: skip


def test_a_requests_own_settings_decide_on_its_grid(host):
    p = host.p(override_settings={"grid_only_if_multiple": False})
    assert len(host.process_images(p).images) == 2
    p = host.p(n_iter=2, override_settings={"return_grid": False, "grid_save": False})
    assert len(host.process_images(p).images) == 2
    assert len(list((host.folder / "grids").iterdir())) == 1


def test_settings_that_cannot_be_followed_are_named(host):
    opts = host.shared.opts
    opts.return_mask = opts.save_images_before_highres_fix = True
    picture = Image.new("RGB", (64, 64), "red")
    p = host.p("Img2Img", init_images=[picture], image_mask=Image.new("L", (64, 64), 255))
    host.process_images(p)
    assert ["return_mask" in comment for comment in p.comments] == [True]
    p = host.p(enable_hr=True)
    host.process_images(p)
    assert ["save_images_before_highres_fix" in comment for comment in p.comments] == [True]
    p = host.p()
    host.process_images(p)
    assert not p.comments


def test_transparent_parts_are_filled_as_the_webuis_setting_says(host):
    host.shared.opts.img2img_background_color = "#00ff00"
    picture = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    picture.paste((255, 0, 0, 255), (0, 0, 32, 64))
    host.process_images(host.p("Img2Img", init_images=[picture] * 2, batch_size=2))
    (sent,) = host.cloud.jobs[0].body["init_images"]
    assert decode(sent).getpixel((0, 0)) == (255, 0, 0)
    assert decode(sent).getpixel((60, 0)) == (0, 255, 0)


@pytest.mark.parametrize(("white", "invert", "empty"), [
    (False, 0, True), (True, 0, False), (True, 1, True), (False, 1, False),
])  # fmt: skip
def test_an_empty_mask_is_not_told_as_one(host, white, invert, empty):
    mask = Image.new("L", (64, 64), 255 if white else 0)
    p = host.p(
        "Img2Img",
        init_images=[Image.new("RGB", (64, 64))],
        image_mask=mask,
        inpainting_mask_invert=invert,
        inpainting_fill=0,
    )
    (text,) = host.process_images(p).infotexts
    assert ("Inpaint area" in text) == ("Masked content" in text) == (not empty)
    assert any("mask is empty" in comment for comment in p.comments) == empty


class Units:
    """Another extension's always-on script with one unit."""

    filename = "extensions/units/scripts/units.py"
    arguments = 1
    controls = (SimpleNamespace(value=None),)

    def title(self):
        return "Units"


@pytest.mark.parametrize(("enabled", "sent"), [(True, True), (False, False)])
def test_other_scripts_travel_only_when_they_are_on(host, enabled, sent):
    unit = SimpleNamespace(enabled=enabled, model="canny", image=Image.new("L", (8, 8)), is_ui=True)
    p = host.p(runner=host.runner(Units()), args=[unit])
    host.process_images(p)
    body = host.cloud.jobs[0].body
    if sent:
        (argument,) = body["alwayson_scripts"]["units"]["args"]
        assert argument["model"] == "canny"
        assert decode(argument["image"]).size == (8, 8)
        assert "is_ui" not in argument
    else:
        assert "alwayson_scripts" not in body


def test_a_failure_raises_and_nothing_is_made_here(host):
    host.cloud.fail_with = "CUDA ran out of memory. Use a smaller size."
    with pytest.raises(errors.JobFailed, match="smaller size"):
        host.process_images(host.p())
    assert host.sd_models.reloads == []


def test_without_a_checkpoint_the_user_is_told_what_to_do(host):
    p = host.p()
    p.script_args = [0, True, "", "Automatic"]
    with pytest.raises(errors.CloudError, match="press its refresh button"):
        host.process_images(p)
    assert host.cloud.jobs == []


def test_interrupt_cancels_what_runs_sends_no_more_and_keeps_what_had_come(host):
    host.cloud.polls = 50

    def answer(sent):
        if len(host.cloud.jobs) == 2:
            host.cloud.jobs[0].polls_left = 0
            host.shared.state.interrupted = True
        return host.cloud(sent)

    host.answer = answer
    result = host.process_images(host.p(n_iter=9))
    assert "job-2" in host.cloud.cancelled
    assert len(host.cloud.jobs) < 9
    assert len(result.images) == len(host.cloud.jobs) - len(host.cloud.cancelled)


def test_warnings_of_the_engine_are_shown(host):
    host.cloud.warnings = ["tiling is not supported yet and was ignored."]
    p = host.p()
    host.process_images(p)
    assert list(p.comments) == host.cloud.warnings


def test_toggle_off_is_the_webuis_own_result(host):
    assert host.process_images(host.p(on=False)) is host.processing.local_result
    assert host.sd_models.reloads == ["model"]
    assert host.cloud.jobs == []


def test_reloading_twice_leaves_one_interceptor_and_unloading_none(host):
    code = host.processing.process_images.__code__
    for _ in range(2):
        host.callbacks.script_unloaded_callback()
        assert host.processing.process_images.__code__ is not code
        assert not host.sd_models.model_data.was_loaded_at_least_once
        host.load()
        host.load()
        assert host.processing.process_images.__code__ is code
    host.process_images(host.p())
    assert len(host.cloud.jobs) == 1
    host.callbacks.script_unloaded_callback()
    assert host.process_images(host.p()) is host.processing.local_result
    table = host.images.FilenameGenerator.replacements
    assert table["model_name"](SimpleNamespace(p=host.p())) == "local-model"


def test_a_script_that_reloads_weights_at_its_end_loads_nothing(host):
    class Plot:
        filename = "scripts/plot.py"

        def run(self, p):
            result = host.process_images(p)
            host.sd_models.reload_model_weights()
            host.sd_vae.reload_vae_weights()
            return result

    runner = host.runner(selectable=[Plot()])
    assert len(runner.run(host.p(runner=runner), 1).images) == 1
    assert host.sd_models.reloads == []
    host.sd_models.reload_model_weights()
    assert host.sd_models.reloads == ["model"]


def test_loading_asks_nothing_of_the_server(host):
    with gr.Blocks():
        controls = host.panel_module.CloudPanel().ui(is_img2img=False)
    assert [control.value for control in controls] == [
        False, None, "Automatic", False, "", False,
    ]  # fmt: skip
    ((_, title, _),) = host.callbacks.ui_tabs[0]()
    assert title == "Cloud"
    assert host.transport.sent == []


def test_the_webui_keeps_nothing_of_what_the_tab_shows(host):
    ((blocks, _, _),) = host.callbacks.ui_tabs[0]()
    assert all(control.do_not_save_to_config for control in blocks.blocks.values())


def test_the_tabs_routes_are_added_to_each_app_that_the_webui_starts(host):
    for _ in range(2):
        host.callbacks.script_unloaded_callback()
        host.load()
        host.load()
        app = FastAPI()
        for started in host.callbacks.started:
            started(None, app)
        ours = [route.path for route in app.routes if route.path.startswith("/sdaws/state")]
        assert len(ours) == 1


def test_pictures_that_came_home_are_not_offered_to_be_collected(host):
    host.process_images(host.p(n_iter=2))
    collected = host.panel_module.host_access().collected
    assert [collected.has(job.id) for job in host.cloud.jobs] == [True, True]
    assert not collected.has("another")


def test_a_collected_job_is_saved_as_the_webui_saves(host):
    access = host.panel_module.host_access()
    host.shared.opts.outdir_samples = str(host.folder / "collected")
    host.process_images(host.p(prompt="a circle", seed=40, batch_size=2))
    saved = jobs.collect(access, host.panel_module.collect.WebUIHost(), "job-1", "")
    assert [Path(path).parent.name for path in saved] == ["collected"] * 2
    assert [Path(path).stem[-7:] for path in saved] == ["40-demo", "41-demo"]
    with Image.open(saved[1]) as picture:
        assert "Seed: 41" in picture.info["parameters"]
    assert access.collected.has("job-1")


def test_the_network_that_the_settings_add_is_in_each_prompt_once(host):
    host.cloud.checkpoints.add("Lora", "soft.safetensors")
    host.shared.opts.sd_lora = "soft"
    host.process_images(host.p(prompt="a circle"))
    host.process_images(host.p(prompt="a circle <lora:soft:0.5>"))
    sent = [job.body["prompt"] for job in host.cloud.jobs]
    assert sent == ["a circle<lora:soft:1.0>", "a circle <lora:soft:0.5>"]
    assert [job.body["models"]["Lora"] for job in host.cloud.jobs] == [["soft.safetensors"]] * 2
