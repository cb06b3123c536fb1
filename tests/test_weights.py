"""Rows 11-15 on a real server: lists of weights files, and plain uploads."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.server import Server
from tests.weights import safetensors

URL_PATH = "/inference/generate-s3-presigned-url-for-uploading"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("weights") / "var")
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("get-texual-inversion-list", "embeddings"),
        ("get-lora-list", "Lora"),
        ("get-hypernetwork-list", "hypernetworks"),
        ("get-controlnet-model-list", "ControlNet"),
    ],
)
def test_each_list_has_the_active_names_of_its_type(shared: Server, path: str, kind: str) -> None:
    path = f"/inference/{path}"
    assert shared.client.get(path).json() == []
    shared.upload(safetensors(b"one"), "one.safetensors", kind)
    two = shared.upload(safetensors(b"two"), "two.safetensors", kind)
    assert shared.client.get(path).json() == ["two.safetensors", "one.safetensors"]
    page = shared.client.get(path, params={"limit": 1})
    rest = shared.client.get(path, params={"cursor": page.headers["X-Next-Cursor"]})
    assert (page.json(), rest.json()) == (["two.safetensors"], ["one.safetensors"])
    disabled = {"checkpoint_id": two, "status": "Disabled"}
    assert shared.client.put("/checkpoint", json=disabled).status_code == 200
    assert shared.client.get(path).json() == ["one.safetensors"]


def test_a_plain_upload_lands_under_its_key(shared: Server) -> None:
    for bucket in ({}, {"s3_bucket_name": "embedded"}):
        url = shared.client.get(URL_PATH, params={"key": "uploads/notes/a.txt", **bucket}).json()
        assert httpx.put(url, content=b"text").status_code == 200
    assert (shared.data_dir / "objects/uploads/notes/a.txt").read_bytes() == b"text"


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ({"key": "out/x/result/image_0.png"}, 403, "key_not_allowed"),
        ({"key": "uploads"}, 403, "key_not_allowed"),
        ({"key": "uploads/a", "s3_bucket_name": "another"}, 403, "bucket_not_ours"),
        ({"key": "uploads/../a"}, 422, None),
        ({"key": "uploads//a"}, 422, None),
        ({"key": "uploads/a\nb"}, 422, None),
        ({}, 422, None),
    ],
)
def test_no_other_place_can_be_written(
    shared: Server, query: dict[str, str], status: int, code: str | None
) -> None:
    answer = shared.client.get(URL_PATH, params=query)
    assert answer.status_code == status, answer.text
    if code is not None:
        assert answer.json()["code"] == code


def test_a_user_writes_under_the_own_name_alone(shared: Server) -> None:
    made = shared.client.post("/tokens", json={"user": "anna", "scopes": ["models"]}).json()
    with httpx.Client(base_url=shared.url, headers={"x-api-key": made["token"]}) as anna:
        assert anna.get(URL_PATH, params={"key": "uploads/anna/x"}).status_code == 200
        for key in ("uploads/x", "uploads/annabel/x", "uploads/anna"):
            assert anna.get(URL_PATH, params={"key": key}).status_code == 403, key
