"""The WebUI's own API in front of the queue, on a compute side that does what it is told."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from fastapi.testclient import TestClient

from middleware_api import contract
from middleware_api.api.app import create_app
from middleware_api.api.waiting import Gateway
from middleware_api.contract import CheckpointType, InvocationResult, Progress, TaskType
from middleware_api.ports import InvocationFinished
from middleware_api.preprocessors import PREPROCESSORS
from middleware_api.records import InferenceJob
from tests.world import ADMIN_TOKEN, World

TXT2IMG = "/sdapi/v1/txt2img"
REQUEST = {"prompt": "a red circle", "steps": 2}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    made.deploy("studio")
    yield made
    made.database.close()


@pytest.fixture
def client(world: World) -> TestClient:
    return app(world)


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """For requests that are refused before they change anything: nothing is there to change."""
    world = World(tmp_path_factory.mktemp("idle"))
    yield app(world)
    assert jobs(world) == []
    world.database.close()


def app(world: World, gateway: Gateway | None = None) -> TestClient:
    made = create_app(world.services, world.objects, lambda: False, gateway=gateway)
    return TestClient(made, headers={"x-api-key": ADMIN_TOKEN})


def draw(world: World, pictures: int = 1, info: str = '{"a": 1}') -> None:
    """From now on instances make pictures at once."""

    def make(job_id: str) -> None:
        keys = [contract.image_key(job_id, index) for index in range(pictures)]
        for key in keys:
            world.objects.write(key, f"picture {key[-5]}".encode())
        result = InvocationResult(
            job_id=job_id, status="succeed", images=keys, parameters={"steps": 2}, info=info
        )
        world.events.invocation_finished(InvocationFinished(job_id, result=result))

    world.compute.at_once = make


def jobs(world: World) -> list[InferenceJob]:
    """Newest first; a test's clock stands still, so by their order in the compute side."""
    return [world.records.get(InferenceJob, job_id) for job_id in reversed(world.compute.invoked)]


def used(world: World) -> dict[str, list[str]]:
    """The weights of the latest job, by type."""
    found: dict[str, list[str]] = {}
    for checkpoint in jobs(world)[0].checkpoints:
        found.setdefault(checkpoint.type.value, []).append(checkpoint.name)
    return found


def sent(world: World) -> Any:
    """What the engine got for the latest job."""
    job = jobs(world)[0]
    return json.loads(world.objects.read(contract.params_key(job.task_type, job.id)))


def ask(client: TestClient, path: str = TXT2IMG, **fields: object) -> Any:
    answer = client.post(path, json={**REQUEST, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_answer_has_the_pictures_the_parameters_and_the_info(
    world: World, client: TestClient
) -> None:
    world.checkpoint()
    draw(world, pictures=2)
    answer = ask(client)
    assert [base64.b64decode(image) for image in answer["images"]] == [b"picture 0", b"picture 1"]
    assert (answer["parameters"], answer["info"]) == ({"steps": 2}, '{"a": 1}')
    assert ask(client, send_images=False)["images"] == []
    assert {job.task_type for job in jobs(world)} == {TaskType.TXT2IMG}


def test_the_request_names_the_checkpoint_else_the_option_else_it_is_the_newest(
    world: World, client: TestClient
) -> None:
    for name in ("a.safetensors", "b.safetensors", "c.safetensors"):
        world.checkpoint(name)
        world.now += 1
    draw(world)
    ask(client)
    assert used(world) == {"Stable-diffusion": ["c.safetensors"]}
    set_ = client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "b"})
    assert (set_.status_code, set_.json()) == (200, None)
    ask(client)
    assert used(world) == {"Stable-diffusion": ["b.safetensors"]}
    ask(client, override_settings={"sd_model_checkpoint": "a.safetensors"})
    assert used(world) == {"Stable-diffusion": ["a.safetensors"]}
    absent = client.post(
        TXT2IMG, json={**REQUEST, "override_settings": {"sd_model_checkpoint": "x"}}
    )
    assert (absent.status_code, absent.json()["code"]) == (404, "checkpoint_not_found")


