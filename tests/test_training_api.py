"""The routes of models and training jobs (rows 17-19 and 23-25): a whole life over a pretend
compute side, and refusals on a real server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from middleware_api import contract
from middleware_api.bootstrap import make_services
from middleware_api.contract import TrainState
from middleware_api.embedded.middleware import embedded
from middleware_api.embedded.objects import FolderObjects
from middleware_api.embedded.server import embedded_app
from middleware_api.ports import TrainingChanged
from middleware_api.services.events import EventHandlers
from middleware_api.settings import Settings
from tests.pretend_training import PretendTrainingJobs
from tests.server import Server
from tests.weights import safetensors
from tests.world import NO_FETCHER

KIND = "Stable-diffusion"
ADMIN_TOKEN = "the deployment's own token"
PARAMS = {
    "training_params": {
        "data_tar_list": ["s3://embedded/dataset/dogs"],
        "class_data_tar_list": [""],
        "training_instance_type": "ml.g5.2xlarge",
    },
    "config_params": {
        "concepts_list": [
            {"instance_data_dir": "s3:///dataset/dogs/", "class_data_dir": "", "sample_seed": -1}
        ],
        "num_train_epochs": 100,
        "use_lora": True,
        "revision": None,
    },
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server whose training program is never asked."""
    running = Server(tmp_path_factory.mktemp("training") / "var")
    yield running
    running.stop()


def post_model(client: httpx.Client, **changes: object) -> httpx.Response:
    body = {
        "model_type": "Stable-diffusion",
        "name": "dog",
        "filenames": [{"filename": "v1-5.safetensors.tar", "parts_number": 1}],
        "params": {"create_model_params": {"is_512": True}},
    }
    return client.post("/model", json={**body, **changes})


def upload(client: httpx.Client, job: dict[str, Any]) -> dict[str, list[dict[str, object]]]:
    """Send a new model's only part; returns the tags."""
    (target,) = job["s3PresignUrl"]
    sent = client.put(target["parts"][0]["url"], content=safetensors())
    assert sent.status_code == 200, sent.text
    return {target["filename"]: [{"PartNumber": 1, "ETag": sent.headers["ETag"]}]}


def post_dataset(client: httpx.Client, name: str = "dogs") -> None:
    content = [{"filename": "/home/me/one.png", "name": "one.png", "type": "png"}]
    made = client.post("/dataset", json={"dataset_name": name, "content": content})
    assert made.status_code == 200, made.text
    client.put(made.json()["s3PresignUrl"][0]["url"], content=b"png").raise_for_status()
    client.put("/dataset", json={"dataset_name": name, "status": "Enabled"}).raise_for_status()


@dataclass
class Rehearsal:
    """The application in this process, over a compute side that the test speaks for."""

    client: httpx.Client
    training: PretendTrainingJobs
    events: EventHandlers
    objects: FolderObjects


@pytest.fixture
def rehearsal(tmp_path: Path) -> Iterator[Rehearsal]:
    settings = Settings("127.0.0.1", 0, tmp_path, ADMIN_TOKEN, None, 3600.0)
    middleware = embedded(settings, "http://store.test")
    training = PretendTrainingJobs()
    middleware.services = make_services(
        middleware.records,
        middleware.objects,
        middleware.endpoints,
        training,
        middleware.runners,
        NO_FETCHER,
        ADMIN_TOKEN,
        time.time,
    )
    # Not entered: nothing is started that would have to be stopped.
    client = TestClient(embedded_app(middleware), headers={"x-api-key": ADMIN_TOKEN})
    yield Rehearsal(client, training, EventHandlers(middleware.services), middleware.objects)
    client.close()
    middleware.database.close()


