"""The stand-alone app in a real browser: generating, and the way to the real server."""

from __future__ import annotations

from tests.extension.browsing import Visit, app
from tests.extension.browsing import browser as browser  # a fixture
from tests.extension.conftest import RealServer
from tests.extension.pretend_cloud import TOKEN, PretendCloud, serve


def test_a_prompt_becomes_pictures_on_the_page_and_a_job_in_the_list(browser, tmp_path):
    with serve(PretendCloud(polls=3)) as url, app(tmp_path, url, TOKEN) as address:
        visit = Visit(browser, address)
        visit.generate("a big red circle")
        visit.page.wait_for_selector("#sdaws_status .sdaws-progress")
        visit.page.wait_for_selector("#sdaws_gallery img", timeout=30_000)
        text = visit.page.input_value("#sdaws_infotext textarea")
        assert text.startswith("a big red circle\n")
        assert TOKEN not in visit.page.content()
        visit.open("Jobs")
        visit.page.click(".sdaws-card:has-text('Finished')")
        visit.page.wait_for_selector("#sdaws_job .sdaws-pictures img")
        visit.open("Endpoints")
        visit.page.wait_for_selector("#sdaws_endpoints :text('pretend-1')")
        visit.open("Models")
        visit.page.wait_for_selector("#sdaws_checkpoints :text('demo.safetensors')")
        visit.open("Connection")
        visit.page.click("#sdaws_test")
        visit.page.wait_for_selector("#sdaws_connection_result :text('Connected')")
        assert visit.complaints == []


def test_cancel_stops_the_job(browser, tmp_path):
    cloud = PretendCloud(polls=1000)
    with serve(cloud) as url, app(tmp_path, url, TOKEN) as address:
        visit = Visit(browser, address)
        visit.generate("x")
        visit.page.wait_for_selector("#sdaws_preview img")
        visit.page.click("#sdaws_cancel")
        visit.page.wait_for_selector("#sdaws_status :text('Cancelled')")
        assert cloud.cancelled == ["job-1"]


def test_a_failure_is_a_box_that_says_why(browser, tmp_path):
    cloud = PretendCloud(fail_with="Out of memory. Use a smaller size.")
    with serve(cloud) as url, app(tmp_path, url, TOKEN) as address:
        visit = Visit(browser, address)
        visit.generate("x")
        visit.page.wait_for_selector(":text('Use a smaller size')")


def test_the_whole_way_with_the_real_server(browser, tmp_path, real_server: RealServer):
    with app(tmp_path, real_server.url, real_server.token) as address:
        visit = Visit(browser, address)
        visit.page.fill("#sdaws_width input[type=number]", "64")
        visit.page.fill("#sdaws_height input[type=number]", "64")
        visit.generate("a circle")
        visit.page.wait_for_selector("#sdaws_gallery img", timeout=60_000)
        assert "Size: 64x64" in visit.page.input_value("#sdaws_infotext textarea")
        assert visit.complaints == []