def test_a_checkpoint_is_found_by_its_title_and_its_hash(world: World, client: TestClient) -> None:
    world.checkpoint("named.safetensors")
    (listed,) = client.get("/sdapi/v1/sd-models").json()
    assert listed["title"] == f"named.safetensors [{listed['sha256'][:10]}]"
    assert listed["hash"] == listed["sha256"][:10]
    assert (listed["model_name"], listed["filename"]) == ("named", "named.safetensors")
    draw(world)
    for wording in (listed["title"], listed["hash"], listed["sha256"], f"named [{listed['hash']}]"):
        ask(client, override_settings={"sd_model_checkpoint": wording})
    wrong = {"sd_model_checkpoint": "named.safetensors [ffffffffff]"}
    assert client.post(TXT2IMG, json={**REQUEST, "override_settings": wrong}).status_code == 404


def test_without_any_checkpoint_the_way_out_is_told(client: TestClient) -> None:
    answer = client.post(TXT2IMG, json=REQUEST)
    assert answer.status_code == 404
    assert "Upload one first" in answer.json()["error"]
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == ""


def test_what_the_request_names_goes_along(world: World, client: TestClient) -> None:
    world.checkpoint("main.safetensors")
    kinds = {
        "style.safetensors": CheckpointType.LORA,
        "unused.safetensors": CheckpointType.LORA,
        "net.safetensors": CheckpointType.HYPERNETWORKS,
        "easy-neg.safetensors": CheckpointType.EMBEDDINGS,
        "easy.safetensors": CheckpointType.EMBEDDINGS,
        "neg2.safetensors": CheckpointType.EMBEDDINGS,
        "kl.vae.safetensors": CheckpointType.VAE,
        "canny.safetensors": CheckpointType.CONTROLNET,
        "refiner.safetensors": CheckpointType.STABLE_DIFFUSION,
    }
    for name, kind in kinds.items():
        world.checkpoint(name, kind)
    draw(world)
    ask(
        client,
        prompt="a circle <lora:style:0.8> <hypernet:net:1> <lora:absent:1>",
        negative_prompt="(EASY-NEG:1.2), blur, neg23",
        refiner_checkpoint="refiner.safetensors",
        override_settings={"sd_model_checkpoint": "main", "sd_vae": "kl.vae.safetensors"},
        alwayson_scripts={
            "ControlNet": {
                "args": [
                    *({"model": "canny [abcdef12]"}, {"model": "canny"}, "odd"),
                    {"model": "absent", "enabled": False},
                ]
            },
            "ADetailer": {"args": [True, {"model": "unused"}]},
        },
    )
    found = used(world)
    # "easy" is a word of its own within "EASY-NEG": the WebUI's words end at hyphens too.
    assert sorted(found.pop("embeddings")) == ["easy-neg.safetensors", "easy.safetensors"]
    assert found == {
        "Stable-diffusion": ["main.safetensors", "refiner.safetensors"],
        "Lora": ["style.safetensors"],
        "hypernetworks": ["net.safetensors"],
        "VAE": ["kl.vae.safetensors"],
        "ControlNet": ["canny.safetensors"],
    }
    assert sent(world)["refiner_checkpoint"] == "refiner.safetensors"


def test_controlnet_tells_of_its_models_and_preprocessors(world: World, client: TestClient) -> None:
    world.checkpoint("canny.safetensors", CheckpointType.CONTROLNET)
    (name,) = client.get("/controlnet/model_list").json()["model_list"]
    assert name.startswith("canny [")
    modules = client.get("/controlnet/module_list").json()
    assert modules["module_list"] == [each.name for each in PREPROCESSORS]
    assert modules["module_detail"]["canny"] == {
        "model_free": False,
        "sliders": [
            {"name": "Resolution", "value": 512, "min": 64, "max": 2048},
            {"name": "Low Threshold", "value": 100, "min": 1, "max": 255},
            {"name": "High Threshold", "value": 200, "min": 1, "max": 255},
        ],
    }
    menus = client.get("/controlnet/module_list", params={"alias_names": True}).json()
    assert "invert (from white bg & black line)" in menus["module_list"]
    assert client.get("/controlnet/version").json() == {"version": 3}
    assert client.get("/controlnet/settings").json() == {"control_net_unit_count": 10}
    world.checkpoint("main.safetensors")
    draw(world)
    ask(client, alwayson_scripts={"controlnet": {"args": [{"model": name}]}})
    assert used(world)["ControlNet"] == ["canny.safetensors"]