def test_the_routes_tell_a_trainings_whole_life(rehearsal: Rehearsal) -> None:
    client, events = rehearsal.client, rehearsal.events
    post_dataset(client)
    made = post_model(client).json()
    model_id = made["job"]["id"]
    folder = f"s3://embedded/Stable-diffusion/model/dog/{model_id}"
    assert made["statusCode"] == 200
    assert {key: made["job"][key] for key in ("status", "s3_base", "model_type", "params")} == {
        "status": "Initial",
        "s3_base": folder,
        "model_type": "Stable-diffusion",
        "params": {"create_model_params": {"is_512": True}},
    }
    creating = client.put(
        "/model",
        json={
            "model_id": model_id,
            "status": "Creating | Fail",
            "multi_parts_tags": upload(client, made["job"]),
        },
    )
    assert creating.json() == {
        "statusCode": 200,
        "job": {
            "output_path": f"{folder}/output/",
            "id": model_id,
            "endpointName": f"model-{model_id}",
            "jobStatus": "Creating",
            "jobType": "Stable-diffusion",
            "error": "",
        },
    }
    events.training_changed(TrainingChanged(model_id, TrainState.COMPLETE))
    (listed,) = client.get("/models", params={"types": KIND, "status": "Complete"}).json()["models"]
    assert (listed["id"], listed["model_name"], listed["status"]) == (model_id, "dog", "Complete")
    assert listed["output_s3_location"] == f"{folder}/output/"
    assert listed["created"] == pytest.approx(time.time(), abs=60)

    body = {"train_type": "Stable-diffusion", "model_id": model_id, "params": PARAMS}
    created = client.put("/inference/v2/{id}/run", json=body, headers={"Idempotency-Key": "k"})
    job = created.json()["job"]
    assert set(created.json()) == {"statusCode", "job", "s3PresignUrl"}
    assert created.json()["s3PresignUrl"] is None
    assert (job["status"], job["trainType"], job["params"]) == ("Initial", KIND, PARAMS)
    assert job["input_location"] == f"s3://embedded/Stable-diffusion/train/dog/{job['id']}/input"
    again = client.post("/train", json=body, headers={"Idempotency-Key": "k"})
    assert again.json() == created.json()

    started = client.put("/train", json={"train_job_id": job["id"], "status": "Training"})
    assert started.json() == {"statusCode": 200, "job": {**job, "status": "Training"}}
    input_prefix, output_prefix = rehearsal.training.prefixes[job["id"]]
    order = json.loads(rehearsal.objects.read(contract.order_key(input_prefix)))
    assert order["datasets"] == {"dogs": "dataset/dogs/"}
    near = client.get("/train", params={"train_job_id": job["id"]}).json()["job"]
    assert (near["params"], near["losses"], near["samples"]) == (PARAMS, [], [])
    rehearsal.objects.write(f"{output_prefix}dog.safetensors", safetensors())
    events.training_changed(TrainingChanged(job["id"], TrainState.COMPLETE))
    (done,) = client.get("/trains", params={"types": KIND, "status": "Complete"}).json()[
        "trainJobs"
    ]
    ran = done["completed"] - done["started"]
    assert 0 <= ran < 60
    assert done == {
        "id": job["id"],
        "started": done["started"],
        "completed": done["completed"],
        "instance_type": "ml.g5.2xlarge",
        "steps": 0,
        "step_seconds": None,
        "estimated_cost": pytest.approx(1.515 * ran / 3600),
        "modelName": "dog",
        "status": "Complete",
        "trainType": "Stable-diffusion",
        "created": job["created"],
        "sagemakerTrainName": f"train-{job['id']}",
        "progress": 1.0,
        "loss": None,
        "error": "",
        "checkpoint_id": job["id"],
    }
    checkpoint = client.get("/checkpoint", params={"id": done["checkpoint_id"]}).json()
    assert checkpoint["checkpoint"]["status"] == "Active"
    for path, thing in (("/train", job["id"]), ("/model", model_id)):
        assert client.delete(path, params={"id": thing}).status_code == 200
        assert client.delete(path, params={"id": thing}).status_code == 404


