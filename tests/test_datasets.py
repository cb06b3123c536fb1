"""Data sets over HTTP, on a real server: rows 26-29, their refusals, and whose they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server import Server


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("datasets") / "var")
    yield server
    server.stop()


def create(server: Server, name: str, *files: str) -> dict[str, Any]:
    content = [{"filename": f"/home/me/{file}", "name": file, "type": "png"} for file in files]
    answer = server.client.post("/dataset", json={"dataset_name": name, "content": content})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def enable(server: Server, name: str, status: str = "Enabled") -> httpx.Response:
    return server.client.put("/dataset", json={"dataset_name": name, "status": status})


def test_a_data_set_from_its_first_file_to_its_end(shared: Server) -> None:
    made = create(shared, "cats", "one.png", "two.png")
    first, second = made["s3PresignUrl"]
    assert (made["statusCode"], made["datasetName"]) == (200, "cats")
    assert first["filename"] == "/home/me/one.png"
    assert first["s3"] == "s3://embedded/dataset/cats/one.png"
    httpx.put(first["url"], content=b"one").raise_for_status()

    early = enable(shared, "cats")
    assert early.status_code == 409
    assert "1 of 2 files" in early.json()["error"]
    assert "'two.png'" in early.json()["error"]

    httpx.put(second["url"], content=b"two").raise_for_status()
    for _ in range(2):  # the answer may have been lost
        assert enable(shared, "cats").json() == {
            "statusCode": 200,
            "datasetName": "cats",
            "status": "Enabled",
        }
    for path in ("/cats/data", "/dataset/cats/data"):
        shown = shared.client.get(path).json()
        assert [file["name"] for file in shown["data"]] == ["one.png", "two.png"]
        assert {file["dataStatus"] for file in shown["data"]} == {"Enabled"}
        assert httpx.get(shown["data"][1]["preview_url"]).content == b"two"
    assert enable(shared, "cats", "Disabled").json()["status"] == "Disabled"

    assert shared.client.delete("/dataset", params={"name": "cats"}).status_code == 200
    assert shared.client.get("/cats/data").status_code == 404
    assert httpx.get(shown["data"][1]["preview_url"]).status_code == 404
    create(shared, "cats", "three.png")


def test_the_list_has_filters_and_pages(shared: Server) -> None:
    for number in range(3):
        create(shared, f"listed-{number}", "a.png")
    assert enable(shared, "listed-1", "Disabled").status_code == 200
    found = shared.client.get("/datasets", params={"dataset_status": "Disabled"}).json()
    assert [item["datasetName"] for item in found["datasets"]] == ["listed-1"]
    page = shared.client.get("/datasets", params={"limit": 2})
    assert [item["datasetName"] for item in page.json()["datasets"]] == ["listed-2", "listed-1"]
    cursor = page.headers["X-Next-Cursor"]
    assert page.json()["next_cursor"] == cursor
    rest = shared.client.get("/datasets", params={"cursor": cursor}).json()
    assert rest["datasets"][0]["datasetName"] == "listed-0"
    assert rest["datasets"][0]["s3"] == "s3://embedded/dataset/listed-0/"


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"dataset_name": "x", "content": []}, 422, "content"),
        ({"dataset_name": "../x", "content": [{"filename": "a", "name": "a"}]}, 422, "name"),
        ({"dataset_name": "x", "content": [{"filename": "a", "name": "../a"}]}, 422, "name"),
        ({"dataset_name": "x", "content": [{"filename": "a", "name": "a"}] * 2}, 422, "twice"),
        ({"dataset_name": "taken", "content": [{"filename": "a", "name": "a"}]}, 409, "taken"),
    ],
)
def test_what_is_no_data_set_is_refused(
    shared: Server, body: dict[str, object], status: int, says: str
) -> None:
    if status == 409:
        create(shared, "taken", "a")
    answer = shared.client.post("/dataset", json=body)
    assert answer.status_code == status, answer.text
    assert says in answer.text


def test_unknown_names_and_states_are_refused(shared: Server) -> None:
    assert enable(shared, "ghost").status_code == 404
    assert enable(shared, "ghost", "Initialed").status_code == 422
    assert shared.client.get("/ghost/data").json()["code"] == "dataset_not_found"
    assert shared.client.delete("/dataset", params={"name": "ghost"}).status_code == 404
    create(shared, "given up", "a.png")
    assert enable(shared, "given up", "Disabled").status_code == 200
    assert enable(shared, "given up").status_code == 409


def test_a_data_set_is_its_owners_alone(shared: Server) -> None:
    create(shared, "private", "a.png")
    token = shared.client.post("/tokens", json={"user": "anna", "scopes": ["train"]}).json()
    with httpx.Client(base_url=shared.url, headers={"x-api-key": token["token"]}) as anna:
        assert anna.get("/private/data").status_code == 404
        assert anna.delete("/dataset", params={"name": "private"}).status_code == 404
        assert anna.get("/datasets").json()["datasets"] == []
        assert anna.get("/inference/list-inference-jobs").status_code == 403
        mine = {"dataset_name": "annas", "content": [{"filename": "a", "name": "a"}]}
        assert anna.post("/dataset", json=mine).status_code == 200
        assert [d["datasetName"] for d in anna.get("/datasets").json()["datasets"]] == ["annas"]
    assert shared.client.get("/annas/data").status_code == 200, "an administrator sees all"


def write(server: Server, name: str, *files: str) -> httpx.Response:
    content = [{"filename": file, "name": file, "type": "txt"} for file in files]
    return server.client.post(f"/dataset/{name}/files", json={"content": content})


def files_of(server: Server, name: str) -> dict[str, int | None]:
    shown = server.client.get(f"/dataset/{name}/data").json()
    return {file["name"]: file["size"] for file in shown["data"]}


def state_of(server: Server, name: str) -> str:
    listed = server.client.get("/datasets").json()["datasets"]
    return next(one["status"] for one in listed if one["datasetName"] == name)


def test_a_caption_is_written_anew_and_another_one_added(shared: Server) -> None:
    made = create(shared, "dogs", "a.png", "a.txt")
    assert files_of(shared, "dogs") == {"a.png": None, "a.txt": None}
    for target in made["s3PresignUrl"]:
        httpx.put(target["url"], content=b"old").raise_for_status()
    enable(shared, "dogs").raise_for_status()

    (target,) = write(shared, "dogs", "a.txt").json()["s3PresignUrl"]
    httpx.put(target["url"], content=b"a dog").raise_for_status()
    assert files_of(shared, "dogs") == {"a.png": 3, "a.txt": 5}
    assert state_of(shared, "dogs") == "Enabled"

    answer = write(shared, "dogs", "a.txt", "b.txt").json()
    assert [target["filename"] for target in answer["s3PresignUrl"]] == ["a.txt", "b.txt"]
    assert state_of(shared, "dogs") == "Disabled", "nobody trains on what has not arrived"
    assert enable(shared, "dogs").status_code == 409
    httpx.put(answer["s3PresignUrl"][1]["url"], content=b"b").raise_for_status()
    assert enable(shared, "dogs").status_code == 200
    listed = shared.client.get("/datasets").json()["datasets"]
    assert next(one["files"] for one in listed if one["datasetName"] == "dogs") == 3


def test_files_are_taken_out_one_by_one_but_not_the_last(shared: Server) -> None:
    made = create(shared, "birds", "a.png", "b.png", "c.png")
    httpx.put(made["s3PresignUrl"][0]["url"], content=b"a").raise_for_status()
    url = "/dataset/birds/files"
    gone = shared.client.get("/dataset/birds/data").json()["data"][0]["preview_url"]
    answer = shared.client.delete(url, params={"name": ["a.png", "b.png"]})
    assert answer.json()["datasetName"] == "birds"
    assert files_of(shared, "birds") == {"c.png": None}
    assert httpx.get(gone).status_code == 404
    again = shared.client.delete(url, params={"name": "a.png"})
    assert (again.status_code, again.json()["code"]) == (404, "dataset_file_not_found")
    last = shared.client.delete(url, params={"name": "c.png"})
    assert (last.status_code, last.json()["code"]) == (409, "no_files_left")
    assert files_of(shared, "birds") == {"c.png": None}


def test_a_data_set_has_its_bound_however_it_grows(shared: Server) -> None:
    create(shared, "many", *(f"{n}.png" for n in range(1000)))
    refused = write(shared, "many", "0.png", "one more.png")
    assert (refused.status_code, refused.json()["code"]) == (409, "too_many_files")
    assert write(shared, "many", "0.png").status_code == 200
    assert write(shared, "many", "../0.png").status_code == 422
    assert write(shared, "nobody's", "0.png").status_code == 404