def test_a_controlnets_title_has_another_kind_of_hash(world: World, client: TestClient) -> None:
    world.checkpoint("main.safetensors")
    world.checkpoint("canny.safetensors", CheckpointType.CONTROLNET)
    draw(world)
    unit = {"model": "canny [d14c016b]"}
    ask(client, alwayson_scripts={"controlnet": {"args": [unit]}})
    assert used(world)["ControlNet"] == ["canny.safetensors"]
    for model in ("absent [d14c016b]", "canny [d14c016b00]"):
        scripts = {"controlnet": {"args": [unit | {"model": model}]}}
        refused = client.post(TXT2IMG, json={**REQUEST, "alwayson_scripts": scripts})
        assert (refused.status_code, refused.json()["code"]) == (404, "checkpoint_not_found")


def test_options_are_each_callers_own(world: World, client: TestClient) -> None:
    world.checkpoint("a.safetensors")
    world.now += 1
    world.checkpoint("b.safetensors")
    anna = {"X-On-Behalf-Of": "anna"}
    body = {"sd_model_checkpoint": "a.safetensors", "CLIP_stop_at_last_layers": 2}
    assert client.post("/sdapi/v1/options", json=body, headers=anna).status_code == 200
    own, annas = (client.get("/sdapi/v1/options", headers=h).json() for h in ({}, anna))
    assert own["sd_model_checkpoint"].startswith("b.safetensors")
    assert annas["sd_model_checkpoint"].startswith("a.safetensors")
    assert (own["CLIP_stop_at_last_layers"], annas["CLIP_stop_at_last_layers"]) == (1, 2)
    draw(world)
    client.post(TXT2IMG, json=REQUEST, headers=anna)
    assert sent(world)["override_settings"] == {"CLIP_stop_at_last_layers": 2}
    three = {"CLIP_stop_at_last_layers": 3}
    client.post(TXT2IMG, json={**REQUEST, "override_settings": three}, headers=anna)
    assert sent(world)["override_settings"] == three


def test_an_option_that_is_not_kept_is_refused_and_nothing_is_set(client: TestClient) -> None:
    body = {"CLIP_stop_at_last_layers": 2, "samples_format": "jpg"}
    refused = client.post("/sdapi/v1/options", json=body)
    assert refused.status_code == 422
    (detail,) = refused.json()["detail"]
    assert detail["loc"] == ["body", "samples_format"]
    assert "override_settings" in detail["msg"]
    assert client.get("/sdapi/v1/options").json()["CLIP_stop_at_last_layers"] == 1


def test_a_failed_job_says_why(world: World, client: TestClient) -> None:
    world.checkpoint()

    def fail(job_id: str) -> None:
        world.objects.write(contract.image_key(job_id, 0), b"png")
        world.events.invocation_finished(InvocationFinished(job_id, failure="Out of memory."))

    world.compute.at_once = fail
    answer = client.post(TXT2IMG, json=REQUEST)
    assert (answer.status_code, answer.json()["code"]) == (409, "job_failed")
    assert "Out of memory." in answer.json()["error"]
    assert f"jobID={jobs(world)[0].id}" in answer.json()["error"]


def test_an_interrupted_job_is_answered_with_what_it_had(world: World, client: TestClient) -> None:
    world.checkpoint()

    def interrupt(job_id: str) -> None:
        world.objects.write(contract.image_key(job_id, 0), b"first")
        assert client.post("/sdapi/v1/interrupt").json() == {}
        world.events.invocation_finished(InvocationFinished(job_id, failure="stopped"))

    world.compute.at_once = interrupt
    answer = ask(client)
    assert [base64.b64decode(image) for image in answer["images"]] == [b"first"]
    assert answer["info"] == "{}"