def test_a_stop_is_answered_with_the_jobs_true_state(rehearsal: Rehearsal) -> None:
    client = rehearsal.client
    model_id = post_model(client).json()["job"]["id"]
    body = {"train_type": "Stable-diffusion", "model_id": model_id, "params": {}}
    job_id = client.post("/train", json=body).json()["job"]["id"]
    early = client.put("/train", json={"train_job_id": job_id, "status": "Training"})
    assert (early.status_code, early.json()["code"]) == (409, "model_not_complete")
    stopped = client.put("/train", json={"train_job_id": job_id, "status": "Stopped"})
    assert stopped.json()["job"]["status"] == "Stopped"


def test_a_model_asked_for_again_goes_on_where_its_upload_stopped(shared: Server) -> None:
    shared.client.headers["Idempotency-Key"] = "again"
    first = post_model(shared.client, name="again").json()["job"]
    upload(shared.client, first)
    second = post_model(shared.client, name="again").json()["job"]
    other = post_model(shared.client, name="other")
    del shared.client.headers["Idempotency-Key"]
    assert second["id"] == first["id"]
    assert second["s3PresignUrl"][0]["parts"] == []
    assert [part["PartNumber"] for part in second["s3PresignUrl"][0]["arrived"]] == [1]
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")


def test_models_and_jobs_need_the_scope_train_and_are_private(shared: Server) -> None:
    def user(name: str, scope: str) -> httpx.Client:
        made = shared.client.post("/tokens", json={"user": name, "scopes": [scope]})
        return httpx.Client(base_url=shared.url, headers={"x-api-key": made.json()["token"]})

    with user("anna", "train") as anna, user("ben", "train") as ben, user("cleo", "infer") as cleo:
        model_id = post_model(anna).json()["job"]["id"]
        body = {"train_type": "Stable-diffusion", "model_id": model_id, "params": {}}
        job_id = anna.put("/inference/v2/x/run", json=body).json()["job"]["id"]
        assert post_model(cleo).status_code == 403
        assert cleo.put("/inference/v2/x/run", json=body).status_code == 403
        assert anna.put("/inference/v2/x/run").status_code == 403, "it runs inference"
        assert cleo.put("/inference/v2/x/run").status_code == 404
        for path in ("/models", "/trains"):
            assert cleo.get(path).status_code == 403
            assert list(ben.get(path).json().values())[1] == []
            assert len(list(anna.get(path).json().values())[1]) == 1
        assert ben.post("/train", json=body).status_code == 404
        for method, path, query, sent in (
            ("PUT", "/model", {}, {"model_id": model_id, "status": "Fail"}),
            ("PUT", "/train", {}, {"train_job_id": job_id, "status": "Stopped"}),
            ("DELETE", "/model", {"id": model_id}, None),
            ("DELETE", "/train", {"id": job_id}, None),
        ):
            refused = ben.request(method, path, params=query, json=sent)
            assert refused.status_code == 404
            allowed = shared.client.request(method, path, params=query, json=sent)
            assert allowed.status_code == 200, allowed.text


