"""Users' tokens over HTTP: what each scope opens, quotas, and the end of a token."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.server import Server

MODELS = {"Stable-diffusion": ["absent.safetensors"]}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("tokens") / "var")
    yield server
    server.stop()


def user(server: Server, *scopes: str) -> httpx.Client:
    made = server.client.post("/tokens", json={"user": "anna", "scopes": list(scopes)})
    assert made.status_code == 200, made.text
    headers = {"Authorization": f"Bearer {made.json()['token']}"}
    return httpx.Client(base_url=server.url, headers=headers)


@pytest.mark.parametrize(
    ("method", "path", "body", "scope"),
    [
        ("POST", "/inference/v2", {"task_type": "txt2img", "models": MODELS}, "infer"),
        ("GET", "/inference/list-inference-jobs", None, "infer"),
        ("POST", "/inference/v2/ghost/cancel", None, "infer"),
        ("DELETE", "/inference/v2/ghost", None, "infer"),
        ("PUT", "/checkpoint", {"checkpoint_id": "ghost", "status": "Fail"}, "models"),
        ("DELETE", "/checkpoint?id=ghost", None, "models"),
        ("GET", "/checkpoint/ghost/upload", None, "models"),
        ("GET", "/datasets", None, "train"),
        ("POST", "/endpoints", {"delete_endpoint_list": ["ghost"]}, "admin"),
        ("DELETE", "/endpoints", {"delete_endpoint_list": ["ghost"]}, "admin"),
        ("GET", "/tokens", None, "admin"),
        ("DELETE", "/tokens?id=ghost", None, "admin"),
    ],
)
def test_a_route_opens_to_its_scope_and_to_no_other(
    shared: Server, method: str, path: str, body: object, scope: str
) -> None:
    others = [other for other in ("infer", "models", "train") if other != scope]
    with user(shared, *others) as stranger, user(shared, scope) as allowed:
        refused = stranger.request(method, path, json=body)
        assert (refused.status_code, refused.json()["code"]) == (403, "scope_missing")
        assert f"'{scope}'" in refused.json()["error"]
        assert allowed.request(method, path, json=body).status_code in (200, 404)


def test_every_valid_token_may_look_around(shared: Server) -> None:
    with user(shared, "infer") as anna:
        for path in ("/inference/test-connection", "/endpoints", "/checkpoints"):
            assert anna.get(path).status_code == 200


def test_a_token_is_shown_once_and_ends_when_it_is_revoked(shared: Server) -> None:
    body = {"user": "bert", "scopes": ["infer"], "daily_jobs": 5}
    made = shared.client.post("/tokens", json=body).json()
    listed = shared.client.get("/tokens")
    assert made["token"] not in listed.text
    (shown,) = [token for token in listed.json()["tokens"] if token["id"] == made["id"]]
    assert (shown["user"], shown["daily_jobs"], shown["revoked"]) == ("bert", 5, None)
    with httpx.Client(base_url=shared.url, headers={"x-api-key": made["token"]}) as bert:
        assert bert.get("/inference/test-connection").status_code == 200
        for _ in range(2):
            gone = shared.client.delete("/tokens", params={"id": made["id"]})
            assert gone.json()["token"]["revoked"] is not None
        assert bert.get("/inference/test-connection").status_code == 401


@pytest.mark.parametrize(
    "body",
    [
        {"user": "admin", "scopes": ["infer"]},
        {"user": "../x", "scopes": ["infer"]},
        {"user": "anna", "scopes": []},
        {"user": "anna", "scopes": ["root"]},
        {"user": "anna", "scopes": ["infer"], "daily_jobs": 0},
    ],
)
def test_what_is_no_token_is_refused(shared: Server, body: dict[str, object]) -> None:
    assert shared.client.post("/tokens", json=body).status_code == 422