def test_where_a_gateway_waits_no_longer_the_same_request_goes_on_waiting(world: World) -> None:
    world.checkpoint()
    client = app(world, Gateway(seconds=0.15, answer_bytes=6_000_000))
    key = {"Idempotency-Key": "once"}
    first = client.post(TXT2IMG, json=REQUEST, headers=key)
    assert (first.status_code, first.json()["code"]) == (504, "still_running")
    (job,) = jobs(world)
    assert f"get-inference-job?jobID={job.id}" in first.json()["error"]
    draw(world)
    assert world.compute.at_once is not None
    world.compute.at_once(job.id)
    again = client.post(TXT2IMG, json=REQUEST, headers=key)
    assert (again.status_code, len(again.json()["images"])) == (200, 1)
    assert jobs(world) == [world.records.get(InferenceJob, job.id)]


def test_options_changed_meanwhile_do_not_make_another_request_of_it(
    world: World, client: TestClient
) -> None:
    world.checkpoint()
    draw(world)
    key = {"Idempotency-Key": "once"}
    client.post(TXT2IMG, json=REQUEST, headers=key)
    client.post("/sdapi/v1/options", json={"CLIP_stop_at_last_layers": 2})
    assert client.post(TXT2IMG, json=REQUEST, headers=key).status_code == 200
    assert len(jobs(world)) == 1


def test_pictures_that_a_gateway_does_not_pass_on_are_pointed_to(world: World) -> None:
    world.checkpoint()
    draw(world)
    client = app(world, Gateway(seconds=25, answer_bytes=256 * 1024 + 8))
    answer = client.post(TXT2IMG, json=REQUEST)
    assert (answer.status_code, answer.json()["code"]) == (413, "answer_too_large")
    assert "get-inference-job-image-output" in answer.json()["error"]


def test_a_caller_that_hangs_up_is_not_waited_for_and_its_job_goes_on(world: World) -> None:
    world.checkpoint()
    made = create_app(world.services, world.objects, lambda: False)
    heard: list[Any] = []
    body = iter([json.dumps(REQUEST).encode()])

    async def receive() -> dict[str, object]:
        for content in body:
            return {"type": "http.request", "body": content, "more_body": False}
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        heard.append(message)

    async def call() -> None:
        with anyio.fail_after(5):
            await made(scope, receive, send)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "method": "POST",
        "scheme": "http",
        "path": TXT2IMG,
        "query_string": b"",
        "headers": [
            (b"x-api-key", ADMIN_TOKEN.encode()),
            (b"content-type", b"application/json"),
        ],
    }
    anyio.run(call)
    assert heard == []
    assert jobs(world)[0].state is contract.InferenceState.IN_PROGRESS


def test_many_that_wait_leave_room_for_others(world: World) -> None:
    """More than the server has threads."""
    world.checkpoint()
    made = create_app(world.services, world.objects, lambda: False)
    waiting, answers = 60, []

    async def wait(client: httpx.AsyncClient) -> None:
        answers.append((await client.post(TXT2IMG, json=REQUEST)).status_code)

    async def all_of_them() -> int:
        async with (
            httpx.AsyncClient(
                transport=httpx.ASGITransport(made),
                base_url="http://studio.test",
                headers={"x-api-key": ADMIN_TOKEN},
                timeout=60,
            ) as client,
            anyio.create_task_group() as group,
        ):
            for _ in range(waiting):
                group.start_soon(wait, client)
            while len(world.compute.invoked) < waiting:
                assert (await client.get("/sdapi/v1/progress")).status_code == 200
            before_the_end = len(answers)
            draw(world)
            assert world.compute.at_once is not None
            for job_id in world.compute.invoked:
                world.compute.at_once(job_id)
            return before_the_end

    assert anyio.run(all_of_them) == 0
    assert answers == [200] * waiting


def test_a_server_that_stops_tells_how_to_go_on(world: World) -> None:
    world.checkpoint()
    made = create_app(world.services, world.objects, lambda: True)
    client = TestClient(made, headers={"x-api-key": ADMIN_TOKEN})
    answer = client.post(TXT2IMG, json=REQUEST)
    assert answer.status_code == 503
    assert f"jobID={jobs(world)[0].id}" in answer.json()["error"]


