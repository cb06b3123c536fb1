"""An endpoint chooses its engine: by the API, on one machine and on AWS."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from middleware_api.aws.settings import AwsSettings
from middleware_api.contract import EngineName
from middleware_api.errors import Conflict, NotAvailable
from middleware_api.records import Endpoint
from tests.pretend_webui import pretending
from tests.server import PASSING, Server, until
from tests.test_aws_endpoints import ENDPOINT, NAME, SETTINGS, Cloud
from tests.test_aws_endpoints import cloud as cloud  # a fixture


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that knows the password of the studio's WebUI."""
    server = Server(tmp_path_factory.mktemp("server") / "var", SDAWS_WEBUI_AUTH="studio:secret")
    yield server
    server.stop()


def test_a_webui_that_runs_already_becomes_an_endpoint(studio: Server, tmp_path: Path) -> None:
    (tmp_path / "webui").mkdir()
    with pretending(tmp_path / "webui", credentials="studio:secret") as webui:
        order = {"instance_type": "local", "engine": "webui", "endpoint_name": "box"}
        answer = studio.client.post("/endpoints", json={**order, "webui_url": webui.url})
        assert answer.status_code == 200, answer.text
        assert (answer.json()["engine"], answer.json()["webui_url"]) == ("webui", webui.url)
        studio.endpoint("box", lambda e: e["endpoint_status"] == "InService")
        studio.upload(b"\x02\x00\x00\x00\x00\x00\x00\x00{}", "paints.safetensors")
        asked = {
            "task_type": "txt2img",
            "models": {"Stable-diffusion": ["paints.safetensors"]},
            "prompt": "a cat",
            "steps": 1,
            "alwayson_scripts": {"controlnet": {"args": []}},
        }
        job = studio.client.post("/inference/v2", json=asked).json()
        done = until(lambda: studio.job(job["inference_id"]), lambda j: j["status"] not in PASSING)
        assert done["status"] == "succeed", done
        path = studio.data_dir / "objects" / "out" / job["inference_id"] / "result" / "image_0.png"
        with Image.open(path) as picture:
            assert picture.info["parameters"].startswith("a cat\nSteps: 1")
        assert webui.asked[0]["alwayson_scripts"] == {"controlnet": {"args": []}}
        failed = studio.client.post("/inference/v2", json={**asked, "prompt": "explode"}).json()
        ended = until(
            lambda: studio.job(failed["inference_id"]), lambda j: j["status"] not in PASSING
        )
        assert "CUDA out of memory" in ended["error"]


def test_an_endpoint_whose_webui_is_not_there_fails_with_the_reason(studio: Server) -> None:
    order = {"instance_type": "local", "engine": "webui", "endpoint_name": "gone"}
    url = "http://127.0.0.1:9"
    assert studio.client.post("/endpoints", json={**order, "webui_url": url}).status_code == 200
    failed = studio.endpoint("gone", lambda e: e["endpoint_status"] == "Failed")
    assert f"The WebUI at {url} does not answer" in failed["error"]


@pytest.mark.parametrize(
    ("more", "status", "word"),
    [
        ({"engine": "webui"}, 409, "webui_url_missing"),
        (
            {"engine": "webui", "webui_url": "http://a:1", "initial_instance_count": 2},
            409,
            "webui_is_one_instance",
        ),
        ({"webui_url": "http://127.0.0.1:7860"}, 422, "webui_url goes with engine: webui"),
        ({"engine": "webui", "webui_url": "http://me:x@studio"}, 422, "webui_url"),
        ({"engine": "webui", "webui_url": "file:///etc/passwd"}, 422, "webui_url"),
        ({"engine": "comfy"}, 422, "engine"),
    ],
)
def test_what_cannot_be_is_refused(
    studio: Server, more: dict[str, object], status: int, word: str
) -> None:
    answer = studio.client.post("/endpoints", json={"instance_type": "local", **more})
    assert answer.status_code == status, answer.text
    assert word in answer.text


def webui_endpoint(**more: object) -> Endpoint:
    return replace(ENDPOINT, engine=EngineName.WEBUI, **more)  # type: ignore[arg-type]


def test_on_aws_the_engine_is_an_image(cloud: Cloud) -> None:
    with pytest.raises(NotAvailable, match="WebUiEngine=yes"):
        cloud.endpoints.create(webui_endpoint())
    settings: AwsSettings = replace(SETTINGS, webui_image="repository:webui-1")
    cloud.endpoints._settings = settings
    with pytest.raises(Conflict, match="has a WebUI of its own"):
        cloud.endpoints.create(webui_endpoint(webui_url="http://studio"))
    cloud.endpoints.create(webui_endpoint())
    model = cloud.clients.sagemaker.describe_model(ModelName=NAME)
    assert model["PrimaryContainer"]["Image"] == "repository:webui-1"