FILES = [{"filename": "a.safetensors"}]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "says"),
    [
        ("POST", "/model", None, 422, "body"),
        ("POST", "/model", {"model_type": "x", "name": "m", "filenames": FILES}, 422, "model_type"),
        ("POST", "/model", {"model_type": KIND, "name": "../m", "filenames": FILES}, 422, "a name"),
        ("POST", "/model", {"model_type": KIND, "name": "m"}, 422, "checkpoint_id"),
        (
            "POST",
            "/model",
            {"model_type": KIND, "name": "m", "filenames": FILES, "checkpoint_id": "c"},
            422,
            "either",
        ),
        ("POST", "/model", {"model_type": KIND, "name": "m", "filenames": FILES * 2}, 422, "twice"),
        (
            "POST",
            "/model",
            {"model_type": KIND, "name": "m", "filenames": [{"filename": "a/b"}]},
            422,
            "a name",
        ),
        ("POST", "/model", {"model_type": KIND, "name": "m", "checkpoint_id": "ghost"}, 404, "gh"),
        ("PUT", "/model", None, 422, "body"),
        ("PUT", "/model", {"model_id": "ghost", "status": "Creating"}, 404, "ghost"),
        ("PUT", "/model", {"model_id": "ghost", "status": "Complete"}, 422, "Creating"),
        ("DELETE", "/model", None, 422, "id"),
        ("DELETE", "/model?id=ghost", None, 404, "ghost"),
        ("GET", "/models?types=Nonsense", None, 422, "Stable-diffusion"),
        ("GET", "/models?status=Training", None, 422, "Creating"),
        ("POST", "/train", {"model_id": "ghost", "params": {}}, 422, "train_type"),
        ("POST", "/train", {"train_type": KIND, "model_id": "ghost", "params": {}}, 404, "ghost"),
        ("PUT", "/inference/v2/x/run", {"train_type": KIND}, 422, "model_id"),
        ("PUT", "/inference/v2/x/run", {"train_type": "x", "model_id": "m"}, 422, "train_type"),
        ("POST", "/inference/v2/x/run", [], 422, "body"),
        ("PUT", "/train", {"train_job_id": "ghost", "status": "Training"}, 404, "ghost"),
        ("PUT", "/train", {"train_job_id": "ghost", "status": "Complete"}, 422, "Stopped"),
        ("DELETE", "/train?id=ghost", None, 404, "ghost"),
        ("GET", "/trains?types=Nonsense", None, 422, "Stable-diffusion"),
        ("GET", "/trains?cursor=nonsense", None, 422, "X-Next-Cursor"),
    ],
)
def test_refusals_say_what_and_why(
    shared: Server, method: str, path: str, body: object, status: int, says: str
) -> None:
    answer = shared.client.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert says in answer.text


@pytest.mark.parametrize(
    ("params", "status", "place"),
    [
        ({"training_params": {"training_instance_type": "big one"}}, 422, "training_instance_type"),
        ({"training_params": {"data_tar_list": "s3://x"}}, 422, "data_tar_list"),
        ({"training_params": {"data_tar_list": ["/etc/passwd"]}}, 422, "data_tar_list"),
        ({"training_params": {"data_tar_list": ["s3://embedded/uploads/x"]}}, 422, "/dataset/"),
        ({"training_params": {"class_data_tar_list": ["s3://other/dataset/x"]}}, 422, "embedded"),
        ({"training_params": {"data_tar_list": ["s3:///dataset/"]}}, 404, "no data set named ''"),
        ({"training_params": {"data_tar_list": ["s3:///dataset/ghost"]}}, 404, "ghost"),
        ({"config_params": {"num_train_epochs": 0}}, 422, "num_train_epochs"),
        ({"config_params": {"use_lora": "perhaps"}}, 422, "use_lora"),
        (
            {"config_params": {"concepts_list": [{"instance_data_dir": "s3://embedded/out/x"}]}},
            422,
            "instance_data_dir",
        ),
        ({"config_params": {"concepts_list": [{"class_data_dir": "s3:///dataset/y"}]}}, 404, "'y'"),
    ],
)
def test_training_is_told_only_what_it_may_read(
    shared: Server, params: object, status: int, place: str
) -> None:
    model_id = post_model(shared.client).json()["job"]["id"]
    answer = shared.client.post(
        "/train", json={"train_type": KIND, "model_id": model_id, "params": params}
    )
    assert answer.status_code == status, answer.text
    assert place in answer.text


def test_lists_go_page_by_page(server: Server) -> None:
    ids = [post_model(server.client, name=f"m{n}").json()["job"]["id"] for n in range(3)]
    for path, field in (("/models", "models"), ("/trains", "trainJobs")):
        if path == "/trains":
            ids = [
                server.client.post(
                    "/train", json={"train_type": KIND, "model_id": model, "params": {}}
                ).json()["job"]["id"]
                for model in ids
            ]
        first = server.client.get(path, params={"limit": 2})
        cursor = first.headers["X-Next-Cursor"]
        assert first.json()["next_cursor"] == cursor
        second = server.client.get(path, params={"limit": 2, "cursor": cursor}).json()
        seen = [thing["id"] for thing in (*first.json()[field], *second[field])]
        assert seen == ids[::-1]
        assert second["next_cursor"] is None