def test_progress_is_that_of_the_callers_own_latest_job(world: World, client: TestClient) -> None:
    world.checkpoint()
    idle = client.get("/sdapi/v1/progress").json()
    assert (idle["progress"], idle["state"]["job"], idle["state"]["job_count"]) == (0, "", 0)
    anna = {"X-On-Behalf-Of": "anna"}
    held = app(world, Gateway(seconds=0, answer_bytes=1))
    assert held.post(TXT2IMG, json=REQUEST, headers=anna).status_code == 504
    (job,) = jobs(world)
    written = Progress(
        step=5,
        total_steps=20,
        fraction=0.25,
        phase="sampling",
        started_at=world.now,
        updated_at=world.now + 10,
        has_preview=True,
    )
    world.objects.write(contract.progress_key(job.id), json.dumps(written).encode())
    world.objects.write(contract.preview_key(job.id), b"jpeg")
    seen = client.get("/sdapi/v1/progress", headers=anna).json()
    assert (seen["progress"], seen["textinfo"]) == (0.25, "sampling")
    assert seen["eta_relative"] == 40
    assert base64.b64decode(seen["current_image"]) == b"jpeg"
    state = seen["state"]
    assert (state["job"], state["sampling_step"], state["sampling_steps"]) == (job.id, 5, 20)
    assert not state["interrupted"]
    assert client.get("/sdapi/v1/progress").json() == idle, "an admin sees its own too"
    assert client.post("/sdapi/v1/skip").json() is None
    assert not world.services.inference.files.is_cancelling(job), "nor does it stop others'"
    client.post("/sdapi/v1/skip", headers=anna)
    without = client.get("/sdapi/v1/progress?skip_current_image=true", headers=anna).json()
    assert (without["current_image"], without["state"]["interrupted"]) == (None, True)


def test_extras_need_no_checkpoint(world: World, client: TestClient) -> None:
    draw(world)
    answer = ask(client, "/sdapi/v1/extra-single-image", image="aGk=", upscaler_1="Lanczos")
    assert base64.b64decode(answer["image"]) == b"picture 0"
    assert used(world) == {}
    assert (sent(world)["upscaler_1"], sent(world)["upscaling_resize"]) == ("Lanczos", 2)


def test_a_picture_is_described_by_the_newest_model(world: World, client: TestClient) -> None:
    draw(world, info='{"caption": "a girl"}')
    assert ask(client, "/sdapi/v1/interrogate", image="aGk=") == {"caption": "a girl"}
    assert used(world) == {}, "an engine may have its own"
    for name in ("old.safetensors", "new.safetensors"):
        world.checkpoint(name, CheckpointType.DEEPDANBOORU)
        world.now += 1
    draw(world, info='{"caption": "1girl, solo"}')
    answer = ask(client, "/sdapi/v1/interrogate", image="aGk=", model="deepbooru")
    assert answer == {"caption": "1girl, solo"}
    assert used(world) == {"torch_deepdanbooru": ["new.safetensors"]}
    assert sent(world)["model"] == "deepbooru"


def test_upscalers_that_are_models_go_along(world: World, client: TestClient) -> None:
    names = ("4x_a.safetensors", "4x_b.safetensors")
    for name in names:
        world.checkpoint(name, CheckpointType.ESRGAN)
    listed = client.get("/sdapi/v1/upscalers").json()
    assert {u["name"] for u in listed} == {"None", "Lanczos", "Nearest", "4x_a", "4x_b"}
    draw(world)
    body = {"imageList": [{"data": "aGk=", "name": "x"}], "upscaler_1": "4x_a"}
    answer = ask(client, "/sdapi/v1/extra-batch-images", **body, upscaler_2=names[1])
    assert [base64.b64decode(image) for image in answer["images"]] == [b"picture 0"]
    assert {name: sorted(files) for name, files in used(world).items()} == {"ESRGAN": [*names]}
    missing = client.post("/sdapi/v1/extra-batch-images", json=body | {"upscaler_2": "LDSR"})
    assert missing.status_code == 404
    assert "no Active ESRGAN checkpoint 'LDSR'" in missing.json()["error"]


@pytest.mark.parametrize(
    ("path", "fields", "upscalers"),
    [
        ("txt2img", {"hr_upscaler": "4x_a", "enable_hr": True}, ["4x_a.safetensors"]),
        ("txt2img", {"hr_upscaler": "4x_a"}, []),
        ("txt2img", {"hr_upscaler": "Latent", "enable_hr": True}, []),
        ("txt2img", {"override_settings": {"upscaler_for_img2img": "4x_a"}}, []),
        (
            "img2img",
            {"init_images": ["x"], "override_settings": {"upscaler_for_img2img": "4x_a"}},
            ["4x_a.safetensors"],
        ),
    ],
)
def test_only_the_upscaler_that_is_used_goes_along(
    world: World, client: TestClient, path: str, fields: dict[str, object], upscalers: list[str]
) -> None:
    world.checkpoint("main.safetensors")
    world.checkpoint("4x_a.safetensors", CheckpointType.ESRGAN)
    draw(world)
    ask(client, f"/sdapi/v1/{path}", **fields)
    assert used(world).get("ESRGAN", []) == upscalers


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("txt2img", {"steps": 501}, ["body", "steps"]),
        ("txt2img", {"prompt": "x" * 40_000}, ["body", "prompt"]),
        ("txt2img", {"script_name": "x/y/z plot"}, ["body", "script_name"]),
        (
            "txt2img",
            {"override_settings": {"CLIP_stop_at_last_layers": 13}},
            ["body", "override_settings", "CLIP_stop_at_last_layers"],
        ),
        ("img2img", {}, ["body", "init_images"]),
        ("img2img", {"init_images": []}, ["body", "init_images"]),
        ("extra-single-image", {"image": "x", "upscaling_resize": 0}, ["body", "upscaling_resize"]),
        ("png-info", {"image": "aGVsbG8="}, ["body", "image"]),
        ("png-info", {"image": "?"}, ["body", "image"]),
    ],
)
def test_what_does_not_fit_is_refused_before_a_job_is_made(
    idle: TestClient, path: str, body: dict[str, object], place: list[str]
) -> None:
    answer = idle.post(f"/sdapi/v1/{path}", json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][: len(place)] == place


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "cmd-flags")],
)
def test_what_is_not_here_says_so(idle: TestClient, method: str, path: str) -> None:
    body = {} if method == "POST" else None
    answer = idle.request(method, f"/sdapi/v1/{path}", json=body)
    assert (answer.status_code, answer.json()["code"]) == (501, "not_available")


def test_lists_show_the_newest_of_one_name_and_cost_one_query(
    world: World, client: TestClient
) -> None:
    kinds = {
        "loras": CheckpointType.LORA,
        "hypernetworks": CheckpointType.HYPERNETWORKS,
        "embeddings": CheckpointType.EMBEDDINGS,
        "sd-vae": CheckpointType.VAE,
    }
    for path, kind in kinds.items():
        for _ in range(2):
            world.checkpoint(f"{path}.safetensors", kind)
            world.now += 1
    assert client.get("/sdapi/v1/loras").json() == [
        {"name": "loras", "alias": "loras", "path": "loras.safetensors", "metadata": {}}
    ]
    assert client.get("/sdapi/v1/hypernetworks").json() == [
        {"name": "hypernetworks", "path": "hypernetworks.safetensors"}
    ]
    assert list(client.get("/sdapi/v1/embeddings").json()["loaded"]) == ["embeddings"]
    assert client.get("/sdapi/v1/sd-vae").json() == [
        {"model_name": "sd-vae.safetensors", "filename": "sd-vae.safetensors"}
    ]


def test_a_stranger_and_a_token_without_the_right_are_refused(
    world: World, client: TestClient
) -> None:
    assert client.post(TXT2IMG, json=REQUEST, headers={"x-api-key": "no"}).status_code == 401
    _, text = world.services.access.create("anna", [contract.Scope.MODELS], None)
    for path in ("txt2img", "interrupt", "options"):
        answer = client.post(f"/sdapi/v1/{path}", json={}, headers={"x-api-key": text})
        assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing")


def test_the_routes_are_there_from_the_first_request_on(world: World) -> None:
    """They are made only then: a stranger, a stage and a wrong method find them as they should."""
    assert app(world).get("/prod/sdapi/v1/samplers").status_code == 200
    assert app(world).get(TXT2IMG, headers={"x-api-key": "no"}).status_code == 401
    wrong = app(world).get(TXT2IMG)
    assert (wrong.status_code, wrong.headers["Allow"]) == (405, "POST")
    assert app(world).get("/sdapi/v1/nothing").status_code == 404
    assert TXT2IMG in app(world).get("/openapi.json").json()["paths"]
